//! Conformance: a table of every opcode form that the emulator accepts, each with its corner cases
//! and an independent statement of what it computes, and a runner that compares a device, emulated
//! or real, with it.
//!
//! The list of forms is the emulator's own ([`spanforge_emulator::opcode_forms`]); a form without a
//! row is an error. What a form computes is written in plain integer arithmetic (`integers`), in
//! exact numbers rounded once (`exact`, `floats`, `conversions`), or, where the PTX manual leaves
//! room, as the exact value and the manual's bound (`approximations`, `matrices`). None of it calls
//! the emulator.

mod approximations;
mod conversions;
pub mod exact;
mod floats;
mod inputs;
mod integers;
mod lanes;
mod matrices;
mod memory;
pub mod module;
mod row;
mod run;

pub use inputs::cases;
pub use row::{Expected, Kind, Model, Precision, Register, Row};
pub use run::{Difference, Mismatch, RowReport, Status, Summary, run};

/// The rows of one form: one for each way to write it. `None` if the table does not know it.
pub fn rows_of(form: &'static str) -> Option<Vec<Row>> {
    lanes::row(form)
        .or_else(|| memory::row(form))
        .or_else(|| matrices::row(form))
        .or_else(|| conversions::row(form))
        .or_else(|| floats::comparisons(form))
        .or_else(|| integers::permute(form))
        .or_else(|| integers::moves(form))
        .or_else(|| approximations::row(form))
        .or_else(|| floats::row(form))
        .or_else(|| integers::row(form))
}

/// The whole table, in the order of the emulator's list.
///
/// # Errors
/// The forms that have no row.
pub fn table() -> Result<Vec<Row>, Vec<&'static str>> {
    let mut rows = Vec::new();
    let mut missing = Vec::new();
    for form in spanforge_emulator::opcode_forms() {
        match rows_of(form) {
            Some(these) if !these.is_empty() => rows.extend(these),
            _ => missing.push(form),
        }
    }
    if missing.is_empty() { Ok(rows) } else { Err(missing) }
}
