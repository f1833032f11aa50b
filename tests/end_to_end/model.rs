//! `generate` and `eval`, with a model of random weights: what it writes is nonsense, and has to be
//! handled like anything else.

use crate::model_folder::{config_with, model};
use crate::{folder, spanforge};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

fn random_model() -> TempDir {
    model(&config_with(json!({ "head_dim": 64 })), Dtype::F32, 1, 4)
}

#[test]
fn generate_shows_text_with_what_it_attends_to() {
    let (here, model) = (folder(), random_model());
    let model = model.path().to_str().unwrap();
    let prompt = "--prompt=^((8-2)+4);";
    let generate = |more: [&str; 2]| {
        let [one, two] = more;
        let arguments = ["generate", "--model", model, prompt, "--max-tokens=30", one, two];
        spanforge(here.path(), arguments)
    };
    let ran = generate(["--seed=1", "--temperature=1"]).expect(0).says("% of the context attended");
    assert!(ran.out.lines().all(|line| line.contains("[0, ")), "{}", ran.out);
    let report = generate(["--json", "--seed=0"]).expect(0).json();
    let text = report["text"].as_str().unwrap();
    let stretches = report["stretches"].as_array().unwrap();
    let joined: String = stretches.iter().map(|s| s["text"].as_str().unwrap()).collect();
    assert_eq!((joined.as_str(), &report["prompt_tokens"]), (text, &json!(11)));
    assert_eq!(report["tokens"].as_u64().unwrap() as usize, text.chars().count());
    assert_eq!(generate(["--plain", "--seed=0"]).expect(0).out, format!("{text}\n"));
    // The same seed, the same text; another one, another.
    let drawn = |seed| generate(["--temperature=1.5", seed]).expect(0).out;
    assert_eq!(drawn("--seed=3"), drawn("--seed=3"));
    assert_ne!(drawn("--seed=3"), drawn("--seed=4"));
    let dense = generate(["--json", "--attention=dense"]).expect(0).json();
    assert_eq!(dense["attended_share"], 1.0);
    let device = generate(["--json", "--attention=emulated:h200"]).expect(0).json();
    assert!(device["tokens"].as_u64().unwrap() > 0);
}

#[test]
fn eval_answers_the_same_problems_in_each_way() {
    let (here, model) = (folder(), random_model());
    let model = model.path().to_str().unwrap();
    let eval = |words: &str, more: &str| {
        let (model, words) = (format!("--model={model}"), format!("--attention={words}"));
        let task = "--task=arithmetic";
        spanforge(here.path(), ["eval", &model, task, "--count=5", "--batch=3", &words, more])
    };
    let scores = eval("dense,span,withheld", "--json").expect(0).json();
    for word in ["dense", "span", "withheld"] {
        let score = &scores[word];
        assert_eq!((&score["count"], &score["accuracy"]), (&json!(5), &json!(0.0)), "{word}");
        assert!(score["fallbacks"].is_u64() && score["parse_share"].is_f64(), "{score}");
    }
    assert_eq!(scores["dense"]["attended_share"], 1.0);
    assert!(scores["span"]["attended_share"].as_f64().unwrap() < 1.0);
    // Whoever shares the batch, and whatever was asked before.
    let again = eval("span", "--json").expect(0).json();
    let same = |scores: &Value, key: &str| scores["span"][key].clone();
    for key in ["attended_share", "fallbacks", "tokens"] {
        assert_eq!(same(&again, key), same(&scores, key), "{key}");
    }
    let ran = eval("dense,span", "--split=validation").expect(0);
    ran.prints("right of").prints("operands").prints("5 validation problems of seed 0");
}

#[test]
fn what_cannot_be_decoded_is_named() {
    let (here, model) = (folder(), random_model());
    let name = model.path().to_str().unwrap();
    let generate = |model: &str, more: [&str; 2]| {
        let [one, two] = more;
        spanforge(here.path(), ["generate", "--model", model, one, two]).expect(2)
    };
    generate("nowhere", ["--prompt=^1;", "--seed=1"]).says("nowhere/config.json");
    let long = format!("--prompt=^{};", "1".repeat(40));
    generate(name, [&long, "--cache-tokens=32"]).says("42 tokens").says("the cache holds 32");
    generate(name, ["--prompt=", "--seed=1"]).says("the prompt is empty");
    generate(name, ["--prompt=^1;", "--attention=gpu"]).says("dense, span or a device");
    generate(name, ["--prompt=^1;", "--temperature=0"]).says("temperature of 0");
    generate(name, ["--prompt=^1;", "--max-tokens=0"]).says("0 tokens");
    let artifact = "--artifact=artifacts/none";
    generate(name, ["--prompt=^1;", artifact]).says("used on a device");
    let eval = ["eval", "--model", name, "--task=arithmetic", "--attention=dense,,span"];
    spanforge(here.path(), eval).expect(2).says("empty word");
    // A vocabulary of more tokens than the model has.
    let config = config_with(json!({ "head_dim": 64, "vocab_size": 30, "eos_token_id": 29 }));
    let other = crate::model_folder::model(&config, Dtype::F32, 1, 4);
    let other = other.path().to_str().unwrap();
    generate(other, ["--prompt=^1;", "--seed=1"]).says("do not belong together");
}

#[test]
fn a_decode_is_saved_as_a_trace_and_benchmarked() {
    let (here, model) = (folder(), random_model());
    let model = model.path().to_str().unwrap();
    let prompt = "--prompt=^((8-2)+4);";
    let generate =
        ["generate", "--model", model, prompt, "--max-tokens=30", "--save-trace=one.jsonl"];
    spanforge(here.path(), generate).expect(0).says("wrote 1 responses of 29 steps to one.jsonl");
    let eval =
        ["eval", "--model", model, "--task=arithmetic", "--count=3", "--save-trace=eval.jsonl"];
    spanforge(here.path(), eval).expect(0).says("wrote 3 responses");
    for trace in ["one.jsonl", "eval.jsonl"] {
        let described =
            spanforge(here.path(), ["trace", "describe", trace, "--json"]).expect(0).json();
        assert_eq!(described["header"]["shape"]["query_heads"], 6, "{described}");
        let (model, trace) = (format!("--model={model}"), format!("--trace={trace}"));
        let bench = ["bench", "decode", &model, &trace, "--batch=1,3", "--steps=2", "--json"];
        let report = spanforge(here.path(), bench).expect(0).json();
        let rows = report["rows"].as_array().unwrap();
        let cases: Vec<_> = rows.iter().map(|row| (&row["batch"], &row["attention"])).collect();
        let (dense, span) = (json!("dense"), json!("span"));
        assert_eq!(
            cases,
            [(&json!(1), &dense), (&json!(1), &span), (&json!(3), &dense), (&json!(3), &span)]
        );
        for row in rows {
            assert_eq!(
                (&row["basis"], row["step_ms"].as_array().unwrap().len()),
                (&json!("measured"), 2)
            );
            let share = row["attended_share"].as_f64().unwrap();
            assert!(share <= 1.0 && (share == 1.0 || row["attention"] == "span"), "{row}");
            // Whatever they come to: nothing is said of times.
            for key in ["speedup", "speedup_bound", "attention_share", "floor_ms"] {
                assert!(row[key].as_f64().is_some_and(|number| number >= 0.0), "{key}: {row}");
            }
        }
    }
    let bench = |more: [&str; 2]| {
        let [one, two] = more;
        spanforge(here.path(), ["bench", "decode", "--model", model, one, two])
    };
    bench(["--trace=one.jsonl", "--layers=1"]).expect(0).prints("measured on").prints("1 layers");
    let emulated = bench(["--trace=one.jsonl", "--device=emulated:h200"]);
    emulated.expect(2).says("no time of a whole step");
    bench(["--trace=nowhere", "--batch=1"]).expect(2).says("da-gemma4");
    bench(["--trace=one.jsonl", "--layers=0"]).expect(2);
    fs_err::write(here.path().join("bad.jsonl"), "{}").unwrap();
    bench(["--trace=bad.jsonl", "--batch=1"]).expect(2).says("not a valid header");
    // 60 000 tokens of 7B in f32 are more than this machine has; nothing is taken before that is known.
    let shape = "models/shapes/llama-2-7b/config.json";
    let shape = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(shape);
    let config: Value = serde_json::from_slice(&fs_err::read(&shape).unwrap()).unwrap();
    let small = json!({ "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1024, "vocab_size": 64 });
    let mut config = config;
    small.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
    fs_err::write(here.path().join("deep.json"), config.to_string()).unwrap();
    let bench = ["bench", "decode", "--model=deep.json", "--trace=da-gemma4", "--batch=512"];
    spanforge(here.path(), bench).expect(2).says("no batch was measured").says("fewer --layers");
}

/// The parts of a prompt by which either protocol selects, and what is wrong with some.
#[test]
fn a_prompt_has_parts() {
    let (here, model) = (folder(), random_model());
    let model = model.path().to_str().unwrap();
    let generate = |sample: Value, protocol: &str| {
        fs_err::write(here.path().join("sample.json"), sample.to_string()).unwrap();
        let (model, protocol) = (format!("--model={model}"), format!("--protocol={protocol}"));
        let arguments = ["generate", &model, "--sample=sample.json", &protocol, "--json"];
        spanforge(here.path(), arguments)
    };
    let sample = |more: Value| {
        let mut sample = json!({ "prompt": "^(1+2)*(3-4);" });
        more.as_object().unwrap().iter().for_each(|(key, value)| sample[key] = value.clone());
        sample
    };
    let report = generate(sample(json!({ "names": { "s0": [1, 6], "s1": [7, 12] } })), "self-span");
    assert_eq!(report.expect(0).json()["prompt_tokens"], 13);
    let parts = json!({ "segments": [[1, 6], [7, 12]], "question": 12 });
    let report = generate(sample(parts), "declarative").expect(0).json();
    // Random text opens no tag: all of it attends to everything.
    assert_eq!(report["attended_share"], 1.0);
    for (parts, protocol, says) in [
        (json!({ "names": { "s0": [5, 4] } }), "self-span", "[5, 4) is no part"),
        (json!({ "names": { "s0": [9, 2] } }), "self-span", "[9, 2) is no part"),
        (json!({ "names": { "s0": [9, 14] } }), "self-span", "of a prompt of 13"),
        (json!({ "names": { "0": [1, 2] } }), "self-span", "is not a name"),
        (json!({ "segments": [[1, 6], [3, 8]] }), "declarative", "segment 2"),
        (json!({ "segments": [[1, 6]], "question": 3 }), "declarative", "segment 1"),
        (json!({ "segments": 5 }), "declarative", "not one JSON object"),
        (json!({ "question": 99 }), "declarative", "is no part"),
        (json!({ "prompt": "" }), "self-span", "the prompt is empty"),
    ] {
        generate(sample(parts), protocol).expect(2).says(says);
    }
    let both = ["generate", "--model", model, "--prompt=^1;", "--sample=sample.json"];
    spanforge(here.path(), both).expect(2).says("cannot be used with");
    spanforge(here.path(), ["generate", "--model", model]).expect(2).says("--prompt");
}

#[test]
fn a_dataset_says_what_each_character_attends_to() {
    let here = folder();
    let dataset = |more: [&str; 3]| {
        let [task, one, two] = more;
        spanforge(here.path(), ["dataset", task, one, two])
    };
    let ran = dataset(["--task=arithmetic", "--count=5", "--seed=3"]).expect(0);
    assert_eq!(ran.out.lines().count(), 5);
    for line in ran.out.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let (prompt, response) =
            (line["prompt"].as_str().unwrap(), line["response"].as_str().unwrap());
        let phases = line["phases"].as_array().unwrap();
        let steps: u64 = phases.iter().map(|phase| phase["tokens"].as_u64().unwrap()).sum();
        assert_eq!(steps as usize, response.len());
        assert_eq!(line["prompt_tokens"], prompt.len());
        // From the first `>` on: the sink, and its own line.
        assert_eq!(phases[1]["spans"], json!([[0, 1]]), "{line}");
    }
    assert_ne!(ran.out, dataset(["--task=arithmetic", "--count=5", "--seed=4"]).expect(0).out);
    dataset(["--task=summarisation", "--count=2", "-o=news.jsonl"])
        .expect(0)
        .says("wrote 2 samples");
    let text = fs_err::read_to_string(here.path().join("news.jsonl")).unwrap();
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let sentence = &line["names"]["s1"];
    let at = |end: usize| sentence[end].as_u64().unwrap() as usize;
    assert!(line["prompt"].as_str().unwrap()[at(0)..at(1)].ends_with(" s1 ."), "{line}");
    dataset(["--task=arithmetic", "--operands=9-3", "--count=1"])
        .expect(2)
        .says("smaller one first");
    dataset(["--task=summarisation", "--operands=3-8", "--count=1"]).expect(2).says("--operands");
    let ran = dataset(["--task=arithmetic", "--operands=12", "--count=1"]).expect(0);
    assert_eq!(ran.out.matches(")").count(), 11, "{}", ran.out);
}
