//! Hopper kernels written in the usual public ways, with tensor copies, mbarriers and products of
//! warpgroups, run on an emulated H200 with all checks and under several schedules, against the plain
//! formula.

use half::f16;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use spanforge_device::launch_file::{compiler_of_files, read_source};
use spanforge_device::{
    Argument, Buffer, Device, DeviceError, EmulatedOptions, Image, Launch, Settings, Swizzle,
    Target, TensorElement, TensorMap, open_with,
};
use spanforge_emulator::Check;
use spanforge_verify::generate::normal;
use std::path::Path;

/// 0 runs warps in turns; the others draw from several policies.
const SEEDS: std::ops::Range<u64> = 0..12;

fn compile(file: &str, options: &[&str], edits: &[(&str, &str)]) -> Image {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_corpus").join(file);
    let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
    let mut source = read_source(&path, &options).unwrap();
    for (old, new) in edits {
        assert_eq!(source.text.matches(old).count(), 1, "{old}");
        source.text = source.text.replace(old, new);
    }
    let compiler = compiler_of_files(&Settings::from_environment()).unwrap();
    compiler.compile(&source, &Target::Ptx("sm_90a".into())).unwrap_or_else(|e| panic!("{e}"))
}

fn machine(seed: u64) -> Box<dyn Device> {
    let options = EmulatedOptions { seed, ..EmulatedOptions::default() };
    open_with("emulated:h200", options).unwrap()
}

fn input(device: &dyn Device, name: &str, bytes: &[u8]) -> Buffer {
    let buffer = device.allocate(name, bytes.len()).unwrap();
    device.upload(buffer, 0, bytes).unwrap();
    buffer
}

fn words(device: &dyn Device, buffer: Buffer) -> Vec<u32> {
    let mut bytes = vec![0; buffer.bytes];
    device.download(buffer, 0, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Rows of `columns` elements, `row_bytes` apart, in tiles with rows of 128 bytes.
fn map(
    element: TensorElement,
    buffer: Buffer,
    [columns, rows]: [usize; 2],
    row_bytes: usize,
    tile: [u32; 2],
) -> Argument {
    let (shape, strides) = ([columns as u64, rows as u64], [row_bytes as u64]);
    let map = TensorMap::new(element, buffer.address, &shape, &strides, &tile).unwrap();
    Argument::TensorMap(TensorMap { swizzle: Swizzle::Bytes128, ..map })
}

/// The transpose of a matrix of 45 columns and 70 rows, in rows of 48 and 72 words; words between the
/// rows are not written.
fn transpose(image: &Image, seed: u64) -> Result<(), DeviceError> {
    const COLUMNS: usize = 45;
    const ROWS: usize = 70;
    let device = machine(seed);
    let x: Vec<u32> = (0..48 * ROWS as u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
    let bytes: Vec<u8> = x.iter().flat_map(|word| word.to_le_bytes()).collect();
    let from = input(device.as_ref(), "x", &bytes);
    let to = input(device.as_ref(), "y", &[0xee; 4 * 72 * COLUMNS]);
    let tile = [32, 32];
    let launch = Launch {
        module: device.load(image)?,
        kernel: "transpose".into(),
        grid: [COLUMNS.div_ceil(32) as u32, 1, 1],
        block: [128, 1, 1],
        shared_bytes: 0,
        arguments: vec![
            map(TensorElement::U32, from, [COLUMNS, ROWS], 4 * 48, tile),
            map(TensorElement::U32, to, [ROWS, COLUMNS], 4 * 72, tile),
            Argument::I32(ROWS.div_ceil(32) as i32),
        ],
    };
    device.launch(&launch)?;
    for (at, word) in words(device.as_ref(), to).into_iter().enumerate() {
        let (row, column) = (at / 72, at % 72);
        let expected = if column < ROWS { x[48 * column + row] } else { 0xeeee_eeee };
        assert_eq!(word, expected, "row {row}, column {column}, seed {seed}");
    }
    Ok(())
}

#[test]
fn tensor_copies_transpose_by_double_buffering() {
    let image = compile("tma_transpose.cu", &[], &[]);
    for seed in SEEDS {
        transpose(&image, seed).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// C = A B^T, blocks in a grid of 2 by 2.
fn matmul(image: &Image, stages: u32, steps: usize, seed: u64) -> Result<(), DeviceError> {
    const ROWS: usize = 256;
    const COLUMNS: usize = 128;
    let device = machine(seed);
    let inner = 64 * steps;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let [a, b] = [ROWS, COLUMNS].map(|rows| -> Vec<f16> {
        (0..rows * inner).map(|_| f16::from_f32(normal(&mut rng))).collect()
    });
    let buffer = |name: &str, values: &[f16]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        input(device.as_ref(), name, &bytes)
    };
    let (from_a, from_b) = (buffer("a", &a), buffer("b", &b));
    let to = device.allocate("c", 4 * ROWS * COLUMNS)?;
    let f16_map =
        |buffer, rows, tile| map(TensorElement::F16, buffer, [inner, rows], 2 * inner, [64, tile]);
    let launch = Launch {
        module: device.load(image)?,
        kernel: "matmul".into(),
        grid: [COLUMNS as u32 / 64, ROWS as u32 / 128, 1],
        block: [288, 1, 1],
        shared_bytes: stages * (128 + 64) * 128,
        arguments: vec![
            f16_map(from_a, ROWS, 128),
            f16_map(from_b, COLUMNS, 64),
            to.at(0),
            Argument::I32(COLUMNS as i32),
            Argument::I32(steps as i32),
        ],
    };
    device.launch(&launch)?;
    for (at, found) in words(device.as_ref(), to).into_iter().enumerate() {
        let found = f64::from(f32::from_bits(found));
        let (row, column) = (at / COLUMNS, at % COLUMNS);
        let terms = a[row * inner..][..inner].iter().zip(&b[column * inner..][..inner]);
        let (expected, size) = terms
            .map(|(a, b)| a.to_f64() * b.to_f64())
            .fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        // Written so that NaN fails.
        let close = (found - expected).abs() <= 1e-6 * size;
        assert!(close, "({row}, {column}) is {found}, expected {expected}, seed {seed}");
    }
    Ok(())
}

#[test]
fn warp_specialised_products_of_warpgroups() {
    for (stages, option) in [(2, "-DSTAGES=2"), (3, "-DSTAGES=3")] {
        let image = compile("wgmma_matmul.cu", &[option], &[]);
        for seed in SEEDS {
            let steps = 1 + seed as usize % 6;
            matmul(&image, stages, steps, seed)
                .unwrap_or_else(|error| panic!("{stages} stages, seed {seed}: {error}"));
        }
    }
}

/// What the checks report under the first schedule in which they report anything.
fn first_check(run: impl Fn(u64) -> Result<(), DeviceError>) -> Option<Check> {
    SEEDS.into_iter().find_map(|seed| match run(seed) {
        Err(DeviceError::Findings { findings, .. }) => findings.first().map(|found| found.check),
        _ => None,
    })
}

#[test]
fn bugs_planted_into_the_transpose_are_found() {
    for (old, new, expected) in [
        ("wait(shared_address(&full[tile % 2]), tile / 2 % 2);", "", Check::AsyncHazard),
        ("tile / 2 % 2)", "tile / 2 % 2 ^ 1)", Check::AsyncHazard),
        // Thread 0 copies away what the others have not written yet.
        (
            "        fence_async();\n        __syncthreads();",
            "fence_async();",
            Check::Uninitialised,
        ),
        ("\"cp.async.bulk.wait_group 0;\"", "\"\"", Check::AsyncHazard),
        (
            "        fence_async();\n        __syncthreads();",
            "__syncthreads();",
            Check::AsyncHazard,
        ),
        ("\"cp.async.bulk.wait_group.read 0;\"", "\"\"", Check::AsyncHazard),
        ("expect(bar, sizeof in[0]);", "expect(bar, sizeof in);", Check::Deadlock),
    ] {
        let image = compile("tma_transpose.cu", &[], &[(old, new)]);
        let found = first_check(|seed| transpose(&image, seed));
        assert_eq!(found, Some(expected), "{old}");
    }
}

#[test]
fn bugs_planted_into_the_products_are_found() {
    for (old, new, expected) in [
        ("step / STAGES % 2 ^ 1", "step / STAGES % 2", Check::Deadlock),
        ("wait(full_at(step), step / STAGES % 2);", "", Check::Uninitialised),
        // A stage that is full is announced again.
        ("wait(empty_at(step), step / STAGES % 2 ^ 1);", "", Check::InvalidArgument),
        // A stage is given back while its product is under way.
        (
            "if (step > 0 && lane == 0) arrive(empty_at(step - 1));",
            "if (lane == 0) arrive(empty_at(step));",
            Check::AsyncHazard,
        ),
        ("init(empty_at(stage), 8)", "init(empty_at(stage), 9)", Check::Deadlock),
        (
            "expect(full_at(step), a_bytes + b_bytes)",
            "expect(full_at(step), a_bytes)",
            Check::AsyncHazard,
        ),
        ("\"wgmma.wait_group.sync.aligned 0;\"", "\"\"", Check::AsyncHazard),
        ("\"wgmma.fence.sync.aligned;\"", "\"\"", Check::AsyncHazard),
    ] {
        let image = compile("wgmma_matmul.cu", &[], &[(old, new)]);
        let found = first_check(|seed| matmul(&image, 3, 6, seed));
        assert_eq!(found, Some(expected), "{old}");
    }
}
