//! T1 descriptions of search spaces: what `configs` says of them, and what `replay` holds against
//! them.

use crate::{folder, spanforge};
use fs_err as fs;
use serde_json::{Value, json};
use std::path::Path;

fn described(here: &Path, conditions: &[&str]) {
    let condition = |text: &&str| json!({"Expression": text, "Parameters": ["tile", "warps"]});
    let file = json!({
        "ConfigurationSpace": {
            "TuningParameters": [
                {"Name": "tile", "Type": "int", "Values": "[2**i for i in range(4, 8)]"},
                {"Name": "warps", "Type": "int", "Values": "[1, 2, 4, 8]"},
                {"Name": "swizzle", "Type": "bool", "Values": "[True, False]"},
            ],
            "Conditions": conditions.iter().map(condition).collect::<Vec<_>>(),
        },
        "KernelSpecification": {},
    });
    fs::write(here.join("space.json"), file.to_string()).unwrap();
}

#[test]
fn a_described_space_is_counted_and_drawn_from() {
    let here = folder();
    described(here.path(), &["tile % (16 * warps) == 0", "32 <= tile * warps <= 512"]);
    let text = spanforge(here.path(), ["configs", "--t1", "space.json"]).expect(0);
    // Of 4 x 4: 16 has 1 warp, 32 has 1 and 2, 64 three, 128 four; 16 x 1 and 128 x 8 go.
    let text = text.prints("32 points, 16 valid").prints("tile % (16 * warps) == 0");
    text.prints("swizzle=True tile=32 warps=1");
    let json = ["configs", "--t1", "space.json", "--sample=5", "--json"];
    let drawn = spanforge(here.path(), json).expect(0).json();
    assert_eq!((&drawn["points"], &drawn["valid"]), (&json!(32), &json!(16)));
    let drawn = drawn["configurations"].as_array().unwrap().clone();
    assert_eq!(drawn.len(), 5);
    for configuration in &drawn {
        let [tile, warps] = ["tile", "warps"].map(|name| configuration[name].as_i64().unwrap());
        assert!(tile % (16 * warps) == 0 && (32..=512).contains(&(tile * warps)));
    }
}

#[test]
fn what_is_wrong_with_a_description_is_named() {
    let here = folder();
    let refused = |conditions: &[&str], reason| {
        described(here.path(), conditions);
        spanforge(here.path(), ["configs", "--t1", "space.json"]).expect(2).says(reason);
    };
    refused(&["tile > 16", "stages > 1"], "reads `stages`, which is not a parameter");
    refused(&["tile > 16", "tile < 32", "warps > 1"], "with `tile < 32` none is left");
    refused(&["tile >"], "constraint `tile >`");
    let both = ["configs", "--t1", "space.json", "--head-dim=64"];
    spanforge(here.path(), both).expect(2).says("cannot be used with");
}

#[test]
fn a_cache_of_another_kernel_is_refused() {
    let here = folder();
    described(here.path(), &["tile % (16 * warps) == 0"]);
    let cache = |parameters: Value, entries: &[(&str, Value)]| {
        let entries: serde_json::Map<String, Value> = entries
            .iter()
            .map(|(key, entry)| {
                let mut entry = entry.clone();
                entry["time"] = 1.5.into();
                ((*key).to_owned(), entry)
            })
            .collect();
        let file = json!({"tune_params": parameters, "cache": entries});
        fs::write(here.path().join("cache.json"), file.to_string()).unwrap();
        let arguments = ["replay", "cache.json", "--t1", "space.json", "--repeats=1"];
        spanforge(here.path(), arguments)
    };
    let own = json!({"tile": [32, 64], "warps": [1, 2], "swizzle": [true]});
    let fits = ("64,2,True", json!({"tile": 64, "warps": 2, "swizzle": true}));
    cache(own.clone(), std::slice::from_ref(&fits)).expect(0);
    let broken = ("32,4,True", json!({"tile": 32, "warps": 4, "swizzle": true}));
    cache(own.clone(), &[fits.clone(), broken]).expect(2).says("breaks `tile % (16 * warps) == 0`");
    let value = ("48,1,True", json!({"tile": 48, "warps": 1, "swizzle": true}));
    cache(own, &[fits, value]).expect(2).says("`tile` does not have the value 48");
    let other = json!({"MWG": [32]});
    let ran = cache(other, &[("32", json!({"MWG": 32}))]).expect(2);
    ran.says("not a record of the described space").says("MWG");
}
