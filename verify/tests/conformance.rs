//! The table of opcode forms against the emulator.

use spanforge_device::{EmulatedOptions, open_with};
use spanforge_verify::conformance::{self, Status};

fn summary() -> conformance::Summary {
    let options = EmulatedOptions { counters: false, ..EmulatedOptions::default() };
    let device = open_with("emulated:h200", options).expect("a profile that is built in");
    let table = conformance::table().expect("every form has a row");
    conformance::run(&*device, &table, None, &|_| {}).expect("the device holds the operands")
}

#[test]
fn every_form_that_the_emulator_accepts_has_a_row() {
    if let Err(missing) = conformance::table() {
        panic!("{} forms without a row: {missing:?}", missing.len());
    }
}

#[test]
fn every_form_computes_what_its_row_says() {
    let summary = summary();
    let mut wrong = Vec::new();
    for row in &summary.rows {
        match &row.status {
            Status::Passed if row.other_nans == 0 => {}
            Status::Passed => wrong.push(format!("{}: {} other NaNs", row.name, row.other_nans)),
            Status::Mismatched { count, first } => {
                wrong.push(format!("{}: {count} of {}; {:?}", row.name, row.cases, first[0]));
            }
            Status::Skipped { needs } => wrong.push(format!("{} needs {needs}", row.name)),
            Status::Failed { reason } => wrong.push(format!("{}: {reason}", row.name)),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} rows:\n{}",
        wrong.len(),
        summary.rows.len(),
        wrong.join("\n")
    );
    assert!(summary.cases() > 1_000_000);
}
