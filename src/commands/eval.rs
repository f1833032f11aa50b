//! `eval`: how well a model answers, with everything in sight and with the spans that it declares.

use super::device_choice::DeviceList;
use super::model_choice::{AttentionChoice, ModelArguments};
use super::task_choice::{Generated, SplitChoice, TaskArguments};
use super::{Outcome, write_json};
use crate::notice;
use crate::table::Table;
use anyhow::{Result, anyhow, bail};
use clap::Args;
use serde::Serialize;
use spanforge_tasks::evaluate::{Answer, Mode, answers};
use spanforge_tasks::{Sample, arithmetic, news};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

/// Evaluate a model on a task, dense and with the spans that it declares, side by side
///
/// The same generated problems are answered once for each word of --attention, greedily, by the model's
/// own declarations. Held-out problems are never trained on, whatever the seed.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    spanforge eval --model models/arithmetic --task arithmetic --count 600\n  \
    spanforge eval --model models/arithmetic --task arithmetic --attention span,withheld --count 300\n  \
    spanforge eval --model models/arithmetic --task arithmetic --attention span,emulated:h200 --count 8 --json\n\n\
    Words of --attention: dense (everything), span (what the model declares), both on the CPU;\n\
    withheld (span without the declared lines: a control); a device, such as emulated:h200, whose\n\
    kernel attends to what the model declares.")]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    task: TaskArguments,
    /// Which problems: held-out, validation or train
    #[arg(long, value_name = "SPLIT", default_value = "held-out")]
    split: SplitChoice,
    /// Problems
    #[arg(long, value_name = "N", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// Ways to attend, with commas between them
    #[arg(long, value_name = "WORDS", default_value = "dense,span")]
    attention: DeviceList,
    /// Problems that are decoded together
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: u16,
    /// Write the decode steps, as the last of --attention attended, as a trace
    #[arg(long, value_name = "FILE.jsonl")]
    save_trace: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Judges the answer to a problem of some number.
type Judge = Box<dyn Fn(usize, &str) -> Result<Judged>>;

/// Problems, and how an answer to each is judged.
struct Problems {
    samples: Vec<Sample>,
    /// What problems are grouped by in the table.
    groups: Vec<String>,
    judge: Judge,
}

/// An answer, judged.
struct Judged {
    correct: bool,
    /// Steps whose declaration parses.
    parsed: usize,
    steps: usize,
    /// Facts that a summary states, of those there are.
    facts: Option<(usize, usize)>,
}

/// How one way to attend did.
#[derive(Debug, Default, Serialize)]
struct Score {
    /// Share of answers that are right: the value, or the whole summary, with a proper end.
    accuracy: f64,
    correct: usize,
    count: usize,
    /// Share of the known facts that summaries state.
    #[serde(skip_serializing_if = "Option::is_none")]
    fact_recall: Option<f64>,
    /// Pairs of query and token attended to, of those there were.
    attended_share: f64,
    /// Malformed declarations, each of which fell back to everything.
    fallbacks: u64,
    /// Share of steps whose declaration parses.
    parse_share: f64,
    tokens: usize,
    tokens_per_second: f64,
    /// Accuracy by group: operands, or people.
    by_group: BTreeMap<String, f64>,
}

pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let (model, vocabulary) = arguments.model.load()?;
    let problems = problems(arguments)?;
    let mut scores: Vec<(String, Score)> = Vec::new();
    let mut right: Vec<Vec<bool>> = Vec::new();
    let mut responses = Vec::new();
    for word in &arguments.attention.0 {
        let (mode, choice) = match word.as_str() {
            "dense" => (Mode::Dense, AttentionChoice::Dense),
            "span" => (Mode::Span, AttentionChoice::Span),
            "withheld" => (Mode::Withheld, AttentionChoice::Span),
            "" => bail!("--attention has an empty word: dense, span, withheld or a device"),
            device => (Mode::Span, AttentionChoice::Device(device.to_owned())),
        };
        let requests = usize::from(arguments.batch).min(problems.samples.len());
        let decoder = arguments.model.decoder(&choice, &model, requests)?;
        let bar = notice::bar(u64::from(arguments.count), "answers");
        let begun = Instant::now();
        let mut progress = |finished: usize| bar.set_position(finished as u64);
        let answers = answers(decoder, &vocabulary, &problems.samples, mode, &mut progress)?;
        bar.finish_and_clear();
        let (score, correct) = scored(&problems, &answers, begun.elapsed().as_secs_f64())?;
        scores.push((word.clone(), score));
        right.push(correct);
        responses = answers.into_iter().filter_map(|answer| answer.steps).collect();
    }
    if let Some(path) = &arguments.save_trace {
        let generator = format!("eval, {}", arguments.task);
        arguments.model.save_trace(path, &model, generator, responses)?;
    }
    if arguments.json {
        let mut value = serde_json::Map::new();
        for (word, score) in &scores {
            value.insert(word.clone(), serde_json::to_value(score)?);
        }
        write_json(out, &value)?;
    } else {
        print(&scores, &right, arguments, out)?;
    }
    Ok(Outcome::Done)
}

fn problems(arguments: &Arguments) -> Result<Problems> {
    let (count, split) = (arguments.count as usize, arguments.split);
    Ok(match arguments.task.problems(split)? {
        Generated::Arithmetic(generator) => {
            let problems: Vec<arithmetic::Problem> = generator.take(count).collect();
            let operands = |problem: &arithmetic::Problem| {
                format!("{:2} operands", problem.declared.len() + 1)
            };
            let samples: Vec<Sample> = problems.iter().map(|p| p.sample.clone()).collect();
            let groups = problems.iter().map(operands).collect();
            let judge = move |at: usize, text: &str| {
                let verdict = arithmetic::evaluate(&problems[at].sample.prompt, text)?;
                let parsed = verdict.steps.iter().filter(|step| step.declaration_parses).count();
                let steps = verdict.steps.len();
                Ok(Judged { correct: verdict.correct, parsed, steps, facts: None })
            };
            Problems { samples, groups, judge: Box::new(judge) }
        }
        Generated::Summarisation(generator) => {
            let articles: Vec<news::Article> = generator.take(count).collect();
            let people = |article: &news::Article| format!("{} people", article.people.len());
            let samples: Vec<Sample> = articles.iter().map(|a| a.sample.clone()).collect();
            let groups = articles.iter().map(people).collect();
            let judge = move |at: usize, text: &str| {
                let verdict = news::evaluate(&articles[at], text);
                Ok(Judged {
                    correct: verdict.is_gold(),
                    parsed: verdict.lines.iter().filter(|line| line.declaration_parses).count(),
                    steps: verdict.lines.len(),
                    facts: Some((verdict.facts.stated, verdict.facts.known)),
                })
            };
            Problems { samples, groups, judge: Box::new(judge) }
        }
    })
}

fn scored(problems: &Problems, answers: &[Answer], seconds: f64) -> Result<(Score, Vec<bool>)> {
    let mut score = Score { count: answers.len(), ..Score::default() };
    let (mut attended, mut available, mut parsed, mut steps) = (0, 0, 0, 0);
    let (mut stated, mut known) = (0, 0);
    let mut groups: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut right = Vec::with_capacity(answers.len());
    for (at, answer) in answers.iter().enumerate() {
        let judged = (problems.judge)(at, &answer.text)?;
        let group = groups.entry(problems.groups[at].clone()).or_default();
        group.0 += usize::from(judged.correct);
        group.1 += 1;
        score.correct += usize::from(judged.correct);
        right.push(judged.correct);
        parsed += judged.parsed;
        steps += judged.steps;
        if let Some(facts) = judged.facts {
            stated += facts.0;
            known += facts.1;
        }
        attended += answer.finish.attended;
        available += answer.finish.available;
        score.fallbacks += answer.finish.faults.total();
        score.tokens += answer.finish.tokens;
    }
    let share = |part: usize, all: usize| part as f64 / all.max(1) as f64;
    score.accuracy = share(score.correct, score.count);
    score.attended_share = attended as f64 / available.max(1) as f64;
    score.parse_share = share(parsed, steps);
    score.fact_recall = (known > 0).then(|| share(stated, known));
    score.tokens_per_second = score.tokens as f64 / seconds;
    score.by_group =
        groups.into_iter().map(|(name, (correct, all))| (name, share(correct, all))).collect();
    Ok((score, right))
}

fn print(
    scores: &[(String, Score)],
    right: &[Vec<bool>],
    arguments: &Arguments,
    out: &mut dyn Write,
) -> Result<()> {
    let heading = ["attention", "right", "", "attended", "fallbacks", "parse", "facts", "tokens/s"];
    let mut table = Table::new(&heading, &[1, 2, 3, 4, 5, 6, 7]);
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    for (word, score) in scores {
        table.row([
            word.clone(),
            percent(score.accuracy),
            format!("{} of {}", score.correct, score.count),
            percent(score.attended_share),
            score.fallbacks.to_string(),
            percent(score.parse_share),
            score.fact_recall.map_or_else(|| "-".to_owned(), percent),
            format!("{:.0}", score.tokens_per_second),
        ]);
    }
    table.write(out, "")?;
    writeln!(out)?;
    let words: Vec<&str> = scores.iter().map(|(word, _)| word.as_str()).collect();
    let numbers: Vec<usize> = (1..=words.len()).collect();
    let mut table = Table::new(&[&["right of"], &words[..]].concat(), &numbers);
    let first = scores.first().ok_or_else(|| anyhow!("--attention names nothing"))?;
    for group in first.1.by_group.keys() {
        let shares = scores.iter().map(|(_, score)| {
            score.by_group.get(group).map_or_else(|| "-".to_owned(), |share| percent(*share))
        });
        table.row(std::iter::once(group.trim().to_owned()).chain(shares).collect::<Vec<_>>());
    }
    table.write(out, "")?;
    if let [first, second] = right {
        let only = |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|(a, b)| **a && !**b).count();
        writeln!(
            out,
            "\n{} right with {} alone, {} with {} alone",
            only(first, second),
            words[0],
            only(second, first),
            words[1]
        )?;
    }
    writeln!(
        out,
        "{} {} problems of seed {}; attended: pairs of query and token, of those there were",
        arguments.count,
        arguments.split,
        arguments.task.seed()
    )?;
    Ok(())
}
