//! Arithmetic: the problems agree with the protocol, declare what they need and no more, and
//! responses are judged fairly.

use std::collections::HashSet;

use proptest::prelude::*;
use spanforge_spans::protocol::{Fallback, SelfSpanAttention, SelfSpanPrompt, TagProtocol};
use spanforge_spans::{Span, SpanSet};
use spanforge_tasks::arithmetic::{
    Difficulty, DifficultyError, ExpressionError, Generator, MAX_OPERANDS, Problem, PromptError,
    evaluate, vocabulary,
};
use spanforge_tasks::{AttendedPairs, Split, StepVerdict};

const PROMPT: &str = "^(((8-2)+(1*9))+4);";
const RESPONSE: &str = "a<8-2>8-2=6;b<1*9>1*9=9;c<a+b>6+9=15;d<c+4>15+4=19;$";

fn problems(difficulty: &Difficulty, split: Split, seed: u64, count: usize) -> Vec<Problem> {
    Generator::new(difficulty.clone(), split, seed).expect("valid").take(count).collect()
}

/// One step as the protocol sees it.
struct Seen {
    /// What the step declared.
    declared: SpanSet,
    /// What the query that predicts the first token of the computation attends to.
    spans: SpanSet,
    /// The whole line.
    line: Span,
}

/// Runs the protocol over a response, one token a character, and checks that it finds no fault.
fn seen(problem: &Problem) -> Vec<Seen> {
    let prompt = problem.sample.prompt.len() as u32;
    let mut state = SelfSpanAttention::new(SelfSpanPrompt::new(prompt), Fallback::Dense);
    let mut steps: Vec<Seen> = Vec::new();
    let mut line_start = prompt;
    for c in problem.sample.response.chars() {
        state.push_token(&c.to_string());
        if c == '>' {
            let declared = state.declared().expect("no fallback").clone();
            steps.push(Seen { declared, spans: state.spans(), line: Span::from(0..0) });
        }
        if c == ';' {
            steps.last_mut().expect("a step").line = Span::from(line_start..state.kv_len());
            line_start = state.kv_len();
        }
    }
    assert!(state.is_finished());
    assert_eq!(state.faults().total(), 0, "{:?}", problem.sample.response);
    assert_eq!(state.steps() as usize, problem.declared.len());
    steps
}

/// The characters that are attended, run by run.
fn visible(problem: &Problem, spans: &SpanSet) -> Vec<String> {
    let text = format!("{}{}", problem.sample.prompt, problem.sample.response);
    spans.iter().map(|s| text[s.start() as usize..s.end() as usize].to_owned()).collect()
}

/// Computes a step from nothing but visible text: the own line up to `>` is the end of it, and a
/// reference is worth what a visible line says.
fn resolve(visible: &[String]) -> Option<String> {
    let text = visible.concat();
    let (lines, own) = text.rsplit_once(';').unwrap_or(("^", &text));
    let own = own.trim_start_matches('^');
    let (_, declaration) = own.strip_suffix('>')?.split_once('<')?;
    let at = declaration.find(['+', '-', '*'])?;
    let value = |reference: &str| -> Option<u32> {
        if let Ok(literal) = reference.parse() {
            return Some(literal);
        }
        let start = format!("{reference}<");
        let line = lines.trim_start_matches('^').split(';').find(|l| l.starts_with(&start))?;
        line.rsplit_once('=')?.1.parse().ok()
    };
    let (a, b) = (value(&declaration[..at])?, value(&declaration[at + 1..])?);
    let operator = &declaration[at..=at];
    let result = match operator {
        "+" => a + b,
        "-" => a - b,
        _ => a * b,
    };
    Some(format!("{a}{operator}{b}={result};"))
}

fn difficulties() -> impl Strategy<Value = Difficulty> {
    (2..=MAX_OPERANDS, 2..=MAX_OPERANDS, 9u32..=999, 4u32..=12, 1u32..=3, 0.0..=1.0).prop_map(
        |(a, b, largest_value, depth, operand_digits, train_subtraction)| Difficulty {
            operands: a.min(b)..=a.max(b),
            largest_value,
            depth,
            operand_digits,
            train_subtraction,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every step can be computed from the declared lines, and from no fewer.
    #[test]
    fn declared_lines_are_minimal(difficulty in difficulties(), seed: u64) {
        for problem in problems(&difficulty, Split::Train, seed, 4) {
            let steps = seen(&problem);
            let lines: Vec<&str> = problem.sample.response.split_inclusive(';').collect();
            for (at, step) in steps.iter().enumerate() {
                let (_, computation) = lines[at].split_once('>').expect("a step");
                let full = visible(&problem, &step.spans);
                prop_assert_eq!(resolve(&full), Some(computation.to_owned()));
                for earlier in &steps[..at] {
                    let line = SpanSet::from_raw([earlier.line]);
                    let without = step.spans.difference(&line);
                    let needed = without != step.spans;
                    prop_assert_eq!(needed, !step.declared.intersection(&line).is_empty());
                    let resolved = resolve(&visible(&problem, &without));
                    prop_assert_eq!(resolved.is_none(), needed, "{}", lines[at]);
                }
            }
        }
    }

    /// The protocol reads the lines that the problem says it declares.
    #[test]
    fn the_protocol_reads_what_the_problem_declares(difficulty in difficulties(), seed: u64) {
        for problem in problems(&difficulty, Split::Train, seed, 4) {
            let steps = seen(&problem);
            for (step, ids) in steps.iter().zip(&problem.declared) {
                let gold = ids.iter().map(|id| steps[(*id as u8 - b'a') as usize].line);
                prop_assert_eq!(&step.declared, &SpanSet::from_raw(gold));
            }
        }
    }

    /// What was asked for is what is made.
    #[test]
    fn difficulty_is_kept(difficulty in difficulties(), seed: u64) {
        for problem in problems(&difficulty, Split::Train, seed, 4) {
            let expression = problem.expression();
            let numbers: Vec<u32> = expression
                .split(|c: char| !c.is_ascii_digit())
                .filter_map(|n| n.parse().ok())
                .collect();
            prop_assert!(difficulty.operands.contains(&(numbers.len() as u32)));
            let most = 10u32.pow(difficulty.operand_digits);
            prop_assert!(numbers.iter().all(|n| (1..most).contains(n)));
            let open = |at: usize| {
                let count = |c: char| expression[..at].matches(c).count();
                count('(') - count(')')
            };
            let depth = (0..=expression.len()).map(open).max();
            prop_assert!(depth <= Some(difficulty.depth as usize));
            let values = problem.sample.response.split([';', '=', '>', '+', '-', '*']);
            let values = values.filter_map(|v| v.parse::<u32>().ok());
            prop_assert!(values.into_iter().all(|v| v <= difficulty.largest_value));
        }
    }

    /// The gold response is right, and is read back from its expression.
    #[test]
    fn gold_responses_are_right(difficulty in difficulties(), seed: u64) {
        for problem in problems(&difficulty, Split::HeldOut, seed, 2) {
            let verdict = evaluate(&problem.sample.prompt, &problem.sample.response);
            let verdict = verdict.expect("a prompt");
            prop_assert!(verdict.correct && verdict.is_gold());
            prop_assert!(verdict.steps.iter().all(|s| s.declaration_parses && s.declaration_right));
            prop_assert_eq!(Problem::new(problem.expression()), Ok(problem.clone()));
        }
    }

    /// No text makes judging fail, and none but the gold response is called gold.
    #[test]
    fn any_text_is_judged(response in "[0-9a-d<>=;$+*-]{0,60}", at in 0usize..51, c in "[0-9a-d<>=;$]") {
        prop_assert!(evaluate(PROMPT, &response).is_ok());
        prop_assert!(evaluate(&response, RESPONSE).is_err());
        let mut changed = RESPONSE.to_owned();
        changed.replace_range(at..=at, &c);
        let verdict = evaluate(PROMPT, &changed).expect("a prompt");
        prop_assert_eq!(verdict.is_gold(), changed == RESPONSE);
    }
}

#[test]
fn the_worked_example() {
    let problem = Problem::new("(((8-2)+(1*9))+4)").expect("an expression");
    assert_eq!(problem.sample.prompt, PROMPT);
    assert_eq!(problem.sample.response, RESPONSE);
    assert_eq!(problem.answer, 19);
    assert_eq!(problem.declared, [vec![], vec![], vec!['a', 'b'], vec!['c']]);
    let steps = seen(&problem);
    assert_eq!(visible(&problem, &steps[3].spans), ["^", "c<a+b>6+9=15;d<c+4>"]);
}

/// A change here is a change of every figure that was reported for a seed.
#[test]
fn a_seed_means_the_same_on_every_platform() {
    let expressions = |split, seed| -> Vec<String> {
        let problems = problems(&Difficulty::default(), split, seed, 3);
        problems.iter().map(|p| p.expression().to_owned()).collect()
    };
    assert_eq!(expressions(Split::Train, 7), ["(2*(3+7))", "((4+3)*3)", "((9+5)+((5*5)-3))"]);
    assert_eq!(
        expressions(Split::HeldOut, 7),
        ["(7+((((7+4)+9)-9)+((6*9)-7)))", "((((4-2)*2)-2)*((1+6)*2))", "((5+6)-4)"]
    );
}

#[test]
fn splits_are_disjoint_and_of_the_stated_size() {
    let difficulty = Difficulty { operands: 3..=4, ..Difficulty::default() };
    let of = |split, seed| -> HashSet<String> {
        let problems = problems(&difficulty, split, seed, 1500);
        problems.iter().map(|p| p.expression().to_owned()).collect()
    };
    let (train, validation, held_out) =
        (of(Split::Train, 1), of(Split::Validation, 2), of(Split::HeldOut, 3));
    assert!(train.is_disjoint(&validation) && train.is_disjoint(&held_out));
    assert!(validation.is_disjoint(&held_out));
    let parts: Vec<Split> = (0..20_000).map(|i: u32| Split::of(&i.to_string())).collect();
    let share = |split| parts.iter().filter(|s| **s == split).count() as f64 / 20_000.0;
    assert!((share(Split::HeldOut) - 0.05).abs() < 0.005, "{}", share(Split::HeldOut));
    assert!((share(Split::Validation) - 0.02).abs() < 0.004, "{}", share(Split::Validation));
}

/// So that no generator draws for ever.
#[test]
fn the_least_difficulty_has_every_split() {
    let difficulty = Difficulty { operands: 2..=2, largest_value: 9, ..Difficulty::default() };
    for split in Split::ALL {
        let problem = &problems(&difficulty, split, 0, 1)[0];
        assert_eq!(Split::of(problem.expression()), split);
    }
}

#[test]
fn default_problems_are_like_those_of_the_study() {
    let problems = problems(&Difficulty::default(), Split::HeldOut, 11, 2000);
    let vocabulary = vocabulary();
    let mut pairs = AttendedPairs::default();
    let mut tokens = 0;
    for problem in &problems {
        pairs += problem.sample.attended_pairs(&vocabulary).expect("in the vocabulary");
        tokens += problem.sample.prompt.len() + problem.sample.response.len();
    }
    // The study measured 0.425, and a mean length of 80.
    assert!((0.40..0.45).contains(&pairs.share()), "{}", pairs.share());
    let mean = tokens as f64 / problems.len() as f64;
    assert!((77.0..83.0).contains(&mean), "{mean}");
}

#[test]
fn two_digit_subtraction_is_oversampled_in_training_alone() {
    let share = |split, train_subtraction| {
        let difficulty = Difficulty { train_subtraction, ..Difficulty::default() };
        let (mut subtractions, mut all) = (0.0, 0.0);
        for problem in problems(&difficulty, split, 5, 1000) {
            let computations = problem.sample.response.split('>').skip(1);
            for computation in computations.filter_map(|c| c.split('=').next()) {
                let two = |digits: &str| digits.len() == 2;
                all += 1.0;
                subtractions +=
                    f64::from(computation.split_once('-').is_some_and(|(a, b)| two(a) && two(b)));
            }
        }
        subtractions / all
    };
    let plain = share(Split::Train, 0.0);
    assert!(share(Split::Train, Difficulty::STUDIED_SUBTRACTION) > 1.2 * plain);
    assert_eq!(share(Split::HeldOut, 1.0), share(Split::HeldOut, 0.0));
}

#[test]
fn responses_are_judged_step_by_step() {
    // Response, correct, ended, answer, and per step: parses, right declaration, right.
    let judge = |response: &str| {
        let verdict = evaluate(PROMPT, response).expect("a prompt");
        let flags = |s: &StepVerdict| {
            let flag = |on, c| if on { c } else { '-' };
            [flag(s.declaration_parses, 'p'), flag(s.declaration_right, 'd'), flag(s.right, 'r')]
                .into_iter()
                .collect::<String>()
        };
        let steps: Vec<String> = verdict.steps.iter().map(flags).collect();
        (verdict.correct, verdict.ended, verdict.answer, steps.join(" "))
    };
    for (response, expected) in [
        (RESPONSE, (true, true, Some(19), "pdr pdr pdr pdr")),
        // No end, an early end, something behind the end.
        (&RESPONSE[..51], (false, false, Some(19), "pdr pdr pdr pdr")),
        ("a<8-2>8-2=6;$", (false, true, Some(6), "pdr")),
        ("a<8-2>8-2=6;$;$", (false, false, Some(6), "pdr")),
        ("", (false, false, None, "")),
        ("a<8-2>8-2=6; $", (false, false, Some(6), "pdr")),
        // A wrong sum that is carried on; the declarations stay right.
        (
            "a<8-2>8-2=6;b<1*9>1*9=9;c<a+b>6+9=14;d<c+4>14+4=18;$",
            (false, true, Some(18), "pdr pdr pd- pd-"),
        ),
        // Right in the end by another way.
        ("a<1*9>1*9=9;b<9+4>9+4=13;c<6+b>6+13=19;$", (true, true, Some(19), "p-- p-- p--")),
        // An unknown reference, no declaration, an open step.
        ("a<8-2>8-2=6;b<1*z>1*9=9;x;c<a", (false, false, None, "pdr --- --- ---")),
        ("a<8-2>8-2=06;$", (false, true, None, "pd-")),
    ] {
        let (correct, ended, answer, steps) = expected;
        assert_eq!(judge(response), (correct, ended, answer, steps.to_owned()), "{response}");
    }
}

#[test]
fn faults_of_prompts_and_difficulties_are_named() {
    let said = |prompt: &str| evaluate(prompt, "").expect_err("a fault").to_string();
    assert!(matches!(evaluate("(1+2)", ""), Err(PromptError::Malformed(_))));
    assert_eq!(
        said("^(8-2;"),
        "character 4 of the expression \"(8-2\": expected a closing parenthesis; every operation \
         has its parentheses, as in ((8-2)+4)"
    );
    assert_eq!(said("^(2-8);"), "2-8 in the expression \"(2-8)\" is not in 0 to 4294967295");
    for (text, at) in [("", 0), ("(1+2)+3", 5), ("(1/2)", 2), ("(01+2)", 1), ("(1+x)", 3)] {
        let error = Problem::new(text).expect_err(text);
        let found = matches!(&error, ExpressionError::Malformed { at: found, .. } if *found == at);
        assert!(found, "{text}: {error}");
    }
    assert!(matches!(Problem::new("7"), Err(ExpressionError::NoOperation(_))));
    let deep = "(".repeat(100_000);
    assert!(matches!(Problem::new(&deep), Err(ExpressionError::TooManyOperands(_))));

    let refused = |difficulty| Generator::new(difficulty, Split::Train, 0).err();
    let usual = Difficulty::default;
    for (difficulty, error) in [
        (Difficulty { operands: 1..=3, ..usual() }, DifficultyError::Operands(1..=3)),
        (Difficulty { operands: 3..=14, ..usual() }, DifficultyError::Operands(3..=14)),
        (Difficulty { largest_value: 8, ..usual() }, DifficultyError::LargestValue(8)),
        (Difficulty { depth: 2, ..usual() }, DifficultyError::Depth { depth: 2, operands: 8 }),
        (Difficulty { operand_digits: 0, ..usual() }, DifficultyError::Digits(0)),
        (Difficulty { train_subtraction: 1.5, ..usual() }, DifficultyError::Subtraction(1.5)),
    ] {
        assert_eq!(refused(difficulty), Some(error));
    }
}
