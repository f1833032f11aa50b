//! What is right in a response to a prompt.

use super::Problem;
use super::expression::{Expression, ExpressionError, Operator};

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

/// One step of a response against the step that belongs there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepVerdict {
    /// The step begins with `id<reference operator reference>` and refers to earlier steps of the
    /// response only.
    pub declaration_parses: bool,
    /// Id and declaration are the gold ones.
    pub declaration_right: bool,
    /// The whole step is the gold one.
    pub right: bool,
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
    let gold_lines: Vec<&str> = lines(&gold.sample.response).collect();

    let mut ids = Vec::new();
    let mut steps = Vec::new();
    for (at, line) in lines(response).enumerate() {
        let gold_line = gold_lines.get(at).copied().unwrap_or_default();
        let declared = declaration(line);
        steps.push(StepVerdict {
            declaration_parses: declared.is_some_and(|(_, text)| refers(text, &ids)),
            declaration_right: head(line).is_some() && head(line) == head(gold_line),
            right: line == gold_line,
        });
        ids.extend(declared.map(|(id, _)| id));
    }
    let answer = lines(response).last().and_then(answer);
    let body = response.strip_suffix('$');
    let ended = body.is_some_and(|body| body.ends_with(';') && !body.contains('$'));
    let correct = ended && answer == Some(gold.answer);
    Ok(Verdict { correct, ended, answer, steps, gold_steps: gold_lines.len() })
}

/// The steps of a response with their `;`, the last one perhaps unfinished.
fn lines(response: &str) -> impl Iterator<Item = &str> {
    response.split('$').next().unwrap_or_default().split_inclusive(';')
}

/// A step up to its `>`.
fn head(line: &str) -> Option<&str> {
    line.split_once('>').map(|(head, _)| head)
}

/// Id and declaration of a step.
fn declaration(line: &str) -> Option<(char, &str)> {
    let (id, declaration) = head(line)?.split_once('<')?;
    let mut characters = id.chars();
    let id = characters.next().filter(char::is_ascii_lowercase)?;
    characters.next().is_none().then_some((id, declaration))
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
fn answer(line: &str) -> Option<u32> {
    let (_, number) = line.strip_suffix(';')?.rsplit_once('=')?;
    number.parse().ok().filter(|value: &u32| value.to_string() == number)
}
