//! The closed vocabulary of generated articles.

use crate::Vocabulary;

/// Most sentences of an article.
pub(super) const MAX_SENTENCES: u32 = 32;

pub(super) const NAMES: [&str; 40] = [
    "adam", "alice", "anna", "ben", "bruno", "carla", "clara", "david", "diana", "elena", "emil",
    "erik", "fiona", "frank", "grace", "greta", "hanna", "hugo", "igor", "iris", "jack", "julia",
    "karl", "kate", "laura", "leo", "maria", "max", "nina", "noah", "olga", "oscar", "paul",
    "petra", "rita", "simon", "sofia", "tom", "vera", "will",
];

pub(super) const ROLES: [&str; 16] = [
    "actor", "baker", "banker", "coach", "cook", "doctor", "driver", "farmer", "judge", "lawyer",
    "mayor", "nurse", "pilot", "singer", "teacher", "writer",
];

pub(super) const CITIES: [&str; 16] = [
    "athens", "berlin", "cairo", "delhi", "dublin", "geneva", "kyoto", "lima", "lisbon", "madrid",
    "nairobi", "oslo", "perth", "quito", "seoul", "vienna",
];

pub(super) const VERBS: [&str; 12] = [
    "bought", "built", "closed", "designed", "found", "lost", "moved", "opened", "painted",
    "repaired", "sold", "visited",
];

pub(super) const OBJECTS: [&str; 16] = [
    "bridge", "castle", "clinic", "factory", "garden", "hotel", "library", "museum", "park",
    "port", "school", "ship", "stadium", "theatre", "tower", "train",
];

pub(super) const DAYS: [&str; 7] =
    ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

pub(super) const AMOUNTS: [&str; 12] =
    ["5", "10", "15", "20", "25", "30", "40", "50", "60", "70", "80", "90"];

pub(super) const EVENTS: [&str; 12] = [
    "drought",
    "earthquake",
    "election",
    "festival",
    "fire",
    "flood",
    "harvest",
    "heatwave",
    "storm",
    "strike",
    "trial",
    "wedding",
];

/// Ways to tell a role, a deed, a cost and a cause.
pub(super) const TELLING: [[&str; 2]; 4] = [
    ["{name} works as a {role} in {city}", "the {city} {role} is called {name}"],
    ["{name} {verb} the {object} on {day}", "on {day} {name} {verb} the {object}"],
    ["{name} paid {amount} dollars", "the bill for {name} was {amount} dollars"],
    ["{name} acted after the {event}", "the {event} was the reason for {name}"],
];

/// The same in a summary, whose line names the person.
pub(super) const STATING: [&str; 4] =
    ["{role} in {city}", "{verb} {object} on {day}", "paid {amount}", "after {event}"];

/// Sentences about nobody, in words that facts are told in as well.
pub(super) const DISTRACTING: [&str; 5] = [
    "the weather in {city} was mild on {day}",
    "tickets cost {amount} dollars",
    "people in {city} remember the {event}",
    "the {object} in {city} is old",
    "every {role} was busy on {day}",
];

const PUNCTUATION: [&str; 5] = [";", "<", ">", ",", "."];

/// The words of generated articles and summaries, special ones first: `_` fills up, `^` begins,
/// `$` ends.
pub fn vocabulary() -> Vocabulary {
    let ids: Vec<String> = (0..MAX_SENTENCES).map(|at| format!("s{at}")).collect();
    let templates = TELLING.as_flattened().iter().chain(&STATING).chain(&DISTRACTING);
    let glue = templates.flat_map(|t| t.split(' ')).filter(|word| !word.starts_with('{'));
    let lists: [&[&str]; 9] =
        [&PUNCTUATION, &NAMES, &ROLES, &CITIES, &VERBS, &OBJECTS, &DAYS, &AMOUNTS, &EVENTS];
    let listed = lists.into_iter().flatten().copied();
    Vocabulary::of_words(listed.chain(ids.iter().map(String::as_str)).chain(glue))
}
