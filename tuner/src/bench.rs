//! Batches with names, to measure kernels with, and what a kernel takes for one: its time beside the
//! floor, and the bytes that it fetches.

use crate::environment::Environment;
use crate::evaluate::{cache_bytes, floor_us, time_options};
use crate::export::{ExportError, compile_source};
use crate::tune::TuneError;
use crate::workload::{Workload, WorkloadError, WorkloadRow};
use serde::Serialize;
use spanforge_device::{Argument, Basis, Compiler, Device, Image, Launch, TimeOptions, median};
use spanforge_emulator::counters::SECTOR_BYTES;
use spanforge_kernels::configuration::AttentionShape;
use spanforge_kernels::decoder::UploadOptions;
use spanforge_kernels::render::READ_THREADS;
use spanforge_kernels::{Decoder, KernelSpec, render_read};
use spanforge_spans::{Dtype, KvDtype, KvLayout, SpanSet};

/// The cases that are measured where none are named: both models of Declarative Attention and short
/// spans as a self-selecting model has them, small batches and large; mixes of long and short rows
/// that other libraries are measured with; the same tokens in longer and longer spans; several new tokens
/// for each request; and caches of 8-bit elements.
pub const CASES: [&str; 27] = [
    "da-gemma4/1",
    "da-gemma4/16",
    "da-gemma4/64",
    "da-qwen3.6/1",
    "da-qwen3.6/16",
    "da-qwen3.6/64",
    "ssas-llama2/1",
    "ssas-llama2/16",
    "ssas-llama2/128",
    "1x64K+7x4K",
    "1x64K+15x4K",
    "1x64K+31x4K",
    "1x128K+31x4K",
    "2x32K+30x4K",
    "1x16K+15x64",
    "32x128+32x4K",
    "64x2K/16",
    "64x2K/128",
    "64x2K/1K",
    "da-gemma4/16@4",
    "da-qwen3.6/16@4",
    "16x4K@8",
    "1x4K@256",
    "ssas-llama2/1@256",
    "da-gemma4/16:e4m3",
    "da-qwen3.6/16:e4m3",
    "1x64K+31x4K:e4m3",
];

/// The model whose attention a mix has where nothing else is said: Llama-3-8B.
pub const MIX_ATTENTION: AttentionShape = AttentionShape {
    dtype: Dtype::Bf16,
    kv_dtype: KvDtype::Same,
    query_heads: 32,
    kv_heads: 8,
    head_dim: 128,
    page_size: 16,
    layout: KvLayout::Nhd,
};

/// The most tokens of one row of a mix, and rows of one.
const LARGEST: u32 = 1 << 20;

/// A name that means no batch.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// Something like a mix that is none.
    #[error(
        "case `{name}`: `{term}` is not ROWSxTOKENS or ROWSxTOKENS/SPAN, such as 31x4K or 64x2K/128 (K is 1024), with {LARGEST} of each at most"
    )]
    Term {
        /// The case.
        name: String,
        /// Its part at fault.
        term: String,
    },
    /// A number of queries that is none.
    #[error("case `{name}`: `{queries}` is not a number of new tokens from 1 to 4096")]
    Queries {
        /// The case.
        name: String,
        /// What stands where the number should.
        queries: String,
    },
    /// A batch size that is none.
    #[error("case `{name}`: `{batch}` is not a number of rows from 1 to 4096")]
    Batch {
        /// The case.
        name: String,
        /// What stands where the batch size should.
        batch: String,
    },
    /// No such workload.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
}

/// The batch of a case.
///
/// A *mix* is a sum of `ROWSxTOKENS`, rows that attend to all of their so many tokens, and
/// `ROWSxTOKENS/SPAN`, rows that attend to so many tokens in spans of `SPAN`, with as many between
/// spans; its attention is [`MIX_ATTENTION`]. Everything else is a workload, with `/BATCH` behind it
/// (16 where it is missing), drawn by `seed`. `@QUERIES` behind either gives each row so many new tokens
/// instead of one (see [`Workload::with_queries`]), and `:e4m3` behind that is the same with a cache of
/// 8-bit elements.
///
/// # Errors
/// A name that is neither.
pub fn case(name: &str, seed: u64) -> Result<Workload, CaseError> {
    if let Some((other, kv_dtype)) = name.rsplit_once(':')
        && let Ok(kv_dtype) = kv_dtype.parse::<KvDtype>()
    {
        let workload = case(other, seed)?;
        let attention = AttentionShape { kv_dtype, ..workload.attention };
        return Ok(Workload { name: name.to_owned(), attention, ..workload });
    }
    let Some((one, queries)) = name.rsplit_once('@') else { return one_query(name, seed) };
    let fault = || CaseError::Queries { name: name.to_owned(), queries: queries.to_owned() };
    let queries = queries.parse().ok().filter(|n| (1..=4096).contains(n)).ok_or_else(fault)?;
    Ok(Workload { name: name.to_owned(), ..one_query(one, seed)?.with_queries(queries) })
}

/// The batch of a case of one new token for each row.
fn one_query(name: &str, seed: u64) -> Result<Workload, CaseError> {
    let is_mix = name.starts_with(|c: char| c.is_ascii_digit()) && name.contains('x');
    if is_mix {
        let mut rows = Vec::new();
        for term in name.split('+') {
            let of_term = terms(term)
                .ok_or_else(|| CaseError::Term { name: name.to_owned(), term: term.to_owned() })?;
            rows.extend(of_term);
        }
        return Ok(Workload { name: name.to_owned(), attention: MIX_ATTENTION, rows });
    }
    let (workload, batch) = match name.rsplit_once('/') {
        Some((workload, batch)) if !batch.is_empty() && !batch.contains('.') => {
            let rows = batch.parse().ok().filter(|rows| (1..=4096).contains(rows));
            let fault = || CaseError::Batch { name: name.to_owned(), batch: batch.to_owned() };
            (workload, rows.ok_or_else(fault)?)
        }
        _ => (name, 16),
    };
    Ok(Workload { name: name.to_owned(), ..Workload::named(workload, batch, seed)? })
}

/// The rows of one term of a mix.
fn terms(term: &str) -> Option<Vec<WorkloadRow>> {
    let number = |text: &str| {
        let (digits, factor) = text.strip_suffix('K').map_or((text, 1), |digits| (digits, 1024));
        let number: u32 = digits.parse().ok()?;
        number.checked_mul(factor).filter(|number| (1..=LARGEST).contains(number))
    };
    let (rows, tokens) = term.split_once('x')?;
    let rows: u32 = rows.parse().ok().filter(|rows| (1..=4096).contains(rows))?;
    let (tokens, span) = match tokens.split_once('/') {
        Some((tokens, span)) => (number(tokens)?, number(span)?),
        None => (number(tokens)?, LARGEST),
    };
    let spans = (0..tokens.div_ceil(span)).map(|i| {
        let length = span.min(tokens - i * span);
        (2 * i * span, 2 * i * span + length)
    });
    let spans = SpanSet::from_pairs(spans).ok()?;
    Some(vec![WorkloadRow { kv_len: spans.end(), spans, same_request: false }; rows as usize])
}

/// The same requests, attending to everything.
pub fn dense(workload: &Workload) -> Workload {
    let row = |row: &WorkloadRow| WorkloadRow { spans: SpanSet::full(row.kv_len), ..row.clone() };
    Workload { rows: workload.rows.iter().map(row).collect(), ..workload.clone() }
}

/// What one kernel takes for one batch.
#[derive(Clone, Debug, Serialize)]
pub struct CaseTime {
    /// Whether the time is predicted or measured.
    pub basis: Basis,
    /// The median, in microseconds.
    pub time_us: f64,
    /// What it is the median of.
    pub samples_us: Vec<f64>,
    /// Microseconds of the plan, which is in [`Self::time_us`] and which all layers of a step share.
    pub plan_us: f64,
    /// The time that no kernel can beat; see [`floor_us`].
    pub floor_us: f64,
    /// Bytes that no kernel can do without.
    pub floor_bytes: u64,
    /// Floating-point operations of the two products over selected tokens.
    pub flops: f64,
    /// Bytes of the K and V rows of the selected tokens; of those that some row of a query tile selects,
    /// for kernels that take several.
    pub selected_kv_bytes: u64,
    /// Bytes of K and V that were fetched, in sectors, over [`Self::selected_kv_bytes`]; an emulated
    /// device counts them over the whole grid, a GPU does not.
    pub bytes_ratio: Option<f64>,
    /// Selected tokens of the block that has most, over the mean of all blocks.
    pub imbalance: f64,
}

/// One line of a benchmark.
#[derive(Clone, Debug, Serialize)]
pub struct BenchRow {
    /// The case's name.
    pub case: String,
    /// `span`, or `dense` for the same rows attending to everything.
    pub attention: &'static str,
    /// The kernel's id.
    pub kernel: String,
    /// The batch in words.
    pub batch: String,
    /// What it took.
    #[serde(flatten)]
    pub time: CaseTime,
    /// Bytes of the selected tokens' K and V rows, by the time.
    pub gb_per_second: f64,
    /// The same over what a kernel reads that does nothing else.
    pub share_of_read_bandwidth: f64,
    /// Time of the dense line over this one's.
    pub speedup: f64,
}

impl BenchRow {
    /// The line as a table has it, under [`BenchReport::heading`].
    pub fn cells(&self) -> [String; COLUMNS] {
        let CaseTime {
            time_us, plan_us, floor_us, selected_kv_bytes, bytes_ratio, imbalance, ..
        } = &self.time;
        [
            self.case.clone(),
            self.attention.to_owned(),
            format!("{:.1}", *selected_kv_bytes as f64 / 1e6),
            format!("{time_us:.1}"),
            format!("{plan_us:.1}"),
            format!("{floor_us:.1}"),
            format!("{:.2}", time_us / floor_us),
            format!("{:.0}", self.gb_per_second),
            format!("{:.0} %", 100.0 * self.share_of_read_bandwidth),
            format!("{:.2}", self.speedup),
            bytes_ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.4}")),
            format!("{imbalance:.2}"),
            self.kernel.clone(),
        ]
    }
}

/// The columns of a benchmark's table.
pub const COLUMNS: usize = 13;

/// Those of them that are numbers.
pub const NUMBERS: [usize; 10] = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11];

/// What was timed in one run.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// Seconds since 1970, UTC.
    pub unix_s: u64,
    /// Machine and tools.
    pub environment: Environment,
    /// Name of the device.
    pub device: String,
    /// Whether times are predicted or measured.
    pub basis: Basis,
    /// Seed of batches and tensors.
    pub seed: u64,
    /// Of a kernel that only reads, of this run.
    pub read_gb_per_second: f64,
    /// The data sheet's.
    pub dram_gb_per_second: f64,
    /// The data sheet's, of tensor cores where it has some.
    pub peak_gflop_per_second: f64,
    /// Lines, in the order of cases.
    pub rows: Vec<BenchRow>,
    /// Cases that the kernel does not serve, and why.
    pub left_out: Vec<String>,
}

impl BenchReport {
    /// The columns of its table.
    pub fn heading(&self) -> [String; COLUMNS] {
        let time = format!("{} us", self.basis);
        let [a, b, c] = ["case", "attention", "MB selected"];
        let others = [
            "plan",
            "floor us",
            "x floor",
            "GB/s",
            "of reading",
            "x dense",
            "bytes",
            "shares",
            "kernel",
        ];
        let [d, e, f, g, h, i, j, k, l] = others;
        [a, b, c, &time, d, e, f, g, h, i, j, k, l].map(str::to_owned)
    }
}

/// Runs a kernel's decode step for a batch once, and times it.
///
/// # Errors
/// A batch that cannot be timed, and what the device finds.
pub fn time(
    device: &dyn Device,
    image: &Image,
    spec: KernelSpec,
    workload: &Workload,
    seed: u64,
) -> Result<CaseTime, TuneError> {
    let problem = workload.problem(seed, cache_bytes(device.properties().basis))?;
    let decoder = Decoder::load(device, image, spec)?;
    let resident = decoder.upload(&problem, UploadOptions::default())?;
    // A GPU has to have run what is timed; an emulated device counts here, and samples there.
    let reports = decoder.run(&resident)?;
    let counters: Option<Vec<_>> = reports.iter().map(|report| report.counters.as_ref()).collect();
    let fetched = counters.map(|all| {
        let buffers = all.iter().flat_map(|counters| &counters.buffers);
        let of_kv = buffers.filter(|traffic| ["k", "v"].contains(&traffic.name.as_str()));
        SECTOR_BYTES * of_kv.map(|traffic| traffic.read_sectors).sum::<u64>()
    });
    let options = time_options(&problem);
    let timing = decoder.time(&resident, &options)?;
    let plan_us = decoder.time_plan(&resident, &options)?.median_us();
    let selected_kv_bytes = problem.tile_kv_bytes(spec.configuration.query_rows);
    let heads_per_set = problem.attention.kv_heads / problem.span_heads();
    Ok(CaseTime {
        basis: timing.basis,
        time_us: timing.median_us(),
        plan_us,
        floor_us: floor_us(&problem, device.properties()),
        floor_bytes: problem.floor_bytes(),
        flops: problem.flops(),
        selected_kv_bytes,
        bytes_ratio: fetched
            .filter(|_| selected_kv_bytes > 0)
            .map(|fetched| fetched as f64 / selected_kv_bytes as f64),
        imbalance: decoder
            .imbalance(&problem.set_tokens(spec.configuration.query_rows), heads_per_set),
        samples_us: timing.samples_us,
    })
}

/// What is read to find out how fast reading is, on a GPU: several times its L2, and far more than a
/// launch takes.
const MEASURED_READ_BYTES: usize = 4 << 30;
/// The same on an emulated device, which keeps it in the host's memory.
const PREDICTED_READ_BYTES: usize = 256 << 20;
/// Blocks per multiprocessor of the kernel that reads.
const READ_BLOCKS: u32 = 4;

/// Bytes a second at which a kernel that does nothing else reads memory: what is left of the data
/// sheet's, measured or predicted as all times of the device are.
///
/// # Errors
/// What the device finds.
pub fn read_bandwidth(device: &dyn Device, compiler: &Compiler) -> Result<f64, TuneError> {
    let properties = device.properties();
    let bytes = match properties.basis {
        Basis::Measured => MEASURED_READ_BYTES,
        Basis::Predicted => PREDICTED_READ_BYTES,
    };
    let rendered = render_read().map_err(ExportError::from)?;
    let image = compile_source(compiler, rendered.name, rendered.text, &properties.architecture)?;
    let module = device.load(&image)?;
    let from = device.allocate("read", bytes)?;
    let sink = device.allocate("sink", 4)?;
    let vectors = i32::try_from(bytes / 16).unwrap_or(i32::MAX);
    let launch = Launch {
        module,
        kernel: "spanforge_read".to_owned(),
        grid: [READ_BLOCKS * properties.multiprocessors, 1, 1],
        block: [READ_THREADS, 1, 1],
        shared_bytes: 0,
        arguments: vec![from.at(0), sink.at(0), Argument::I32(vectors)],
    };
    let launches = std::slice::from_ref(&launch);
    let timed = device.launch(&launch).and_then(|_| device.time(launches, &TimeOptions::default()));
    device.free(from)?;
    device.free(sink)?;
    device.unload(module)?;
    let us = median(&timed?.samples_us).unwrap_or(f64::INFINITY);
    Ok(16.0 * f64::from(vectors) / (1e-6 * us))
}

#[cfg(test)]
mod tests {
    use super::*;
    use spanforge_device::ModuleId;
    use spanforge_kernels::{Launcher, Limits, SearchSpace};

    fn lengths(name: &str) -> Vec<(u32, u64, usize)> {
        let workload = case(name, 0).unwrap();
        let row = |row: &WorkloadRow| (row.kv_len, row.spans.len_tokens(), row.spans.spans().len());
        workload.rows.iter().map(row).collect()
    }

    #[test]
    fn a_mix_has_the_rows_that_it_says() {
        assert_eq!(lengths("1x2K+2x64"), [(2048, 2048, 1), (64, 64, 1), (64, 64, 1)]);
        // The last span is shorter, and as many tokens lie between spans.
        assert_eq!(lengths("1x100/32"), [(196, 100, 4)]);
        let all = dense(&case("1x100/32+1x5", 0).unwrap());
        assert_eq!(all.rows.iter().map(|r| r.spans.len_tokens()).collect::<Vec<_>>(), [196, 5]);
    }

    /// Each new token sees the ones before it, all of one request are side by side, and dense rows see
    /// what there is of their own time.
    #[test]
    fn new_tokens_attend_to_those_before_them() {
        let drafts = case("2x100/32@3", 0).unwrap();
        assert_eq!(drafts.queries(), 3);
        assert_eq!((drafts.bucket().rows, drafts.bucket().rows_per_request), (8, 4));
        let first = &drafts.rows[..3];
        let same: Vec<bool> = drafts.rows.iter().map(|row| row.same_request).collect();
        assert_eq!(same, [false, true, true, false, true, true]);
        for (new, row) in first.iter().enumerate() {
            let new = new as u32;
            assert_eq!((row.kv_len, row.spans.len_tokens()), (196 + new, u64::from(100 + new)));
            assert!((196..196 + new).all(|token| row.spans.contains(token)));
        }
        let all = dense(&drafts);
        assert_eq!(all.rows[2].spans, SpanSet::full(198));
        let problem = drafts.problem(0, 1 << 30).unwrap();
        assert_eq!(
            (&problem.row_request[..], &problem.kv_len[..]),
            (&[0, 0, 0, 1, 1, 1][..], &[198; 2][..])
        );
        // The floor reads what they have in common once.
        assert_eq!(problem.tile_kv_bytes(u32::MAX), 2 * 2 * 102 * 8 * 128 * 2);
        assert_eq!(problem.selected_kv_bytes(), 2 * 2 * (100 + 101 + 102) * 8 * 128 * 2);
    }

    #[test]
    fn a_case_with_8_bits_is_the_same_with_half_the_bytes() {
        let [one, other] = ["2x100/32@3", "2x100/32@3:e4m3"].map(|name| case(name, 0).unwrap());
        assert_eq!(one.rows, other.rows);
        assert_eq!((&other.name[..], other.attention.kv_dtype), ("2x100/32@3:e4m3", KvDtype::E4m3));
        let [one, other] = [one, other].map(|case| case.problem(0, 1 << 30).unwrap());
        assert_eq!(one.selected_kv_bytes(), 2 * other.selected_kv_bytes());
    }

    #[test]
    fn every_named_case_is_one() {
        for name in CASES {
            let workload = case(name, 0).unwrap();
            assert!(workload.attention.kernel_shape().is_ok() && !workload.rows.is_empty());
        }
    }

    /// Rows that read everything beside rows that read little are shared out within 5 %, one of them
    /// alone too; only where there is next to nothing to do are blocks left without work.
    #[test]
    fn batches_with_long_and_short_rows_are_shared_evenly() {
        let properties = spanforge_device::open("emulated:h200").unwrap().properties().clone();
        for name in ["da-gemma4", "da-qwen3.6"] {
            for batch in [16, 32, 64, 128] {
                for seed in 0..4 {
                    let workload = case(&format!("{name}/{batch}"), seed).unwrap();
                    let shape = workload.attention.kernel_shape().unwrap();
                    let space = SearchSpace::new(shape, Limits::of(&properties));
                    let configuration = space.default_configuration().unwrap();
                    let spec = KernelSpec { shape, configuration };
                    let launcher = Launcher::new(ModuleId(0), spec, &properties);
                    let heads = workload.attention.kv_heads;
                    let tokens: Vec<u64> =
                        workload.rows.iter().map(|row| row.spans.len_tokens()).collect();
                    let imbalance = launcher.imbalance(&tokens, heads);
                    assert!((1.0..1.05).contains(&imbalance), "{}: {imbalance}", workload.name);
                }
            }
        }
    }

    #[test]
    fn what_is_no_case_is_said_to_be_none() {
        for name in ["1x", "0x4K", "1x0", "1x4K/0", "1x4K+", "5000x1", "1x2048K", "1xK", "9x9x9"] {
            let error = case(name, 0).unwrap_err().to_string();
            assert!(error.contains("ROWSxTOKENS"), "{name}: {error}");
        }
        for name in ["16x4K@", "16x4K@0", "16x4K@4097", "da-gemma4@x"] {
            assert!(case(name, 0).unwrap_err().to_string().contains("new tokens"), "{name}");
        }
        assert!(case("da-gemma4/0", 0).unwrap_err().to_string().contains("number of rows"));
        assert!(case("nothing", 0).unwrap_err().to_string().contains("da-gemma4"));
    }
}
