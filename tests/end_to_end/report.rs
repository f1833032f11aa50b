//! `report`: the page of a run, as its readers and as a browser meet it.

use crate::{folder, names, spanforge};
use flate2::Compression;
use flate2::write::GzEncoder;
use fs_err as fs;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with the journal of a small run.
fn tuned() -> (tempfile::TempDir, PathBuf) {
    let here = folder();
    let small = ["--budget=16", "--cases=1", "--batch=4", "--device=emulated:h200"];
    let [budget, cases, batch, device] = small;
    spanforge(here.path(), ["tune", "--workload=ssas-llama2", budget, cases, batch, device])
        .expect(0);
    let tune = here.path().join("results/tune");
    let journal = tune.join(&names(&tune)[0]);
    (here, journal)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

/// Rewrites each line of a journal.
fn rewrite(journal: &Path, change: impl Fn(&mut Value)) {
    let text = fs::read_to_string(journal).unwrap();
    let line = |line: &str| {
        let mut record = serde_json::from_str(line).unwrap();
        change(&mut record);
        record.to_string() + "\n"
    };
    fs::write(journal, text.lines().map(line).collect::<String>()).unwrap();
}

/// Makes two candidates fail, with a reason that a browser would take for markup.
fn with_failures(journal: &Path) {
    rewrite(journal, |record| {
        if record["record"] == "candidate" && [2, 5].map(Value::from).contains(&record["index"]) {
            record["status"] = "compile".into();
            record["detail"] = "a.cu(7): <script>alert(1)</script> & \"more\"".into();
            record["time_us"] = Value::Null;
        }
    });
}

#[test]
fn a_report_says_what_was_chosen_and_why_and_needs_nothing_else() {
    let (here, journal) = tuned();
    with_failures(&journal);
    let ran = spanforge(here.path(), ["report"]).expect(0).says("16 candidates");
    let page = here.path().join(ran.out.trim());
    assert_eq!(page, journal.with_extension("html"));
    let html = fs::read_to_string(&page).unwrap();
    for text in [
        "All times are predicted.",
        "ssas-llama2 on emulated NVIDIA H200",
        "of the floor",
        "as fast as the default",
        "tied with it",
        "instruction issue",
        "token_warps",
        "importance",
        "<td>compile</td><td class=\"n\">2</td>",
        "a.cu(7): &lt;script&gt;alert(1)",
        "16 configurations, the fastest first",
    ] {
        assert!(html.contains(text), "no {text:?} in {html}");
    }
    assert!(!html.contains("has not ended"));
    assert!(html.matches("<svg ").count() > 8);
    for outside in ["<script", "<link", "@import", "src=", "href=", "url("] {
        assert!(!html.contains(outside), "{outside}");
    }
    // The only address is the name of SVG.
    let named = html.matches("xmlns=\"http://www.w3.org/2000/svg\"").count();
    assert_eq!(html.matches("http").count(), named);
    // The same journal, the same page, packed or not.
    let packed = here.path().join("packed.jsonl.gz");
    fs::write(&packed, gzip(&fs::read(&journal).unwrap())).unwrap();
    let ran = spanforge(here.path(), ["report", "packed.jsonl.gz"]).expect(0).prints("packed.html");
    assert_eq!(fs::read_to_string(here.path().join(ran.out.trim())).unwrap(), html);
    let again = here.path().join("again.html");
    let output = ["report", journal.to_str().unwrap(), "--output", "again.html"];
    spanforge(here.path(), output).expect(0);
    assert_eq!(fs::read_to_string(again).unwrap(), html);
}

#[test]
fn a_run_is_shown_as_far_as_it_got() {
    let (here, journal) = tuned();
    let text = fs::read_to_string(&journal).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for kept in [2, 4, 12] {
        // The last line is cut short, as a crash may leave it.
        let cut = lines[kept].len() / 2;
        let part = lines[..kept].join("\n") + "\n" + &lines[kept][..cut];
        fs::write(&journal, part).unwrap();
        spanforge(here.path(), ["report"]).expect(0);
        let html = fs::read_to_string(journal.with_extension("html")).unwrap();
        assert!(html.contains("has not ended"), "{kept} lines");
    }
}

#[test]
fn what_cannot_be_reported_is_named_and_nothing_is_written() {
    let here = folder();
    spanforge(here.path(), ["report"]).expect(2).says("run `spanforge tune` first");
    fs::create_dir_all(here.path().join("results/tune")).unwrap();
    spanforge(here.path(), ["report"]).expect(2).says("run `spanforge tune` first");
    spanforge(here.path(), ["report", "none.jsonl"]).expect(2).says("none.jsonl");
    fs::write(here.path().join("other.jsonl"), "{\"record\":\"span\"}\n").unwrap();
    spanforge(here.path(), ["report", "other.jsonl"]).expect(2).says("other.jsonl:1");
    fs::write(here.path().join("empty.jsonl"), "").unwrap();
    spanforge(here.path(), ["report", "empty.jsonl"]).expect(2).says("no `study`");
    let (tuned, journal) = tuned();
    let journal = journal.to_str().unwrap();
    let into = |output| spanforge(tuned.path(), ["report", journal, "--output", output]);
    into("none/report.html").expect(2).says("cannot write none/report.html");
    let before = fs::read(journal).unwrap();
    into(journal).expect(2).says("is the journal itself");
    assert_eq!(fs::read(journal).unwrap(), before);
    assert_eq!(names(here.path()), ["empty.jsonl", "other.jsonl", "results"]);
}

/// The first Chromium of `SPANFORGE_CHROMIUM` and the usual names that starts.
fn chromium() -> String {
    let named = std::env::var("SPANFORGE_CHROMIUM").ok();
    let usual = ["chromium", "chromium-browser", "google-chrome"].map(str::to_owned);
    let starts = |name: &String| Command::new(name).arg("--version").output().is_ok();
    named.into_iter().chain(usual).find(starts).expect("Chromium: set SPANFORGE_CHROMIUM")
}

fn browse(page: &Path, width: u32, action: &str) -> String {
    let size = format!("--window-size={width},900");
    let address = format!("file://{}", page.display());
    let arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", &size, action, &address];
    let output = Command::new(chromium()).args(arguments).output().expect("Chromium starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What the test's copy of the page says of its own layout.
const MEASURE: &str = "<script>window.addEventListener('load', () => {
  const wide = document.documentElement;
  const plots = [...document.querySelectorAll('svg')].map(plot => {
    const box = plot.getBoundingClientRect();
    const inside = [...plot.querySelectorAll('text')].every(text => {
      const t = text.getBoundingClientRect();
      return t.left >= box.left - 1 && t.right <= box.right + 1 && t.bottom <= box.bottom + 1;
    });
    return { width: box.width, height: box.height, right: box.right, inside };
  });
  const found = { page: wide.scrollWidth, window: wide.clientWidth, plots };
  document.body.innerHTML = '<pre>' + JSON.stringify(found) + '</pre>';
})</script>";

#[test]
#[ignore = "needs Chromium"]
fn the_page_fits_a_laptop_a_telephone_and_paper() {
    let (here, journal) = tuned();
    with_failures(&journal);
    spanforge(here.path(), ["report"]).expect(0);
    let page = journal.with_extension("html");
    let html = fs::read_to_string(&page).unwrap();
    let measured = here.path().join("measured.html");
    fs::write(&measured, html.replace("</body>", &format!("{MEASURE}</body>"))).unwrap();
    for width in [1366, 1920, 500] {
        let dom = browse(&measured, width, "--dump-dom");
        let found = dom.split_once("<pre>").and_then(|(_, rest)| rest.split_once("</pre>"));
        let found: Value = serde_json::from_str(found.expect("measured").0).unwrap();
        assert!(found["page"].as_f64() <= found["window"].as_f64(), "scrolls at {width}: {found}");
        let plots = found["plots"].as_array().unwrap();
        assert!(plots.len() > 8, "{found}");
        for plot in plots {
            let [w, h, right] = ["width", "height", "right"].map(|key| plot[key].as_f64().unwrap());
            assert!(w >= 200.0 && h >= 120.0 && right <= f64::from(width), "{width}: {plot}");
            assert_eq!(plot["inside"], true, "text is cut off at {width}: {plot}");
        }
    }
    let pdf = here.path().join("report.pdf");
    browse(&page, 1366, &format!("--print-to-pdf={}", pdf.display()));
    let pdf = String::from_utf8_lossy(&fs::read(pdf).unwrap()).into_owned();
    let pages = pdf.matches("/Type /Page\n").count();
    assert!((2..=6).contains(&pages), "{pages} pages");
}

/// Of a run on a GPU: what it was like, of the samples that decided. The GPU is a stand-in, which says
/// so: a predicted journal, relabelled.
#[test]
fn what_the_gpu_was_like_is_shown_of_the_samples_that_decided() {
    let (here, journal) = tuned();
    let conditions = |low: u32, throttled: &[&str]| {
        serde_json::json!({
            "sm_mhz": [low, 1980], "memory_mhz": [3201, 3201], "temperature_c": 41,
            "throttled": throttled, "joules_per_sample": 0.0125, "repeated_samples": 30,
        })
    };
    rewrite(&journal, |record| {
        if record["record"] == "run" {
            record["properties"]["basis"] = "measured".into();
        }
        if record["record"] == "candidate" {
            record["basis"] = "measured".into();
            record["device"] = "cuda:1".into();
            record["conditions"] = conditions(1755, &[]);
            record["samples_us"] =
                [0.99, 1.0, 1.01].map(|f| record["time_us"].as_f64().unwrap() * f).to_vec().into();
        }
    });
    let page = || {
        let ran = spanforge(here.path(), ["report"]).expect(0);
        fs::read_to_string(here.path().join(ran.out.trim())).unwrap()
    };
    let before = page();
    for text in ["cuda:1", "1755 to 1980", ">3201<", ">41<", "nothing", ">30<", "12.50"] {
        assert!(before.contains(text), "no {text:?}");
    }
    assert!(!before.contains("the power limit"));
    let finalist = |index: usize| {
        let throttled = conditions(1410, &["power-cap"]);
        serde_json::json!({"index": index, "samples_us": [30.0, 30.1, 30.2], "conditions": throttled})
    };
    let again =
        serde_json::json!({"record": "remeasured", "finalists": [finalist(0), finalist(1)]});
    let mut text = fs::read_to_string(&journal).unwrap();
    text += &format!("{again}\n");
    fs::write(&journal, text).unwrap();
    let after = page();
    assert!(after.contains("1410 to 1980") && after.contains("the power limit"));
}
