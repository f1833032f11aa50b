//! What is right in a response to a prompt.

use super::Problem;
use super::expression::{Expression, ExpressionError, Operator};
use crate::verdict::{StepVerdict, ends_properly, judge_steps, steps};

/// Why a prompt has no right response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PromptError {
    /// Not of the form of a prompt.
    #[error("the prompt {0:?} is not of the form ^expression; such as ^((8-2)+4);")]
    Malformed(String),
    /// The expression is at fault.
    #[error(transparent)]
    Expression(#[from] ExpressionError),
}

/// What is right in a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The last step gives the value of the expression, and the response ends properly. This is the
    /// exact match that accuracy counts.
    pub correct: bool,
    /// Whether the response ends with `$` behind a whole step, and has no `$` before.
    pub ended: bool,
    /// The value of the last step, if it has one.
    pub answer: Option<u32>,
    /// Every step of the response.
    pub steps: Vec<StepVerdict>,
    /// Steps of the gold response.
    pub gold_steps: usize,
}

impl Verdict {
    /// Whether the response is the gold one, character by character.
    pub fn is_gold(&self) -> bool {
        self.ended && self.steps.len() == self.gold_steps && self.steps.iter().all(|s| s.right)
    }
}

/// Judges a response to a prompt. Any text is a response; a malformed prompt is an error.
pub fn evaluate(prompt: &str, response: &str) -> Result<Verdict, PromptError> {
    let expression = prompt.strip_prefix('^').and_then(|rest| rest.strip_suffix(';'));
    let expression = expression.ok_or_else(|| PromptError::Malformed(prompt.to_owned()))?;
    let gold = Problem::of(&expression.parse::<Expression>()?);

    let mut ids = Vec::new();
    let judged = judge_steps(response, &gold.sample.response, |id, declaration| {
        let mut characters = id.chars();
        let (id, rest) = (characters.next(), characters.next());
        let named = rest.is_none() && id.is_some_and(|id| id.is_ascii_lowercase());
        let parses = named && refers(declaration, &ids);
        ids.extend(id.filter(|_| named));
        parses
    });
    let answer = steps(response).last().and_then(answer);
    let ended = ends_properly(response);
    Ok(Verdict {
        correct: ended && answer == Some(gold.answer),
        ended,
        answer,
        steps: judged,
        gold_steps: gold.declared.len(),
    })
}

/// Whether a declaration is an operation on numbers and earlier steps.
fn refers(declaration: &str, ids: &[char]) -> bool {
    let is_reference = |text: &str| {
        let mut characters = text.chars();
        match (characters.next(), characters.next()) {
            (Some(id), None) if ids.contains(&id) => true,
            _ => !text.is_empty() && text.chars().all(|c| c.is_ascii_digit()),
        }
    };
    let operator = declaration.find(|c| Operator::from_symbol(c).is_some());
    operator
        .is_some_and(|at| is_reference(&declaration[..at]) && is_reference(&declaration[at + 1..]))
}

/// The number behind the last `=` of a whole step.
fn answer(step: &str) -> Option<u32> {
    let (_, number) = step.strip_suffix(';')?.rsplit_once('=')?;
    number.parse().ok().filter(|value: &u32| value.to_string() == number)
}
