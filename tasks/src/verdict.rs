//! Responses against gold ones, step by step, whatever the task.

/// One step of a response against the step that belongs there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepVerdict {
    /// The step has a name and a declaration of the task's form, which refers only to what exists.
    pub declaration_parses: bool,
    /// Name and declaration are the gold ones.
    pub declaration_right: bool,
    /// The whole step is the gold one.
    pub right: bool,
}

/// Every step of a response. `parses` says whether a name and a declaration are of the task's form,
/// and is asked in order.
pub(crate) fn judge_steps(
    response: &str,
    gold: &str,
    mut parses: impl FnMut(&str, &str) -> bool,
) -> Vec<StepVerdict> {
    let mut gold = steps(gold);
    let judge = |step| {
        let gold = gold.next().unwrap_or_default();
        StepVerdict {
            declaration_parses: head(step)
                .and_then(|head| head.split_once('<'))
                .is_some_and(|(name, declaration)| parses(name, declaration)),
            declaration_right: head(step).is_some() && head(step) == head(gold),
            right: step == gold,
        }
    };
    steps(response).map(judge).collect()
}

/// The steps of a response with their `;`, the last one perhaps unfinished.
pub(crate) fn steps(response: &str) -> impl Iterator<Item = &str> {
    let steps = response.split('$').next().unwrap_or_default().split_inclusive(';');
    steps.filter(|step| !step.trim().is_empty())
}

/// Whether a response ends with `$` behind a whole step, and has no `$` before.
pub(crate) fn ends_properly(response: &str) -> bool {
    let body = response.strip_suffix('$');
    body.is_some_and(|body| body.ends_with(';') && !body.contains('$'))
}

/// A step up to its `>`.
fn head(step: &str) -> Option<&str> {
    step.split_once('>').map(|(head, _)| head)
}
