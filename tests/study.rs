//! Kernels that nobody wrote for this emulator give the right numbers on it: a row softmax, split-KV
//! decoding over spans, a tensor-core prefill and a product of warpgroups, from the study folder that
//! may lie beside this repository, each against the plain formula in f64.

use half::{bf16, f16};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use spanforge_device::{
    Argument, Buffer, Compiler, Device, EmulatedOptions, Image, Launch, Settings, Source, Swizzle,
    Target, TensorElement, TensorMap,
};
use spanforge_spans::Dtype;
use spanforge_verify::generate::normal;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The study folder: `shared/study` beside this repository or above it.
fn study() -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("shared/study"))
        .find(|folder| folder.is_dir());
    if found.is_none() {
        // Past the capture of the test harness, so that it is seen.
        let _ =
            writeln!(std::io::stderr(), "SKIP: there is no shared/study beside this repository");
    }
    found
}

fn compile(file: &str, dtype: Dtype, architecture: &str) -> Option<Image> {
    Some(compile_text(file, &read(file)?, dtype, architecture))
}

fn read(file: &str) -> Option<String> {
    Some(fs_err::read_to_string(study()?.join(file)).unwrap())
}

fn compile_text(file: &str, text: &str, dtype: Dtype, architecture: &str) -> Image {
    let mut source = Source::new(file, text);
    if dtype == Dtype::Bf16 {
        source.options.push("-DBF16".into());
    }
    let compiler = Compiler::new(&Settings::from_environment()).unwrap();
    compiler.compile(&source, &Target::Ptx(architecture.into())).unwrap()
}

/// An emulated GPU with the kernels of one image; every launch is checked and has to pass.
struct Machine {
    device: Box<dyn Device>,
    module: spanforge_device::ModuleId,
}

impl Machine {
    fn new(image: &Image) -> Self {
        Self::with("emulated:a100", EmulatedOptions::default(), image)
    }

    fn with(spec: &str, options: EmulatedOptions, image: &Image) -> Self {
        let device = spanforge_device::open_with(spec, options).unwrap();
        let module = device.load(image).unwrap();
        Self { device, module }
    }

    fn input(&self, name: &str, bytes: &[u8]) -> Buffer {
        let buffer = self.output(name, bytes.len());
        self.device.upload(buffer, 0, bytes).unwrap();
        buffer
    }

    fn output(&self, name: &str, bytes: usize) -> Buffer {
        self.device.allocate(name, bytes).unwrap()
    }

    fn read(&self, buffer: Buffer) -> Vec<u8> {
        let mut bytes = vec![0; buffer.bytes];
        self.device.download(buffer, 0, &mut bytes).unwrap();
        bytes
    }

    fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        arguments: Vec<Argument>,
    ) {
        let (module, kernel) = (self.module, kernel.to_owned());
        let block = [threads, 1, 1];
        let launch = Launch { module, kernel, grid, block, shared_bytes, arguments };
        self.device.launch(&launch).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Values as a kernel gets them: rounded to the dtype, with their bytes.
struct Rounded {
    values: Vec<f64>,
    bytes: Vec<u8>,
}

fn round(dtype: Dtype, values: impl IntoIterator<Item = f32>) -> Rounded {
    let mut rounded = Rounded { values: Vec::new(), bytes: Vec::new() };
    for value in values {
        let (value, bits) = match dtype {
            Dtype::F16 => (f16::from_f32(value).to_f64(), f16::from_f32(value).to_bits()),
            Dtype::Bf16 => (bf16::from_f32(value).to_f64(), bf16::from_f32(value).to_bits()),
        };
        rounded.values.push(value);
        rounded.bytes.extend(bits.to_le_bytes());
    }
    rounded
}

fn unpack(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let bits = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    bits.map(|bits| match dtype {
        Dtype::F16 => f16::from_bits(bits).to_f64(),
        Dtype::Bf16 => bf16::from_bits(bits).to_f64(),
    })
    .collect()
}

fn normals(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| normal(&mut rng)).collect()
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn i32_bytes(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn f32_values(bytes: &[u8]) -> Vec<f64> {
    let words = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    words.map(f64::from).collect()
}

#[track_caller]
fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        // Written so that NaN fails.
        let close = (found - expected).abs() <= tolerance * (1.0 + expected.abs());
        assert!(close, "{what}[{index}] is {found}, expected {expected}");
    }
}

/// softmax(logits) times rows of v.
fn attend(logits: &[f64], v: &[&[f64]]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let dim = v.first().map_or(0, |row| row.len());
    (0..dim)
        .map(|d| weights.iter().zip(v).map(|(weight, row)| weight * row[d]).sum::<f64>() / sum)
        .collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn saxpy_and_softmax_of_rows() {
    let Some(image) = compile("simple.cu", Dtype::F16, "sm_80") else { return };
    let machine = Machine::new(&image);
    let (x, y) = (normals(1, 1000), normals(2, 1000));
    let (dx, dy) = (machine.input("x", &f32_bytes(&x)), machine.input("y", &f32_bytes(&y)));
    let arguments = vec![Argument::I32(1000), Argument::F32(1.5), dx.at(0), dy.at(0)];
    machine.launch("saxpy", [8, 1, 1], 128, 0, arguments);
    let expected: Vec<f64> =
        x.iter().zip(&y).map(|(x, y)| 1.5 * f64::from(*x) + f64::from(*y)).collect();
    assert_close("y", &f32_values(&machine.read(dy)), &expected, 1e-6);

    for (cols, threads) in [(1, 32), (37, 96), (1000, 256)] {
        const ROWS: usize = 5;
        let x = normals(cols as u64, ROWS * cols);
        let dx = machine.input("x", &f32_bytes(&x));
        let dy = machine.output("y", 4 * ROWS * cols);
        let arguments = vec![dx.at(0), dy.at(0), Argument::I32(cols as i32)];
        machine.launch("softmax_rows", [ROWS as u32, 1, 1], threads, 0, arguments);
        let expected: Vec<f64> = x
            .chunks_exact(cols)
            .flat_map(|row| {
                let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
                let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = row.iter().map(|x| (x - largest).exp()).sum();
                row.into_iter().map(move |x| (x - largest).exp() / sum)
            })
            .collect();
        assert_close("softmax", &f32_values(&machine.read(dy)), &expected, 1e-5);
    }
}

/// Elements of a head in `decode.cu` and `prefill.cu`.
const D: usize = 64;

/// `decode.cu` as it is built by default: 4 query heads per KV head, tiles of 32 tokens.
fn span_decode(dtype: Dtype, tolerance: f64) {
    const HEADS_PER_KV: usize = 4;
    const TILE: usize = 32;
    const KV_HEADS: usize = 2;
    const TOKENS: usize = 400;
    const SPLITS: usize = 3;
    let Some(image) = compile("decode.cu", dtype, "sm_80") else { return };
    let machine = Machine::new(&image);
    // Starts and lengths; a row whose spans cross tiles and splits, a row of one token.
    let rows: [&[[i32; 2]]; 3] =
        [&[[3, 1], [10, 60], [130, 33], [390, 10]], &[[7, 1]], &[[64, 64]]];
    let selected = |row: &[[i32; 2]]| -> Vec<usize> {
        row.iter().flat_map(|[start, len]| *start as usize..(*start + *len) as usize).collect()
    };
    let tiles = rows.iter().map(|row| selected(row).len().div_ceil(TILE)).max().unwrap();
    let scale = 1.0 / (D as f64).sqrt();
    let heads = KV_HEADS * HEADS_PER_KV;

    let q = round(dtype, normals(1, rows.len() * heads * D));
    let used: Vec<usize> = rows.iter().flat_map(|row| selected(row)).collect();
    let [k, v] = [2, 3].map(|seed| {
        // Tokens that no row selects are NaN: nothing of them may be read.
        let values = normals(seed, TOKENS * KV_HEADS * D).into_iter().enumerate();
        let token = |index| index / (KV_HEADS * D);
        round(dtype, values.map(|(i, x)| if used.contains(&token(i)) { x } else { f32::NAN }))
    });
    let spans: Vec<i32> = rows.iter().flat_map(|row| row.as_flattened()).copied().collect();
    let mut offsets = vec![0];
    for row in rows {
        offsets.push(offsets[offsets.len() - 1] + row.len() as i32);
    }

    let states = rows.len() * heads * SPLITS;
    let [dq, dk, dv] =
        [("q", &q), ("k", &k), ("v", &v)].map(|(name, data)| machine.input(name, &data.bytes));
    let (ds, doffsets) = (
        machine.input("spans", &i32_bytes(&spans)),
        machine.input("offsets", &i32_bytes(&offsets)),
    );
    let (acc, ml) = (machine.output("acc", 4 * states * D), machine.output("ml", 8 * states));
    let mut arguments: Vec<Argument> =
        [dq, dk, dv, ds, doffsets, acc, ml].iter().map(|buffer| buffer.at(0)).collect();
    arguments.extend([
        Argument::I32(KV_HEADS as i32),
        Argument::I32(tiles.div_ceil(SPLITS) as i32),
        Argument::F32((scale * std::f64::consts::LOG2_E) as f32),
    ]);
    let grid = [SPLITS, KV_HEADS, rows.len()].map(|n| n as u32);
    machine.launch("span_decode", grid, 32 * HEADS_PER_KV as u32, 0, arguments);
    let out = machine.output("out", 2 * rows.len() * heads * D);
    let arguments = vec![acc.at(0), ml.at(0), out.at(0), Argument::I32(SPLITS as i32)];
    machine.launch("span_combine", [(rows.len() * heads) as u32, 1, 1], D as u32, 0, arguments);

    let kv_row = |data: &'_ Rounded, token: usize, head: usize| -> Vec<f64> {
        data.values[(token * KV_HEADS + head) * D..][..D].to_vec()
    };
    let mut expected = Vec::new();
    for (row, spans) in rows.iter().enumerate() {
        for head in 0..heads {
            let query = &q.values[(row * heads + head) * D..][..D];
            let tokens = selected(spans);
            let keys = tokens.iter().map(|&token| kv_row(&k, token, head / HEADS_PER_KV));
            let logits: Vec<f64> = keys.map(|key| scale * dot(query, &key)).collect();
            let values: Vec<Vec<f64>> =
                tokens.iter().map(|&token| kv_row(&v, token, head / HEADS_PER_KV)).collect();
            expected.extend(attend(&logits, &values.iter().map(Vec::as_slice).collect::<Vec<_>>()));
        }
    }
    assert_close("out", &unpack(dtype, &machine.read(out)), &expected, tolerance);
}

#[test]
fn split_decoding_over_spans_in_f16() {
    span_decode(Dtype::F16, 1e-3);
}

#[test]
fn split_decoding_over_spans_in_bf16() {
    span_decode(Dtype::Bf16, 8e-3);
}

/// `prefill.cu`: causal attention of 64 queries per block on tensor cores; the last query sees
/// every token.
fn prefill(dtype: Dtype, tolerance: f64) {
    const HEADS: usize = 2;
    const SHARED_BYTES: u32 = (64 + 4 * 64) * D as u32 * 2;
    let Some(image) = compile("prefill.cu", dtype, "sm_80") else { return };
    let machine = Machine::new(&image);
    for (queries, tokens) in [(64, 64), (100, 150), (1, 70)] {
        let scale = 1.0 / (D as f64).sqrt();
        let q = round(dtype, normals(1, queries * HEADS * D));
        let [k, v] = [2, 3].map(|seed| round(dtype, normals(seed, tokens * HEADS * D)));
        let [dq, dk, dv] =
            [("q", &q), ("k", &k), ("v", &v)].map(|(name, data)| machine.input(name, &data.bytes));
        let out = machine.output("out", 2 * queries * HEADS * D);
        let mut arguments: Vec<Argument> = [dq, dk, dv, out].iter().map(|b| b.at(0)).collect();
        arguments.extend([HEADS, queries, tokens].map(|n| Argument::I32(n as i32)));
        arguments.push(Argument::F32((scale * std::f64::consts::LOG2_E) as f32));
        let grid = [queries.div_ceil(64) as u32, HEADS as u32, 1];
        machine.launch("span_prefill", grid, 128, SHARED_BYTES, arguments);

        let vector = |data: &Rounded, row: usize, head: usize| -> Vec<f64> {
            data.values[(row * HEADS + head) * D..][..D].to_vec()
        };
        let mut expected = Vec::new();
        for query in 0..queries {
            for head in 0..HEADS {
                let seen = query + tokens - queries + 1;
                let keys = (0..seen).map(|token| vector(&k, token, head));
                let own = vector(&q, query, head);
                let logits: Vec<f64> = keys.map(|key| scale * dot(&own, &key)).collect();
                let values: Vec<Vec<f64>> = (0..seen).map(|t| vector(&v, t, head)).collect();
                let values: Vec<&[f64]> = values.iter().map(Vec::as_slice).collect();
                expected.extend(attend(&logits, &values));
            }
        }
        let found = unpack(dtype, &machine.read(out));
        assert_close(&format!("out of {queries} queries"), &found, &expected, tolerance);
    }
}

#[test]
fn tensor_core_prefill_in_f16() {
    prefill(Dtype::F16, 2e-3);
}

#[test]
fn tensor_core_prefill_in_bf16() {
    prefill(Dtype::Bf16, 1.6e-2);
}

/// `hopper.cu`: S = Q K^T, tiles of 64 by 64, Q and K fetched by tensor maps by a warp of its own
/// and multiplied by a warpgroup, each tile of K in one of two buffers.
///
/// The file zeroes its accumulators before `wgmma.fence`, but nothing in it says that the fence is
/// about them, and NVRTC puts the zeroing behind it, which the checks report. Here every accumulator
/// passes through an empty `asm volatile` first, as CUTLASS does (`warpgroup_fence_operand`).
#[test]
fn hopper_tiles_under_any_schedule() {
    const BLOCKS: usize = 2;
    const TILE: usize = 64;
    const SHARED_BYTES: u32 = 3 * (TILE * D * 2) as u32;
    const FENCE: &str = "asm volatile(\"wgmma.fence.sync.aligned;\":::\"memory\");";
    const OPERANDS: &str = "for(int i=0;i<32;i++) asm volatile(\"\":\"+f\"(d[i])::\"memory\");";
    let Some(text) = read("hopper.cu") else { return };
    assert_eq!(text.matches(FENCE).count(), 1);
    let text = text.replace(FENCE, &format!("\n#pragma unroll\n{OPERANDS}\n{FENCE}"));
    let image = compile_text("hopper.cu", &text, Dtype::F16, "sm_90a");
    for (seed, tiles) in [(0, 1), (0, 5), (1, 5), (2, 2), (3, 5), (4, 6), (5, 3)] {
        let options = EmulatedOptions { seed, ..EmulatedOptions::default() };
        let machine = Machine::with("emulated:h200", options, &image);
        let [q, k] = [(1, BLOCKS), (2, tiles)]
            .map(|(seed, tiles)| round(Dtype::F16, normals(seed, tiles * TILE * D)));
        let (dq, dk) = (machine.input("q", &q.bytes), machine.input("k", &k.bytes));
        let out = machine.output("out", 4 * BLOCKS * TILE * tiles * TILE);
        let rows = |buffer: Buffer, tiles: usize| {
            let (shape, tile) = ([D as u64, (tiles * TILE) as u64], [D as u32, TILE as u32]);
            let strides = [2 * D as u64];
            let map = TensorMap::new(TensorElement::F16, buffer.address, &shape, &strides, &tile)
                .unwrap();
            Argument::TensorMap(TensorMap { swizzle: Swizzle::Bytes128, ..map })
        };
        let arguments =
            vec![rows(dq, BLOCKS), rows(dk, tiles), out.at(0), Argument::I32(tiles as i32)];
        machine.launch("qk_wgmma", [BLOCKS as u32, 1, 1], 256, SHARED_BYTES, arguments);
        let expected: Vec<f64> = q
            .values
            .chunks_exact(D)
            .flat_map(|query| k.values.chunks_exact(D).map(|key| dot(query, key)))
            .collect();
        let what = format!("S of {tiles} tiles with seed {seed}");
        assert_close(&what, &f32_values(&machine.read(out)), &expected, 1e-5);
    }
}
