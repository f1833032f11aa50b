//! Small CUDA kernels of every common kind, compiled by NVRTC and run on the emulator with all
//! checks, against the same thing said plainly in Rust. Every kernel is
//! `k(const In* x, Out* y, int n)`.

use spanforge_device::{Compiler, Settings, Source, Target};
use spanforge_emulator::{Argument, Check, Launch, Memory, Module, Options, Report, launch};

struct Case<'a> {
    file: &'a str,
    text: &'a str,
    architecture: &'a str,
    options: &'a [&'a str],
    grid: u32,
    block: [u32; 3],
    shared: u32,
    n: i32,
    seed: u64,
}

macro_rules! case {
    ($name:literal) => {
        Case {
            file: concat!($name, ".cu"),
            text: include_str!(concat!("cuda_corpus/", $name, ".cu")),
            architecture: "sm_80",
            options: &[],
            grid: 1,
            block: [32, 1, 1],
            shared: 0,
            n: 32,
            seed: 0,
        }
    };
}

impl Case<'_> {
    fn module(&self) -> Module {
        let mut source = Source::new(self.file, self.text);
        source.options = self.options.iter().map(|&option| option.to_owned()).collect();
        let compiler = Compiler::new(&Settings::from_environment()).expect("NVRTC");
        let target = Target::Ptx(self.architecture.to_owned());
        let image = compiler.compile(&source, &target).unwrap_or_else(|e| panic!("{e}"));
        Module::parse(&image.ptx).unwrap_or_else(|e| panic!("{}: {e}", self.file))
    }

    /// The bytes of `y`, which begins with those of `before`, and the report.
    fn report(&self, x: &[u8], before: &[u8], bytes: usize) -> (Vec<u8>, Report) {
        let mut memory = Memory::new();
        let from = memory.allocate("x", x.len()).expect("fits");
        memory.write(from, x).expect("fits");
        let to = memory.allocate("y", bytes).expect("fits");
        memory.write(to, before).expect("fits");
        let arguments = [Argument::U64(from), Argument::U64(to), Argument::I32(self.n)];
        let launched = Launch {
            kernel: "k",
            grid: [self.grid, 1, 1],
            block: self.block,
            dynamic_shared_bytes: self.shared,
            arguments: &arguments,
        };
        let options = Options { seed: self.seed, ..Options::default() };
        let report = launch(&self.module(), &mut memory, &launched, &options).expect("a launch");
        let mut y = vec![0; bytes];
        memory.read(to, &mut y).expect("in range");
        (y, report)
    }

    fn run(&self, x: &[u8], bytes: usize) -> Vec<u8> {
        let (y, report) = self.report(x, &[], bytes);
        assert!(report.findings.is_empty(), "{}: {}", self.file, report.findings[0]);
        y
    }
}

fn bytes<const N: usize, T: Copy>(values: &[T], of: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| of(value)).collect()
}

fn ints(bytes: &[u8]) -> Vec<i32> {
    bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    ints(bytes).into_iter().map(|bits| f32::from_bits(bits as u32)).collect()
}

fn longs(bytes: &[u8]) -> Vec<u64> {
    ints(bytes).chunks_exact(2).map(|w| u64::from(w[0] as u32) | (w[1] as u64) << 32).collect()
}

/// Numbers that look random and are the same everywhere.
fn numbers(count: usize, below: u32) -> Vec<i32> {
    let next = |state: &u32| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    let states = std::iter::successors(Some(1u32), next);
    states.skip(1).take(count).map(|state| ((state >> 8) % below) as i32).collect()
}

#[test]
fn early_return() {
    let x: Vec<f32> = (0..40).map(|i| i as f32).collect();
    let case = Case { block: [64, 1, 1], n: 40, ..case!("early_return") };
    assert_eq!(floats(&case.run(&bytes(&x, f32::to_le_bytes), 160)), [780.0; 40]);
    // The same without optimisation.
    let case = Case { options: &["-G"], ..case };
    assert_eq!(floats(&case.run(&bytes(&x, f32::to_le_bytes), 160)), [780.0; 40]);
}

#[test]
fn skipped_barrier() {
    let case = Case { block: [64, 1, 1], n: 64, ..case!("skipped_barrier") };
    let (_, report) = case.report(&[0; 256], &[], 256);
    let finding = report.findings.first().expect("a finding");
    // The read of what the others have not written yet, and their write.
    assert_eq!(finding.check, Check::Race);
    assert_eq!(finding.source.as_ref().map(|source| source.line), Some(7));
    let other = finding.other.as_ref().expect("the write");
    assert_eq!(other.source.as_ref().map(|source| source.line), Some(5));
}

#[test]
fn speculation() {
    let x: Vec<f32> = (0..32).map(|i| i as f32).collect();
    let x = bytes(&x, f32::to_le_bytes);
    let y = floats(&case!("speculation").run(&x, 128));
    let wanted = |t: usize| {
        let (x, odd) = (t as f32, !t.is_multiple_of(2));
        let mut out = if odd { 6. * x } else { 2. * x - 1. };
        out += if t < 25 { 6. * x } else { 0. } + 30.;
        let found = if t & 2 != 0 { t } else { t + 1 };
        out += if found < 29 { 2. * found as f32 + 3. } else { 0. };
        out += if t < 16 { 15. - x } else { 0. } + if (1..17).contains(&t) { x - 1. } else { 0. };
        out + if (4..25).contains(&t) { 1. } else { 0. } + 21.
    };
    assert_eq!(y, (0..32).map(wanted).collect::<Vec<f32>>());
    let leaks = Case { options: &["-DLEAK"], ..case!("speculation") };
    let (_, report) = leaks.report(&x, &[], 128);
    let finding = report.findings.first().expect("a finding");
    assert_eq!(finding.check, Check::Uninitialised);
    assert_eq!(finding.lanes, (16..32).collect::<Vec<u32>>());
    // Where it was added.
    let other = finding.other.as_ref().expect("what read it");
    assert_eq!(other.source.as_ref().map(|source| source.line), Some(71));
}

#[test]
fn scan() {
    let x = numbers(256, 1000);
    let case = Case { block: [256, 1, 1], n: 256, shared: 2048, ..case!("scan") };
    let mut sum = 0;
    let wanted: Vec<i32> = x.iter().map(|value| (sum += value, sum).1).collect();
    assert_eq!(ints(&case.run(&bytes(&x, i32::to_le_bytes), 1024)), wanted);
}

#[test]
fn bitonic() {
    let mut x = numbers(256, 1000);
    let case = Case { block: [256, 1, 1], n: 256, ..case!("bitonic") };
    let y = ints(&case.run(&bytes(&x, i32::to_le_bytes), 1024));
    x.sort_unstable();
    assert_eq!(y, x);
}

#[test]
fn transpose() {
    let x = numbers(1024, 1 << 20);
    for (option, passes) in [("-DPAD=0", 32), ("-DPAD=1", 1)] {
        let case = Case { block: [32, 32, 1], options: &[option], ..case!("transpose") };
        let (y, report) = case.report(&bytes(&x, i32::to_le_bytes), &[], 4096);
        let wanted: Vec<i32> = (0..1024).map(|i| x[i % 32 * 32 + i / 32]).collect();
        assert_eq!(ints(&y), wanted);
        // By hand: 32 warps, each with one load and one store of either memory.
        let counters = report.counters;
        assert_eq!(counters.warps, 32);
        assert_eq!((counters.global_load.requests, counters.global_load.sectors), (32, 128));
        assert_eq!((counters.global_store.bytes, counters.global_store.sectors), (4096, 128));
        assert_eq!((counters.shared_store.requests, counters.shared_store.wavefronts), (32, 32));
        assert_eq!(counters.shared_load.wavefronts, 32 * passes);
        assert_eq!(counters.shared_load.ideal_wavefronts, 32);
    }
}

#[test]
fn histogram() {
    let x = numbers(1000, 5000);
    let case = Case { grid: 3, block: [100, 1, 1], n: 1000, ..case!("histogram") };
    let (y, report) = case.report(&bytes(&x, i32::to_le_bytes), &[0; 68], 68);
    assert!(report.findings.is_empty(), "{}", report.findings[0]);
    let mut wanted = vec![0; 17];
    x.iter().for_each(|value| wanted[(value & 15) as usize] += 1);
    wanted[16] = x.iter().copied().max().unwrap_or(0);
    assert_eq!(ints(&y), wanted);
    // Counting in memory that nobody cleared is a finding.
    let (_, report) = case.report(&bytes(&x, i32::to_le_bytes), &[], 68);
    assert_eq!(report.findings.first().map(|finding| finding.check), Some(Check::Uninitialised));
}

#[test]
fn division128() {
    let x: Vec<u64> = numbers(64, 1 << 24)
        .chunks(2)
        .map(|pair| (pair[0] as u64) << 40 | (pair[1] as u64) << 16 | 0x1235)
        .collect();
    let case = Case { options: &["-device-int128"], ..case!("division128") };
    let y = longs(&case.run(&bytes(&x, u64::to_le_bytes), 512));
    for (x, y) in x.iter().zip(y.chunks(2)) {
        let dividend = u128::from(*x) << 64 | u128::from(x ^ 99);
        let quotient = u128::from(y[1]) << 64 | u128::from(y[0]);
        assert_eq!(quotient, dividend / u128::from(x % 1000 + 1));
    }
}

#[test]
fn simd() {
    let x: Vec<u32> =
        numbers(64, 1 << 24).iter().map(|v| (*v as u32).wrapping_mul(2_654_435_761)).collect();
    let part = |word: u32, at: u32, bits: u32| word >> (at * bits) & ((1 << bits) - 1);
    for architecture in ["sm_80", "sm_90", "sm_120"] {
        let case = Case { architecture, block: [64, 1, 1], n: 64, ..case!("simd") };
        let y = ints(&case.run(&bytes(&x, u32::to_le_bytes), 1024));
        for i in 0..64 {
            let (a, b) = (x[i], x[63 - i]);
            let halves = |f: &dyn Fn(u32, u32) -> u32| {
                f(part(a, 0, 16), part(b, 0, 16)) & 0xffff | f(part(a, 1, 16), part(b, 1, 16)) << 16
            };
            let quarters = |f: &dyn Fn(u32, u32) -> u32| -> u32 {
                (0..4).map(|at| f(part(a, at, 8), part(b, at, 8))).sum()
            };
            let relu = |p: u32, q: u32| i16::min(p as i16, q as i16).max(0) as u32;
            let wanted = [
                halves(&u32::wrapping_add),
                quarters(&u32::abs_diff),
                halves(&relu),
                quarters(&|p, q| p * q) + 7,
            ];
            for (at, wanted) in wanted.into_iter().enumerate() {
                assert_eq!(y[64 * at + i] as u32, wanted, "{architecture}, {at} of {a:x} {b:x}");
            }
        }
    }
}

#[test]
fn rounding() {
    let x: Vec<f64> = numbers(32, 1 << 24).iter().map(|v| f64::from(*v) / 1e6 + 0.1).collect();
    let y = case!("rounding").run(&bytes(&x, f64::to_le_bytes), 1024);
    let y: Vec<f64> = longs(&y).into_iter().map(f64::from_bits).collect();
    for i in 0..32 {
        let (a, b) = (x[i], x[31 - i]);
        // The residual of each result, exact, has the sign of its rounding.
        let (low, high, quotient, root) = (y[i], y[32 + i], y[64 + i], y[96 + i]);
        assert!(a.mul_add(b, -low) >= 0.0 && a.mul_add(b, -high) <= 0.0);
        assert!(high == low || high == low.next_up());
        assert!(quotient.mul_add(-b, a) >= 0.0 && quotient.next_up().mul_add(-b, a) < 0.0);
        assert!(
            root.mul_add(root, -a) >= 0.0 && root.next_down().mul_add(root.next_down(), -a) < 0.0
        );
    }
}

#[test]
fn fp8() {
    let x = [0.0, -1.0, 448.0, 464.5, 1e9, f32::INFINITY, 0.001953125, 1.0625, 57344.0, -61441.0];
    // sm_80 converts in software, sm_90 in one instruction.
    for architecture in ["sm_80", "sm_90"] {
        let case = Case { architecture, block: [10, 1, 1], n: 10, ..case!("fp8") };
        let y = case.run(&bytes(&x, f32::to_le_bytes), 20);
        assert_eq!(y[..10], [0, 0xb8, 0x7e, 0x7e, 0x7e, 0x7e, 0x01, 0x38, 0x7e, 0xfe]);
        assert_eq!(y[10..], [0, 0xbc, 0x5f, 0x5f, 0x7b, 0x7b, 0x18, 0x3c, 0x7b, 0xfb]);
    }
}

#[test]
fn mma_int8() {
    let x: Vec<u8> = numbers(24 * 32, 256).iter().map(|v| *v as u8).collect();
    let y = ints(&case!("mma_int8").run(&x, 512));
    let at = |row: usize, k: usize| i32::from(x[32 * row + k] as i8);
    for row in 0..16 {
        for column in 0..8 {
            let wanted: i32 = (0..32).map(|k| at(row, k) * at(16 + column, k)).sum();
            assert_eq!(y[8 * row + column], wanted, "{row}, {column}");
        }
    }
}

#[test]
fn globals() {
    let x: Vec<i32> = (0..32).collect();
    let y = floats(&case!("globals").run(&bytes(&x, i32::to_le_bytes), 128));
    let wanted: Vec<f32> =
        (0..32).map(|t| if t % 2 == 0 { 3.0 } else { 12.0 } + 18.5 + t as f32).collect();
    assert_eq!(y, wanted);
}

#[test]
fn printf() {
    let x = [7; 32];
    let (y, report) = case!("printf").report(&bytes(&x, i32::to_le_bytes), &[], 128);
    assert!(report.findings.is_empty(), "{}", report.findings[0]);
    assert_eq!(report.printed, "7   0.00|ab  |0xff 1e-05\n7   1.50|ab  |0xff 1e-05\n");
    assert_eq!(ints(&y)[..3], [5, 5, 0]);
}

#[test]
fn noinline() {
    let x = numbers(64, 100);
    let some = |v: i32| -> f32 {
        let mut r: f32 = (0..v % 6).map(|i| (v + i) as f32).sum();
        match v % 7 {
            0 => r += 1.0,
            1 => r = r * 2.0 - 3.0,
            2 => r -= 3.0,
            3 => r = -r,
            4 => (0..v.min(9)).filter(|i| i % 2 == 0).for_each(|i| r += i as f32),
            5 => r = v as f32,
            _ => r = 0.0,
        }
        r
    };
    let wanted: Vec<f32> = x.iter().map(|v| some(*v)).collect();
    for options in [&[][..], &["-G"]] {
        let case = Case { block: [64, 1, 1], options, ..case!("noinline") };
        assert_eq!(floats(&case.run(&bytes(&x, i32::to_le_bytes), 256)), wanted);
    }
}

/// Numbers between -1 and 1.
fn fractions(count: usize) -> Vec<f32> {
    numbers(count, 2001).into_iter().map(|value| (value - 1000) as f32 / 1000.0).collect()
}

#[test]
fn layer_norm() {
    const ROWS: usize = 5;
    for (seed, threads, n) in [(0, 128, 200), (1, 64, 33), (2, 256, 1000), (3, 32, 1), (4, 96, 95)]
    {
        let x = fractions((2 + ROWS) * n);
        let block = [threads, 1, 1];
        let case = Case { grid: ROWS as u32, block, n: n as i32, seed, ..case!("layer_norm") };
        let y = floats(&case.run(&bytes(&x, f32::to_le_bytes), 4 * ROWS * n));
        let wide: Vec<f64> = x.iter().map(|value| f64::from(*value)).collect();
        for (row, values) in wide[2 * n..].chunks_exact(n).enumerate() {
            let mean = values.iter().sum::<f64>() / n as f64;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
            for (i, value) in values.iter().enumerate() {
                let wanted = (value - mean) / (variance + 1e-5).sqrt() * wide[i] + wide[n + i];
                let found = f64::from(y[row * n + i]);
                // Written so that NaN fails.
                assert!((found - wanted).abs() <= 1e-5, "({row}, {i}) of {n}: {found}, {wanted}");
            }
        }
    }
}

#[test]
fn argmax() {
    for (seed, threads, n) in [(0, 256, 1000), (1, 1024, 1000), (2, 96, 40), (3, 32, 7), (4, 64, 0)]
    {
        // Of few values, so that the largest stands in several places.
        let x: Vec<f32> = numbers(n, 50).into_iter().map(|value| value as f32 - 49.0).collect();
        let case = Case { block: [threads, 1, 1], n: n as i32, seed, ..case!("argmax") };
        let y = case.run(&bytes(&[&x[..], &[9.0]].concat(), f32::to_le_bytes), 8);
        let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let at = x.iter().position(|value| *value == largest).unwrap_or(n);
        assert_eq!((floats(&y)[0], ints(&y)[1]), (largest, at as i32));
    }
}

#[test]
fn grid_reduce() {
    // Whole numbers whose sums are exact in any order.
    let x: Vec<f32> = numbers(3000, 1000).into_iter().map(|value| value as f32).collect();
    let sum: f32 = x.iter().sum();
    for option in ["-DFENCE", "-DRELEASE"] {
        for (seed, blocks, threads) in [
            (0, 1, 256),
            (0, 12, 64),
            (1, 12, 64),
            (2, 5, 256),
            (3, 12, 32),
            (4, 40, 64),
            (5, 7, 96),
        ] {
            let block = [threads, 1, 1];
            let options = &[option];
            let case = Case { grid: blocks, block, options, n: 3000, seed, ..case!("grid_reduce") };
            let size = 8 + 4 * blocks as usize;
            let (y, report) = case.report(&bytes(&x, f32::to_le_bytes), &[0; 8], size);
            assert!(report.findings.is_empty(), "{option} {seed}: {}", report.findings[0]);
            assert_eq!(floats(&y)[..2], [sum, 0.0], "{option} {seed}");
        }
    }
    // Without the fence, what a block left behind need not be there when it is counted.
    let text = include_str!("cuda_corpus/grid_reduce.cu").replace("    __threadfence();\n", "");
    let racy = Case { text: &text, grid: 12, block: [64, 1, 1], n: 3000, ..case!("grid_reduce") };
    let (_, report) = racy.report(&bytes(&x, f32::to_le_bytes), &[0; 8], 8 + 4 * 12);
    assert_eq!(report.findings.first().map(|finding| finding.check), Some(Check::Race));
}
