//! From an artifact to attention on an emulated H200, against the oracle.

mod problems;

use half::{bf16, f16};
use problems::{Case, generate};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spanforge_device::{Basis, Buffer, Compiler, Device, Settings, Source, Target};
use spanforge_kernels::abi::Written;
use spanforge_kernels::artifact::{Artifact, Contents, InBucket, KernelFiles};
use spanforge_kernels::configuration::{AttentionShape, Merge};
use spanforge_kernels::decoder::{DecodeOutput, Decoder, UploadOptions};
use spanforge_kernels::{Bucket, DecodeProblem, KernelSpec, Limits, SearchSpace, render};
use spanforge_runtime::run::compile_default;
use spanforge_runtime::{
    AttentionError, CacheSize, DecodeStep, DeviceMemory, Origin, PageMap, PagedCache, PagedKv,
    RunError, RunRequest, SpanAttention, SpanAttentionLimits, StepOperands, run, write_problem,
};
use spanforge_spans::{Dtype, KvDtype, KvLayout, SpanBatch, SpanSet};
use spanforge_verify::compare_with_oracle;
use std::path::Path;
use std::sync::Arc;

const GQA: AttentionShape = AttentionShape {
    dtype: Dtype::Bf16,
    kv_dtype: KvDtype::Same,
    query_heads: 12,
    kv_heads: 2,
    head_dim: 64,
    page_size: 7,
    layout: KvLayout::Hnd,
};

fn h200() -> Arc<dyn Device> {
    Arc::from(spanforge_device::open("emulated:h200").unwrap())
}

fn compiler() -> Compiler {
    Compiler::new(&Settings::from_environment()).unwrap()
}

/// An artifact with a kernel for [`GQA`], small shares so that rows are split and merged.
fn artifact(folder: &Path, merge: Merge) -> Artifact {
    artifact_of(folder, vec![(merge, 1, Vec::new())])
}

/// An artifact with kernels that merge so and take so many rows at a time, and their times by bucket.
fn artifact_of(folder: &Path, kernels: Vec<(Merge, u32, Vec<InBucket>)>) -> Artifact {
    let (device, compiler) = (h200(), compiler());
    let shape = GQA.kernel_shape().unwrap();
    let limits = Limits::of(device.properties());
    let kernel = |(merge, rows, buckets)| {
        let space = SearchSpace::for_rows(shape, limits, rows);
        let mut configuration = space.default_configuration().unwrap();
        configuration.smallest_share = 16;
        configuration.merge = merge;
        let spec = KernelSpec { shape, configuration };
        let rendered = render(&spec).unwrap();
        let source = Source::new(rendered.name, rendered.text.clone());
        let compile = |target| compiler.compile(&source, &target).unwrap();
        KernelFiles {
            spec,
            role: "winner".into(),
            time_us: 1.0,
            basis: Basis::Predicted,
            buckets,
            source: rendered.text,
            portable: compile(Target::Ptx("sm_80".into())),
            images: vec![compile(Target::Cubin(device.properties().architecture.clone()))],
        }
    };
    Contents {
        workload: "test".into(),
        device: "emulated:h200".into(),
        created_by: "test".into(),
        created_unix_s: 0,
        kernels: kernels.into_iter().map(kernel).collect(),
        evidence: serde_json::json!({}),
    }
    .write(&folder.join("artifact"))
    .unwrap()
}

/// A kernel's times in two buckets.
fn timed(buckets: [Bucket; 2], us: [f64; 2]) -> Vec<InBucket> {
    let of = |(bucket, time_us)| InBucket { bucket, time_us, loss: time_us - 1.0 };
    buckets.into_iter().zip(us).map(of).collect()
}

fn uploaded(device: &Arc<dyn Device>, name: &str, elements: &[u16]) -> DeviceMemory {
    let bytes: Vec<u8> = elements.iter().flat_map(|b| b.to_le_bytes()).collect();
    uploaded_bytes(device, name, &bytes)
}

fn uploaded_bytes(device: &Arc<dyn Device>, name: &str, bytes: &[u8]) -> DeviceMemory {
    let memory = DeviceMemory::allocate(device, name, bytes.len()).unwrap();
    memory.upload(0, bytes).unwrap();
    memory
}

/// Numbers that need not be there.
fn uploaded_floats(device: &Arc<dyn Device>, name: &str, values: &[f32]) -> Option<DeviceMemory> {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    (!values.is_empty()).then(|| uploaded_bytes(device, name, &bytes))
}

/// Limits that a problem just fits.
fn limits_of(problem: &DecodeProblem) -> SpanAttentionLimits {
    SpanAttentionLimits {
        rows: problem.rows(),
        spans: problem.spans.spans().len(),
        requests: problem.requests(),
        max_pages: problem.max_pages,
    }
}

fn assert_right(problem: &DecodeProblem, output: &DecodeOutput, what: &str) {
    let comparison = compare_with_oracle(problem, output).unwrap();
    assert!(comparison.passed, "{what}: {comparison}");
}

fn page_map(problem: &DecodeProblem) -> PageMap<'_> {
    PageMap {
        page_table: &problem.page_table,
        max_pages: problem.max_pages,
        kv_len: &problem.kv_len,
        pages: problem.pages,
    }
}

fn words(bytes: &[u8]) -> Vec<u16> {
    bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect()
}

/// q, out and LSE of a step, with the results poisoned.
struct Layer {
    q: DeviceMemory,
    out: DeviceMemory,
    lse: DeviceMemory,
}

impl Layer {
    fn new(device: &Arc<dyn Device>, q: &[u16], heads: usize) -> Self {
        let bytes: Vec<u8> = q.iter().flat_map(|b| b.to_le_bytes()).collect();
        let layer = Self {
            q: DeviceMemory::allocate(device, "q", bytes.len()).unwrap(),
            out: DeviceMemory::allocate(device, "out", bytes.len()).unwrap(),
            lse: DeviceMemory::allocate(device, "lse", 4 * heads).unwrap(),
        };
        layer.q.upload(0, &bytes).unwrap();
        layer.poison();
        layer
    }

    fn poison(&self) {
        for memory in [&self.out, &self.lse] {
            memory.upload(0, &vec![0xff; memory.buffer().bytes]).unwrap();
        }
    }

    fn operands(&self, kv: PagedKv, scale: f32) -> StepOperands {
        let [q, out, lse] = [&self.q, &self.out, &self.lse].map(|m| m.buffer());
        StepOperands { q, kv, out, lse, scale, soft_cap: 0.0, sinks: None }
    }

    fn output(&self, elements: usize, heads: usize) -> DecodeOutput {
        let mut out = vec![0; 2 * elements];
        let mut lse = vec![0; 4 * heads];
        self.out.download(0, &mut out).unwrap();
        self.lse.download(0, &mut lse).unwrap();
        let lse = lse.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        DecodeOutput { out: words(&out), lse }
    }
}

/// Two requests decode side by side from a cache that grows, through changes of their spans.
#[test]
fn a_model_decodes_with_an_artifact_and_a_cache() {
    for merge in [Merge::SecondKernel, Merge::LastArriver] {
        decode_steps(merge);
    }
}

fn decode_steps(merge: Merge) {
    let folder = tempfile::tempdir().unwrap();
    let artifact = artifact(folder.path(), merge);
    let device = h200();
    let limits = SpanAttentionLimits { rows: 2, spans: 16, requests: 2, max_pages: 32 };
    let mut attention = SpanAttention::load(&artifact, device.clone(), GQA, limits).unwrap();
    assert_eq!(attention.spec().configuration.merge, merge);
    let size = CacheSize { layers: 2, pages: 40, requests: 2, max_pages: 32 };
    let mut cache = PagedCache::new(&device, GQA, size).unwrap();

    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut random = |count: usize| -> Vec<u16> {
        (0..count).map(|_| bf16::from_f32(rng.random_range(-1.0..1.0)).to_bits()).collect()
    };
    // The same cache on the host, for the oracle: NaN where nothing was written.
    let token = 2 * 64;
    let mut host = vec![[vec![0xffff; 40 * 7 * token], vec![0xffff; 40 * 7 * token]]; 2];
    let mut append = |cache: &mut PagedCache, host: &mut Vec<[Vec<u16>; 2]>, request, tokens| {
        let positions = cache.pages_mut().extend(request, tokens).unwrap();
        for (layer, host) in host.iter_mut().enumerate() {
            let kv = [random(tokens * token), random(tokens * token)];
            cache.write(layer, request, positions.start, &kv[0], &kv[1]).unwrap();
            for (tensor, data) in kv.iter().enumerate() {
                for (i, position) in positions.clone().enumerate() {
                    let page =
                        cache.pages().page_map().page_table[request * 32 + position / 7] as usize;
                    for head in 0..2 {
                        let row = GQA.layout.row_index(page, position % 7, head, 7, 2);
                        host[tensor][row * 64..][..64]
                            .copy_from_slice(&data[(i * 2 + head) * 64..][..64]);
                    }
                }
            }
        }
    };
    append(&mut cache, &mut host, 0, 150);
    append(&mut cache, &mut host, 1, 33);

    let mut sets = [SpanSet::from_pairs([(0, 4), (60, 131)]).unwrap(), SpanSet::empty()];
    let elements = 2 * 12 * 64;
    let q: Vec<u16> = {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        (0..elements).map(|_| bf16::from_f32(rng.random_range(-3.0..3.0)).to_bits()).collect()
    };
    let layer_memory = Layer::new(&device, &q, 24);
    let scale = 0.125;
    for step in 0..6 {
        match step {
            0 => {}
            // A tag opens: request 1 attends to its prompt from here on.
            3 => sets[1] = SpanSet::from_pairs([(1, 2), (20, 33)]).unwrap(),
            _ => {
                for (request, set) in sets.iter_mut().enumerate() {
                    append(&mut cache, &mut host, request, 1);
                    let last = cache.pages().tokens(request).unwrap() - 1;
                    set.append_token(last as u32).unwrap();
                }
            }
        }
        let spans = SpanBatch::from_sets(&sets).unwrap();
        let pages = cache.pages().page_map();
        let plan =
            attention.plan(&DecodeStep { spans: &spans, row_request: &[0, 1], pages }).unwrap();
        // At two steps every set goes on where it ended at the step before.
        let launches = usize::from(![2, 5].contains(&step));
        assert_eq!(plan.launches.len(), launches, "step {step}");
        for (layer, [k, v]) in host.iter().enumerate() {
            let problem = DecodeProblem {
                attention: GQA,
                scale,
                soft_cap: 0.0,
                sinks: Vec::new(),
                k_scales: Vec::new(),
                v_scales: Vec::new(),
                pages: pages.pages,
                max_pages: pages.max_pages,
                kv_len: pages.kv_len.to_vec(),
                page_table: pages.page_table.to_vec(),
                row_request: vec![0, 1],
                spans: spans.clone(),
                q: q.clone(),
                k: k.clone(),
                v: v.clone(),
            };
            let operands = layer_memory.operands(cache.layer(layer).unwrap(), scale);
            let mut last = None;
            for _ in 0..2 {
                layer_memory.poison();
                attention.run(&operands).unwrap();
                let output = layer_memory.output(elements, 24);
                assert_right(&problem, &output, &format!("{merge:?}, step {step}, layer {layer}"));
                let same = last.replace(output.clone()).is_none_or(|last| last == output);
                assert!(same, "step {step}, layer {layer} is not repeatable");
            }
        }
        let again =
            attention.plan(&DecodeStep { spans: &spans, row_request: &[0, 1], pages }).unwrap();
        assert_eq!((again.uploaded_bytes, again.launches.len()), (0, 0));
    }
}

/// Every set ends a token later at each step, as while nothing is said of spans: the device is told how many,
/// and plans nothing.
#[test]
fn tokens_are_appended_without_a_new_plan() {
    let device = h200();
    let mut appended = [0, 0];
    for seed in 0..40 {
        let merge = [Merge::SecondKernel, Merge::LastArriver][seed as usize % 2];
        let problem = generate(&Case { attention: GQA, rows: 6, longest: 90, seed });
        // Rows whose last span has some tokens to spare.
        let (row_elements, heads) = (problem.q.len() / problem.rows(), GQA.query_heads as usize);
        let sets: Vec<SpanSet> = problem.spans.canonicalise().sets().collect();
        let last = |row: &usize| sets[*row].iter().last().map_or(0, |s| s.end() - s.start());
        let kept: Vec<usize> = (0..problem.rows()).filter(|row| last(row) >= 4).collect();
        if kept.len() < 2 {
            continue;
        }
        let all: Vec<SpanSet> = kept.iter().map(|row| sets[*row].clone()).collect();
        let q = kept.iter().flat_map(|row| &problem.q[row * row_elements..][..row_elements]);
        let problem = DecodeProblem {
            spans: SpanBatch::from_sets(&all).unwrap(),
            row_request: kept.iter().map(|row| problem.row_request[*row]).collect(),
            q: q.copied().collect(),
            ..problem
        };
        let folder = tempfile::tempdir().unwrap();
        let artifact = artifact(folder.path(), merge);
        let mut attention =
            SpanAttention::load(&artifact, Arc::clone(&device), GQA, limits_of(&problem)).unwrap();
        let layer = Layer::new(&device, &problem.q, problem.rows() * heads);
        let [k, v] = [&problem.k, &problem.v].map(|t| uploaded(&device, "kv", t));
        let kv = PagedKv::new(k.buffer(), v.buffer(), problem.strides());
        let operands = layer.operands(kv, problem.scale);
        // All sets without so many tokens, but the first without others.
        let mut step = |without: u32, of_first: u32, what: &str| {
            let shorter = all.iter().enumerate().map(|(row, set)| {
                let end = set.end() - if row == 0 { of_first } else { without };
                SpanSet::from_pairs(set.iter().map(|s| (s.start(), s.end().min(end)))).unwrap()
            });
            let spans = SpanBatch::from_sets(&shorter.collect::<Vec<_>>()).unwrap();
            let part = DecodeProblem { spans, ..problem.clone() };
            let (spans, row_request) = (&part.spans, &part.row_request[..]);
            let planned = DecodeStep { spans, row_request, pages: page_map(&part) };
            let report = attention.plan(&planned).unwrap();
            layer.poison();
            attention.run(&operands).unwrap();
            let output = layer.output(problem.q.len(), problem.rows() * heads);
            assert_right(&part, &output, &format!("seed {seed}, {what}"));
            let again = attention.plan(&planned).unwrap();
            assert_eq!((again.uploaded_bytes, again.launches.len()), (0, 0));
            (report.uploaded_bytes, report.launches.len())
        };
        assert_eq!(step(3, 3, "the first").1, 1);
        for without in [2, 1, 0, 2, 3, 2] {
            let what = format!("all without {without}");
            assert_eq!(step(without, without, &what), (4, 0), "seed {seed}, {what}");
        }
        // One set alone, and all as they were planned last.
        assert_eq!(step(2, 1, "another step").1, 1);
        assert_eq!(step(1, 0, "one more of each"), (4, 0));
        assert_eq!(step(2, 1, "what was planned"), (4, 0));
        assert_eq!(step(3, 3, "fewer").1, 1);
        appended[seed as usize % 2] += 1;
    }
    assert!(appended.iter().all(|n| *n > 2), "{appended:?}");
}

/// K and V of all tokens side by side in one tensor, `[pages, page_size, 2, kv_heads, head_dim]`.
#[test]
fn a_cache_with_strides_of_its_own_is_read_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = artifact(folder.path(), Merge::SecondKernel);
    let device = h200();
    let shape = AttentionShape { layout: KvLayout::Nhd, ..GQA };
    let problem = generate(&Case { attention: shape, rows: 3, longest: 90, seed: 3 });
    let token = 2 * 64;
    let mixed: Vec<u8> = problem
        .k
        .chunks(token)
        .zip(problem.v.chunks(token))
        .flat_map(|(k, v)| [k, v].concat())
        .flat_map(|b| b.to_le_bytes())
        .collect();
    let memory = DeviceMemory::allocate(&device, "kv", mixed.len()).unwrap();
    memory.upload(0, &mixed).unwrap();
    let k = memory.buffer();
    let v = spanforge_device::Buffer {
        address: k.address + 2 * token as u64,
        bytes: k.bytes - 2 * token,
    };
    let (token, page) = (2 * token as u64, 2 * 7 * token as u64);
    let strides = spanforge_kernels::KvStrides { page, token, head: 64 };

    let limits = SpanAttentionLimits {
        rows: 3,
        spans: 64,
        requests: problem.requests(),
        max_pages: problem.max_pages,
    };
    let mut attention = SpanAttention::load(&artifact, device.clone(), shape, limits).unwrap();
    let pages = page_map(&problem);
    let (spans, row_request) = (&problem.spans, &problem.row_request[..]);
    attention.plan(&DecodeStep { spans, row_request, pages }).unwrap();
    let layer = Layer::new(&device, &problem.q, 3 * 12);
    attention.run(&layer.operands(PagedKv::new(k, v, strides), problem.scale)).unwrap();
    assert_right(&problem, &layer.output(problem.q.len(), 3 * 12), "interleaved K and V");
}

/// The kernels of an artifact, each the fastest in one of two buckets, take turns as batches come and
/// go, on one workspace.
#[test]
fn each_batch_is_run_by_the_kernel_of_the_nearest_bucket() {
    let folder = tempfile::tempdir().unwrap();
    let small = Bucket { rows: 1, rows_per_request: 1, tokens_per_row: 64, tokens_per_span: 32 };
    let large = Bucket { rows: 16, ..small };
    let times = |us| timed([small, large], us);
    let (one, other) = (Merge::SecondKernel, Merge::LastArriver);
    let artifact = artifact_of(
        folder.path(),
        vec![(one, 1, times([2.0, 1.0])), (other, 1, times([1.0, 2.0]))],
    );
    let device = h200();
    let limits = SpanAttentionLimits { rows: 12, spans: 200, requests: 2, max_pages: 20 };
    let mut attention = SpanAttention::load(&artifact, device.clone(), GQA, limits).unwrap();
    // A row alone, then many, then a row again: 3 rows are nearer to one than to 16.
    for (seed, rows, merge) in [(1, 1, other), (2, 12, one), (3, 3, other), (4, 9, one)] {
        let problem = generate(&Case { attention: GQA, rows, longest: 90, seed });
        let upload = |name, elements| uploaded(&device, name, elements);
        let (k, v) = (upload("k", &problem.k), upload("v", &problem.v));
        let pages = page_map(&problem);
        let (spans, row_request) = (&problem.spans, &problem.row_request[..]);
        attention.plan(&DecodeStep { spans, row_request, pages }).unwrap();
        assert_eq!(attention.spec().configuration.merge, merge, "{rows} rows");
        let selected =
            artifact.select(GQA.kernel_shape().unwrap(), device.properties(), &problem.bucket());
        assert_eq!(selected.unwrap().entry.spec, *attention.spec(), "the artifact says the same");
        let layer = Layer::new(&device, &problem.q, rows * 12);
        let kv = PagedKv::new(k.buffer(), v.buffer(), problem.strides());
        attention.run(&layer.operands(kv, problem.scale)).unwrap();
        assert_right(&problem, &layer.output(problem.q.len(), rows * 12), &format!("{rows} rows"));
    }
}

/// Steps of one row per request and steps of several, with sinks, soft caps and spans of each KV head's
/// own: a kernel that takes one row and one that takes four take turns.
#[test]
fn rows_of_a_request_are_read_together() {
    let folder = tempfile::tempdir().unwrap();
    let single = Bucket { rows: 4, rows_per_request: 1, tokens_per_row: 64, tokens_per_span: 32 };
    let several = Bucket { rows_per_request: 4, ..single };
    let times = |us| timed([single, several], us);
    let kernels = vec![
        (Merge::SecondKernel, 1, times([1.0, 2.0])),
        (Merge::LastArriver, 4, times([2.0, 1.0])),
    ];
    let artifact = artifact_of(folder.path(), kernels);
    let specs: Vec<KernelSpec> = artifact.manifest().kernels.iter().map(|k| k.spec).collect();
    assert_eq!(specs[1].configuration.query_rows, 4);
    let device = h200();
    let mut by_rows = [0, 0];
    let mut options = [0, 0, 0];
    for seed in 0..100 {
        let edges = spanforge_verify::generate::Edges::of(&specs[seed as usize % 2]);
        let recipe = spanforge_verify::generate::generate_recipe(specs[0].shape, &edges, seed);
        let problem = recipe.problem().unwrap();
        let (a, rows) = (problem.attention, problem.rows());
        let limits = limits_of(&problem);
        let mut attention = SpanAttention::load(&artifact, device.clone(), a, limits).unwrap();
        let (k, v) = (uploaded(&device, "k", &problem.k), uploaded(&device, "v", &problem.v));
        let sinks = uploaded_floats(&device, "sinks", &problem.sinks);
        let heads = a.query_heads as usize;
        let layer = Layer::new(&device, &problem.q, rows * heads);
        let kv = PagedKv::new(k.buffer(), v.buffer(), problem.strides());
        let operands = StepOperands {
            soft_cap: problem.soft_cap,
            sinks: sinks.as_ref().map(DeviceMemory::buffer),
            ..layer.operands(kv, problem.scale)
        };
        // All rows, then the first half of them, then all again.
        for count in [rows, rows.div_ceil(2), rows] {
            let sets = count * problem.span_heads() as usize;
            let kept: Vec<SpanSet> = problem.spans.sets().take(sets).collect();
            let part = DecodeProblem {
                spans: SpanBatch::from_sets(&kept).unwrap(),
                row_request: problem.row_request[..count].to_vec(),
                q: problem.q[..count * heads * 64].to_vec(),
                ..problem.clone()
            };
            let (spans, row_request) = (&part.spans, &part.row_request[..]);
            attention.plan(&DecodeStep { spans, row_request, pages: page_map(&part) }).unwrap();
            by_rows[usize::from(attention.spec().configuration.query_rows > 1)] += 1;
            layer.poison();
            attention.run(&operands).unwrap();
            let mut output = layer.output(problem.q.len(), rows * heads);
            output.out.truncate(part.q.len());
            output.lse.truncate(count * heads);
            assert_right(&part, &output, &format!("seed {seed}, {count} of {rows} rows"));
            let again = DecodeStep { spans, row_request, pages: page_map(&part) };
            let again = attention.plan(&again).unwrap();
            assert_eq!((again.uploaded_bytes, again.launches.len()), (0, 0));
        }
        options[0] += u32::from(problem.soft_cap > 0.0);
        options[1] += u32::from(!problem.sinks.is_empty());
        options[2] += u32::from(problem.span_heads() > 1);
    }
    assert!(by_rows.iter().all(|n| *n > 20), "{by_rows:?}");
    assert!(options.iter().all(|n| *n > 2), "{options:?}");
}

/// Caches of 8-bit elements with factors, of kernels for rows alone and together.
#[test]
fn a_cache_of_8_bits_is_read_with_its_factors() {
    let (device, compiler) = (h200(), compiler());
    let shape = AttentionShape { kv_dtype: KvDtype::E4m3, ..GQA }.kernel_shape().unwrap();
    let kernels = [1, 4].map(|rows| {
        let (image, spec) = compile_default(shape, rows, device.properties(), &compiler).unwrap();
        (Bucket::of(4 * u64::from(rows), 4, 256, 8), image, spec)
    });
    let mut with_factors = [0, 0];
    for seed in 0..24 {
        let spec = &kernels[seed as usize % 2].2;
        let edges = spanforge_verify::generate::Edges::of(spec);
        let recipe = spanforge_verify::generate::generate_recipe(shape, &edges, seed);
        let problem = recipe.problem().unwrap();
        let (a, rows) = (problem.attention, problem.rows());
        let limits = limits_of(&problem);
        let mut attention =
            SpanAttention::from_images(&kernels, device.clone(), a, limits).unwrap();
        let (spans, row_request) = (&problem.spans, &problem.row_request[..]);
        attention.plan(&DecodeStep { spans, row_request, pages: page_map(&problem) }).unwrap();
        let bytes = |bits: &[u16]| bits.iter().map(|x| *x as u8).collect::<Vec<u8>>();
        let k = uploaded_bytes(&device, "k", &bytes(&problem.k));
        let v = uploaded_bytes(&device, "v", &bytes(&problem.v));
        let floats = |name, values| uploaded_floats(&device, name, values);
        let sinks = floats("sinks", &problem.sinks);
        let scales = [floats("k_scales", &problem.k_scales), floats("v_scales", &problem.v_scales)];
        let [k_scales, v_scales] = scales.each_ref().map(|s| s.as_ref().map(DeviceMemory::buffer));
        let heads = rows * a.query_heads as usize;
        let layer = Layer::new(&device, &problem.q, heads);
        let kv = PagedKv {
            k_scales,
            v_scales,
            ..PagedKv::new(k.buffer(), v.buffer(), problem.strides())
        };
        let operands = StepOperands {
            soft_cap: problem.soft_cap,
            sinks: sinks.as_ref().map(DeviceMemory::buffer),
            ..layer.operands(kv, problem.scale)
        };
        attention.run(&operands).unwrap();
        assert_right(&problem, &layer.output(problem.q.len(), heads), &format!("seed {seed}"));
        with_factors[0] += u32::from(k_scales.is_some());
        with_factors[1] += u32::from(v_scales.is_some());

        let mut other = operands;
        other.kv.strides.token += 8;
        let error = attention.run(&other).unwrap_err().to_string();
        assert!(error.contains("expected a multiple of 16"), "{error}");
        let mut other = operands;
        other.kv.k_scales = Some(Buffer { bytes: 3, ..layer.lse.buffer() });
        let error = attention.run(&other).unwrap_err().to_string();
        assert!(error.starts_with("k_scales: the buffer has 3 bytes"), "{error}");
    }
    assert!(with_factors.iter().all(|n| (5..24).contains(n)), "{with_factors:?}");
}

/// Attention over a part of the tokens, and attention over the others added to it.
#[test]
fn attention_over_parts_is_merged_into_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = artifact(folder.path(), Merge::SecondKernel);
    let device = h200();
    let heads = 3 * 12;
    let problem = generate(&Case { attention: GQA, rows: 3, longest: 90, seed: 5 });
    let limits = SpanAttentionLimits { rows: 3, spans: 64, requests: 3, max_pages: 20 };
    let mut attention = SpanAttention::load(&artifact, device.clone(), GQA, limits).unwrap();
    let upload = |name, elements| uploaded(&device, name, elements);
    let (k, v) = (upload("k", &problem.k), upload("v", &problem.v));
    let kv = PagedKv::new(k.buffer(), v.buffer(), problem.strides());
    // Row 0 has nothing in the first part, row 1 nothing in the second, and row 2 something in both.
    let cuts = [0, u32::MAX, problem.spans.row(2).tokens().nth(20).unwrap()];
    let part = |first: bool| -> Vec<SpanSet> {
        let cut = |(set, cut): (SpanSet, u32)| match first {
            true => set.intersection(&SpanSet::from(0..cut)),
            false => set.difference(&SpanSet::from(0..cut)),
        };
        problem.spans.sets().zip(cuts).map(cut).collect()
    };
    let mut attend = |sets: &[SpanSet]| {
        let layer = Layer::new(&device, &problem.q, heads);
        let (spans, row_request) = (&SpanBatch::from_sets(sets).unwrap(), &problem.row_request[..]);
        attention.plan(&DecodeStep { spans, row_request, pages: page_map(&problem) }).unwrap();
        attention.run(&layer.operands(kv, problem.scale)).unwrap();
        layer
    };
    let [whole, one, other] =
        [problem.spans.sets().collect(), part(true), part(false)].map(|s| attend(&s));
    let output = |layer: &Layer| layer.output(problem.q.len(), heads);
    let [before, added] = [output(&one), output(&other)];
    let written = |layer: &Layer| Written { out: layer.out.buffer(), lse: layer.lse.buffer() };
    attention.merge_outputs(&written(&one), &written(&other), 3).unwrap();
    let (merged, whole) = (output(&one), output(&whole));
    // What has nothing to add changes no bit.
    let row = 12 * 64;
    assert_eq!((&merged.out[..row], &merged.lse[..12]), (&added.out[..row], &added.lse[..12]));
    assert_eq!(merged.out[row..2 * row], before.out[row..2 * row]);
    assert_eq!(merged.lse[12..24], before.lse[12..24]);
    for (got, expected) in merged.out.iter().zip(&whole.out) {
        let [got, expected] = [*got, *expected].map(|bits| bf16::from_bits(bits).to_f32());
        // Each part was rounded, and so is their sum.
        assert!((got - expected).abs() <= 0.02 * expected.abs() + 4e-3, "{got} {expected}");
    }
    for (got, expected) in merged.lse.iter().zip(&whole.lse) {
        assert!(got == expected || (got - expected).abs() < 1e-5, "{got} {expected}");
    }
    let short = spanforge_device::Buffer { bytes: 16, ..one.lse.buffer() };
    let error =
        attention.merge_outputs(&Written { lse: short, ..written(&one) }, &written(&other), 3);
    assert!(error.unwrap_err().to_string().contains("lse: the buffer has 16 bytes"));
}

#[test]
fn a_shape_that_the_artifact_lacks_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = artifact(folder.path(), Merge::SecondKernel);
    let limits = SpanAttentionLimits { rows: 1, spans: 1, requests: 1, max_pages: 1 };
    let other = AttentionShape { head_dim: 128, ..GQA };
    let error = SpanAttention::load(&artifact, h200(), other, limits).map(|_| ()).unwrap_err();
    assert!(matches!(error, AttentionError::NoKernel { .. }));
    let message = error.to_string();
    for part in [
        "no kernel of this artifact serves bf16-d128-g6",
        "it is built for bf16-d64-g6",
        "`spanforge tune",
        "bf16 with head_dim 128 and 6 query head(s) per KV head",
    ] {
        assert!(message.contains(part), "{message}");
    }

    let inputs = folder.path().join("in.safetensors");
    let output = folder.path().join("out.safetensors");
    write_problem(&inputs, &generate(&Case { attention: other, rows: 2, longest: 40, seed: 1 }))
        .unwrap();
    let request = RunRequest {
        artifact: Some(artifact.root()),
        inputs: &inputs,
        output: &output,
        compile: false,
    };
    let device = h200();
    let error = run(&request, &*device, || unreachable!()).unwrap_err();
    assert!(matches!(error, RunError::NoKernel { .. }));
    assert!(error.to_string().contains("--compile"), "{error}");
    assert!(!output.exists());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "artifact and inputs");

    let report =
        run(&RunRequest { compile: true, ..request }, &*device, || Ok(compiler())).unwrap();
    assert_eq!(report.origin, Origin::Compiled);
    assert!(output.exists());
}

#[test]
fn files_are_computed_with_the_artifacts_kernel() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = artifact(folder.path(), Merge::SecondKernel);
    let problem = generate(&Case { attention: GQA, rows: 5, longest: 200, seed: 5 });
    let inputs = folder.path().join("in.safetensors");
    write_problem(&inputs, &problem).unwrap();
    let mut files = Vec::new();
    for name in ["a", "b"] {
        let output = folder.path().join(name);
        let request = RunRequest {
            artifact: Some(artifact.root()),
            inputs: &inputs,
            output: &output,
            compile: false,
        };
        let report = run(&request, &*h200(), || unreachable!()).unwrap();
        assert_eq!(report.origin, Origin::Artifact { role: "winner".into() });
        assert_eq!(report.kernel, artifact.manifest().kernels[0].spec);
        let selected: u64 = problem.spans.sets().map(|s| s.len_tokens()).sum();
        assert_eq!((report.rows, report.selected_tokens), (5, selected));
        assert_eq!(report.selected_kv_bytes, selected * 2 * 2 * 64 * 2);
        let names: Vec<&str> = report.launches.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["spanforge_plan", "spanforge_decode", "spanforge_merge"]);
        files.push(std::fs::read(output).unwrap());
    }
    assert_eq!(files[0], files[1], "bitwise the same twice");
    let file = safetensors::SafeTensors::deserialize(&files[0]).unwrap();
    let lse = file.tensor("lse").unwrap();
    let output = DecodeOutput {
        out: words(file.tensor("out").unwrap().data()),
        lse: lse.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    };
    assert_right(&problem, &output, "files");
}

#[test]
fn a_file_without_rows_gives_one_without_rows() {
    let folder = tempfile::tempdir().unwrap();
    let problem = generate(&Case { attention: GQA, rows: 0, longest: 20, seed: 1 });
    let (inputs, output) = (folder.path().join("in"), folder.path().join("out"));
    write_problem(&inputs, &problem).unwrap();
    let request = RunRequest { artifact: None, inputs: &inputs, output: &output, compile: true };
    let report = run(&request, &*h200(), || Ok(compiler())).unwrap();
    assert_eq!((report.rows, report.launches.len()), (0, 0));
    let bytes = std::fs::read(&output).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("out").unwrap().shape(), [0, 12, 64]);
    assert_eq!(file.tensor("lse").unwrap().shape(), [0, 12]);
}

/// Every value of every dimension of the matrix, each pair of neighbours met in some case.
#[test]
fn default_kernels_serve_every_shape() {
    let compiler = compiler();
    let group_sizes = [1, 3, 6, 8];
    let head_dims = [64, 128, 256, 512];
    let page_sizes = [1, 7, 16, 128];
    for i in 0..4 {
        for j in 0..4 {
            let dtype = Dtype::ALL[(i + j) % 2];
            let attention = AttentionShape {
                dtype,
                kv_dtype: KvDtype::Same,
                query_heads: 2 * group_sizes[i],
                kv_heads: 2,
                head_dim: head_dims[j],
                page_size: page_sizes[(i + j / 2) % 4],
                layout: KvLayout::ALL[(i / 2 + j) % 2],
            };
            let case = Case { attention, rows: 4, longest: 150, seed: (4 * i + j) as u64 };
            let problem = generate(&case);
            let device = h200();
            let shape = attention.kernel_shape().unwrap();
            let (image, spec) = compile_default(shape, 1, device.properties(), &compiler).unwrap();
            let decoder = Decoder::load(&*device, &image, spec).unwrap();
            let options = UploadOptions { guard_bytes: 256, poison: true, ..Default::default() };
            let resident = decoder.upload(&problem, options).unwrap();
            decoder.run(&resident).unwrap();
            let first = resident.output().unwrap();
            assert_right(&problem, &first, &format!("{attention:?}"));
            resident.poison_output().unwrap();
            decoder.run(&resident).unwrap();
            assert_eq!(resident.output().unwrap(), first, "{attention:?} is not repeatable");
            assert!(resident.broken_guards().unwrap().is_empty());
        }
    }
}

/// The generator itself: a test of unread tokens that has none would show nothing.
#[test]
fn generated_problems_have_empty_rows_and_nan_in_every_unselected_token() {
    let problem = generate(&Case { attention: GQA, rows: 4, longest: 150, seed: 0 });
    let nan = problem.k.iter().filter(|b| bf16::from_bits(**b).is_nan()).count();
    let selected = problem.k.len() - nan;
    assert!(nan > 0 && selected > 0 && selected.is_multiple_of(64));
    assert!(problem.spans.sets().any(|set| set.is_empty()));
    assert!(!problem.spans.is_canonical());
    let half = AttentionShape { dtype: Dtype::F16, ..GQA };
    let problem = generate(&Case { attention: half, rows: 4, longest: 150, seed: 0 });
    assert!(problem.v.iter().any(|b| f16::from_bits(*b).is_nan()));
}
