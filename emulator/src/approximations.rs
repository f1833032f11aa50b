//! Tests of the approximate instructions: the same bits from every copy of the code and on every
//! host, within the bounds of the PTX manual (section 9.7.3 and 9.7.4).

use crate::lanes::wide_is_available;
use crate::launch::launch_on;
use crate::math::{cosine, exp2, log2, sine, tangent_hyperbolic};
use crate::{Argument, Launch, Memory, Module, Options};

const OPERATIONS: [&str; 14] = [
    "ex2.approx.f32",
    "ex2.approx.ftz.f32",
    "lg2.approx.f32",
    "sin.approx.f32",
    "cos.approx.f32",
    "tanh.approx.f32",
    "rcp.approx.f32",
    "rcp.approx.ftz.f32",
    "sqrt.approx.f32",
    "rsqrt.approx.f32",
    "ex2.approx.f16x2",
    "ex2.approx.ftz.bf16x2",
    "tanh.approx.f16x2",
    "tanh.approx.bf16x2",
];

/// Every sign and exponent with `count` mantissas from all over the range, the ends among them.
fn sample(count: u32) -> impl Iterator<Item = u32> + Clone {
    (0..512u32).flat_map(move |head| {
        (0..count).map(move |at| {
            let mantissa = match at {
                0 => 0,
                1 => 0x7f_ffff,
                _ => at.wrapping_mul(2_654_435_761) >> 9,
            };
            head << 23 | mantissa
        })
    })
}

/// The results of all operations on words, one after the other.
fn results(words: &[u32], wide: bool) -> Vec<u8> {
    let count = OPERATIONS.len();
    let all: String = OPERATIONS
        .iter()
        .enumerate()
        .map(|(at, name)| format!("{name} %r1, %r0; st.global.u32 [%l1+{}], %r1;\n", 4 * at))
        .collect();
    let text = format!(
        ".version 8.4\n.target sm_90\n.address_size 64
        .visible .entry k(.param .u64 in, .param .u64 out) {{
        .reg .b32 %r<9>; .reg .b64 %l<4>;
        mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mad.lo.u32 %r2, %r1, 256, %r0;
        ld.param.u64 %l0, [in]; mad.wide.u32 %l0, %r2, 4, %l0; ld.global.u32 %r0, [%l0];
        ld.param.u64 %l1, [out]; mad.wide.u32 %l1, %r2, {}, %l1;
        {all} ret; }}",
        4 * count
    );
    let module = Module::parse_for(&text, wide).expect("valid");
    let mut memory = Memory::new();
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let input = memory.allocate("in", bytes.len()).expect("small");
    memory.write(input, &bytes).expect("in range");
    let mut out = vec![0; count * bytes.len()];
    let output = memory.allocate("out", out.len()).expect("small");
    let what = Launch {
        kernel: "k",
        grid: [words.len() as u32 / 256, 1, 1],
        block: [256, 1, 1],
        dynamic_shared_bytes: 0,
        arguments: &[Argument::U64(input), Argument::U64(output)],
    };
    let options = Options { checks: false, counters: false, ..Options::default() };
    let report = launch_on(&module, &mut memory, &what, &options, wide).expect("launch");
    assert!(report.findings.is_empty());
    memory.read(output, &mut out).expect("in range");
    out
}

fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Hash of the results of [`OPERATIONS`] on [`sample`].
const RECORDED: u64 = 0xe5f9_dda0_7995_0711;

/// A host on which this fails computes other bits than the one that the hash was recorded on.
#[test]
fn every_host_computes_the_recorded_bits() {
    let words: Vec<u32> = sample(512).collect();
    let plain = results(&words, false);
    assert_eq!(hash(&plain), RECORDED, "{:#x}", hash(&plain));
    if !wide_is_available() {
        println!("SKIP: this processor has no AVX2 and FMA to compare with");
        return;
    }
    assert!(plain == results(&words, true), "the copies for AVX2 and for any processor differ");
}

/// One unit in the last place of the f32 results around `exact`.
fn unit(exact: f64) -> f64 {
    let exponent = ((exact.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(-126);
    2f64.powi(exponent - 23)
}

/// The error at an argument as a share of the allowed one.
type Judge = fn(f32) -> Option<f64>;

/// Each function with the error of its result at an argument, as a share of what the manual allows;
/// `None` where the manual says nothing or tabulates the result.
const FUNCTIONS: [(&str, Judge); 5] = [
    ("ex2", |x| {
        let exact = f64::from(x).exp2();
        let inside = x.is_finite() && exact < f64::from(f32::MAX);
        // Two units from the correctly rounded result.
        inside.then(|| (f64::from(exp2(x)) - exact).abs() / unit(exact) / 2.5)
    }),
    ("lg2", |x| {
        let exact = f64::from(x).log2();
        let scale = if x > 0.5 && x < 2.0 { 1.0 } else { exact.abs() };
        (x > 0.0 && x.is_finite())
            .then(|| (f64::from(log2(x)) - exact).abs() / scale / 2f64.powi(-22))
    }),
    ("sin", |x| {
        let (exact, got) = (f64::from(x).sin(), f64::from(sine(x)));
        allowed_turning(x).map(|allowed| (got - exact).abs() / allowed)
    }),
    ("cos", |x| {
        let (exact, got) = (f64::from(x).cos(), f64::from(cosine(x)));
        allowed_turning(x).map(|allowed| (got - exact).abs() / allowed)
    }),
    ("tanh", |x| {
        let exact = f64::from(x).tanh();
        let got = f64::from(tangent_hyperbolic(x));
        (x != 0.0 && x.is_finite()).then(|| (got - exact).abs() / exact.abs() / 2f64.powi(-11))
    }),
];

fn allowed_turning(x: f32) -> Option<f64> {
    match f64::from(x.abs()) {
        x if x <= std::f64::consts::TAU => Some(2f64.powf(-20.5)),
        x if x <= 100.0 * std::f64::consts::PI => Some(2f64.powf(-14.7)),
        _ => None,
    }
}

/// The largest share of the allowed error, and where.
fn worst(judge: Judge, arguments: impl Iterator<Item = u32>) -> (f64, u32) {
    arguments
        .filter_map(|bits| judge(f32::from_bits(bits)).map(|share| (share, bits)))
        .fold((0.0, 0), |most, one| if one.0 > most.0 || one.0.is_nan() { one } else { most })
}

#[test]
fn errors_are_within_the_bounds_of_the_manual() {
    for (name, judge) in FUNCTIONS {
        let (share, at) = worst(judge, sample(2048));
        assert!(share <= 1.0, "{name} of {at:#x}: {share} of the allowed error");
    }
}

/// Prints for each function the largest error over all 2^32 arguments.
#[test]
#[ignore = "takes minutes: every f32"]
fn errors_are_within_the_bounds_at_every_argument() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    for (name, judge) in FUNCTIONS {
        let share = |part: u64| {
            let first = (part << 32) / threads;
            let last = ((part + 1) << 32) / threads;
            worst(judge, (first..last).map(|bits| bits as u32))
        };
        let (most, at) = std::thread::scope(|scope| {
            let parts: Vec<_> = (0..threads).map(|part| scope.spawn(move || share(part))).collect();
            let parts = parts.into_iter().map(|part| part.join().expect("no panic"));
            parts.fold((0.0, 0), |most, one| if one.0 > most.0 { one } else { most })
        });
        println!("{name}: {most:.4} of the allowed error, at {at:#010x}");
        assert!(most <= 1.0);
    }
}
