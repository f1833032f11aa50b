//! What articles say about people, and how a summary states it.

use super::words::{AMOUNTS, CITIES, DAYS, EVENTS, OBJECTS, ROLES, STATING, VERBS};

/// Something about a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fact {
    /// What the person is, and where.
    Role {
        /// Occupation.
        role: &'static str,
        /// Place.
        city: &'static str,
    },
    /// What the person did.
    Deed {
        /// In the past.
        verb: &'static str,
        /// To what.
        object: &'static str,
        /// When.
        day: &'static str,
    },
    /// What it cost the person.
    Cost {
        /// In dollars.
        amount: &'static str,
    },
    /// Why the person acted.
    Cause {
        /// What happened before.
        event: &'static str,
    },
}

impl Fact {
    /// The words that tell the fact from others of its kind, in the order of the summary.
    pub fn words(&self) -> Vec<&'static str> {
        match *self {
            Self::Role { role, city } => vec![role, city],
            Self::Deed { verb, object, day } => vec![verb, object, day],
            Self::Cost { amount } => vec![amount],
            Self::Cause { event } => vec![event],
        }
    }

    /// Place of the kind in the lists of templates.
    pub(super) fn kind(&self) -> usize {
        match self {
            Self::Role { .. } => 0,
            Self::Deed { .. } => 1,
            Self::Cost { .. } => 2,
            Self::Cause { .. } => 3,
        }
    }

    /// A template with the fact's words in its places.
    pub(super) fn fill(&self, template: &str) -> String {
        let places: &[&str] = match self {
            Self::Role { .. } => &["{role}", "{city}"],
            Self::Deed { .. } => &["{verb}", "{object}", "{day}"],
            Self::Cost { .. } => &["{amount}"],
            Self::Cause { .. } => &["{event}"],
        };
        let fill = |text: String, (place, word): (&&str, &str)| text.replace(place, word);
        places.iter().zip(self.words()).fold(template.to_owned(), fill)
    }

    /// The fact as a summary states it.
    pub fn statement(&self) -> String {
        self.fill(STATING[self.kind()])
    }

    /// The fact that a statement states.
    pub(super) fn read(statement: &str) -> Option<Self> {
        let known = |list: &[&'static str], word: &str| list.iter().copied().find(|w| *w == word);
        let words: Vec<&str> = statement.split_whitespace().collect();
        Some(match words[..] {
            ["paid", amount] => Self::Cost { amount: known(&AMOUNTS, amount)? },
            ["after", event] => Self::Cause { event: known(&EVENTS, event)? },
            [role, "in", city] => {
                Self::Role { role: known(&ROLES, role)?, city: known(&CITIES, city)? }
            }
            [verb, object, "on", day] => Self::Deed {
                verb: known(&VERBS, verb)?,
                object: known(&OBJECTS, object)?,
                day: known(&DAYS, day)?,
            },
            _ => return None,
        })
    }
}

/// Statements of a summary against the facts of its article. A statement that is made twice counts
/// once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FactRecall {
    /// Facts of the article.
    pub known: usize,
    /// Facts of the article that the summary states of the right person.
    pub stated: usize,
    /// Statements that are no fact of the article.
    pub wrong: usize,
}

impl FactRecall {
    /// Facts stated of the facts known.
    pub fn share(&self) -> f64 {
        self.stated as f64 / self.known.max(1) as f64
    }
}
