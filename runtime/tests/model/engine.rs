//! Requests that join and leave.

use crate::folder::{CHARACTERS, config, model};
use proptest::prelude::*;
use safetensors::tensor::Dtype;
use spanforge_runtime::CacheSize;
use spanforge_runtime::Pages;
use spanforge_runtime::model::{
    Attend, AttendError, Decoder, Engine, EngineError, Event, FinishReason, HostAttention,
    HostDecoder, Llama, Request, RequestId, Sampling, Selection, Step, Vocabulary,
};
use spanforge_spans::SpanSet;
use spanforge_spans::protocol::{
    Fallback, FaultCounts, SelfSpanAttention, SelfSpanPrompt, TagProtocol,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

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

fn decoder<'m>(model: &'m Llama, attention: impl Attend + 'm) -> Box<dyn Decoder + 'm> {
    Box::new(HostDecoder::new(model, Box::new(attention)))
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
    let mut engine = Engine::new(decoder(model, cache(12, 1)), vocabulary, 64);
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
        let mut engine = Engine::new(decoder(model, cache(20, requests)), vocabulary, rows);
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
        let pages = engine.pages_mut();
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

/// Attention whose cache holds NaN wherever the row of a step does not look, for that step.
struct Poisoned {
    inner: HostAttention,
    /// Elements of a token in all layers.
    elements: usize,
    /// What is to be put back, by position.
    saved: Vec<(usize, Vec<f32>)>,
    poisoned: Arc<AtomicUsize>,
}

impl Attend for Poisoned {
    fn pages_mut(&mut self) -> &mut Pages {
        self.inner.pages_mut()
    }

    fn begin(&mut self, step: &Step) -> Result<(), AttendError> {
        for (position, mut kv) in self.saved.drain(..) {
            self.inner.swap(0, position, &mut kv)?;
        }
        if let ([position], [spans]) = (&step.positions[..], &step.spans[..]) {
            for other in (0..*position).filter(|other| !spans.contains(*other as u32)) {
                let mut kv = vec![f32::NAN; self.elements];
                self.inner.swap(0, other, &mut kv)?;
                self.saved.push((other, kv));
                self.poisoned.fetch_add(1, Ordering::Relaxed);
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

/// The response to one request, with everything that a step does not select NaN, and how often a token
/// was.
fn poisoned_response(
    (model, vocabulary): &(Llama, Vocabulary),
    request: Request,
) -> (Vec<Event>, usize) {
    let size = CacheSize { layers: model.config().layers, pages: 64, requests: 1, max_pages: 64 };
    let inner = HostAttention::new(model.config(), 4, &size).expect("a cache");
    let elements = 2 * size.layers * model.config().kv_size();
    let poisoned = Arc::new(AtomicUsize::new(0));
    let attention = Poisoned { inner, elements, saved: Vec::new(), poisoned: poisoned.clone() };
    let mut engine = Engine::new(decoder(model, attention), vocabulary, 256);
    engine.submit(request).unwrap();
    let events = finish(&mut engine).into_values().next().unwrap();
    (events, poisoned.load(Ordering::Relaxed))
}

/// Masks follow what is selected exactly: with all other keys and values NaN, the response is the
/// same.
#[test]
fn what_is_not_selected_is_not_read() {
    fn request_of(selection: Selection) -> Request {
        request("^(1+2)*(3+4)-5;", selection, Sampling::Greedy, 30)
    }
    let forgetful = || {
        let protocol = Forgetful { prompt: 15, kv_len: 15, faults: FaultCounts::default() };
        request_of(Selection::Protocol(Box::new(protocol)))
    };
    let clean = alone(forgetful());
    let (events, poisoned) = poisoned_response(loaded(), forgetful());
    assert_eq!(tokens(&events), tokens(&clean));
    assert!(events.len() > 8 && poisoned > 20, "{} tokens, {poisoned} times", events.len());
    let last = events.last().unwrap().finish.as_ref().unwrap();
    assert!(last.attended * 3 < last.available * 2, "{last:?}");
    // Another selection is another response, so the masks do matter.
    assert_ne!(tokens(&alone(request_of(Selection::Dense))), tokens(&clean));
}

/// The same with the trained model of the repository and what it declares itself.
#[test]
fn a_trained_model_answers_with_all_that_it_does_not_declare_nan() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/arithmetic");
    let vocabulary = Vocabulary::load(&folder.join("tokenizer.json")).unwrap();
    let trained = (Llama::load(&folder).unwrap(), vocabulary);
    for (prompt, answer) in [
        ("^(((8-2)+(1*9))+4);", "a<8-2>8-2=6;b<1*9>1*9=9;c<a+b>6+9=15;d<c+4>15+4=19;$"),
        (
            "^((((6*7)-(9+8))-(2*3))*5);",
            "a<6*7>6*7=42;b<9+8>9+8=17;c<a-b>42-17=25;d<2*3>2*3=6;e<c-d>25-6=19;f<e*5>19*5=95;$",
        ),
    ] {
        let tokens = trained.1.encode(prompt, false).unwrap().tokens;
        let named = SelfSpanPrompt::new(tokens.len() as u32);
        let protocol = Box::new(SelfSpanAttention::new(named, Fallback::Dense));
        let request = Request {
            prompt: tokens,
            selection: Selection::Protocol(protocol),
            sampling: Sampling::Greedy,
            seed: 0,
            max_tokens: 120,
        };
        let (events, poisoned) = poisoned_response(&trained, request);
        let text: String = events.iter().map(|event| event.text.as_str()).collect();
        assert_eq!(text, answer);
        assert!(poisoned > 500, "{poisoned}");
    }
}

#[test]
fn requests_that_cannot_be_served_are_refused_and_the_others_go_on() {
    let (model, vocabulary) = loaded();
    let mut engine = Engine::new(decoder(model, cache(12, 2)), vocabulary, 8);
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
