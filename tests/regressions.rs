//! Every case of `tests/regressions/` once failed, in a kernel that has been mended since or that was
//! broken on purpose to see what finds it. They must pass now. To add one, put a case file that
//! `spanforge fuzz` has written there (without its `source`), under a name that says what went wrong.

use spanforge_device::{Compiler, Settings};
use spanforge_verify::Case;
use std::path::Path;

#[test]
fn every_case_passes() {
    let settings = Settings::from_environment().with_progress(|line| eprintln!("{line}"));
    let compiler = Compiler::new(&settings).expect("NVRTC is found or fetched");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/regressions");
    let mut replayed = 0;
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let name = path.display();
        let text = fs_err::read_to_string(&path).unwrap();
        let case = Case::parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(
            case.source.is_none(),
            "{name} is about a source of its own, not about the kernels"
        );
        let report = case.replay(&compiler, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        if let Some(fault) = report.fault {
            panic!(
                "{name} fails again: {}\n{fault}\nreplay it with: spanforge check {name}",
                report.problem
            );
        }
        replayed += 1;
    }
    assert!(replayed >= 4, "only {replayed} cases were found");
}
