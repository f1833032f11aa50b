//! Requests that join and leave.

use crate::folder::{CHARACTERS, config, model};
use proptest::prelude::*;
use safetensors::tensor::Dtype;
use spanforge_runtime::CacheSize;
use spanforge_runtime::Pages;
use spanforge_runtime::model::{
    Attend, AttendError, Engine, EngineError, Event, FinishReason, HostAttention, Llama, Request,
    RequestId, Sampling, Selection, Step, Vocabulary,
};
use spanforge_spans::SpanSet;
use spanforge_spans::protocol::{
    Fallback, FaultCounts, SelfSpanAttention, SelfSpanPrompt, TagProtocol,
};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// A model with its vocabulary, one for all tests.
fn loaded() -> &'static (Llama, Vocabulary) {
    static LOADED: OnceLock<(Llama, Vocabulary)> = OnceLock::new();
    LOADED.get_or_init(|| {
        let folder = model(&config(), Dtype::F32, 1, 21);
        let vocabulary = Vocabulary::load(&folder.path().join("tokenizer.json")).unwrap();
        (Llama::load(folder.path()).unwrap(), vocabulary)
    })
}

fn cache(pages: usize, requests: usize) -> HostAttention {
    let size = CacheSize { layers: 3, pages, requests, max_pages: 12 };
    HostAttention::new(loaded().0.config(), 4, &size).expect("a cache")
}

fn request(prompt: &str, selection: Selection, sampling: Sampling, max_tokens: usize) -> Request {
    let prompt = loaded().1.encode(prompt, false).expect("characters").tokens;
    Request { prompt, selection, sampling, seed: 9, max_tokens }
}

fn self_span(prompt: &str) -> Selection {
    let tokens = prompt.len() as u32;
    let protocol = SelfSpanAttention::new(SelfSpanPrompt::new(tokens), Fallback::Dense);
    Selection::Protocol(Box::new(protocol))
}

/// Steps until everything has ended: the events of each request.
fn finish(engine: &mut Engine<'_>) -> BTreeMap<RequestId, Vec<Event>> {
    let mut out: BTreeMap<RequestId, Vec<Event>> = BTreeMap::new();
    while !engine.is_idle() {
        for event in engine.step().expect("a step") {
            out.entry(event.request).or_default().push(event);
        }
    }
    out
}

fn alone(request: Request) -> Vec<Event> {
    let (model, vocabulary) = loaded();
    let mut engine = Engine::new(model, vocabulary, Box::new(cache(12, 1)), 64);
    engine.submit(request).expect("it fits");
    finish(&mut engine).into_values().next().expect("events")
}

fn tokens(events: &[Event]) -> Vec<u32> {
    events.iter().map(|event| event.token).collect()
}

#[derive(Clone, Debug)]
struct Case {
    prompt: String,
    is_dense: bool,
    is_greedy: bool,
    max_tokens: usize,
    /// Steps that are made before it comes.
    after: usize,
}

impl Case {
    fn request(&self) -> Request {
        let selection = match self.is_dense {
            true => Selection::Dense,
            false => self_span(&self.prompt),
        };
        let random = Sampling::Random { temperature: 1.2, top_p: 0.95 };
        let sampling = if self.is_greedy { Sampling::Greedy } else { random };
        request(&self.prompt, selection, sampling, self.max_tokens)
    }
}

fn case() -> impl Strategy<Value = Case> {
    ("\\^[0-9+*()]{0,25};", any::<bool>(), any::<bool>(), 1_usize..40, 0_usize..6).prop_map(
        |(prompt, is_dense, is_greedy, max_tokens, after)| Case {
            prompt,
            is_dense,
            is_greedy,
            max_tokens,
            after,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// What a request gets does not depend on those it shares steps and cache with: not on their
    /// number, on how long it has to wait, or on how its prompt is cut.
    #[test]
    fn a_request_gets_the_same_in_any_company(
        cases in prop::collection::vec(case(), 1..6),
        requests in 1_usize..4,
        rows in 1_usize..30,
    ) {
        let (model, vocabulary) = loaded();
        let mut engine = Engine::new(model, vocabulary, Box::new(cache(20, requests)), rows);
        let mut events: BTreeMap<RequestId, Vec<Event>> = BTreeMap::new();
        let mut ids = Vec::new();
        for case in &cases {
            for _ in 0..case.after {
                for event in engine.step().expect("a step") {
                    events.entry(event.request).or_default().push(event);
                }
            }
            ids.push(engine.submit(case.request()).expect("it fits"));
        }
        for (id, more) in finish(&mut engine) {
            events.entry(id).or_default().extend(more);
        }
        let pages = engine.attention_mut().pages_mut();
        prop_assert_eq!(pages.free_pages(), pages.count());
        for (case, id) in cases.iter().zip(&ids) {
            let (together, alone) = (&events[id], alone(case.request()));
            prop_assert_eq!(tokens(together), tokens(&alone), "{:?}", case);
            let finishes = together.iter().filter_map(|event| event.finish.as_ref());
            let finishes: Vec<_> = finishes.collect();
            prop_assert_eq!(finishes.len(), 1);
            prop_assert_eq!(together.last().and_then(|last| last.finish.as_ref()), Some(finishes[0]));
            prop_assert_eq!(Some(finishes[0]), alone.last().and_then(|last| last.finish.as_ref()));
            let finish = finishes[0];
            prop_assert_eq!(finish.tokens, together.len());
            prop_assert!(finish.attended <= finish.available);
            prop_assert!(!case.is_dense || finish.attended == finish.available);
            let fits = case.prompt.len() + case.max_tokens <= 48;
            match finish.reason {
                FinishReason::Stop => {
                    prop_assert_eq!(together.last().map(|e| e.text.as_str()), Some("$"));
                }
                FinishReason::Length => prop_assert_eq!(finish.tokens, case.max_tokens),
                FinishReason::Full => prop_assert!(!fits && finish.tokens + case.prompt.len() == 48),
            }
        }
    }
}

/// Selects ever less of the past: what it has once left out never comes back.
struct Forgetful {
    prompt: u32,
    kv_len: u32,
    faults: FaultCounts,
}

impl Forgetful {
    fn keeps(&self, position: u32) -> bool {
        // A fifth of the positions for ever, the others for six steps.
        position.is_multiple_of(5) || position + 6 >= self.kv_len
    }
}

impl TagProtocol for Forgetful {
    fn push_token(&mut self, _: &str) -> bool {
        self.kv_len += 1;
        true
    }

    fn spans(&self) -> SpanSet {
        let kept = (0..self.kv_len).filter(|position| self.keeps(*position));
        SpanSet::from_pairs(kept.map(|position| (position, position + 1))).expect("in order")
    }

    fn kv_len(&self) -> u32 {
        if self.kv_len == 0 { self.prompt } else { self.kv_len }
    }

    fn faults(&self) -> &FaultCounts {
        &self.faults
    }

    fn finish(&mut self) {}
}

/// Attention whose cache holds NaN wherever the rows of a step do not look, from that step on.
struct Poisoned {
    inner: HostAttention,
    poisoned: usize,
}

impl Attend for Poisoned {
    fn pages_mut(&mut self) -> &mut Pages {
        self.inner.pages_mut()
    }

    fn begin(&mut self, step: &Step) -> Result<(), AttendError> {
        if let ([request], [position], [spans]) =
            (&step.requests[..], &step.positions[..], &step.spans[..])
        {
            for other in (0..*position).filter(|other| !spans.contains(*other as u32)) {
                self.inner.overwrite(*request, other, f32::NAN)?;
                self.poisoned += 1;
            }
        }
        self.inner.begin(step)
    }

    fn attend(
        &mut self,
        layer: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
    ) -> Result<Vec<f32>, AttendError> {
        self.inner.attend(layer, q, k, v)
    }
}

/// Masks follow what is selected exactly: with all other keys and values NaN, the response is the
/// same.
#[test]
fn what_is_not_selected_is_not_read() {
    let prompt = "^(1+2)*(3+4)-5;";
    let forgetful = || {
        let prompt = prompt.len() as u32;
        let protocol = Forgetful { prompt, kv_len: prompt, faults: FaultCounts::default() };
        request_of(Selection::Protocol(Box::new(protocol)))
    };
    fn request_of(selection: Selection) -> Request {
        request("^(1+2)*(3+4)-5;", selection, Sampling::Greedy, 30)
    }
    let clean = alone(forgetful());
    let (model, vocabulary) = loaded();
    let poisoned = Poisoned { inner: cache(12, 1), poisoned: 0 };
    let mut engine = Engine::new(model, vocabulary, Box::new(poisoned), 64);
    engine.submit(forgetful()).unwrap();
    let events = finish(&mut engine).into_values().next().unwrap();
    assert_eq!(tokens(&events), tokens(&clean));
    assert!(events.len() > 8, "{} tokens", events.len());
    let last = events.last().unwrap().finish.as_ref().unwrap();
    assert!(last.attended * 3 < last.available * 2, "{last:?}");
    // Another selection is another response, so the masks do matter.
    assert_ne!(tokens(&alone(request_of(Selection::Dense))), tokens(&clean));
}

#[test]
fn requests_that_cannot_be_served_are_refused_and_the_others_go_on() {
    let (model, vocabulary) = loaded();
    let mut engine = Engine::new(model, vocabulary, Box::new(cache(12, 2)), 8);
    let good = engine.submit(request("^1+1;", Selection::Dense, Sampling::Greedy, 5)).unwrap();
    let mut refused = |request: Request| engine.submit(request).expect_err("refused").to_string();
    let long = "^".repeat(48);
    let says = refused(request(&long, Selection::Dense, Sampling::Greedy, 5));
    assert!(says.contains("48 tokens") && says.contains("the cache holds 48"), "{says}");
    let says = refused(request("", Selection::Dense, Sampling::Greedy, 5));
    assert!(says.contains("the prompt is empty"), "{says}");
    let says = refused(request("^;", Selection::Dense, Sampling::Greedy, 0));
    assert!(says.contains("0 tokens"), "{says}");
    let says = refused(request("^1;", self_span("^1+1;"), Sampling::Greedy, 5));
    assert!(says.contains("counts 5") && says.contains("has 3"), "{says}");
    let unknown = Request {
        prompt: vec![0, CHARACTERS.len() as u32],
        ..request("^", Selection::Dense, Sampling::Greedy, 5)
    };
    assert!(refused(unknown).contains("another model's"));
    for (temperature, top_p) in [(0.0, 1.0), (f32::NAN, 1.0), (1.0, 0.0), (1.0, 1.5)] {
        let sampling = Sampling::Random { temperature, top_p };
        let error = engine.submit(request("^;", Selection::Dense, sampling, 5));
        assert!(matches!(error, Err(EngineError::Sampling { .. })));
    }
    let events = finish(&mut engine);
    assert_eq!(events.keys().collect::<Vec<_>>(), [&good]);
    assert_eq!(
        tokens(&events[&good]),
        tokens(&alone(request("^1+1;", Selection::Dense, Sampling::Greedy, 5)))
    );
}
