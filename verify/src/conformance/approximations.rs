//! Approximate instructions: the exact value and the bound that the PTX manual gives around it
//! (sections 9.7.3.8 to 9.7.3.22 and 9.7.4.9, 9.7.4.10), and the special values it tabulates.

use super::exact::{F16, F32, F64, Format, Mode};
use super::floats::{format_of, lanewise};
use super::row::{Expected, Kind, Register, Row};

/// The distance between neighbours of a format around a value.
fn unit(format: Format, value: f64) -> f64 {
    let exponent = if value == 0.0 || !value.is_finite() {
        format.least
    } else {
        (value.abs().log2().floor() as i32).max(format.least)
    };
    2f64.powi(exponent - (format.precision as i32 - 1))
}

/// What is expected of a finite exact value: within `error`, and with `.ftz` a subnormal result may
/// be the zero it is flushed to.
fn near(format: Format, exact: f64, error: f64, flush: bool) -> Expected {
    let smallest = 2f64.powi(format.least);
    if flush && exact.abs() < smallest {
        // A flushed result; just below the border, the error may leave it unflushed.
        let error = if exact.abs() + error >= smallest { smallest } else { exact.abs() };
        return Expected::Near { format, exact, error };
    }
    if flush && exact.abs() - error < smallest {
        return Expected::Near { format, exact, error: exact.abs() };
    }
    Expected::Near { format, exact, error }
}

fn bits_of(format: Format, value: f64) -> Expected {
    if value.is_nan() {
        return Expected::Nan { format, canonical: format != F64 };
    }
    Expected::Bits(format.round(F64.number(value.to_bits()), Mode::Nearest))
}

/// The rows of approximate instructions.
pub(super) fn row(form: &'static str) -> Option<Vec<Row>> {
    let words: Vec<&'static str> = form.split('.').collect();
    let (base, ty) = (words[0], *words.last()?);
    if !words.iter().any(|word| matches!(*word, "approx" | "full")) {
        return None;
    }
    if ty == "f64" {
        return doubles(form, base, words.contains(&"ftz"));
    }
    let format = format_of(ty)?;
    let flush = words.contains(&"ftz");
    let full = words.contains(&"full");
    let value = move |bits: u64| format.value(if flush { format.flushed(bits) } else { bits });
    let count = if base == "div" { 2 } else { 1 };
    let section = match (base, format.bits) {
        ("div", _) => "9.7.3.8",
        ("rcp", _) => "9.7.3.13",
        ("sqrt", _) => "9.7.3.15",
        ("rsqrt", _) => "9.7.3.16",
        ("sin", _) => "9.7.3.18",
        ("cos", _) => "9.7.3.19",
        ("lg2", _) => "9.7.3.20",
        ("ex2", 32) => "9.7.3.21",
        ("tanh", 32) => "9.7.3.22",
        ("tanh", _) => "9.7.4.9",
        _ => "9.7.4.10",
    };
    let row = lanewise(form, ty, count, move |s| {
        let x = value(s[0]);
        match base {
            "div" => quotient(x, value(s[1]), full, flush),
            "rcp" => {
                let exact = 1.0 / x;
                if x == 0.0 || !x.is_finite() {
                    return bits_of(F32, exact);
                }
                near(F32, exact, 1.0 * unit(F32, exact), flush)
            }
            "sqrt" => {
                let exact = x.sqrt();
                if x <= 0.0 || !x.is_finite() {
                    return bits_of(F32, exact);
                }
                near(F32, exact, 2f64.powi(-23) * exact, flush)
            }
            "rsqrt" => {
                let exact = 1.0 / x.sqrt();
                if x == 0.0 {
                    return bits_of(F32, 1.0 / x);
                }
                if !exact.is_finite() || exact == 0.0 {
                    return bits_of(F32, exact);
                }
                near(F32, exact, 2f64.powf(-22.9) * exact, flush)
            }
            "sin" | "cos" => {
                if !x.is_finite() {
                    return bits_of(F32, f64::NAN);
                }
                if x == 0.0 {
                    return bits_of(F32, if base == "sin" { x } else { 1.0 });
                }
                let exact = if base == "sin" { x.sin() } else { x.cos() };
                let error = match x.abs() {
                    a if a <= std::f64::consts::TAU => 2f64.powf(-20.5),
                    a if a <= 100.0 * std::f64::consts::PI => 2f64.powf(-14.7),
                    _ => return Expected::Open,
                };
                Expected::Near { format: F32, exact, error }
            }
            "lg2" => {
                if x <= 0.0 || !x.is_finite() {
                    return bits_of(F32, x.log2());
                }
                let exact = x.log2();
                let relative = !(x > 0.5 && x < 2.0);
                let error = 2f64.powi(-22) * if relative { exact.abs() } else { 1.0 };
                near(F32, exact, error, flush)
            }
            "ex2" => {
                if x.is_nan() || x.is_infinite() || x == 0.0 {
                    return bits_of(format, x.exp2());
                }
                let exact = x.exp2();
                if format != F32 {
                    let relative = if format == F16 { 2f64.powf(-9.9) } else { 2f64.powi(-7) };
                    // Below the normal numbers no relative error can be kept.
                    let error = (relative * exact).max(unit(format, 0.0));
                    return near(format, exact, error, flush);
                }
                // Of the correctly rounded result, which is half a unit from the exact one.
                near(F32, exact, 2.5 * unit(F32, exact), flush)
            }
            "tanh" => {
                if x.is_nan() || x.is_infinite() || x == 0.0 {
                    return bits_of(format, x.tanh());
                }
                let exact = x.tanh();
                let error = match format {
                    F32 if x.abs() < 2f64.powi(-126) => 0.0,
                    F32 => 2f64.powi(-11) * exact.abs(),
                    F16 => 2f64.powf(-10.987),
                    _ => 2f64.powi(-8),
                };
                let exact = if error == 0.0 { x } else { exact };
                Expected::Near { format, exact, error }
            }
            _ => Expected::Open,
        }
    })?;
    let row = if base == "tanh" || format == F16 { row.needs(75) } else { row };
    Some(vec![row.approximate(section, format)])
}

/// `div.approx` and `div.full`: within 2 units; the former gives up on divisors beyond 2^126.
fn quotient(x: f64, y: f64, full: bool, flush: bool) -> Expected {
    let exact = x / y;
    if !full && y.abs() > 2f64.powi(126) && y.is_finite() {
        if x.is_nan() || x.is_infinite() {
            return bits_of(F32, f64::NAN);
        }
        // "A sign-preserving zero"; a GPU whose reciprocal keeps subnormals comes nearer.
        return Expected::Near { format: F32, exact, error: exact.abs() };
    }
    if !x.is_finite() || !y.is_finite() || x == 0.0 || y == 0.0 {
        return bits_of(F32, exact);
    }
    if !full && y.abs() < 2f64.powi(-126) {
        return Expected::Open;
    }
    near(F32, exact, 2.5 * unit(F32, exact), flush)
}

/// The gross approximations that start a division or a root in f64, and `rsqrt.approx.f64`.
fn doubles(form: &'static str, base: &'static str, gross: bool) -> Option<Vec<Row>> {
    let section = match (base, gross) {
        ("rcp", true) => "9.7.3.14",
        ("rsqrt", true) => "9.7.3.17",
        ("rsqrt", false) => "9.7.3.16",
        _ => return None,
    };
    let row = Row::new(form, &[Register::Bits(64)], &[Kind::F64], move |s| {
        let bits = if gross { s[0] & !0xffff_ffff } else { s[0] };
        let bits = if gross { F64.flushed(bits) } else { bits };
        let x = f64::from_bits(bits);
        let exact = match base {
            "rcp" => 1.0 / x,
            _ if x == 0.0 => 1.0 / x,
            _ => 1.0 / x.sqrt(),
        };
        let nan = f64::from_bits(s[0]).is_nan();
        if gross && nan {
            return vec![Expected::Bits(0x7fff_ffff_0000_0000)];
        }
        if exact.is_nan() {
            let exact =
                if gross { Expected::Bits(0x7fff_ffff_0000_0000) } else { bits_of(F64, exact) };
            return vec![exact];
        }
        if exact == 0.0 || exact.is_infinite() {
            return vec![bits_of(F64, exact)];
        }
        // The manual gives no bound: of the gross ones 20 bits are kept and the last may be off.
        let error = exact.abs() * 2f64.powi(if gross { -19 } else { -51 });
        let smallest = f64::MIN_POSITIVE;
        let error = if gross && exact.abs() < 2.0 * smallest { exact.abs() } else { error };
        vec![Expected::Near { format: F64, exact, error }]
    });
    Some(vec![row.approximate(section, F64)])
}

#[cfg(test)]
mod tests {
    use super::super::exact::BF16;
    use super::*;

    #[test]
    fn units_are_those_of_the_format() {
        assert_eq!(unit(F32, 1.0), 2f64.powi(-23));
        assert_eq!(unit(F32, 1.99), 2f64.powi(-23));
        assert_eq!(unit(F32, 1e-45), 2f64.powi(-149));
        assert_eq!(unit(BF16, 4.0), 2f64.powi(-5));
    }

    #[test]
    fn a_flushed_result_may_be_zero_and_no_other_may() {
        let subnormal = 2f64.powi(-130);
        assert!(near(F32, subnormal, 0.0, true).allows(0));
        assert!(!near(F32, subnormal, 0.0, false).allows(0));
        assert!(!near(F32, 1.0, 0.1, true).allows(0));
    }
}
