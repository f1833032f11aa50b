//! Traces: the format with its errors, the rows it stands for, and what the generators promise.

use proptest::prelude::*;
use spanforge_spans::trace::{
    Description, Phase, Preset, Recorder, Response, ResponseError, Trace,
};
use spanforge_spans::{Dtype, SpanSet};

fn set(pairs: &[(u32, u32)]) -> SpanSet {
    SpanSet::from_pairs(pairs.iter().copied()).expect("literal")
}

const HEADER: &str =
    r#"{"schema": 1, "shape": {"query_heads": 6, "kv_heads": 2, "head_dim": 64}, "note": "mine"}"#;

fn read(lines: &[&str]) -> Result<Trace, String> {
    Trace::read(lines.join("\n").as_bytes()).map_err(|error| error.to_string())
}

fn written(trace: &Trace) -> Vec<u8> {
    let mut bytes = Vec::new();
    trace.write(&mut bytes).expect("memory does not fail");
    bytes
}

/// A prompt of 10 tokens; 3 local steps, then 2 that see tokens 2, 3 and 11 and themselves.
const RESPONSE: &str = r#"{"prompt_tokens": 10, "phases": [
    {"mode": "local", "tokens": 3, "spans": [[8, 10], [0, 1]]},
    {"mode": "step", "tokens": 2, "spans": [[2, 3], [3, 4], [11, 12]], "tail_start": 13}]}"#;

fn response() -> String {
    RESPONSE.replace('\n', "")
}

#[test]
fn rows_by_hand() {
    let trace = read(&[HEADER, "", &response()]).expect("valid");
    assert_eq!(trace.header.shape.dtype, Dtype::Bf16);
    let response = &trace.responses[0];
    assert_eq!((response.steps(), trace.total_steps()), (5, 5));
    for (step, row) in [
        (0, Some((11, set(&[(0, 1), (8, 11)])))),
        (2, Some((13, set(&[(0, 1), (8, 13)])))),
        (3, Some((14, set(&[(2, 4), (11, 12), (13, 14)])))),
        (4, Some((15, set(&[(2, 4), (11, 12), (13, 15)])))),
        (5, None),
    ] {
        assert_eq!(response.row_at(step), row, "step {step}");
    }
}

#[test]
fn statistics_by_hand() {
    let d = read(&[HEADER, &response()]).expect("valid").describe();
    // Attended tokens: 4, 5, 6 in the local steps, 4 and 5 in the others.
    assert_eq!((d.responses, d.steps, d.attended_per_response), (1, 5, 24.0));
    assert_eq!(d.dense_per_response, (11 + 12 + 13 + 14 + 15) as f64);
    let shares: Vec<_> =
        d.modes.iter().map(|m| (&*m.mode, m.step_share, m.attended_share)).collect();
    assert_eq!(shares, [("local", 0.6, 15.0 / 24.0), ("step", 0.4, 9.0 / 24.0)]);
    assert_eq!((d.attended.min, d.attended.p50, d.attended.max), (4, 5, 6));
    assert_eq!((d.spans_per_step.min, d.spans_per_step.max), (2, 3));
    assert_eq!((d.kv_len.min, d.kv_len.p50, d.kv_len.max), (11, 13, 15));
    // Local: 1 and 3, 1 and 4, 1 and 5; steps: 2, 1, 1 and 2, 1, 2.
    assert_eq!((d.span_tokens.p50, d.span_tokens.max), (1, 5));
}

#[test]
fn faults_name_the_line() {
    let refusal = |lines: &[&str]| read(lines).expect_err("must be refused");
    let response = |phases: &str| format!(r#"{{"prompt_tokens": 10, "phases": [{phases}]}}"#);
    assert!(refusal(&["", " "]).starts_with("the trace is empty: its first line must be a header"));
    assert!(refusal(&["{"]).starts_with("trace line 1: not a valid header: EOF"));
    assert!(refusal(&[r#"{"schema": 1}"#]).contains("missing field `shape`"));
    assert_eq!(
        refusal(&[&HEADER.replace("\"schema\": 1", "\"schema\": 2")]),
        "trace line 1: schema 2 is not 1, the one version that is known"
    );
    for (from, to) in [("heads\": 6", "heads\": 5"), ("heads\": 2", "heads\": 0"), ("64", "0")] {
        let message = refusal(&[&HEADER.replace(from, to)]);
        assert!(message.contains("KV heads divide query heads"), "{message}");
    }
    assert!(refusal(&[HEADER, "", "[]"]).starts_with("trace line 3: not a valid response"));
    for (phases, message) in [
        ("", "the response has no phases: it needs at least one"),
        (r#"{"tokens": 0, "spans": []}"#, "phase 0 has 0 tokens: leave it out"),
        (
            r#"{"tokens": 2147483640, "spans": []}"#,
            "prompt and response together exceed 2147483647 tokens",
        ),
        (
            r#"{"tokens": 2, "spans": []}, {"tokens": 1, "spans": [[0, 14]]}"#,
            "phase 1: span [0, 14) ends past the 13 tokens that exist at its first step",
        ),
        (
            r#"{"tokens": 2, "spans": [], "tail_start": 11}"#,
            "phase 0: tail_start 11 lies behind its first token 10",
        ),
    ] {
        assert_eq!(refusal(&[HEADER, &response(phases)]), format!("trace line 2: {message}"));
    }
    let reversed = refusal(&[HEADER, &response(r#"{"tokens": 1, "spans": [[5, 2]]}"#)]);
    assert!(reversed.contains("trace line 2") && reversed.contains("[5, 2) is reversed"));
    let negative = refusal(&[HEADER, &response(r#"{"tokens": 1, "spans": [[-1, 2]]}"#)]);
    assert!(negative.contains("trace line 2") && negative.contains("-1"), "{negative}");
    let empty = read(&[HEADER]).expect("a header alone can be read");
    assert!(empty.batch_at(0, 1).is_err_and(|e| e.to_string().contains("no responses")));
    assert_eq!(empty.describe().steps, 0);
}

#[test]
fn a_phase_of_two_billion_steps_is_described_at_once() {
    let line = r#"{"prompt_tokens": 1, "phases": [{"tokens": 2000000000, "spans": []}]}"#;
    let d = read(&[HEADER, line]).expect("valid").describe();
    assert_eq!((d.steps, d.attended.max > 1_990_000_000), (2_000_000_000, true));
    assert_eq!(d.attended_per_step, 1_000_000_000.5);
}

/// Responses with spans anywhere that exists at the phase's first step.
fn responses() -> impl Strategy<Value = Response> {
    let phase = (1..6u32, prop::collection::vec(any::<(u16, u16)>(), 0..4), any::<u16>());
    (0..30u32, prop::collection::vec(phase, 1..5)).prop_map(|(prompt_tokens, raw)| {
        let mut first = prompt_tokens;
        let phases = raw.into_iter().map(|(tokens, spans, tail)| {
            let to = |pick: u16| u32::from(pick) % (first + 2);
            let pairs = spans.iter().map(|&(a, b)| (to(a).min(to(b)), to(a).max(to(b))));
            let phase = Phase {
                mode: "any".to_owned(),
                tokens,
                spans: SpanSet::from_pairs(pairs).expect("ordered"),
                tail_start: u32::from(tail) % (first + 1),
            };
            first += tokens;
            phase
        });
        Response::new(None, prompt_tokens, phases.collect()).expect("valid by construction")
    })
}

#[test]
fn a_step_that_does_not_attend_to_itself_is_not_recorded() {
    let mut recorder = Recorder::new(4);
    recorder.push(&SpanSet::from(0..5)).expect("step 0 is token 4");
    for spans in [SpanSet::from(0..5), SpanSet::from(0..7), SpanSet::empty()] {
        assert_eq!(recorder.push(&spans), Err(ResponseError::NotItself { step: 1 }));
    }
    recorder.push(&SpanSet::from(5..6)).expect("step 1 is token 5");
    assert_eq!(recorder.finish(None).expect("two steps").phases().len(), 2);
    assert_eq!(Recorder::new(4).finish(None), Err(ResponseError::NoPhases));
}

proptest! {
    /// Of whatever phases: the same rows, in no more phases.
    #[test]
    fn what_is_recorded_step_by_step_is_the_response(response in responses()) {
        let mut recorder = Recorder::new(response.prompt_tokens());
        let rows: Vec<_> = (0..response.steps()).filter_map(|step| response.row_at(step)).collect();
        for (_, spans) in &rows {
            recorder.push(spans).expect("a row attends to itself");
        }
        let recorded = recorder.finish(None).expect("it has steps");
        prop_assert!(recorded.phases().len() <= response.phases().len());
        let again = (0..response.steps()).filter_map(|step| recorded.row_at(step));
        prop_assert_eq!(again.collect::<Vec<_>>(), rows);
        for phase in recorded.phases() {
            prop_assert_eq!(phase.mode == "global", phase.tail_start == 0, "{}", phase.mode);
        }
    }

    #[test]
    fn rows_and_statistics_follow_from_the_definition(responses in prop::collection::vec(responses(), 1..4), seed in any::<u64>()) {
        let trace = Trace { responses, ..read(&[HEADER]).expect("valid") };
        let (mut attended, mut spans) = (0, Vec::new());
        for response in &trace.responses {
            let mut step = 0;
            for phase in response.phases() {
                for _ in 0..phase.tokens {
                    let (kv_len, row) = response.row_at(step).expect("a step");
                    prop_assert_eq!(kv_len, response.prompt_tokens() + step + 1);
                    for token in 0..kv_len + 2 {
                        let selected = phase.spans.contains(token)
                            || (phase.tail_start <= token && token < kv_len);
                        prop_assert_eq!(row.contains(token), selected);
                    }
                    attended += row.len_tokens();
                    spans.push(row.spans().len() as u64);
                    step += 1;
                }
            }
            prop_assert_eq!(response.row_at(step), None);
        }
        let d = trace.describe();
        prop_assert_eq!(d.attended_per_response, attended as f64 / trace.responses.len() as f64);
        spans.sort_unstable();
        prop_assert_eq!(d.spans_per_step.p50, spans[spans.len().div_ceil(2) - 1]);
        prop_assert_eq!(d.spans_per_step.max, spans[spans.len() - 1]);

        prop_assert_eq!(&Trace::read(&written(&trace)[..]).expect("own output"), &trace);

        let batch = trace.batch_at(seed, 5).expect("has steps");
        prop_assert_eq!(batch.spans.validate_against(&batch.row_request, &batch.kv_len), Ok(()));
        for (at, row) in batch.rows.iter().enumerate() {
            let expected = trace.responses[row.response].row_at(row.step);
            prop_assert_eq!(Some((row.kv_len, row.spans.clone())), expected);
            prop_assert_eq!(batch.spans.row(at), row.spans.clone());
        }
        prop_assert_eq!(trace.batch_at(seed, 5).expect("has steps"), batch);
    }
}

#[test]
fn batches_draw_steps_evenly() {
    // Responses of 5 and 15 steps: a quarter of the rows belongs to the first.
    let long = r#"{"prompt_tokens": 1, "phases": [{"tokens": 15, "spans": []}]}"#;
    let trace = read(&[HEADER, &response(), long]).expect("valid");
    let batch = trace.batch_at(3, 4000).expect("has steps");
    let first = batch.rows.iter().filter(|row| row.response == 0).count();
    assert!((900..1100).contains(&first), "{first}");
    for step in 0..15 {
        let drawn = batch.rows.iter().filter(|r| r.response == 1 && r.step == step).count();
        assert!((140..260).contains(&drawn), "step {step}: {drawn}");
    }
}

fn share<'a>(d: &'a Description, mode: &str) -> &'a spanforge_spans::trace::ModeShare {
    d.modes.iter().find(|m| m.mode == mode).expect("the mode occurs")
}

fn within_tenth(value: f64, published: f64) -> bool {
    (value / published - 1.0).abs() <= 0.1
}

/// The averages that arXiv 2609.02737 publishes for Declarative Attention.
#[test]
fn declarative_traces_meet_the_published_averages() {
    for seed in [0, 1, 2] {
        let gemma = Preset::DaGemma4.generate(seed, 3000).describe();
        assert!(within_tenth(gemma.steps_per_response, 448.0), "{gemma:?}");
        assert!(within_tenth(gemma.attended_per_response, 6.45e6), "{gemma:?}");
        let global = share(&gemma, "global");
        assert!(
            within_tenth(global.step_share, 0.27) && global.attended_share >= 0.8,
            "{global:?}"
        );
        let qwen = Preset::DaQwen36.generate(seed, 3000).describe();
        assert!(within_tenth(qwen.steps_per_response, 752.0), "{qwen:?}");
        assert!(within_tenth(qwen.attended_per_response, 15.52e6), "{qwen:?}");
    }
}

#[test]
fn declarative_traces_keep_the_orders_of_modes() {
    let trace = Preset::DaQwen36.generate(11, 300);
    let mut focus_calls = 0;
    for response in &trace.responses {
        let modes: Vec<&str> = response.phases().iter().map(|p| p.mode.as_str()).collect();
        assert_eq!(modes.last(), Some(&"local"));
        for pair in modes.windows(2) {
            assert!(pair[0] != "local" || pair[1] == "global", "{modes:?}");
            assert!(pair[1] != "focus" || pair[0] == "global", "{modes:?}");
        }
        focus_calls += modes.iter().filter(|mode| **mode == "focus").count();
        assert!(response.steps() <= 8192 && response.prompt_tokens() < 252_000);
        for phase in response.phases() {
            assert!(phase.spans.contains(15) && !phase.spans.contains(response.prompt_tokens()));
            assert_eq!(phase.tail_start, response.prompt_tokens());
        }
    }
    // 1 + Poisson(0.65) calls, 1 % of them invalid.
    assert!((420..560).contains(&focus_calls), "{focus_calls}");
    // Half the rows or more read little, some read a long context whole.
    let batch = trace.batch_at(1, 256).expect("has steps");
    let count = |range: std::ops::RangeInclusive<u64>| {
        batch.rows.iter().filter(|r| range.contains(&r.spans.len_tokens())).count()
    };
    assert!(count(0..=8000) >= 128 && count(20_000..=260_000) >= 16);
}

#[test]
fn short_span_traces_are_of_their_kind() {
    let trace = Preset::SsasLlama2.generate(5, 100);
    for response in &trace.responses {
        assert!(response.prompt_tokens() + response.steps() <= 2048);
        let (last, others) = response.phases().split_last().expect("has phases");
        assert!(last.tokens <= 40 && others.iter().all(|p| (5..=40).contains(&p.tokens)));
        for phase in response.phases() {
            let (sink, spans) = phase.spans.spans().split_first().expect("a sink");
            assert_eq!((sink.start(), sink.end()), (0, 1));
            assert!((4..=30).contains(&spans.len()));
            assert!(spans.iter().all(|s| (5..=60).contains(&s.len())));
            assert!(phase.spans.end() < phase.tail_start);
        }
    }
}

#[test]
fn presets_are_reproducible_and_known_by_name() {
    for preset in Preset::ALL {
        assert_eq!(preset.name().parse(), Ok(preset));
        assert_eq!(preset.generate(4, 20), preset.generate(4, 20));
        assert_ne!(preset.generate(4, 20), preset.generate(5, 20));
        let trace = preset.generate(4, 20);
        assert_eq!(trace.header.shape, preset.shape());
        assert_eq!(Trace::read(&written(&trace)[..]).expect("own output"), trace);
    }
    let error = "da-llama".parse::<Preset>().map_err(|e| e.to_string());
    assert!(error.is_err_and(|e| e.contains("expected one of da-gemma4, da-qwen3.6, ssas-llama2")));
}
