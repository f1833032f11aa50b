//! Floating-point instructions whose result is exact: one rounding of the exact value.

use super::exact::{BF16, F16, F32, F64, Format, Mode, Number};
use super::row::{Expected, Kind, Register, Row};

/// The format of a scalar or packed type.
pub(super) fn format_of(ty: &str) -> Option<Format> {
    Some(match ty {
        "f64" => F64,
        "f32" => F32,
        "f16" | "f16x2" => F16,
        "bf16" | "bf16x2" => BF16,
        _ => return None,
    })
}

/// The rounding that the modifiers ask for; to nearest without one.
pub(super) fn mode_of(words: &[&str]) -> Mode {
    match words.iter().find(|word| matches!(**word, "rz" | "rm" | "rp" | "rzi" | "rmi" | "rpi")) {
        Some(&("rz" | "rzi")) => Mode::Zero,
        Some(&("rm" | "rmi")) => Mode::Down,
        Some(&("rp" | "rpi")) => Mode::Up,
        _ => Mode::Nearest,
    }
}

/// What the modifiers do with operands and results.
#[derive(Clone, Copy)]
pub(super) struct Finish {
    pub format: Format,
    pub mode: Mode,
    pub flush: bool,
    pub saturate: bool,
    pub relu: bool,
}

impl Finish {
    pub(super) fn of(words: &[&str], format: Format) -> Self {
        let has = |word: &str| words.contains(&word);
        Self {
            format,
            mode: mode_of(words),
            flush: has("ftz"),
            saturate: has("sat"),
            relu: has("relu"),
        }
    }

    /// An operand as a number.
    pub(super) fn input(self, bits: u64) -> Number {
        self.format.number(if self.flush { self.format.flushed(bits) } else { bits })
    }

    /// The result for an exact value.
    pub(super) fn result(self, exact: Number) -> Expected {
        let Self { format, mode, .. } = self;
        if exact == Number::Nan {
            // "NaN results are flushed to +0.0".
            return if self.saturate {
                Expected::Bits(0)
            } else {
                Expected::Nan { format, canonical: format != F64 }
            };
        }
        let clamp = |bits: u64| {
            let one = format.round(Number::integer(1), Mode::Nearest);
            match (self.saturate, self.relu) {
                (true, _) if bits & format.sign() != 0 => 0,
                (true, _) => bits.min(one),
                (_, true) if bits & format.sign() != 0 => 0,
                _ => bits,
            }
        };
        let bits = format.round(exact, mode);
        if !self.flush {
            return Expected::Bits(clamp(bits));
        }
        let flushed = clamp(format.flushed(bits));
        // Whether what rounds up to the smallest normal number counts as subnormal is not said.
        let smallest = format.infinity() & (1 << (format.precision - 1));
        let toward_zero = format.round(exact, Mode::Zero);
        if bits & (format.sign() - 1) == smallest && format.is_subnormal(toward_zero) {
            return Expected::Either(flushed, clamp(bits & format.sign()));
        }
        Expected::Bits(flushed)
    }
}

/// A row from a model of scalars: packed types apply it to both halves.
pub(super) fn lanewise(
    form: &'static str,
    ty: &str,
    count: usize,
    model: impl Fn(&[u64]) -> Expected + Send + Sync + 'static,
) -> Option<Row> {
    let kind = Kind::of(ty)?;
    let packed = ty.ends_with("x2");
    let row = Row::new(form, &[kind.register()], &vec![kind; count], move |s| {
        if !packed {
            return vec![model(s)];
        }
        let part = |at: u32| {
            let half: Vec<u64> = s.iter().map(|word| word >> at & 0xffff).collect();
            model(&half)
        };
        vec![Expected::Pair(Box::new([part(0), part(16)]))]
    });
    Some(row.needs(needs(form)))
}

/// Architecture that a form of a floating-point instruction needs.
pub(super) fn needs(form: &str) -> u32 {
    let base = form.split('.').next().unwrap_or("");
    let brain = form.contains("bf16");
    match base {
        "add" | "sub" | "mul" | "setp" | "set" | "ex2" | "tanh" if brain => 90,
        "abs" | "neg" | "min" | "max" | "fma" if brain => 80,
        "min" | "max" if form.contains("f16") || form.contains("NaN") => 80,
        "fma" if form.contains("relu") => 80,
        _ => 75,
    }
}

/// The rows of exact floating-point instructions.
pub(super) fn row(form: &'static str) -> Option<Vec<Row>> {
    let words: Vec<&'static str> = form.split('.').collect();
    let (base, ty) = (words[0], *words.last()?);
    let format = format_of(ty)?;
    let finish = Finish::of(&words, format);
    let approximate = words.iter().any(|word| matches!(*word, "approx" | "full"));
    let mode = finish.mode;
    Some(vec![match base {
        _ if approximate => return None,
        "add" => lanewise(form, ty, 2, move |s| {
            finish.result(finish.input(s[0]).plus(finish.input(s[1]), mode))
        })?,
        "sub" => lanewise(form, ty, 2, move |s| {
            finish.result(finish.input(s[0]).plus(finish.input(s[1]).negated(), mode))
        })?,
        "mul" => lanewise(form, ty, 2, move |s| {
            finish.result(finish.input(s[0]).times(finish.input(s[1])))
        })?,
        "div" => lanewise(form, ty, 2, move |s| {
            finish.result(finish.input(s[0]).over(finish.input(s[1])))
        })?,
        "fma" | "mad" => lanewise(form, ty, 3, move |s| {
            let product = finish.input(s[0]).times(finish.input(s[1]));
            finish.result(product.plus(finish.input(s[2]), mode))
        })?,
        "rcp" => lanewise(form, ty, 1, move |s| {
            finish.result(Number::integer(1).over(finish.input(s[0])))
        })?,
        "sqrt" => lanewise(form, ty, 1, move |s| finish.result(finish.input(s[0]).root()))?,
        "abs" | "neg" => {
            let negate = base == "neg";
            lanewise(form, ty, 1, move |s| {
                if format.is_nan(s[0]) && format != F64 {
                    return Expected::Nan { format, canonical: false };
                }
                let bits = if finish.flush { format.flushed(s[0]) } else { s[0] };
                Expected::Bits(if negate { bits ^ format.sign() } else { bits & !format.sign() })
            })?
        }
        "min" | "max" => {
            let up = base == "max";
            let propagate = words.contains(&"NaN");
            lanewise(form, ty, 2, move |s| extreme(finish, s[0], s[1], up, propagate))?
        }
        // The sign of the first operand on the second.
        "copysign" => lanewise(form, ty, 2, move |s| {
            Expected::Bits(s[0] & format.sign() | s[1] & !format.sign())
        })?,
        "testp" => {
            let what = words[1];
            Row::new(form, &[Register::Predicate], &[Kind::of(ty)?], move |s| {
                let number = format.number(s[0]);
                let finite = matches!(number, Number::Finite { .. });
                let subnormal = format.is_subnormal(s[0]);
                vec![Expected::Bits(u64::from(match what {
                    "finite" => finite,
                    "infinite" => matches!(number, Number::Infinite(_)),
                    "number" => number != Number::Nan,
                    "notanumber" => number == Number::Nan,
                    // "Positive and negative zero are considered normal numbers."
                    "normal" => finite && !subnormal,
                    _ => subnormal,
                }))]
            })
        }
        _ => return None,
    }])
}

/// Minimum or maximum: a NaN loses to a number unless it is to be propagated, and -0 is below +0.
fn extreme(finish: Finish, x: u64, y: u64, up: bool, propagate: bool) -> Expected {
    let format = finish.format;
    let [x, y] = [x, y].map(|bits| if finish.flush { format.flushed(bits) } else { bits });
    let nan = Expected::Nan { format, canonical: format != F64 };
    match (format.is_nan(x), format.is_nan(y)) {
        (true, true) => return nan,
        (true, _) | (_, true) if propagate => return nan,
        (true, _) => return Expected::Bits(y),
        (_, true) => return Expected::Bits(x),
        _ => {}
    }
    let key = |bits: u64| {
        let magnitude = i128::from(bits & (format.sign() - 1));
        if bits & format.sign() != 0 { -magnitude - 1 } else { magnitude }
    };
    Expected::Bits(if (key(x) > key(y)) == up { x } else { y })
}

/// Whether a comparison of a name holds; for floats `None` means unordered.
pub(super) fn holds(name: &str, order: Option<std::cmp::Ordering>) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let Some(order) = order else {
        return matches!(name, "equ" | "neu" | "ltu" | "leu" | "gtu" | "geu" | "nan");
    };
    match name {
        "eq" | "equ" => order == Equal,
        "ne" | "neu" => order != Equal,
        "lt" | "lo" | "ltu" => order == Less,
        "le" | "ls" | "leu" => order != Greater,
        "gt" | "hi" | "gtu" => order == Greater,
        "ge" | "hs" | "geu" => order != Less,
        "num" => true,
        _ => false,
    }
}

/// How two operands of a type compare.
fn order(ty: &str, flush: bool, x: u64, y: u64) -> Option<std::cmp::Ordering> {
    match format_of(ty) {
        Some(format) => {
            let value = |bits: u64| format.value(if flush { format.flushed(bits) } else { bits });
            value(x).partial_cmp(&value(y))
        }
        None => Some(super::integers::value(x, ty).cmp(&super::integers::value(y, ty))),
    }
}

/// `setp` and `set`.
pub(super) fn comparisons(form: &'static str) -> Option<Vec<Row>> {
    let words: Vec<&'static str> = form.split('.').collect();
    let (base, ty) = (words[0], *words.last()?);
    if !matches!(base, "setp" | "set") {
        return None;
    }
    let name = words[1];
    let flush = words.contains(&"ftz");
    let kind = Kind::of(ty)?;
    let packed = ty.ends_with("x2");
    let compare = move |s: &[u64], at: u32| {
        let cut = if packed { 0xffff } else { u64::MAX };
        holds(name, order(ty, flush, s[0] >> at & cut, s[1] >> at & cut))
    };
    let needs = needs(form);
    if base == "setp" {
        let combine = words.iter().copied().find(|word| matches!(*word, "and" | "or" | "xor"));
        let mut kinds = vec![kind; 2];
        let mut body = format!("{form} {{d0}}|{{d1}}, {{s0}}, {{s1}}");
        if combine.is_some() {
            kinds.push(Kind::Predicate);
            body.push_str(", {s2}");
        }
        // Comparisons of single halves have one result.
        let half = matches!(ty, "f16" | "bf16");
        let results = vec![Register::Predicate; if half { 1 } else { 2 }];
        if half {
            body = body.replace("|{d1}", "");
        }
        let model = move |s: &[u64], other: u64| {
            let with = |value: bool| {
                let value = u64::from(value);
                Expected::Bits(match combine {
                    Some("and") => value & other,
                    Some("or") => value | other,
                    Some(_) => value ^ other,
                    None => value,
                })
            };
            if packed {
                vec![with(compare(s, 0)), with(compare(s, 16))]
            } else if half {
                vec![with(compare(s, 0))]
            } else {
                let value = compare(s, 0);
                vec![with(value), with(!value)]
            }
        };
        let mut rows = vec![
            Row::new(form, &results, &kinds, move |s| model(s, s.get(2).copied().unwrap_or(0)))
                .body(format!("{body};"))
                .needs(needs),
        ];
        if combine.is_some() {
            let negated = body.replace("{s2}", "!{s2}");
            rows.push(
                Row::new(form, &results, &kinds, move |s| model(s, 1 - s[2]))
                    .body(format!("{negated};"))
                    .variant("negated")
                    .needs(needs),
            );
        } else if !packed && !half {
            rows.push(
                Row::new(form, &results[..1], &kinds, move |s| vec![model(s, 0)[0].clone()])
                    .body(format!("{form} {{d0}}, {{s0}}, {{s1}};"))
                    .variant("one result")
                    .needs(needs),
            );
        }
        return Some(rows);
    }
    let to = words[words.len() - 2];
    let yes: u64 = match to {
        "f32" => 0x3f80_0000,
        "f16" | "f16x2" => 0x3c00,
        "bf16" | "bf16x2" => 0x3f80,
        "u16" | "s16" => 0xffff,
        _ if packed => 0xffff,
        _ => 0xffff_ffff,
    };
    Some(vec![
        Row::new(form, &[Kind::of(to)?.register()], &[kind; 2], move |s| {
            let one = |at: u32| if compare(s, at) { yes } else { 0 };
            vec![Expected::Bits(if packed { one(0) | one(16) << 16 } else { one(0) })]
        })
        .needs(needs),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_and_nans_of_extremes() {
        let finish = Finish::of(&["min", "f32"], F32);
        let (plus, minus, nan, one) = (0, 0x8000_0000, 0x7fc0_0001, 0x3f80_0000);
        assert_eq!(extreme(finish, plus, minus, false, false), Expected::Bits(minus));
        assert_eq!(extreme(finish, minus, plus, true, false), Expected::Bits(plus));
        assert_eq!(extreme(finish, nan, one, true, false), Expected::Bits(one));
        assert!(matches!(extreme(finish, nan, one, true, true), Expected::Nan { .. }));
    }

    #[test]
    fn the_border_of_subnormals_is_open_with_ftz() {
        // 1.5 * 2^-127 + the half unit that rounds it up to 2^-126.
        let finish = Finish::of(&["mul", "ftz", "f32"], F32);
        let exact =
            F32.number(0x3fff_ffff).times(F32.number(0x0080_0000)).times(F32.number(0x3f00_0000));
        assert_eq!(finish.result(exact), Expected::Either(0x0080_0000, 0));
    }
}
