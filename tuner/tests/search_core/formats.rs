//! Files of other tools: what is read from them, whole, cut and damaged.

use crate::recorded;
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::collection::vec;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use spanforge_device::Basis;
use spanforge_tuner::formats::{
    Entry, Failure, FormatError, Measurement, Phases, Recording, Runs, t1,
};
use spanforge_tuner::replay::Recorded;
use spanforge_tuner::search::parameters::{Kind, Parameter};
use spanforge_tuner::search::{Space, Value};
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::OnceLock;

const CACHE: &str = r#"{
"device_name": "NVIDIA \"Test\" é",
"kernel_name": "k",
"problem_size": [4096, 16],
"tune_params_keys": ["size", "method", "fast"],
"tune_params": {"size": [16, 32, 64], "method": ["a,b", "c"], "fast": [false, true]},
"objective": "time",
"cache": {
"16,a,b,False": {"size": 16, "method": "a,b", "fast": false, "time": 4.0, "times": [9.0, 2.0, 1.0], "compile_time": 900.5, "verification_time": 1, "benchmark_time": 14.5, "strategy_time": 0.25, "framework_time": 2, "GFLOP/s": 7.5},
"32,c,True": {"size": 32, "method": "c", "fast": true, "time": "RuntimeFailedConfig", "compile_time": 100.0, "verification_time": 0, "benchmark_time": 0.5, "strategy_time": 0, "framework_time": 1.5, "timestamp": "2023-12-22 10:33:52"},
"64,c,True": {"size": 64, "method": "c", "fast": true, "time": 3.0, "__error__": "CompilationFailedConfig"},
"64,c,False": {"size": 64, "method": "c", "fast": false, "time": 1e+20, "compile_time": null},
"96,c,False": {"size": 96, "method": "c", "fast": false, "time": NaN, "times": [5.0, -Infinity]},
"16,c,False": {"size": 16, "method": "c", "fast": false, "time": 2.5, "compile_time": -3}
}
}
"#;

const T4: &str = r#"{"metadata": {"timeunit": "miliseconds"}, "schema_version": "1.0.0", "results": [
{"configuration": {"size": 32, "name": "b"}, "times": {"compilation": 900.5, "framework": 2, "search_algorithm": 0.25, "validation": 1, "runtimes": [9.0, 2.0, 1.0]}, "invalidity": "correct", "correctness": 1, "measurements": [{"name": "time", "value": 4.0, "unit": ""}], "objectives": ["time"]},
{"configuration": {"size": 16, "name": "a"}, "times": {"compilation_time": 7, "benchmark": 3, "runtimes": []}, "invalidity": "timeout", "correctness": 0},
{"configuration": {"size": 8, "name": "a"}, "times": {}, "invalidity": "correctness", "correctness": 0},
{"configuration": {"size": 8, "name": "b"}, "times": {}, "invalidity": "constraints", "correctness": 0},
{"configuration": {"size": 16, "name": "b"}, "times": {}, "invalidity": "compile", "correctness": 0}
]}"#;

fn read(bytes: &[u8]) -> Result<Recording, FormatError> {
    Recording::from_bytes("file", bytes)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

fn ran(mean_ms: f64, runs_ms: &[f64]) -> Result<Runs, Failure> {
    Ok(Runs { mean_ms: Some(mean_ms), runs_ms: runs_ms.to_vec() })
}

#[test]
fn a_cache_is_read_with_its_failures() {
    let phases = Phases {
        compile_ms: 900.5,
        verification_ms: 1.0,
        benchmark_ms: 14.5,
        framework_ms: 2.0,
        strategy_ms: 0.25,
    };
    let failed =
        Phases { compile_ms: 100.0, benchmark_ms: 0.5, framework_ms: 1.5, ..Phases::default() };
    let none = Phases::default();
    let no_time = || Err(Failure::Other("no time".into()));
    let entry = |point: [usize; 3], result, phases| Entry {
        point: point.to_vec(),
        result,
        phases,
        measurements: Vec::new(),
    };
    let expected = [
        entry([0, 0, 0], ran(4.0, &[9.0, 2.0, 1.0]), phases),
        entry([1, 1, 1], Err(Failure::Runtime), failed),
        entry([2, 1, 1], Err(Failure::Compile), none),
        entry([2, 1, 0], no_time(), none),
        entry([3, 1, 0], no_time(), none),
        entry([0, 1, 0], ran(2.5, &[]), none),
    ];
    for bytes in [CACHE.as_bytes().to_vec(), gzip(CACHE.as_bytes())] {
        let recording = read(&bytes).expect("readable");
        assert_eq!(recording.device.as_deref(), Some("NVIDIA \"Test\" é"));
        assert_eq!(recording.kernel.as_deref(), Some("k"));
        assert_eq!(recording.problem.as_deref(), Some("[4096,16]"));
        assert_eq!(recording.entries, expected);
        assert!(!recording.is_cut);
        let kinds: Vec<Kind> = recording.parameters.iter().map(|p| p.kind).collect();
        assert_eq!(kinds, [Kind::Int, Kind::Text, Kind::Bool]);
        // A value that the header does not list.
        assert_eq!(recording.parameters[0].values, [16, 32, 64, 96].map(Value::Int));
    }
}

#[test]
fn t4_is_read_in_both_spellings() {
    let recording = read(T4.as_bytes()).expect("readable");
    let sizes = recording.parameters.iter().find(|p| p.name == "size").expect("a parameter");
    assert_eq!(sizes.values, [8, 16, 32].map(Value::Int));
    let phases = Phases {
        compile_ms: 900.5,
        verification_ms: 1.0,
        benchmark_ms: 12.0,
        framework_ms: 2.0,
        strategy_ms: 0.25,
    };
    assert_eq!(recording.entries[0].result, ran(4.0, &[9.0, 2.0, 1.0]));
    assert_eq!(recording.entries[0].phases, phases);
    let second = Phases { compile_ms: 7.0, benchmark_ms: 3.0, ..Phases::default() };
    assert_eq!(recording.entries[1].phases, second);
    let failures: Vec<_> =
        recording.entries[1..].iter().map(|e| e.result.clone().expect_err("failed")).collect();
    let all = [Failure::Timeout, Failure::Correctness, Failure::Constraints, Failure::Compile];
    assert_eq!(failures, all);

    let seconds = read(T4.replace("miliseconds", "seconds").as_bytes()).expect("readable");
    assert_eq!(seconds.entries[0].phases.compile_ms, 900_500.0);
    let error = read(T4.replace("miliseconds", "weeks").as_bytes()).expect_err("no such unit");
    assert!(error.to_string().starts_with("file: the unit of time is \"weeks\""), "{error}");
}

/// Every cut leaves an error, or exactly the configurations that end before it.
#[test]
fn cut_files_keep_their_whole_configurations() {
    for (text, close) in [(CACHE, "}"), (T4, "}")] {
        let whole = read(text.as_bytes()).expect("readable");
        // Where each configuration ends: the last brace of its line.
        let mut ends = Vec::new();
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            let is_entry = line.contains("\"method\": \"") || line.starts_with("{\"configuration");
            if is_entry {
                ends.push(start + line.rfind(close).expect("a brace") + 1);
            }
            start += line.len();
        }
        assert_eq!(ends.len(), whole.entries.len());
        for cut in 0..text.trim_end().len() {
            let expected = ends.iter().filter(|end| **end <= cut).count();
            match read(&text.as_bytes()[..cut]) {
                Ok(recording) => {
                    assert!(recording.is_cut && expected > 0, "cut at {cut}");
                    assert_eq!(recording.entries.len(), expected, "cut at {cut}");
                    let results = recording.entries.iter().zip(&whole.entries);
                    for (kept, original) in results {
                        assert_eq!(
                            (&kept.result, kept.phases),
                            (&original.result, original.phases)
                        );
                    }
                }
                Err(FormatError::NoConfigurations { .. }) => {
                    assert_eq!(expected, 0, "cut at {cut}")
                }
                Err(error) => panic!("cut at {cut}: {error}"),
            }
        }
    }
}

#[test]
fn cut_gzip_keeps_what_can_be_unpacked() {
    let whole = read(CACHE.as_bytes()).expect("readable").entries;
    // Stored, so that the text before a cut can be unpacked.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(CACHE.as_bytes()).expect("in memory");
    let mut most = 0;
    for bytes in [encoder.finish().expect("in memory"), gzip(CACHE.as_bytes())] {
        for cut in 0..bytes.len() {
            match read(&bytes[..cut]) {
                Ok(recording) => {
                    assert!(recording.is_cut);
                    assert!(whole.starts_with(&recording.entries));
                    most = most.max(recording.entries.len());
                }
                Err(FormatError::NoConfigurations { .. } | FormatError::Json { .. }) => {}
                Err(error) => panic!("cut at {cut}: {error}"),
            }
        }
    }
    assert_eq!(most, whole.len());
}

#[test]
fn files_of_another_kind_are_refused_with_the_reason() {
    for (text, reason) in [
        ("", "file does not hold a single whole configuration"),
        ("hello", "file is not a JSON object: expected value at line 1 column 1"),
        ("[1]", "file is not a JSON object: invalid type: sequence, expected an object with"),
        ("{}", "file is neither a Kernel Tuner cache, which has a `cache`, nor a T4 file"),
        (
            "{\"cache\": 3}",
            "file is not a JSON object: invalid type: integer `3`, expected an object",
        ),
        ("{\"cache\": {}}", "file: expected `tune_params_keys` or `tune_params`"),
        ("{\"tune_params\": {}, \"cache\": {}}", "file does not hold a single whole"),
        (
            "{\"tune_params_keys\": [\"a\"], \"cache\": {\"1\": {}}}",
            "file: configuration 1 has no `a`",
        ),
        ("{\"results\": [{}]}", "file: result 1 has no `configuration`"),
        ("{\"results\": []} x", "file is not a JSON object: trailing characters"),
    ] {
        let error = read(text.as_bytes()).expect_err(text).to_string();
        assert!(error.starts_with(reason), "{text}: {error}");
    }
    let many: Vec<String> = (0..10_001).map(|n| format!("\"{n}\": {{\"a\": {n}}}")).collect();
    let many = format!("{{\"tune_params_keys\": [\"a\"], \"cache\": {{{}}}}}", many.join(","));
    let error = read(many.as_bytes()).expect_err("too many").to_string();
    assert_eq!(error, "file: parameter `a` has more than 10000 values");
    let many: Vec<String> = (0..10_001).map(|n| n.to_string()).collect();
    let many = format!("{{\"tune_params\": {{\"a\": [{}]}}, \"cache\": {{}}}}", many.join(","));
    let error = read(many.as_bytes()).expect_err("too many").to_string();
    assert_eq!(error, "file: parameter `a` has more than 10000 values");
    let mut damaged = gzip(CACHE.as_bytes());
    let middle = damaged.len() / 2;
    damaged[middle..middle + 20].fill(0xff);
    let error = read(&damaged).expect_err("damaged").to_string();
    assert!(error.starts_with("file: damaged gzip data: "), "{error}");
}

/// Parameters of every kind, and configurations with every fate, as other tools may record them.
fn any_recording() -> impl Strategy<Value = Recording> {
    let failure = prop_oneof![
        Just(Failure::Compile),
        Just(Failure::Runtime),
        Just(Failure::Constraints),
        Just(Failure::Timeout),
        Just(Failure::Correctness),
    ];
    let time = 1e-3..1e4_f64;
    let runs = (time.clone(), vec(time, 0..6))
        .prop_map(|(mean, runs_ms)| Ok(Runs { mean_ms: Some(mean), runs_ms }));
    let result = prop_oneof![3 => runs, 1 => failure.prop_map(Err)];
    let phases = [0.0..1e5_f64, 0.0..1e3, 0.0..1e4, 0.0..10.0, 0.0..10.0];
    let entry = (0..4_usize, 0..3_usize, 0..2_usize, 0..3_usize, result, phases);
    (vec(entry, 1..40), "[a-zA-Z\"<\\\\ ,é]{1,12}").prop_map(|(entries, text)| {
        let float = |n: i64| Value::Float(n as f64 / 4.0);
        let parameters = vec![
            Parameter::new("tile", [16, 32, 64, 128].map(Value::Int).to_vec()),
            Parameter::new("z share", (1..4).map(float).collect()),
            Parameter::new("async", [false, true].map(Value::Bool).to_vec()),
            Parameter::new("b", ["a", "b,c", &text].map(|t| Value::Text(t.to_owned())).to_vec()),
        ];
        // Each configuration once, as a cache can hold it.
        let mut seen = BTreeSet::new();
        let entries = entries.into_iter().filter_map(|(a, b, c, d, result, phases)| {
            let [compile_ms, verification_ms, benchmark_ms, framework_ms, strategy_ms] = phases;
            let phases =
                Phases { compile_ms, verification_ms, benchmark_ms, framework_ms, strategy_ms };
            let point = vec![a, b, c, d];
            let registers = Measurement { name: "registers", value: 40.0, unit: "" };
            let entry =
                Entry { point: point.clone(), result, phases, measurements: vec![registers] };
            seen.insert(point).then_some(entry)
        });
        Recording {
            device: Some(format!("a GPU {text}")),
            kernel: Some("k".into()),
            problem: Some("[4096,16]".into()),
            basis: Some(Basis::Measured),
            parameters,
            entries: entries.collect(),
            is_cut: false,
        }
    })
}

/// Configurations by their values, as text, with what became of them.
fn outcomes(recording: &Recording) -> Vec<(Vec<String>, Result<Runs, String>, Phases)> {
    let outcome = |entry: &Entry| {
        let values = entry.point.iter().zip(&recording.parameters);
        let values = values.map(|(at, p)| format!("{}={}", p.name, p.values[*at])).collect();
        (values, entry.result.clone().map_err(|f| f.to_string()), entry.phases)
    };
    recording.entries.iter().map(outcome).collect()
}

proptest! {
    /// What is written is read again as it was; a cache has fewer words for failures.
    #[test]
    fn what_is_written_is_read_again(recording in any_recording()) {
        let t4 = recording.to_t4().expect("writable");
        prop_assert_eq!(outcomes(&read(t4.as_bytes()).expect("readable")), outcomes(&recording));
        let cache = read(recording.to_kernel_tuner().expect("writable").as_bytes()).expect("readable");
        prop_assert_eq!(&cache.device, &recording.device);
        prop_assert_eq!(&cache.problem, &recording.problem);
        let mut expected = outcomes(&recording);
        for (_, result, _) in &mut expected {
            if let Err(failure) = result
                && !["compile", "constraints"].contains(&failure.as_str())
            {
                "runtime".clone_into(failure);
            }
        }
        prop_assert_eq!(outcomes(&cache), expected);
    }

    /// Against the schema itself, where it lies beside the repository.
    #[test]
    fn t4_files_keep_the_schema(recording in any_recording()) {
        if let Some(schema) = t4_schema() {
            let text = recording.to_t4().expect("writable");
            let file = serde_json::from_str(&text).expect("JSON");
            let errors: Vec<String> = schema.iter_errors(&file).map(|e| e.to_string()).collect();
            prop_assert!(errors.is_empty(), "{:?} in {}", errors, text);
        }
    }
}

fn t4_schema() -> Option<&'static jsonschema::Validator> {
    static SCHEMA: OnceLock<Option<jsonschema::Validator>> = OnceLock::new();
    let read = || {
        let text = fs_err::read(recorded("schemas/T4-1.0.0-results-schema.json")?).expect("a file");
        let schema = serde_json::from_slice(&text).expect("JSON");
        Some(jsonschema::validator_for(&schema).expect("a schema"))
    };
    SCHEMA.get_or_init(read).as_ref()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Bytes changed anywhere give an error or a recording whose points are within its parameters.
    #[test]
    fn damaged_files_do_no_harm(
        t4: bool, changes in proptest::collection::vec((0..1000usize, proptest::prelude::any::<u8>()), 1..4),
    ) {
        let mut bytes = if t4 { T4 } else { CACHE }.as_bytes().to_vec();
        let length = bytes.len();
        for (place, byte) in changes {
            bytes[place * length / 1000] = byte;
        }
        if let Ok(recording) = read(&bytes) {
            for entry in &recording.entries {
                let fits = |(value, p): (&usize, &spanforge_tuner::search::parameters::Parameter)| *value < p.values.len();
                prop_assert!(entry.point.len() == recording.parameters.len());
                prop_assert!(entry.point.iter().zip(&recording.parameters).all(fits));
            }
        }
    }
}

#[test]
fn t1_values_have_their_types_and_faults_their_place() {
    let input = |kind: &str, values: &str, condition: &str| {
        format!(
            r#"{{"ConfigurationSpace": {{"TuningParameters": [
                {{"Name": "p", "Type": "{kind}", "Values": "{values}", "Default": 1}}],
                "Conditions": [{{"Expression": "{condition}", "Parameters": ["p"]}}]}},
                "KernelSpecification": {{}}}}"#
        )
    };
    let parse = |text: &str| t1::parse("file", text.as_bytes());
    let space = parse(&input("int", "[2**i for i in range(4)]", "p != 4")).expect("valid");
    assert_eq!(space.sizes(), [4]);
    assert_eq!(space.points().count(), 3);
    let space = parse(&input("bool", "[0, True]", "1")).expect("valid");
    assert_eq!(space.parameters()[0].kind, Kind::Bool);
    let space = parse(&input("float", "[1, 2.5]", "1")).expect("valid");
    assert_eq!(space.parameters()[0].kind, Kind::Float);
    for (kind, values, condition, reason) in [
        ("int", "[1, 2.5]", "1", "file: values of parameter `p`: 2.5 is not of the type int"),
        ("uint", "[-1]", "1", "file: values of parameter `p`: -1 is not of the type uint"),
        ("text", "[1]", "1", "file: parameter `p` has the type \"text\"; expected int, uint"),
        ("int", "3", "1", "file: values of parameter `p`: expected a list, found a whole number"),
        ("int", "[1,", "1", "file: values of parameter `p`: character 4: expected a value"),
        ("int", "[1]", "q", "file: constraint `q` reads `q`, which is not a parameter"),
        ("int", "[]", "1", "file: parameter `p` has no values"),
    ] {
        let error = parse(&input(kind, values, condition)).expect_err(reason).to_string();
        assert!(error.starts_with(reason), "{error}");
    }
    let error = parse("{}").expect_err("no space").to_string();
    assert!(error.contains("missing field `ConfigurationSpace`"), "{error}");
}

#[test]
fn real_files_are_read_whole() {
    let counts = |recording: &Recording| {
        let failed = |f: &Failure| {
            recording.entries.iter().filter(|e| e.result.as_ref().err() == Some(f)).count()
        };
        [recording.entries.len(), failed(&Failure::Runtime), failed(&Failure::Compile)]
    };
    for file in ["convolution/A100.json.gz", "convolution/A100_T4.json.gz"] {
        let Some(path) = recorded(file) else { return };
        assert_eq!(counts(&Recording::read(&path).expect("readable")), [4362, 155, 6], "{file}");
    }
    // The same data in both formats: the same space, and the same fate of every configuration.
    let space =
        |file: &str| Recorded::new(Recording::read(&recorded(file)?).expect("readable")).ok();
    let (Some(cache), Some(t4)) =
        (space("convolution/A100.json.gz"), space("convolution/A100_T4.json.gz"))
    else {
        return;
    };
    assert_eq!(cache.sizes(), t4.sizes());
    for (index, outcome) in cache.outcomes().iter().enumerate() {
        assert_eq!(
            (&outcome.point, &outcome.time_ms),
            (&t4.outcomes()[index].point, &t4.outcomes()[index].time_ms)
        );
        assert_eq!(cache.key(index), t4.key(index));
    }
    for (file, expected) in [
        ("gemm/RTX_2080_Ti.json.gz", [17956, 0, 0]),
        ("pnpoly/RTX_3060_laptop.json.gz", [4092, 318, 0]),
    ] {
        let Some(path) = recorded(file) else { return };
        assert_eq!(counts(&Recording::read(&path).expect("readable")), expected, "{file}");
    }
    for file in [
        "convolution",
        "convolution_milo",
        "dedispersion_milo",
        "gemm_milo",
        "hotspot_milo",
        "pnpoly",
    ] {
        let Some(path) = recorded(&format!("t1/{file}.json")) else { return };
        t1::read(&path).expect(file);
    }
}
