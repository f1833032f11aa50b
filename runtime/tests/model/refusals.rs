//! Folders that are no model: an error that names the file and what is wrong.

use crate::folder::{config, config_with, model};
use fs_err as fs;
use safetensors::tensor::Dtype;
use serde_json::json;
use spanforge_runtime::model::{Llama, Vocabulary};
use std::path::Path;

#[track_caller]
fn refused(folder: &Path, says: &[&str]) {
    let error = Llama::load(folder).err().expect("refused").to_string();
    for text in says {
        assert!(error.contains(text), "no {text:?} in {error}");
    }
}

#[test]
fn damaged_or_missing_weights_are_named() {
    let folder = model(&config(), Dtype::F32, 1, 1);
    let weights = folder.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    for kept in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&weights, &bytes[..kept]).unwrap();
        refused(folder.path(), &["model.safetensors", "not a whole safetensors file"]);
    }
    fs::remove_file(&weights).unwrap();
    refused(folder.path(), &["neither model.safetensors nor"]);
    fs::write(folder.path().join("config.json"), "{").unwrap();
    refused(folder.path(), &["config.json", "EOF"]);
    fs::remove_file(folder.path().join("config.json")).unwrap();
    refused(folder.path(), &["config.json"]);
}

#[test]
fn a_configuration_of_other_weights_is_named_with_the_tensor() {
    let folder = model(&config(), Dtype::BF16, 1, 1);
    let with = |changes| {
        fs::write(folder.path().join("config.json"), config_with(changes).to_string()).unwrap();
    };
    with(json!({ "intermediate_size": 81 }));
    refused(folder.path(), &["mlp.gate_proj", "[80, 96]", "[81, 96]", "config.json"]);
    with(json!({ "num_hidden_layers": 4 }));
    refused(folder.path(), &["no tensor `model.layers.3.", "the file has"]);
    with(json!({ "vocab_size": 10 }));
    refused(folder.path(), &["embed_tokens", "[10, 96]"]);
}

#[test]
fn an_index_that_makes_no_sense_is_named() {
    let folder = model(&config(), Dtype::F32, 2, 1);
    let index = folder.path().join("model.safetensors.index.json");
    for (text, says) in [
        ("{}", "weight_map"),
        (r#"{"weight_map": {"a": "../elsewhere.safetensors"}}"#, "beside it"),
        (r#"{"weight_map": {"a": "missing.safetensors"}}"#, "missing.safetensors"),
    ] {
        fs::write(&index, text).unwrap();
        refused(folder.path(), &[says]);
    }
    fs::write(&index, r#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#).unwrap();
    refused(folder.path(), &["there is no tensor"]);
    fs::write(&index, r#"{"weight_map": {}}"#).unwrap();
    refused(folder.path(), &["no file"]);
}

#[test]
fn a_vocabulary_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    assert!(Vocabulary::load(&path).err().unwrap().to_string().contains("tokenizer.json"));
    fs::write(&path, "{}").unwrap();
    assert!(Vocabulary::load(&path).err().unwrap().to_string().contains("not a tokenizer"));
}
