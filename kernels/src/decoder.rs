//! A compiled decode kernel on a device, and whole problems put there, run and read back. What a
//! model calls step by step is the runtime's `SpanAttention`.

mod buffers;

use self::buffers::{Builder, GUARD, POISON};
use crate::abi::{Operands, OverlayBuffers, PlanBuffers, Scalars, Workspace, Written};
use crate::configuration::{KernelSpec, Merge};
use crate::launch::{Launcher, query_tiles};
use crate::problem::{DecodeProblem, ProblemError};
use spanforge_device::{
    Basis, Buffer, Device, DeviceError, Image, KERNEL_LAUNCH, Launch, LaunchReport, ModuleId,
    TimeOptions, Timing,
};
use spanforge_spans::SpanBatch;

/// What can go wrong when a decoder is used.
#[derive(Debug, thiserror::Error)]
pub enum DecoderError {
    /// The inputs are at fault.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// The device is, or a check of the emulated one has reported.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernel is for another shape than the problem.
    #[error("the kernel is built for {kernel} and cannot serve {problem}")]
    OtherShape {
        /// Shape of the kernel.
        kernel: String,
        /// Shape of the problem.
        problem: String,
    },
}

/// How a problem is put on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UploadOptions {
    /// Bytes before and after each buffer that no kernel may write. An emulated device checks the
    /// bounds of every access by itself and needs none.
    pub guard_bytes: usize,
    /// Fill outputs and scratch memory with NaN before the launch.
    pub poison: bool,
    /// Number that the first page of the problem has on the device: the addresses of K and V given to
    /// the kernel lie that many pages before their buffers, and entries of the page table that name a
    /// page are raised by it. So the offsets of tokens need 64 bits without the memory for it.
    pub first_page: u32,
    /// Have the last span of every set planned without so many of its tokens, which are appended after
    /// the plan is made, as a decode step does that finds one token more than the step before. As many as
    /// each last span has but one, none where a set is empty or a query tile has several rows.
    pub appended: u32,
}

/// A problem on a device, with the scratch memory of its launches. Freed on drop.
pub struct Resident<'d> {
    device: &'d dyn Device,
    allocations: Vec<(String, Buffer)>,
    guard_bytes: usize,
    operands: Operands,
    plan: PlanBuffers,
    workspace: Workspace,
    scalars: Scalars,
    /// `[rows]`: request of each row.
    row_request: Vec<i32>,
    /// Canonical spans of all rows.
    spans: usize,
    /// Tokens that are appended to each set when the plan is made.
    appended: i32,
    outputs: usize,
    heads: usize,
}

/// What a decode step computes.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeOutput {
    /// `[rows, query_heads, head_dim]`, bits of the dtype.
    pub out: Vec<u16>,
    /// `[rows, query_heads]`, natural logarithm.
    pub lse: Vec<f32>,
}

/// A decode kernel that a device has loaded. Unloaded on drop.
pub struct Decoder<'d> {
    device: &'d dyn Device,
    launcher: Launcher,
}

impl<'d> Decoder<'d> {
    /// Loads the image that was compiled for `spec`.
    pub fn load(
        device: &'d dyn Device,
        image: &Image,
        spec: KernelSpec,
    ) -> Result<Self, DecoderError> {
        let module = device.load(image)?;
        Ok(Self { device, launcher: Launcher::new(module, spec, device.properties()) })
    }

    /// What was loaded.
    pub fn spec(&self) -> &KernelSpec {
        self.launcher.spec()
    }

    /// Blocks of a decode launch: fixed, whatever the problem.
    pub fn blocks(&self) -> u32 {
        self.launcher.blocks()
    }

    /// How evenly the blocks of a decode launch share the work; see [`Launcher::imbalance`].
    pub fn imbalance(&self, set_tokens: &[u64], heads_per_set: u32) -> f64 {
        self.launcher.imbalance(set_tokens, heads_per_set)
    }

    /// The loaded code.
    pub fn module(&self) -> ModuleId {
        self.launcher.module()
    }

    /// The device.
    pub fn device(&self) -> &'d dyn Device {
        self.device
    }

    /// Checks a problem and copies it to the device.
    pub fn upload(
        &self,
        problem: &DecodeProblem,
        options: UploadOptions,
    ) -> Result<Resident<'d>, DecoderError> {
        problem.check()?;
        let shape = problem.kernel_shape().map_err(ProblemError::from)?;
        if shape != self.spec().shape {
            return Err(DecoderError::OtherShape {
                kernel: self.spec().shape.to_string(),
                problem: shape.to_string(),
            });
        }
        let mut builder = Builder { device: self.device, options, allocations: Vec::new() };
        let built = self.place(problem, &mut builder);
        let allocations = std::mem::take(&mut builder.allocations);
        match built {
            Ok((operands, plan, workspace, scalars, appended)) => Ok(Resident {
                device: self.device,
                allocations,
                guard_bytes: options.guard_bytes,
                operands,
                plan,
                workspace,
                scalars,
                row_request: problem.row_request.clone(),
                spans: problem.spans.canonicalise().spans().len(),
                appended,
                outputs: problem.q.len(),
                heads: problem.rows() * problem.attention.query_heads as usize,
            }),
            Err(error) => {
                for (_, buffer) in allocations {
                    // The first error is the one to report.
                    let _ = self.device.free(buffer);
                }
                Err(error)
            }
        }
    }

    fn place(
        &self,
        problem: &DecodeProblem,
        builder: &mut Builder<'d>,
    ) -> Result<(Operands, PlanBuffers, Workspace, Scalars, i32), DecoderError> {
        let a = &problem.attention;
        let rows = problem.rows();
        let spans = problem.spans.canonicalise();
        let strides = problem.strides();
        let kv_bytes = a.kv_bytes() as u64;
        let raised = |page: &i32| match usize::try_from(*page) {
            Ok(known) if known < problem.pages => {
                page.wrapping_add_unsigned(builder.options.first_page)
            }
            _ => *page,
        };
        let page_table: Vec<i32> = problem.page_table.iter().map(raised).collect();
        let ahead = u64::from(builder.options.first_page).wrapping_mul(kv_bytes * strides.page);
        let pages_ahead =
            |buffer: Buffer| Buffer { address: buffer.address.wrapping_sub(ahead), ..buffer };
        let operands = Operands {
            q: builder.input("q", &problem.q, |e| e.to_le_bytes())?,
            k: pages_ahead(builder.kv("k", &problem.k, a.kv_dtype)?),
            v: pages_ahead(builder.kv("v", &problem.v, a.kv_dtype)?),
            page_table: builder.input("page_table", &page_table, |e| e.to_le_bytes())?,
            row_request: builder.input("row_request", &problem.row_request, |e| e.to_le_bytes())?,
            sinks: builder.floats("sinks", &problem.sinks)?,
            k_scales: builder.floats("k_scales", &problem.k_scales)?,
            v_scales: builder.floats("v_scales", &problem.v_scales)?,
            out: builder.scratch("out", 2 * problem.q.len())?,
            lse: builder.scratch("lse", 4 * rows * a.query_heads as usize)?,
        };
        let span_heads = problem.span_heads();
        let most = match self.spec().configuration.query_rows {
            1 => appendable(&spans),
            _ => 0,
        };
        let appended = most.min(builder.options.appended).cast_signed();
        let mut pairs = spans.spans().to_vec();
        for end in spans.span_ptr()[1..].iter().filter(|_| appended > 0) {
            pairs[*end as usize - 1][1] -= appended;
        }
        let inputs = PlanInputs {
            span_ptr: builder.input("span_ptr", spans.span_ptr(), |e| e.to_le_bytes())?,
            spans: builder.input("spans", pairs.as_flattened(), |e| e.to_le_bytes())?,
            row_request: &problem.row_request,
            count: spans.spans().len(),
            span_heads: span_heads as usize,
        };
        let (plan, workspace, tiles) = self.scratch(inputs, a.kv_heads, builder)?;
        // `check` has established that all of these fit.
        let scalars = Scalars {
            tiles: tiles as i32,
            kv_heads: a.kv_heads as i32,
            span_heads: span_heads as i32,
            page_size: a.page_size as i32,
            max_pages: problem.max_pages as i32,
            page_stride: strides.page as i32,
            token_stride: strides.token as i32,
            head_stride: strides.head as i32,
            smallest_share: self.spec().configuration.smallest_share as i32,
            scale: problem.scale,
            soft_cap: problem.soft_cap,
        };
        Ok((operands, plan, workspace, scalars, appended))
    }

    /// The memory that is this kernel's own: its plan and its workspace. Tells the query tiles too.
    fn scratch(
        &self,
        inputs: PlanInputs<'_>,
        kv_heads: u32,
        builder: &mut Builder<'d>,
    ) -> Result<(PlanBuffers, Workspace, usize), DeviceError> {
        let query_rows = self.spec().configuration.query_rows;
        let words = self.spec().configuration.row_words() as usize;
        let tile_ptr = query_tiles(inputs.row_request, query_rows);
        let tiles = tile_ptr.len() - 1;
        let sets = tiles * inputs.span_heads;
        let count = if query_rows > 1 { 2 * inputs.count } else { inputs.count };
        let [tile_ptr_name, tile_span_ptr, tile_spans, span_rows, ..] = SCRATCH;
        let overlay = match query_rows {
            1 => None,
            _ => Some(OverlayBuffers {
                tile_ptr: builder.input(tile_ptr_name, &tile_ptr, |e| e.to_le_bytes())?,
                tile_span_ptr: builder.scratch(tile_span_ptr, 16 * sets)?,
                tile_spans: builder.scratch(tile_spans, 8 * count)?,
                span_rows: builder.scratch(span_rows, 4 * words * count)?,
            }),
        };
        let [.., set_tokens, span_tokens, partial_acc, partial_ml, arrivals] = SCRATCH;
        let plan = PlanBuffers {
            span_ptr: inputs.span_ptr,
            spans: inputs.spans,
            overlay,
            set_tokens: builder.scratch(set_tokens, 4 * (sets + 2))?,
            span_tokens: builder.scratch(span_tokens, 4 * (count + 1))?,
        };
        let bytes = self.launcher.workspace_bytes(tiles, kv_heads);
        let workspace = Workspace {
            partial_acc: builder.scratch(partial_acc, bytes.partial_acc)?,
            partial_ml: builder.scratch(partial_ml, bytes.partial_ml)?,
            arrivals: builder.input(arrivals, &vec![0u8; bytes.arrivals], |b| [*b])?,
        };
        Ok((plan, workspace, tiles))
    }

    /// Takes over a problem that another decoder of the same shape has uploaded, as several decoders
    /// take turns at one: what is read stays where it is, plan and workspace are made anew.
    ///
    /// # Errors
    /// A device without memory for them.
    pub fn adopt(&self, resident: &mut Resident<'d>) -> Result<(), DecoderError> {
        let is_scratch = |(name, _): &(String, Buffer)| SCRATCH.contains(&name.as_str());
        for (_, buffer) in resident.allocations.extract_if(.., |a| is_scratch(a)) {
            self.device.free(buffer)?;
        }
        let options =
            UploadOptions { guard_bytes: resident.guard_bytes, ..UploadOptions::default() };
        let mut builder = Builder { device: self.device, options, allocations: Vec::new() };
        let inputs = PlanInputs {
            span_ptr: resident.plan.span_ptr,
            spans: resident.plan.spans,
            row_request: &resident.row_request,
            count: resident.spans,
            span_heads: resident.scalars.span_heads as usize,
        };
        let made = self.scratch(inputs, resident.scalars.kv_heads as u32, &mut builder);
        resident.allocations.append(&mut builder.allocations);
        let tiles;
        (resident.plan, resident.workspace, tiles) = made?;
        resident.scalars.tiles = tiles as i32;
        resident.scalars.smallest_share = self.spec().configuration.smallest_share as i32;
        Ok(())
    }

    /// The launches of one decode step, the plan first. None for a problem without rows.
    pub fn launches(&self, resident: &Resident<'_>) -> Vec<Launch> {
        let mut launches = self.plan(resident);
        launches.extend(self.attention(resident));
        launches
    }

    fn attention(&self, r: &Resident<'_>) -> Vec<Launch> {
        if r.scalars.tiles == 0 {
            return Vec::new();
        }
        self.launcher.attention(&r.operands, &r.plan, &r.workspace, &r.scalars)
    }

    fn plan(&self, r: &Resident<'_>) -> Vec<Launch> {
        if r.scalars.tiles == 0 {
            return Vec::new();
        }
        self.launcher.plan(&r.plan, r.scalars.tiles, r.scalars.span_heads)
    }

    /// Times decode steps.
    ///
    /// An emulated device executes some blocks of each launch alone. So the plan, which all of them
    /// need, is made beforehand; and since none of them is the last to arrive at a tile that several
    /// share, what the last arriver merges is predicted as the merge kernel's time without its launch.
    ///
    /// # Errors
    /// Those of [`Device::time`].
    pub fn time(
        &self,
        resident: &Resident<'_>,
        options: &TimeOptions,
    ) -> Result<Timing, DeviceError> {
        let mut launches = self.launches(resident);
        if self.device.properties().basis == Basis::Measured || launches.is_empty() {
            return self.device.time(&launches, options);
        }
        for launch in self.plan(resident) {
            self.device.launch(&launch)?;
        }
        let r = resident;
        let last_arriver = self.spec().configuration.merge == Merge::LastArriver;
        if last_arriver {
            // One block merges: there are no slices.
            launches.push(self.launcher.merge(&r.operands, &r.plan, &r.workspace, &r.scalars, 1));
        }
        let mut timing = self.device.time(&launches, options)?;
        if let (true, Some(merging)) = (last_arriver, timing.predictions.last_mut()) {
            let estimate = &mut merging.estimate;
            for term in estimate.terms.extract_if(.., |term| term.name == KERNEL_LAUNCH) {
                estimate.time_us -= term.us;
            }
            estimate.assumptions.push(
                "the last arriver merges: taken for the merge kernel, without its launch".into(),
            );
            timing.samples_us = vec![timing.predictions.iter().map(|p| p.estimate.time_us).sum()];
        }
        Ok(timing)
    }

    /// Times the plan alone, which all layers of a step share.
    ///
    /// # Errors
    /// Those of [`Device::time`].
    pub fn time_plan(
        &self,
        resident: &Resident<'_>,
        options: &TimeOptions,
    ) -> Result<Timing, DeviceError> {
        self.device.time(&self.plan(resident), options)
    }

    /// Runs one decode step; one report per launch.
    pub fn run(&self, resident: &Resident<'_>) -> Result<Vec<LaunchReport>, DecoderError> {
        let r = resident;
        let mut reports = Vec::new();
        for launch in self.plan(r) {
            reports.push(self.device.launch(&launch)?);
        }
        if r.appended > 0 {
            let count = r.guard_bytes + r.plan.set_tokens.bytes - 4;
            self.device.upload(r.whole(r.plan.set_tokens), count, &r.appended.to_le_bytes())?;
        }
        for launch in self.attention(r) {
            reports.push(self.device.launch(&launch)?);
        }
        Ok(reports)
    }

    /// Adds attention over other tokens, for the same rows, to what a step has written.
    pub fn merge_outputs(
        &self,
        resident: &Resident<'_>,
        other: &Resident<'_>,
    ) -> Result<(), DecoderError> {
        let heads = resident.heads.min(other.heads);
        if heads > 0 {
            let [to, from] = [resident, other].map(|r| {
                let Operands { out, lse, .. } = r.operands;
                Written { out, lse }
            });
            // Their outputs are in memory, so their number fits.
            self.device.launch(&self.launcher.merge_outputs(&to, &from, heads as i32))?;
        }
        Ok(())
    }
}

impl Drop for Decoder<'_> {
    fn drop(&mut self) {
        // A device that refuses has lost the module already.
        let _ = self.device.unload(self.launcher.module());
    }
}

impl Resident<'_> {
    /// Reads the results back.
    pub fn output(&self) -> Result<DecodeOutput, DeviceError> {
        let mut out = vec![0; 2 * self.outputs];
        self.device.download(self.whole(self.operands.out), self.guard_bytes, &mut out)?;
        let mut lse = vec![0; 4 * self.heads];
        self.device.download(self.whole(self.operands.lse), self.guard_bytes, &mut lse)?;
        Ok(DecodeOutput {
            out: out.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect(),
            lse: lse
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        })
    }

    /// Fills the outputs with NaN, so that a later launch cannot pass on what an earlier one left.
    pub fn poison_output(&self) -> Result<(), DeviceError> {
        let [out, lse] = [self.operands.out, self.operands.lse].map(|b| self.whole(b));
        self.device.upload(out, self.guard_bytes, &vec![POISON; 2 * self.outputs])?;
        self.device.upload(lse, self.guard_bytes, &vec![POISON; 4 * self.heads])
    }

    /// The allocation that an operand lies in, with its guard bands.
    fn whole(&self, inner: Buffer) -> Buffer {
        Buffer {
            address: inner.address - self.guard_bytes as u64,
            bytes: inner.bytes + 2 * self.guard_bytes,
        }
    }

    /// Names of buffers beyond whose ends something was written: empty where all guards are whole.
    pub fn broken_guards(&self) -> Result<Vec<String>, DeviceError> {
        let mut broken = Vec::new();
        let mut guard = vec![0; self.guard_bytes];
        for (name, whole) in &self.allocations {
            for offset in [0, whole.bytes - self.guard_bytes] {
                self.device.download(*whole, offset, &mut guard)?;
                if guard.iter().any(|b| *b != GUARD) {
                    broken.push(name.clone());
                    break;
                }
            }
        }
        Ok(broken)
    }
}

impl Drop for Resident<'_> {
    fn drop(&mut self) {
        for (_, buffer) in &self.allocations {
            // Nothing to be done about a device that is gone.
            let _ = self.device.free(*buffer);
        }
    }
}

/// Names of the buffers that each kernel has for itself.
const SCRATCH: [&str; 9] = [
    "tile_ptr",
    "tile_span_ptr",
    "tile_spans",
    "span_rows",
    "set_tokens",
    "span_tokens",
    "partial_acc",
    "partial_ml",
    "arrivals",
];

/// The most tokens without which the last span of every set has one left; 0 where a set is empty.
pub fn appendable(spans: &SpanBatch) -> u32 {
    let sets = spans.span_ptr().windows(2);
    let of_set = |ends: &[i32]| match ends {
        [first, end] if first < end => {
            let [start, stop] = spans.spans()[*end as usize - 1];
            stop.abs_diff(start).saturating_sub(1)
        }
        _ => 0,
    };
    sets.map(of_set).min().unwrap_or(0)
}

/// What a plan is made of.
struct PlanInputs<'a> {
    span_ptr: Buffer,
    spans: Buffer,
    /// `[rows]`.
    row_request: &'a [i32],
    /// Canonical spans.
    count: usize,
    /// Sets of each row.
    span_heads: usize,
}
