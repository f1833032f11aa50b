//! PTX modules of many forms: one kernel per row, which loads the operands of its lane, runs the
//! instruction and stores the results. Operands and results stand in slots of 8 bytes, those of a
//! lane side by side.

use super::row::{Kind, Register, Row};
use std::fmt::Write as _;

/// Threads of a block of every kernel.
pub const THREADS: u32 = 128;

/// The name of the kernel of the row at `index` of a table.
pub fn kernel_name(index: usize) -> String {
    format!("form{index}")
}

/// The text of a module with the kernels of rows, each with its index in the table, for the
/// architecture and the version of the language that all of them need.
pub fn module(rows: &[(usize, &Row)]) -> String {
    let needs = rows.iter().map(|(_, row)| row.needs).max().unwrap_or(75);
    let version = rows.iter().map(|(_, row)| row.version).max().unwrap_or(78);
    let (major, minor) = (version / 10, version % 10);
    let mut out = format!(".version {major}.{minor}\n.target sm_{needs}\n.address_size 64\n");
    for (index, row) in rows {
        kernel(&mut out, &kernel_name(*index), row);
    }
    out
}

fn declaration(register: Register) -> &'static str {
    match register {
        Register::Predicate => ".pred",
        Register::Bits(16) => ".b16",
        Register::Bits(32) => ".b32",
        Register::Bits(_) => ".b64",
    }
}

fn kernel(out: &mut String, name: &str, row: &Row) {
    let filled = |text: &str| {
        let mut text =
            text.replace("{k}", name).replace("{in}", "%input").replace("{out}", "%output");
        for (prefix, count) in [('d', row.results.len()), ('s', row.operands.len())] {
            for at in 0..count {
                text = text.replace(&format!("{{{prefix}{at}}}"), &format!("%{prefix}{at}"));
            }
        }
        text
    };
    // Writing to a string cannot fail.
    let _ = write!(out, "\n// {}\n", row.name());
    if !row.before.is_empty() {
        let _ = writeln!(out, "{}", filled(&row.before));
    }
    let _ = write!(
        out,
        ".visible .entry {name}(.param .u64 {name}_in, .param .u64 {name}_out)\n{{\n \
         .reg .b32 %number, %block, %index;\n .reg .b64 %input, %output, %word;\n"
    );
    for (at, kind) in row.operands.iter().enumerate() {
        let _ = writeln!(out, " .reg {} %s{at};", declaration(kind.register()));
    }
    for (at, &register) in row.results.iter().enumerate() {
        let _ = writeln!(out, " .reg {} %d{at};", declaration(register));
    }
    let _ = write!(
        out,
        " mov.u32 %number, %tid.x;\n mov.u32 %block, %ctaid.x;\n \
         mad.lo.u32 %index, %block, {THREADS}, %number;\n \
         ld.param.u64 %input, [{name}_in];\n ld.param.u64 %output, [{name}_out];\n \
         mad.wide.u32 %input, %index, {}, %input;\n mad.wide.u32 %output, %index, {}, %output;\n",
        8 * row.operands.len(),
        8 * row.results.len()
    );
    for (at, &kind) in row.operands.iter().enumerate() {
        load(out, at, kind);
    }
    let _ = writeln!(out, " {}", filled(&row.body));
    for (at, &register) in row.results.iter().enumerate() {
        let place = format!("[%output+{}]", 8 * at);
        let _ = match register {
            Register::Predicate => {
                writeln!(out, " selp.b64 %word, 1, 0, %d{at};\n st.global.b64 {place}, %word;")
            }
            Register::Bits(bits) => writeln!(out, " st.global.b{bits} {place}, %d{at};"),
        };
    }
    out.push_str(" ret;\n}\n");
}

fn load(out: &mut String, at: usize, kind: Kind) {
    let place = format!("[%input+{}]", 8 * at);
    let _ = match kind.register() {
        Register::Predicate => {
            writeln!(out, " ld.global.b64 %word, {place};\n setp.ne.s64 %s{at}, %word, 0;")
        }
        Register::Bits(bits) => writeln!(out, " ld.global.b{bits} %s{at}, {place};"),
    };
}
