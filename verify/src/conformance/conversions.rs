//! `cvt`, all of it.

use super::exact::{BF16, E4M3, E5M2, F16, F32, Format, Mode, Number, TF32};
use super::floats::{Finish, format_of, mode_of};
use super::integers::{low, range, value};
use super::row::{Expected, Kind, Register, Row};

fn is_integer(ty: &str) -> bool {
    matches!(ty.as_bytes().first(), Some(b'u' | b's'))
}

fn eighth(ty: &str) -> Option<Format> {
    match ty {
        "e4m3x2" => Some(E4M3),
        "e5m2x2" => Some(E5M2),
        _ => None,
    }
}

/// The register that a type of a `cvt` is taken from or put to.
fn register(ty: &str) -> Option<Register> {
    Some(Kind::of(ty)?.register())
}

/// The rows of conversions.
pub(super) fn row(form: &'static str) -> Option<Vec<Row>> {
    let words: Vec<&'static str> = form.split('.').collect();
    if words[0] != "cvt" {
        return None;
    }
    if words[1] == "pack" {
        return pack(form, &words);
    }
    let [.., to, from] = words[..] else { return None };
    if eighth(to).is_some() || eighth(from).is_some() {
        return eighths(form, &words, to, from);
    }
    if to == "tf32" {
        let mode = if words.contains(&"rna") { Mode::Away } else { mode_of(&words) };
        let needs = if words.contains(&"rna") { 80 } else { 90 };
        return Some(vec![
            Row::new(form, &[Register::Bits(32)], &[Kind::F32], move |s| {
                if F32.is_nan(s[0]) {
                    return vec![Expected::Nan { format: F32, canonical: true }];
                }
                let bits = TF32.round(F32.number(s[0]), mode) << 13;
                vec![Expected::Bits(bits)]
            })
            .needs(needs),
        ]);
    }
    if to.ends_with("x2") {
        let finish = Finish::of(&words, format_of(to)?);
        return Some(vec![
            Row::new(form, &[Register::Bits(32)], &[Kind::F32; 2], move |s| {
                let one = |bits: u64| finish.result(F32.number(bits));
                // The first operand is the upper half.
                vec![Expected::Pair(Box::new([one(s[1]), one(s[0])]))]
            })
            .needs(80),
        ]);
    }
    let words_of = words.clone();
    let convert = move |bits: u64| match (is_integer(from), is_integer(to)) {
        (true, true) => {
            let source = value(bits, from);
            let (least, most) = range(to);
            let kept = if words_of.contains(&"sat") { source.clamp(least, most) } else { source };
            // The value of the destination type, extended to the register by its sign.
            Integer::Is(value(low(kept, 64), to))
        }
        (true, false) => {
            let finish = format_of(to).map(|format| Finish::of(&words_of, format));
            finish.map_or(Integer::Not(Expected::Open), |finish| {
                Integer::Not(finish.result(Number::integer(value(bits, from))))
            })
        }
        (false, true) => {
            let Some(format) = format_of(from) else { return Integer::Not(Expected::Open) };
            let flush = words_of.contains(&"ftz");
            let number = format.number(if flush { format.flushed(bits) } else { bits });
            let (least, most) = range(to);
            // A NaN is zero, but for conversions from .f64 and to 64 bits the middle of the range
            // of unsigned types and the least of signed ones.
            let wide = from == "f64" || to.ends_with("64");
            let nan = match (wide, least < 0) {
                (false, _) => 0,
                (true, true) => least,
                (true, false) => (most >> 1) + 1,
            };
            Integer::Is(number.whole(mode_of(&words_of)).clamped(least, most).unwrap_or(nan))
        }
        (false, false) => {
            let (Some(source), Some(target)) = (format_of(from), format_of(to)) else {
                return Integer::Not(Expected::Open);
            };
            Integer::Not(between_floats(&words_of, source, target, bits))
        }
    };
    let operand = Kind::of(from)?;
    let result = register(to)?;
    let needs = match (to, from) {
        ("bf16", "f32") if words.iter().any(|w| matches!(*w, "rm" | "rp")) => 90,
        ("bf16", "f32") => 80,
        ("f16", "f32") if words.contains(&"relu") => 80,
        _ if to == "bf16" || from == "bf16" => 90,
        _ => 75,
    };
    let model = std::sync::Arc::new(convert);
    let mut rows = Vec::new();
    // Integers may be put to a wider register, which they fill with their sign; not those that
    // are converted from bf16, as ptxas has it.
    let mut widths = vec![result.bits()];
    let brain = to == "bf16" || from == "bf16";
    if is_integer(to) && !brain {
        widths.extend([32, 64].into_iter().filter(|&wider| wider > result.bits()));
    }
    for (at, width) in widths.into_iter().enumerate() {
        let model = model.clone();
        let row = Row::new(form, &[Register::Bits(width)], &[operand], move |s| {
            vec![match model(s[0]) {
                Integer::Is(whole) => Expected::Bits(low(whole, width)),
                Integer::Not(expected) => expected,
            }]
        });
        let variant =
            if at == 0 { String::new() } else { format!("to a register of {width} bits") };
        rows.push(row.variant(variant).needs(needs));
    }
    // They may also be taken from a wider one, whose upper bits do not count.
    if is_integer(from) && !brain && operand.register().bits() < 64 {
        let bits = result.bits();
        let narrow = if from.ends_with('8') { 8 } else { operand.register().bits() };
        let wider = Kind::Integer(if operand.register().bits() == 16 { 32 } else { 64 });
        rows.push(
            Row::new(form, &[result], &[wider], move |s| {
                vec![match model(s[0] & u64::MAX >> (64 - narrow)) {
                    Integer::Is(whole) => Expected::Bits(low(whole, bits)),
                    Integer::Not(expected) => expected,
                }]
            })
            .variant("from a wider register")
            .needs(needs),
        );
    }
    Some(rows)
}

/// A result that is an integer's value, to be extended, or the bits of a float.
enum Integer {
    Is(i128),
    Not(Expected),
}

fn between_floats(words: &[&str], from: Format, to: Format, bits: u64) -> Expected {
    let finish = Finish::of(words, to);
    // .ftz is about f32 only.
    let flush = |format: Format, bits: u64| {
        if finish.flush && format == F32 { format.flushed(bits) } else { bits }
    };
    let mut number = from.number(flush(from, bits));
    if words.iter().any(|w| w.ends_with('i')) {
        number = number.whole(finish.mode);
    }
    let finish = Finish { flush: finish.flush && to == F32, ..finish };
    match finish.result(number) {
        // GPUs move the bits of a bf16, those of a NaN too.
        Expected::Nan { format, .. } if from == BF16 => Expected::Nan { format, canonical: false },
        expected => expected,
    }
}

fn eighths(
    form: &'static str,
    words: &[&'static str],
    to: &'static str,
    from: &'static str,
) -> Option<Vec<Row>> {
    let relu = words.contains(&"relu");
    if let Some(format) = eighth(to) {
        let source = if from == "f32" { F32 } else { F16 };
        let one = move |bits: u64| {
            let number = source.number(bits);
            if number == Number::Nan {
                return Expected::Bits(format.canonical_nan());
            }
            if relu && number.is_negative() {
                return Expected::Bits(0);
            }
            // .satfinite: beyond the range is the greatest finite number.
            let rounded = format.round(number, Mode::Nearest);
            let kept = (rounded & 0x7f).min(format.greatest()) | rounded & 0x80;
            Expected::Bits(kept)
        };
        let join = move |high: u64, low: u64| match (one(high), one(low)) {
            (Expected::Bits(high), Expected::Bits(low)) => vec![Expected::Bits(high << 8 | low)],
            _ => vec![Expected::Open],
        };
        return Some(vec![if from == "f32" {
            Row::new(form, &[Register::Bits(16)], &[Kind::F32; 2], move |s| join(s[0], s[1]))
                .needs(89)
        } else {
            Row::new(form, &[Register::Bits(16)], &[Kind::F16x2], move |s| {
                join(s[0] >> 16, s[0] & 0xffff)
            })
            .needs(89)
        }]);
    }
    let format = eighth(from)?;
    Some(vec![
        Row::new(form, &[Register::Bits(32)], &[Kind::of(from)?], move |s| {
            let one = |bits: u64| {
                let number = format.number(bits);
                if relu && number.is_negative() {
                    return Expected::Bits(0);
                }
                if number == Number::Nan {
                    return Expected::Nan { format: F16, canonical: true };
                }
                Expected::Bits(F16.round(number, Mode::Nearest))
            };
            vec![Expected::Pair(Box::new([one(s[0] & 255), one(s[0] >> 8)]))]
        })
        .needs(89),
    ])
}

/// `cvt.pack`: two saturated integers, above them the low half of a third operand for 8-bit ones.
fn pack(form: &'static str, words: &[&'static str]) -> Option<Vec<Row>> {
    let to = words[3];
    let (least, most) = range(to);
    let held = move |bits: u64, width: u32| low(value(bits, "s32").clamp(least, most), width);
    Some(vec![if to.ends_with("16") {
        Row::new(form, &[Register::Bits(32)], &[Kind::Integer(32); 2], move |s| {
            vec![Expected::Bits(held(s[0], 16) << 16 | held(s[1], 16))]
        })
    } else {
        Row::new(form, &[Register::Bits(32)], &[Kind::Integer(32); 3], move |s| {
            let kept = (s[2] & 0xffff) << 16;
            vec![Expected::Bits(kept | held(s[0], 8) << 8 | held(s[1], 8))]
        })
    }])
}
