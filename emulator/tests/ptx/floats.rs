//! Floating point: rounding, NaN, subnormals, conversions and approximations.

use half::{bf16, f16};
use proptest::prelude::*;

use crate::kernels::Function;

/// Bit patterns of f32 that matter: any, and the neighbourhoods of zero, one, the smallest normal,
/// the largest half, infinity and NaN.
fn bits() -> impl Strategy<Value = u32> {
    let near = prop_oneof![
        Just(0u32),
        Just(1.0f32.to_bits()),
        Just(f32::MIN_POSITIVE.to_bits()),
        Just(65504.0f32.to_bits()),
        Just(6.1035156e-5f32.to_bits()),
        Just(f32::INFINITY.to_bits()),
        Just(0.5f32.to_bits()),
        Just(2147483648.0f32.to_bits()),
    ];
    prop_oneof![
        any::<u32>(),
        (near, -40i32..40, any::<bool>())
            .prop_map(|(v, d, s)| v.wrapping_add(d as u32) & 0x7fff_ffff | u32::from(s) << 31),
        (-100.0f32..100.0).prop_map(f32::to_bits),
    ]
}

fn rows() -> impl Strategy<Value = Vec<[u64; 3]>> {
    let value = || bits().prop_map(u64::from);
    prop::collection::vec([value(), value(), value()], 1..300)
}

fn f(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

/// Equal as numbers with signs of zero told apart, any NaN equal to any.
fn same(got: u64, wanted: f32) -> bool {
    if wanted.is_nan() { f(got).is_nan() } else { got as u32 == wanted.to_bits() }
}

fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0.0f32.copysign(value) } else { value }
}

fn minimum(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        _ => {
            if a < b {
                a
            } else {
                b
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn single_precision_is_ieee(rows in rows()) {
        type Wanted = fn(f32, f32, f32) -> f32;
        let table: [(&str, Wanted); 13] = [
            ("add.f32 %d, %a, %b;", |a, b, _| a + b),
            ("sub.rn.f32 %d, %a, %b;", |a, b, _| a - b),
            ("mul.f32 %d, %a, %b;", |a, b, _| a * b),
            ("div.rn.f32 %d, %a, %b;", |a, b, _| a / b),
            ("fma.rn.f32 %d, %a, %b, %c;", |a, b, c| a.mul_add(b, c)),
            ("sqrt.rn.f32 %d, %a;", |a, _, _| a.sqrt()),
            ("rcp.rn.f32 %d, %a;", |a, _, _| 1.0 / a),
            ("min.f32 %d, %a, %b;", |a, b, _| minimum(a, b)),
            ("max.f32 %d, %a, %b;", |a, b, _| -minimum(-a, -b)),
            ("min.NaN.f32 %d, %a, %b;", |a, b, _| if a.is_nan() || b.is_nan() { f32::NAN } else { minimum(a, b) }),
            ("add.ftz.f32 %d, %a, %b;", |a, b, _| flush(flush(a) + flush(b))),
            ("mul.ftz.f32 %d, %a, %b;", |a, b, _| flush(flush(a) * flush(b))),
            ("add.sat.f32 %d, %a, %b;", |a, b, _| {
                let sum = a + b;
                if sum.is_nan() { 0.0 } else { sum.clamp(0.0, 1.0) + 0.0 }
            }),
        ];
        for (text, wanted) in table {
            let function = Function::new(text, [4, 4, 4, 4]);
            for (row, got) in rows.iter().zip(function.apply(&rows)) {
                let wanted = wanted(f(row[0]), f(row[1]), f(row[2]));
                prop_assert!(same(got, wanted), "{text} of {row:x?}: {got:x}, wanted {wanted:e}");
            }
        }
    }

    #[test]
    fn directed_roundings_enclose_the_exact_result(rows in rows()) {
        for op in ["add", "mul"] {
            let [down, near, up, zero] = ["rm", "rn", "rp", "rz"].map(|mode| {
                Function::new(&format!("{op}.{mode}.f32 %d, %a, %b;"), [4, 4, 4, 4]).apply(&rows)
            });
            for (i, row) in rows.iter().enumerate() {
                let (a, b) = (f(row[0]), f(row[1]));
                // The f64 product is exact; the f64 sum is exact where the exponents are near.
                let exact = if op == "mul" { f64::from(a) * f64::from(b) } else { f64::from(a) + f64::from(b) };
                let far = (a.abs().log2() - b.abs().log2()).abs() > 28.0;
                if !exact.is_finite() || op == "add" && (far || a == 0.0 || b == 0.0) { continue; }
                let (low, high) = (f64::from(f(down[i])), f64::from(f(up[i])));
                prop_assert!(low <= exact && exact <= high, "{op} {row:x?}: {low:e} {exact:e} {high:e}");
                prop_assert!(near[i] == down[i] || near[i] == up[i]);
                let toward = if exact > 0.0 { down[i] } else { up[i] };
                prop_assert!(exact == 0.0 || zero[i] == toward);
                let next = if low == high { down[i] } else { f(down[i]).next_up().to_bits().into() };
                prop_assert!(f(next) == f(up[i]), "{op} {row:x?}: neighbours");
            }
        }
    }

    #[test]
    fn conversions_round_and_saturate(rows in rows()) {
        let apply = |text: &str, to: usize| Function::new(text, [4, 4, 4, to]).apply(&rows);
        let half = apply("cvt.rn.f16.f32 %d, %a;", 2);
        let brain = apply("cvt.rn.bf16.f32 %d, %a;", 2);
        let pair = apply("cvt.rn.f16x2.f32 %d, %a, %b;", 4);
        let toward_zero = apply("cvt.rz.f16.f32 %d, %a;", 2);
        let signed = apply("cvt.rzi.s32.f32 %d, %a;", 4);
        let unsigned = apply("cvt.rni.u32.f32 %d, %a;", 4);
        let long = apply("cvt.rmi.s64.f32 %d, %a;", 8);
        let from_signed = apply("cvt.rn.f32.s32 %d, %a;", 4);
        let from_unsigned_down = apply("cvt.rz.f32.u32 %d, %a;", 4);
        let whole = apply("cvt.rmi.f32.f32 %d, %a;", 4);
        let up = apply("mov.b32 {%h, %g}, %a; cvt.f32.f16 %d, %h;".replace("mov", ".reg .b16 %h, %g; mov").as_str(), 4);
        for (i, row) in rows.iter().enumerate() {
            let a = f(row[0]);
            let h = f16::from_f32(a);
            prop_assert!(if a.is_nan() { half[i] == 0x7fff } else { half[i] as u16 == h.to_bits() }, "{a:e}");
            prop_assert!(if a.is_nan() { brain[i] == 0x7fff } else { brain[i] as u16 == bf16::from_f32(a).to_bits() }, "{a:e}");
            if !a.is_nan() && !f(row[1]).is_nan() {
                let low = f16::from_f32(f(row[1])).to_bits();
                prop_assert_eq!(pair[i] as u32, u32::from(h.to_bits()) << 16 | u32::from(low));
            }
            if a.is_finite() {
                let z = f16::from_bits(toward_zero[i] as u16);
                prop_assert!(z.to_f64().abs() <= f64::from(a).abs());
                prop_assert!(z == h || z.to_bits() + 1 == h.to_bits(), "{a:e} {z} {h}");
            }
            prop_assert_eq!(signed[i] as u32, a as i32 as u32);
            prop_assert_eq!(unsigned[i] as u32, a.round_ties_even() as u32);
            prop_assert_eq!(long[i], if a.is_nan() { i64::MIN as u64 } else { a.floor() as i64 as u64 });
            let n = row[0] as u32;
            prop_assert_eq!(from_signed[i] as u32, (n as i32 as f32).to_bits());
            let down = f(from_unsigned_down[i]);
            prop_assert!(f64::from(down) <= f64::from(n) && f64::from(down.next_up()) > f64::from(n));
            prop_assert!(same(whole[i], a.floor()), "{a:e}");
            let low = f16::from_bits(n as u16);
            prop_assert!(same(up[i], low.to_f32()), "{low}");
        }
    }

    #[test]
    fn half_arithmetic_rounds_once(rows in rows()) {
        let sizes = [2, 2, 2, 2];
        let ops = ["add.f16 %d, %a, %b;", "mul.f16 %d, %a, %b;", "fma.rn.f16 %d, %a, %b, %c;", "max.f16 %d, %a, %b;"];
        let [add, mul, fma, max] = ops.map(|text| Function::new(text, sizes).apply(&rows));
        let brain = Function::new("fma.rn.bf16 %d, %a, %b, %c;", sizes).apply(&rows);
        for (i, row) in rows.iter().enumerate() {
            let [a, b, c] = row.map(|v| f16::from_bits(v as u16));
            let value = |bits: u16| f16::from_bits(bits).to_f64();
            let is = |got: u64, exact: f64| nearest(got as u16, exact, 0x7c00, value);
            // Sums and products of two halves are exact in f64.
            prop_assert!(is(add[i], a.to_f64() + b.to_f64()), "{a} + {b}");
            prop_assert!(is(mul[i], a.to_f64() * b.to_f64()), "{a} * {b}");
            if let Some(exact) = exact_fma(a.to_f64(), b.to_f64(), c.to_f64()) {
                prop_assert!(is(fma[i], exact), "{a} * {b} + {c}: {:x}", fma[i]);
            }
            let wanted = -minimum(-a.to_f32(), -b.to_f32());
            prop_assert!(if wanted.is_nan() { max[i] == 0x7fff } else { max[i] as u16 == f16::from_f32(wanted).to_bits() }, "max {a} {b}");
            let [a, b, c] = row.map(|v| bf16::from_bits(v as u16));
            if let Some(exact) = exact_fma(a.to_f64(), b.to_f64(), c.to_f64()) {
                let value = |bits: u16| bf16::from_bits(bits).to_f64();
                prop_assert!(nearest(brain[i] as u16, exact, 0x7f80, value), "{a} * {b} + {c}: {:x}", brain[i]);
            }
        }
    }
}

/// x * y + z where f64 holds it exactly.
fn exact_fma(x: f64, y: f64, z: f64) -> Option<f64> {
    let product = x * y;
    let sum = product + z;
    ((sum - product == z && sum - z == product) || !sum.is_finite()).then_some(sum)
}

/// Whether 16 bits are the value nearest to `exact`, ties to even, by comparing with both
/// neighbours: `half` itself drops low bits when it converts from f64.
fn nearest(got: u16, exact: f64, infinity: u16, value: impl Fn(u16) -> f64) -> bool {
    if exact.is_nan() {
        return got == 0x7fff;
    }
    let magnitude = got & 0x7fff;
    // A step beyond the largest number stands in for infinity.
    let number = |bits: u16| {
        if bits == infinity { 2.0 * value(infinity - 1) - value(infinity - 2) } else { value(bits) }
    };
    let x = exact.abs();
    if exact != 0.0 && (got >> 15 == 1) != exact.is_sign_negative() || magnitude > infinity {
        return false;
    }
    if magnitude == infinity && x >= number(infinity) {
        return true;
    }
    let error = (number(magnitude) - x).abs();
    let beats = |other: u16| {
        let theirs = (number(other) - x).abs();
        error < theirs || error == theirs && magnitude & 1 == 0
    };
    (magnitude == 0 || beats(magnitude - 1)) && (magnitude == infinity || beats(magnitude + 1))
}

/// Distance in units in the last place of the exact value.
fn ulps(got: f32, exact: f64) -> f64 {
    let exponent = exact.abs().log2().floor().max(-126.0);
    (f64::from(got) - exact).abs() / (exponent - 23.0).exp2()
}

#[test]
fn approximations_are_within_two_ulps() {
    let inputs: Vec<[u64; 3]> = (0..20_000)
        .map(|i| [u64::from((i as f32 * 0.0123 - 123.0).to_bits()), 0, 0])
        .chain(
            (0..4_000)
                .map(|i| [u64::from((f32::MIN_POSITIVE * 1.5).to_bits() + i * 500_000), 0, 0]),
        )
        .collect();
    type Exact = fn(f64) -> f64;
    let table: [(&str, Exact); 5] = [
        ("ex2.approx.ftz.f32", f64::exp2),
        ("lg2.approx.f32", f64::log2),
        ("rcp.approx.ftz.f32", |x| 1.0 / x),
        ("rsqrt.approx.f32", |x| 1.0 / x.sqrt()),
        ("tanh.approx.f32", f64::tanh),
    ];
    for (name, exact) in table {
        let function = Function::new(&format!("{name} %d, %a;"), [4, 4, 4, 4]);
        let mut worst = 0f64;
        for (row, got) in inputs.iter().zip(function.apply(&inputs)) {
            let wanted = exact(f64::from(f(row[0])));
            if !wanted.is_finite() || wanted.abs() < 1.2e-38 || wanted.abs() > 3.4e38 {
                continue;
            }
            let error = ulps(f(got), wanted);
            assert!(error <= 2.0, "{name}({:e}) = {:e}, exact {wanted:e}", f(row[0]), f(got));
            worst = worst.max(error);
        }
        assert!(worst > 0.0, "{name} was never inexact: nothing was compared");
    }
    // sin and cos are judged by absolute error, as in the PTX manual.
    for (name, exact) in [("sin", f64::sin as Exact), ("cos", f64::cos)] {
        let function = Function::new(&format!("{name}.approx.f32 %d, %a;"), [4, 4, 4, 4]);
        for (row, got) in inputs.iter().zip(function.apply(&inputs)) {
            let x = f64::from(f(row[0]));
            if x.abs() < 1000.0 {
                assert!((f64::from(f(got)) - exact(x)).abs() < 1e-7, "{name}({x})");
            }
        }
    }
}

#[test]
fn special_values_of_exponentials() {
    let function = Function::new("ex2.approx.ftz.f32 %d, %a;", [4, 4, 4, 4]);
    let inputs = [0.0f32, f32::NEG_INFINITY, f32::INFINITY, -127.0, 128.0, 10.0];
    let rows: Vec<[u64; 3]> = inputs.iter().map(|v| [u64::from(v.to_bits()), 0, 0]).collect();
    let got: Vec<f32> = function.apply(&rows).into_iter().map(f).collect();
    assert_eq!(got, [1.0, 0.0, f32::INFINITY, 0.0, f32::INFINITY, 1024.0]);
}

#[test]
fn comparisons_with_nan() {
    let nan = u64::from(f32::NAN.to_bits());
    let one = u64::from(1.0f32.to_bits());
    for (name, with_nan, ordered) in [
        ("eq", 0, 1),
        ("ne", 0, 0),
        ("lt", 0, 0),
        ("ge", 0, 1),
        ("equ", 1, 1),
        ("neu", 1, 0),
        ("ltu", 1, 0),
        ("geu", 1, 1),
        ("num", 0, 1),
        ("nan", 1, 0),
    ] {
        let text = format!("setp.{name}.f32 %q0, %a, %b; selp.u32 %d, 1, 0, %q0;");
        let got = Function::new(&text, [4, 4, 4, 4]).apply(&[[nan, one, 0], [one, one, 0]]);
        assert_eq!(got, [with_nan, ordered], "{name}");
    }
}
