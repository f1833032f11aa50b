//! `predict`: the time that `tune` gives a configuration, taken apart.

use crate::{folder, names, spanforge};
use serde_json::Value;

const SMALL: [&str; 4] =
    ["--workload=ssas-llama2", "--batch=4", "--device=emulated:h200", "--json"];

#[test]
fn the_terms_and_levers_belong_to_the_time_that_tune_predicts() {
    let here = folder();
    let [workload, batch, device, json] = SMALL;
    let ran = spanforge(here.path(), ["predict", workload, batch, device, json]).expect(0);
    let predicted = ran.json();
    assert_eq!(predicted["basis"], "predicted");
    let tune = ["tune", workload, batch, device, json, "--budget=1", "--cases=1"];
    let tuned = spanforge(here.path(), tune).expect(0);
    let json = tuned.out.rsplit_once('}').unwrap().0.to_owned() + "}";
    let tuned: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(predicted["time_us"], tuned["candidates"][0]["time_us"]);
    assert_eq!(predicted["configuration"], tuned["candidates"][0]["id"]);
    assert_eq!(predicted["floor_us"], tuned["run"]["floor_us"]);

    let launches = predicted["launches"].as_array().unwrap();
    let time = |launch: &Value| launch["estimate"]["time_us"].as_f64().unwrap();
    let sum: f64 = launches.iter().map(time).sum();
    assert!((sum / predicted["time_us"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    let decode = launches.iter().max_by(|a, b| time(a).total_cmp(&time(b))).unwrap();
    assert_eq!(decode["kernel"], "spanforge_decode");
    let levers = decode["levers"].as_array().unwrap();
    assert!(levers.iter().any(|lever| lever["what"] == "10 % fewer instructions of every kind"));
    for lever in levers {
        assert!(lever["time_us"].as_f64().unwrap() < time(decode), "{lever}");
    }
    let text = spanforge(here.path(), ["predict", workload, batch, device]).expect(0);
    for said in ["x the floor of", "without bank conflicts", "occupancy", "what would change it"] {
        assert!(text.out.contains(said), "no {said:?} in {}", text.out);
    }
}

#[test]
fn the_lines_with_most_instructions_are_shown() {
    let here = folder();
    let [workload, batch, device, json] = SMALL;
    let shown = spanforge(here.path(), ["predict", workload, batch, device, "--lines=3"]).expect(0);
    let predict = ["predict", workload, batch, device, "--lines=3", json];
    let lines = spanforge(here.path(), predict).expect(0).json();
    let lines = lines["lines"].as_array().unwrap();
    let count = |line: &Value| line["instructions"].as_u64().unwrap();
    assert_eq!(lines.len(), 3);
    assert!(lines.windows(2).all(|pair| count(&pair[0]) >= count(&pair[1])), "{lines:?}");
    assert!(count(&lines[2]) > 0);
    let place = |line: &Value| {
        format!("{}:{}", line["line"]["file"].as_str().unwrap(), line["line"]["line"])
    };
    for line in lines {
        assert!(shown.out.contains(&place(line)), "{}", shown.out);
    }
}

#[test]
fn a_case_is_predicted_as_bench_times_it() {
    let here = folder();
    let shape = "--head-dim=64";
    let predict = ["predict", "--case", "1x2K+3x64", shape, "--json"];
    let predicted = spanforge(here.path(), predict).expect(0).json();
    let bench = ["bench", "--case", "1x2K+3x64", shape, "--json", "--device=emulated:h200"];
    let timed = spanforge(here.path(), bench).expect(0).json();
    assert_eq!(predicted["configuration"], timed["rows"][0]["kernel"]);
    let [one, other] = [&predicted["time_us"], &timed["rows"][0]["time_us"]];
    let [one, other] = [one.as_f64().unwrap(), other.as_f64().unwrap()];
    assert!((one / other - 1.0).abs() < 1e-9, "{one} {other}");
    let plan = predicted["launches"][0]["estimate"]["time_us"].as_f64().unwrap();
    assert!((plan / timed["rows"][0]["plan_us"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    let both = ["predict", "--case", "1x2K", "--batch", "3"];
    spanforge(here.path(), both).expect(2).says("cannot be used with");
    spanforge(here.path(), ["predict", "--case", "1y2K"]).expect(2).says("1y2K");
}

#[test]
fn what_cannot_be_predicted_is_named() {
    let here = folder();
    let predict =
        |flag| spanforge(here.path(), ["predict", "--workload=ssas-llama2", flag]).expect(2);
    predict("--device=cuda:0").says("name an emulated device");
    predict("--device=emulated:none").says("emulated:h200");
    predict("--config=nonsense").says("nonsense");
    predict("--config=bf16-d256-g6-staged-t16-s3-w2-h3-v16-u2-qr-p0-b1-x2-m128-second")
        .says("the workload is f16-d128-g1");
    predict("--config=f16-d128-g1-staged-t16-s1-w2-h1-v16-u2-qr-p0-b1-x2-m128-second")
        .says("staged-needs-a-ring");
    assert!(names(here.path()).is_empty());
}
