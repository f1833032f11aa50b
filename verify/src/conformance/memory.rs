//! Loads, stores, atomics and address spaces. A load reads operands that stand in memory; a store
//! writes over a known pattern, which is read back whole.

use super::exact::{F32, Mode, Number};
use super::floats::format_of;
use super::integers::{low, value};
use super::row::{Expected, Kind, Register, Row};

const TYPES: [&str; 14] =
    ["b8", "b16", "b32", "b64", "u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "f32", "f64"];
/// What stands in memory before a store.
const PATTERN: u64 = 0xa5c3_96e1_7b0f_d248;

fn bytes_of(ty: &str) -> u32 {
    ty[1..].parse::<u32>().unwrap_or(32) / 8
}

/// Widths of the registers that a type is loaded to and stored from, the narrowest first; those of
/// floats fit.
fn registers(ty: &str) -> Vec<u32> {
    let own = (8 * bytes_of(ty)).max(16);
    [16, 32, 64].into_iter().filter(|&w| w == own || w > own && !ty.starts_with('f')).collect()
}

/// The byte at `at` of the table that loads from constant memory read.
fn table(at: u64) -> u64 {
    (at * 37 + 11) & 255
}

/// Text that makes a room of the space, the address `%room` of this lane's part of 16 bytes in it,
/// and what comes behind it.
fn room(space: &str, then: &str) -> String {
    match space {
        "shared" | "generic shared" => {
            let generic = if space == "shared" { "" } else { " cvta.shared.u64 %room, %room;\n" };
            format!(
                "{{ .shared .align 16 .b8 stands[2048];\n .reg .b64 %room, %lane;\n \
                 .reg .b32 %thread;\n mov.u32 %thread, %tid.x;\n \
                 mul.wide.u32 %lane, %thread, 16;\n mov.u64 %room, stands;\n \
                 add.u64 %room, %room, %lane;\n{generic}{then} }}"
            )
        }
        "local" | "generic local" => {
            let generic = if space == "local" { "" } else { " cvta.local.u64 %room, %room;\n" };
            format!(
                "{{ .local .align 16 .b8 stands[16];\n .reg .b64 %room;\n \
                 mov.u64 %room, stands;\n{generic}{then} }}"
            )
        }
        _ => format!("{{ .reg .b64 %room;\n mov.u64 %room, {{out}};\n{then} }}"),
    }
}

/// The space of the accesses that prepare a room, as a modifier.
fn plain(space: &str) -> &'static str {
    match space {
        "shared" => ".shared",
        "local" => ".local",
        "global" => ".global",
        _ => "",
    }
}

/// Where a space named in a form, or none, is tried.
fn places(space: Option<&str>) -> &'static [&'static str] {
    match space {
        None => &["generic global", "generic shared", "generic local"],
        Some("global") => &["global"],
        Some("shared") => &["shared"],
        Some("local") => &["local"],
        _ => &[],
    }
}

struct Access {
    space: Option<&'static str>,
    count: u32,
    ty: &'static str,
}

fn access(words: &[&'static str]) -> Option<Access> {
    let space = words
        .iter()
        .copied()
        .find(|w| matches!(*w, "global" | "shared" | "local" | "const" | "param"));
    let count = match words.iter().find(|w| matches!(**w, "v2" | "v4" | "v8")) {
        Some(&"v2") => 2,
        Some(&"v4") => 4,
        Some(_) => 8,
        None => 1,
    };
    Some(Access { space, count, ty: words.last()? })
}

fn vector(prefix: char, first: usize, count: u32) -> String {
    let names: Vec<String> =
        (first..first + count as usize).map(|at| format!("{{{prefix}{at}}}")).collect();
    if count == 1 { names.concat() } else { format!("{{{}}}", names.join(", ")) }
}

/// The rows of memory instructions.
pub(super) fn row(form: &'static str) -> Option<Vec<Row>> {
    let words: Vec<&'static str> = form.split('.').collect();
    match words[0] {
        "ld" | "ldu" => loads(form, access(&words)?),
        "st" => stores(form, access(&words)?),
        "atom" | "red" => atomics(form, &words, access(&words)?),
        "cvta" => addresses(form, &words),
        "isspacep" => spaces(form, words[1]),
        _ => None,
    }
}

fn loads(form: &'static str, Access { space, count, ty }: Access) -> Option<Vec<Row>> {
    if !TYPES.contains(&ty) {
        return None;
    }
    let bytes = bytes_of(ty);
    let slots = (bytes * count).div_ceil(8) as usize;
    // Registers may be wider than the type; signed types fill them with their sign.
    let widths = registers(ty);
    let element = move |memory: &dyn Fn(u64) -> u64, at: u32, width: u32| {
        let start = u64::from(at * bytes);
        let bits = (0..u64::from(bytes)).map(|byte| memory(start + byte) << (8 * byte)).sum();
        let kind = if ty.starts_with('s') {
            ty
        } else {
            ["u8", "u16", "u32", "u64"][bytes.ilog2() as usize]
        };
        Expected::Bits(low(value(bits, kind), width))
    };
    let of_operands = move |s: &[u64], width: u32| -> Vec<Expected> {
        let memory = |at: u64| s[(at / 8) as usize] >> (8 * (at % 8)) & 255;
        (0..count).map(|at| element(&memory, at, width)).collect()
    };
    let mut rows = Vec::new();
    for &width in &widths {
        let results = vec![Register::Bits(width); count as usize];
        let to = vector('d', 0, count);
        let named = |place: &str| {
            let wide = if width == widths[0] { String::new() } else { format!("to {width} bits") };
            let place = place.strip_prefix("generic ").filter(|p| *p != "global").unwrap_or("");
            [place, &wide].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(", ")
        };
        let kinds = vec![Kind::Integer(64); slots];
        match space {
            Some("const") => rows.push(
                Row::new(form, &results, &[Kind::Integer(32)], move |s| {
                    let start = (s[0] & 15) * 16;
                    (0..count).map(|at| element(&|byte| table(start + byte), at, width)).collect()
                })
                .before(format!(
                    ".const .align 16 .b8 {{k}}_table[256] = {{{}}};",
                    (0..256).map(|at| table(at).to_string()).collect::<Vec<_>>().join(", ")
                ))
                .body(format!(
                    "{{ .reg .b64 %at, %by;\n .reg .b32 %part;\n and.b32 %part, {{s0}}, 15;\n \
                     mul.wide.u32 %by, %part, 16;\n mov.u64 %at, {{k}}_table;\n \
                     add.u64 %at, %at, %by;\n {form} {to}, [%at]; }}"
                ))
                .variant(named("")),
            ),
            // A parameter of a function.
            Some("param") => {
                let registers: String =
                    (0..count).map(|at| format!(" .reg .b{width} %r{at};\n")).collect();
                let names: Vec<String> = (0..count).map(|at| format!("%r{at}")).collect();
                let read =
                    if count == 1 { names[0].clone() } else { format!("{{{}}}", names.join(", ")) };
                let give: String = (0..count)
                    .map(|at| format!(" st.param.b{width} [given+{}], %r{at};\n", 8 * at))
                    .collect();
                let put: String = (0..slots)
                    .map(|at| format!(" st.param.b64 [taken+{}], {{s{at}}};\n", 8 * at))
                    .collect();
                let take: String = (0..count)
                    .map(|at| format!(" ld.param.b{width} {{d{at}}}, [back+{}];\n", 8 * at))
                    .collect();
                rows.push(
                    Row::new(form, &results, &kinds, move |s| of_operands(s, width))
                        .before(format!(
                            ".func (.param .align 16 .b8 given[32]) {{k}}_f(.param .align 16 .b8 \
                             taken[16])\n{{\n{registers} {form} {read}, [taken];\n{give} ret;\n}}"
                        ))
                        .body(format!(
                            "{{ .param .align 16 .b8 taken[16];\n .param .align 16 .b8 back[32];\n\
                             {put} call (back), {{k}}_f, (taken);\n{take} }}"
                        ))
                        .variant(named("")),
                );
            }
            Some("global") => rows.push(
                Row::new(form, &results, &kinds, move |s| of_operands(s, width))
                    .body(format!("{form} {to}, [{{in}}];"))
                    .variant(named("")),
            ),
            _ => {
                let places =
                    if form.starts_with("ldu") { &places(space)[..1] } else { places(space) };
                for &place in places {
                    let text = if place == "generic global" {
                        format!("{form} {to}, [{{in}}];")
                    } else {
                        let fill: String = (0..slots)
                            .map(|at| {
                                format!(" st{}.b64 [%room+{}], {{s{at}}};\n", plain(place), 8 * at)
                            })
                            .collect();
                        room(place, &format!("{fill} {form} {to}, [%room];"))
                    };
                    rows.push(
                        Row::new(form, &results, &kinds, move |s| of_operands(s, width))
                            .body(text)
                            .variant(named(place)),
                    );
                }
            }
        }
    }
    Some(rows)
}

fn stores(form: &'static str, Access { space, count, ty }: Access) -> Option<Vec<Row>> {
    if !TYPES.contains(&ty) {
        return None;
    }
    let bytes = bytes_of(ty);
    let slots = (bytes * count).div_ceil(8) as usize;
    let results = vec![Register::Bits(64); slots];
    let widths = registers(ty);
    let mut rows = Vec::new();
    for &width in &widths {
        let kinds = vec![Kind::Integer(width); count as usize];
        let model = move |s: &[u64]| {
            let mut memory: Vec<u64> = vec![PATTERN; slots];
            for (at, &value) in s.iter().enumerate() {
                for byte in 0..bytes as usize {
                    let place = at * bytes as usize + byte;
                    let shift = 8 * (place % 8);
                    let word = &mut memory[place / 8];
                    *word = *word & !(255 << shift) | (value >> (8 * byte) & 255) << shift;
                }
            }
            memory.into_iter().map(Expected::Bits).collect::<Vec<_>>()
        };
        let wide = if width == widths[0] { String::new() } else { format!("from {width} bits") };
        let from = vector('s', 0, count);
        let fill = |access: &str, name: &str| -> String {
            (0..slots)
                .map(|at| format!(" st{access}.b64 [{name}+{}], {PATTERN:#x};\n", 8 * at))
                .collect()
        };
        let read = |access: &str, name: &str| -> String {
            (0..slots)
                .map(|at| format!(" ld{access}.b64 {{d{at}}}, [{name}+{}];\n", 8 * at))
                .collect()
        };
        if space == Some("param") {
            rows.push(
                Row::new(form, &results, &kinds, model)
                    .before(
                        ".func (.param .align 16 .b8 given[16]) {k}_f(.param .align 16 .b8 \
                         taken[16])\n{\n .reg .b64 %r0, %r1;\n ld.param.b64 %r0, [taken];\n \
                         ld.param.b64 %r1, [taken+8];\n st.param.b64 [given], %r0;\n \
                         st.param.b64 [given+8], %r1;\n ret;\n}",
                    )
                    .body(format!(
                        "{{ .param .align 16 .b8 taken[16];\n .param .align 16 .b8 back[16];\n\
                         {} {form} [taken], {from};\n call (back), {{k}}_f, (taken);\n{} }}",
                        (0..2)
                            .map(|at| format!(" st.param.b64 [taken+{}], {PATTERN:#x};\n", 8 * at))
                            .collect::<String>(),
                        read(".param", "back"),
                    ))
                    .variant(wide.clone()),
            );
            continue;
        }
        for &place in places(space) {
            let access = plain(place);
            let text = room(
                place,
                &format!(
                    "{} {form} [%room], {from};\n{}",
                    fill(access, "%room"),
                    read(access, "%room")
                ),
            );
            let place = place.strip_prefix("generic ").filter(|p| *p != "global").unwrap_or("");
            let variant: Vec<&str> = [place, &wide].into_iter().filter(|s| !s.is_empty()).collect();
            rows.push(
                Row::new(form, &results, &kinds, model).body(text).variant(variant.join(", ")),
            );
        }
    }
    Some(rows)
}

/// Atomics of one lane on a place of its own: what it returns and what it leaves.
fn atomics(
    form: &'static str,
    words: &[&'static str],
    Access { space, count, ty }: Access,
) -> Option<Vec<Row>> {
    let kind = Kind::of(ty)?;
    let bits = kind.register().bits();
    let what = words.iter().copied().find(|w| {
        matches!(*w, "add" | "min" | "max" | "and" | "or" | "xor" | "exch" | "cas" | "inc" | "dec")
    })?;
    let reduction = words[0] == "red";
    let sources = if what == "cas" { 2 } else { 1 };
    let half = ty.starts_with("f16") || ty.starts_with("bf16");
    // The hardware flushes subnormals of .f32 in global memory, the emulator only where the
    // instruction names it.
    let flushes = ty == "f32" && what == "add" && space != Some("shared");
    let always = space == Some("global");
    let one = move |old: u64, operand: u64, second: u64| -> Expected {
        if let Some(format) = format_of(ty) {
            let sum = |a: u64, b: u64| {
                let exact = format.number(a).plus(format.number(b), Mode::Nearest);
                if exact == Number::Nan {
                    return Expected::Nan { format, canonical: format.bits < 64 };
                }
                let bits = format.round(exact, Mode::Nearest);
                if flushes {
                    let flushed =
                        F32.number(F32.flushed(a)).plus(F32.number(F32.flushed(b)), Mode::Nearest);
                    let flushed = F32.flushed(F32.round(flushed, Mode::Nearest));
                    return if always {
                        Expected::Bits(flushed)
                    } else {
                        Expected::Either(flushed, bits)
                    };
                }
                Expected::Bits(bits)
            };
            if what == "exch" {
                return Expected::Bits(operand);
            }
            if ty.ends_with("x2") {
                let halves = [sum(old & 0xffff, operand & 0xffff), sum(old >> 16, operand >> 16)];
                return Expected::Pair(Box::new(halves));
            }
            return sum(old, operand);
        }
        let (a, b) = (value(old, ty), value(operand, ty));
        Expected::Bits(match what {
            "add" => low(a + b, bits),
            "min" => low(a.min(b), bits),
            "max" => low(a.max(b), bits),
            "and" => old & operand,
            "or" => old | operand,
            "xor" => old ^ operand,
            "exch" => operand,
            "cas" if old == operand => second,
            "cas" => old,
            "inc" => {
                if old >= operand {
                    0
                } else {
                    old + 1
                }
            }
            _ => {
                if old == 0 || old > operand {
                    operand
                } else {
                    old - 1
                }
            }
        })
    };
    // Results: what was there (atom only), then what is there; operands: memory, then the others.
    let n = count as usize;
    let left = if reduction { 0 } else { n };
    let results = vec![Register::Bits(bits); left + n];
    let kinds = vec![kind; n * (1 + sources)];
    let model = move |s: &[u64]| {
        let old = s[..left].iter().map(|&bits| Expected::Bits(bits));
        let new = (0..n).map(|at| one(s[at], s[n + at], s.get(2 * n + at).copied().unwrap_or(0)));
        old.chain(new).collect::<Vec<_>>()
    };
    let scope = space.map_or(String::new(), |space| format!(".{space}"));
    let no_flush = if half { ".noftz" } else { "" };
    let opcode = if n > 1 {
        format!("{}{scope}.v{n}.{ty}.{what}{no_flush}", words[0])
    } else {
        format!("{}{scope}.{what}{no_flush}.{ty}", words[0])
    };
    let to = if reduction { String::new() } else { format!("{}, ", vector('d', 0, count)) };
    let mut list = vec![vector('s', n, count)];
    if what == "cas" {
        list.push(vector('s', 2 * n, count));
    }
    let mut needs = match ty {
        _ if n > 1 => 90,
        "bf16" | "bf16x2" => 90,
        _ => 75,
    };
    if what == "cas" && ty == "b16" {
        needs = 75;
    }
    // Vectors are in global memory only.
    let tried: &[&str] = if space.is_none() && n == 1 {
        &["generic global", "generic shared"]
    } else if space.is_none() {
        &["generic global"]
    } else {
        places(space)
    };
    let rows = tried.iter().map(|&place| {
        let access = plain(place);
        let step = bits / 8;
        let fill: String = (0..n)
            .map(|at| format!(" st{access}.b{bits} [%room+{}], {{s{at}}};\n", at as u32 * step))
            .collect();
        let read: String = (0..n)
            .map(|at| {
                format!(" ld{access}.b{bits} {{d{}}}, [%room+{}];\n", left + at, at as u32 * step)
            })
            .collect();
        let text =
            room(place, &format!("{fill} {opcode} {to}[%room], {};\n{read}", list.join(", ")));
        let variant = if place == "generic shared" { "shared" } else { "" };
        Row::new(form, &results, &kinds, model).body(text).variant(variant).needs(needs)
    });
    Some(rows.collect())
}

/// `cvta`: what a generic address made of one of a space reads is what stands there, and the address
/// of the space made of it again does too.
fn addresses(form: &'static str, words: &[&'static str]) -> Option<Vec<Row>> {
    let space =
        *words.iter().find(|w| matches!(**w, "global" | "shared" | "local" | "const" | "param"))?;
    let back = words[1] == "to";
    let turn = |load: &str| {
        if back {
            format!(
                " cvta.{space}.u64 %room, %room;\n {form} %room, %room;\n \
                 ld{load}.b64 {{d0}}, [%room];"
            )
        } else {
            format!(" {form} %room, %room;\n ld.b64 {{d0}}, [%room];")
        }
    };
    let load = format!(".{space}");
    let same = |s: &[u64]| vec![Expected::Bits(s[0])];
    let result = [Register::Bits(64)];
    Some(vec![match space {
        "global" => Row::new(form, &result, &[Kind::Integer(64)], same)
            .body(format!("{{ .reg .b64 %room;\n mov.u64 %room, {{in}};\n{} }}", turn(&load))),
        "shared" | "local" => {
            let fill = format!(" st{load}.b64 [%room], {{s0}};\n");
            Row::new(form, &result, &[Kind::Integer(64)], same)
                .body(room(space, &format!("{fill}{}", turn(&load))))
        }
        "const" => Row::new(form, &result, &[Kind::Integer(64)], |_| {
            vec![Expected::Bits((0..8).map(|at| table(at) << (8 * at)).sum())]
        })
        .before(format!(
            ".const .align 16 .b8 {{k}}_table[8] = {{{}}};",
            (0..8).map(|at| table(at).to_string()).collect::<Vec<_>>().join(", ")
        ))
        .body(format!("{{ .reg .b64 %room;\n mov.u64 %room, {{k}}_table;\n{} }}", turn(&load))),
        // The first parameter of the kernel is the address that operands begin at.
        _ => Row::new(form, &[Register::Predicate], &[Kind::Integer(64)], |_| {
            vec![Expected::Bits(1)]
        })
        .body(format!(
            "{{ .reg .b64 %room, %read, %wanted;\n mov.b64 %room, {{k}}_in;\n{}\n \
                 ld.param.u64 %wanted, [{{k}}_in];\n setp.eq.u64 {{d0}}, %read, %wanted; }}",
            turn(&load).replace("{d0}", "%read")
        )),
    }])
}

/// `isspacep` of addresses in global, shared and local memory, by the low bits of the operand.
fn spaces(form: &'static str, asked: &'static str) -> Option<Vec<Row>> {
    Some(vec![
        Row::new(form, &[Register::Predicate], &[Kind::Integer(32)], move |s| {
            let space = ["global", "shared", "local", "global"][(s[0] & 3) as usize];
            vec![Expected::Bits(u64::from(space == asked))]
        })
        .body(format!(
            "{{ .shared .align 16 .b8 shares[16];\n .local .align 16 .b8 stands[16];\n \
             .reg .b64 %in1, %in2, %at;\n .reg .b32 %which;\n .reg .pred %is1, %is2;\n \
             mov.u64 %in1, shares;\n cvta.shared.u64 %in1, %in1;\n \
             mov.u64 %in2, stands;\n cvta.local.u64 %in2, %in2;\n \
             and.b32 %which, {{s0}}, 3;\n setp.eq.u32 %is1, %which, 1;\n \
             setp.eq.u32 %is2, %which, 2;\n selp.b64 %at, %in1, {{in}}, %is1;\n \
             selp.b64 %at, %in2, %at, %is2;\n {form} {{d0}}, %at; }}"
        )),
    ])
}
