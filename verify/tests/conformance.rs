//! The table of opcode forms against the emulator.

use spanforge_device::{EmulatedOptions, open_with};
use spanforge_verify::conformance::{self, Status};

/// The rows whose form begins with a text, on a device.
fn summary(device: &str, begins: &str) -> conformance::Summary {
    let options = EmulatedOptions { counters: false, ..EmulatedOptions::default() };
    let device = open_with(device, options).expect("a profile that is built in");
    let mut table = conformance::table().expect("every form has a row");
    table.retain(|row| row.form.starts_with(begins));
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
    let summary = summary("emulated:h200", "");
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

#[test]
fn products_of_matrices_are_within_bounds_in_every_model() {
    for model in ["fast", "ampere", "hopper"] {
        let summary = summary(&format!("emulated:h200,mma={model}"), "mma.");
        let wrong: Vec<_> = summary
            .rows
            .iter()
            .filter(|row| row.status != Status::Passed)
            .map(|row| &row.name)
            .collect();
        assert!(wrong.is_empty(), "{model}: {wrong:?}");
        assert_eq!(summary.rows.len(), 41);
    }
}

/// Kernels write hints and modifiers in their own order; they are the same forms.
#[test]
fn an_opcode_in_another_spelling_is_found() {
    for (opcode, form) in [
        ("ld.global.nc.L1::no_allocate.L2::128B.v4.u32", "ld.global.v4.u32"),
        ("cvt.ftz.rn.f16.f32", "cvt.rn.ftz.f16.f32"),
        ("red.relaxed.gpu.global.add.u32", "red.global.add.u32"),
    ] {
        let found = spanforge_emulator::form_of(opcode).expect("known");
        assert_eq!(found, form);
        assert!(conformance::rows_of(found).is_some_and(|rows| !rows.is_empty()));
    }
}
