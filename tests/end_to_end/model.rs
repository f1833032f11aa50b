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
