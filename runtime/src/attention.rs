//! The attention module of a model: loads the kernel of an artifact once, then per decode step
//! plans once for all layers and runs once per layer.
//!
//! Everything that a kernel has to trust is checked when a step is planned, against the very arrays
//! that are copied to the device: rows, requests, spans, KV lengths and page table. A run checks
//! its buffers' sizes and queues its launches; it never waits for the device.

mod checks;
mod error;
mod kernels;

use self::checks::{check_buffers, check_limits};
pub use self::error::AttentionError;
pub(crate) use self::error::remedy;
use self::kernels::Kernels;
use crate::memory::{DeviceMemory, Mirror};
use spanforge_device::{Buffer, Device, Image, Launch, LaunchReport};
use spanforge_kernels::abi::{Operands, OverlayBuffers, PlanBuffers, Scalars, Workspace, Written};
use spanforge_kernels::artifact::Artifact;
use spanforge_kernels::configuration::{AttentionShape, KernelSpec};
use spanforge_kernels::launch::{WorkspaceBytes, query_tiles};
use spanforge_kernels::problem::check_soft_cap;
use spanforge_kernels::{Addressing, Bucket, KvStrides, ProblemError};
use spanforge_spans::SpanBatch;
use std::borrow::Cow;
use std::sync::Arc;

/// The most that a decode step may ask for: device memory is sized for it once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanAttentionLimits {
    /// Rows.
    pub rows: usize,
    /// Canonical spans of all rows together.
    pub spans: usize,
    /// Requests.
    pub requests: usize,
    /// Page table entries per request.
    pub max_pages: usize,
}

/// Where the tokens of each request lie, on the host. One map serves all layers.
#[derive(Clone, Copy, Debug)]
pub struct PageMap<'a> {
    /// `[requests, max_pages]`: page of each run of `page_size` logical positions. Entries that no
    /// selected token needs may be anything.
    pub page_table: &'a [i32],
    /// Entries of each request's row of the table.
    pub max_pages: usize,
    /// `[requests]`: tokens in the cache of each request.
    pub kv_len: &'a [i32],
    /// Pages of each layer's cache.
    pub pages: usize,
}

/// One decode step, for all layers.
#[derive(Clone, Copy, Debug)]
pub struct DecodeStep<'a> {
    /// Per row the selected tokens, in logical positions; any raw spans. One set, or one for each KV
    /// head, as sets `[rows, kv_heads]`.
    pub spans: &'a SpanBatch,
    /// `[rows]`: request of each row. Rows of one request that follow each other are read together by
    /// kernels that take several rows.
    pub row_request: &'a [i32],
    /// Where tokens lie.
    pub pages: PageMap<'a>,
}

/// The cache of one layer on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagedKv {
    /// Keys, 16-byte aligned.
    pub k: Buffer,
    /// Values, 16-byte aligned.
    pub v: Buffer,
    /// Strides of both, in elements: whole sixteens of bytes, so that every row is 16-byte aligned.
    pub strides: KvStrides,
    /// `[kv_heads]` f32, positive: what the keys of a cache of 8-bit elements are multiplied by. `None`
    /// for 1.
    pub k_scales: Option<Buffer>,
    /// As `k_scales`, for values.
    pub v_scales: Option<Buffer>,
}

impl PagedKv {
    /// A cache without factors.
    pub fn new(k: Buffer, v: Buffer, strides: KvStrides) -> Self {
        Self { k, v, strides, k_scales: None, v_scales: None }
    }
}

/// Device memory of one layer's attention. All but the LSE are 16-byte aligned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOperands {
    /// `[rows, query_heads, head_dim]` in the queries' dtype.
    pub q: Buffer,
    /// The layer's cache.
    pub kv: PagedKv,
    /// `[rows, query_heads, head_dim]` in the queries' dtype, written.
    pub out: Buffer,
    /// `[rows, query_heads]` f32, natural logarithm, written.
    pub lse: Buffer,
    /// Factor of q . k before the softmax.
    pub scale: f32,
    /// What logits are capped at, smoothly: `soft_cap * tanh(logit / soft_cap)`. 0 for no cap.
    pub soft_cap: f32,
    /// `[query_heads]` f32: a logit that the softmax of each query head has besides those of tokens, with
    /// a value of zero.
    pub sinks: Option<Buffer>,
}

/// What planning a step took.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanReport {
    /// Bytes copied to the device: 0 where the step is the one before.
    pub uploaded_bytes: usize,
    /// The reports of the kernels that plan; none where the plan was reused.
    pub launches: Vec<LaunchReport>,
}

/// Span attention on one device, for one attention shape.
pub struct SpanAttention {
    device: Arc<dyn Device>,
    kernels: Kernels,
    attention: AttentionShape,
    limits: SpanAttentionLimits,
    span_ptr: Mirror,
    spans: Mirror,
    row_request: Mirror,
    page_table: Mirror,
    overlay: Option<Overlay>,
    set_tokens: DeviceMemory,
    span_tokens: DeviceMemory,
    partial_acc: DeviceMemory,
    partial_ml: DeviceMemory,
    arrivals: DeviceMemory,
    /// Whether the arrivals are zero, which a failed launch leaves open.
    arrivals_clear: bool,
    /// Whether the plan on the device is that of the spans on the device.
    plan_current: bool,
    /// Tokens that were appended to each set since it was made.
    appended: i32,
    planned: Option<Planned>,
}

/// Memory for the spans of query tiles.
struct Overlay {
    tile_ptr: Mirror,
    tile_span_ptr: DeviceMemory,
    tile_spans: DeviceMemory,
    span_rows: DeviceMemory,
}

/// The step that runs are for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Planned {
    rows: usize,
    /// Query tiles of the kernel in use.
    tiles: usize,
    span_heads: u32,
    max_pages: usize,
    pages: usize,
    kv_len: Vec<i32>,
}

impl SpanAttention {
    /// Loads the artifact's kernels that serve the shape on the device, one or, where they were timed
    /// by bucket, those that are the best somewhere, and allocates all memory that steps within the
    /// limits need. Each step is run by the kernel of the bucket nearest to it.
    pub fn load(
        artifact: &Artifact,
        device: Arc<dyn Device>,
        attention: AttentionShape,
        limits: SpanAttentionLimits,
    ) -> Result<Self, AttentionError> {
        let shape = attention.kernel_shape().map_err(ProblemError::from)?;
        let properties = device.properties();
        let select = |bucket: &Bucket| {
            let selected = artifact.select(shape, properties, bucket);
            selected.map_err(|source| AttentionError::NoKernel { shape, source })
        };
        // Without buckets any batch gets the first kernel.
        let first = select(&Bucket::of(1, 1, 1, 1))?.entry;
        let mut kernels = Kernels::new(&device);
        for served in &first.buckets {
            let entry = select(&served.bucket)?.entry;
            let place = kernels.load(&artifact.image(entry, properties), entry.spec)?;
            kernels.buckets.push((served.bucket, place));
        }
        if kernels.launchers.is_empty() {
            kernels.load(&artifact.image(first, properties), first.spec)?;
        }
        Self::with_kernels(device, kernels, attention, limits)
    }

    /// [`load`](Self::load) for code that was compiled for `spec` just now.
    pub fn from_image(
        image: &Image,
        spec: KernelSpec,
        device: Arc<dyn Device>,
        attention: AttentionShape,
        limits: SpanAttentionLimits,
    ) -> Result<Self, AttentionError> {
        let any = Bucket::of(1, 1, 1, 1);
        Self::from_images(&[(any, image.clone(), spec)], device, attention, limits)
    }

    /// [`load`](Self::load) for code that was compiled just now: kernels of one shape, each for the
    /// batches that are nearest to its bucket.
    ///
    /// # Errors
    /// Kernels of another shape. `images` has one at least.
    pub fn from_images(
        images: &[(Bucket, Image, KernelSpec)],
        device: Arc<dyn Device>,
        attention: AttentionShape,
        limits: SpanAttentionLimits,
    ) -> Result<Self, AttentionError> {
        let shape = attention.kernel_shape().map_err(ProblemError::from)?;
        let other = images.iter().find(|(.., spec)| spec.shape != shape);
        if let Some((.., spec)) = other {
            return Err(AttentionError::OtherShape { kernel: spec.shape, shape });
        }
        let mut kernels = Kernels::new(&device);
        for (bucket, image, spec) in images {
            let place = kernels.load(image, *spec)?;
            kernels.buckets.push((*bucket, place));
        }
        Self::with_kernels(device, kernels, attention, limits)
    }

    fn with_kernels(
        device: Arc<dyn Device>,
        kernels: Kernels,
        attention: AttentionShape,
        limits: SpanAttentionLimits,
    ) -> Result<Self, AttentionError> {
        check_limits(&attention, &limits)?;
        let needs =
            kernels.launchers.iter().map(|l| l.workspace_bytes(limits.rows, attention.kv_heads));
        let most = |part: fn(&WorkspaceBytes) -> usize| needs.clone().map(|need| part(&need)).max();
        let partial_acc = most(|need| need.partial_acc).unwrap_or(0);
        let partial_ml = most(|need| need.partial_ml).unwrap_or(0);
        let arrivals = most(|need| need.arrivals).unwrap_or(0);
        let configurations = || kernels.launchers.iter().map(|l| l.spec().configuration);
        let tiled = configurations().any(|c| c.query_rows > 1);
        let row_words = configurations().map(|c| c.row_words() as usize).max().unwrap_or(1);
        let integers = |name, count| Mirror::allocate(&device, name, count);
        let bytes = |name, bytes| DeviceMemory::allocate(&device, name, bytes);
        let sets = limits.rows * attention.kv_heads as usize;
        let planned_spans = if tiled { 2 * limits.spans } else { limits.spans };
        let overlay = match tiled {
            false => None,
            true => Some(Overlay {
                tile_ptr: integers("tile_ptr", limits.rows + 1)?,
                tile_span_ptr: bytes("tile_span_ptr", 16 * sets)?,
                tile_spans: bytes("tile_spans", 8 * planned_spans)?,
                span_rows: bytes("span_rows", 4 * row_words * planned_spans)?,
            }),
        };
        let span_ptr = integers("span_ptr", sets + 1)?;
        let spans = integers("spans", 2 * limits.spans)?;
        let row_request = integers("row_request", limits.rows)?;
        let page_table = integers("page_table", limits.requests * limits.max_pages)?;
        let set_tokens = bytes("set_tokens", 4 * (sets + 2))?;
        let span_tokens = bytes("span_tokens", 4 * (planned_spans + 1))?;
        let partial_acc = bytes("partial_acc", partial_acc)?;
        let partial_ml = bytes("partial_ml", partial_ml)?;
        let arrivals = bytes("arrivals", arrivals)?;
        Ok(Self {
            device,
            kernels,
            attention,
            limits,
            span_ptr,
            spans,
            row_request,
            page_table,
            overlay,
            set_tokens,
            span_tokens,
            partial_acc,
            partial_ml,
            arrivals,
            arrivals_clear: false,
            plan_current: false,
            appended: 0,
            planned: None,
        })
    }

    /// The kernel in use: that of the step planned last.
    pub fn spec(&self) -> &KernelSpec {
        self.kernels.current().spec()
    }

    /// Query tiles of the step planned last, on which the launches of its layers depend besides the rows
    /// and the kernel; 0 without a plan.
    pub fn tiles(&self) -> usize {
        self.planned.as_ref().map_or(0, |planned| planned.tiles)
    }

    /// What it was loaded for.
    pub fn attention(&self) -> &AttentionShape {
        &self.attention
    }

    /// What a step may ask for.
    pub fn limits(&self) -> &SpanAttentionLimits {
        &self.limits
    }

    /// Checks a step, copies what changed since the one before, and has the device plan it. Where
    /// the spans have not changed the plan is reused, and where all that has is that every set ends as
    /// many tokens later, as when each row has found one more, the device is told their number alone, if
    /// the kernel takes one row at a time; where nothing has changed, nothing is done at all. After an
    /// error there is no plan.
    pub fn plan(&mut self, step: &DecodeStep<'_>) -> Result<PlanReport, AttentionError> {
        let last = self.planned.take();
        let spans = match step.spans.is_canonical() {
            true => Cow::Borrowed(step.spans),
            false => Cow::Owned(step.spans.canonicalise()),
        };
        let mut planned = Planned {
            rows: step.row_request.len(),
            tiles: last.as_ref().map_or(0, |last| last.tiles),
            span_heads: self.addressing(step, &spans).span_heads(self.attention.kv_heads)?,
            max_pages: step.pages.max_pages,
            pages: step.pages.pages,
            kv_len: step.pages.kv_len.to_vec(),
        };
        let pairs = spans.spans().as_flattened();
        let grown = self.grown(&spans).filter(|_| self.plan_current);
        if last.as_ref() == Some(&planned)
            && grown == Some(self.appended)
            && self.row_request.held() == step.row_request
            && self.page_table.held() == step.pages.page_table
        {
            self.planned = last;
            return Ok(PlanReport { uploaded_bytes: 0, launches: Vec::new() });
        }
        self.check_step(step, &spans)?;

        let changed = self.kernels.choose(&spans, step.row_request);
        let query_rows = self.spec().configuration.query_rows;
        let tiles = query_tiles(step.row_request, query_rows);
        planned.tiles = tiles.len() - 1;
        let mut uploaded_bytes = 0;
        match grown {
            Some(grown) if !changed && (query_rows == 1 || grown == 0) => {
                if grown != self.appended {
                    // Behind the sums over sets.
                    let count = 4 * spans.span_ptr().len();
                    self.plan_current = false;
                    self.set_tokens.upload(count, &grown.to_le_bytes())?;
                    self.plan_current = true;
                    self.appended = grown;
                    uploaded_bytes += 4;
                }
            }
            _ => {
                self.plan_current = false;
                uploaded_bytes += self.span_ptr.update(spans.span_ptr())?;
                uploaded_bytes += self.spans.update(pairs)?;
            }
        }
        if let Some(overlay) = self.overlay.as_mut().filter(|_| query_rows > 1) {
            self.plan_current &= overlay.tile_ptr.held() == tiles;
            uploaded_bytes += overlay.tile_ptr.update(&tiles)?;
        }
        uploaded_bytes += self.row_request.update(step.row_request)?;
        uploaded_bytes += self.page_table.update(step.pages.page_table)?;
        if !self.arrivals_clear {
            self.arrivals.upload(0, &vec![0; self.arrivals.buffer().bytes])?;
            self.arrivals_clear = true;
        }
        let mut launches = Vec::new();
        if !self.plan_current && planned.rows > 0 {
            // The limits on rows x KV heads are those of an i32.
            let (tiles, span_heads) = (planned.tiles as i32, planned.span_heads.cast_signed());
            for launch in self.kernels.current().plan(&self.plan_buffers(), tiles, span_heads) {
                launches.push(self.device.launch(&launch)?);
            }
            self.plan_current = true;
            self.appended = 0;
        }
        self.planned = Some(planned);
        Ok(PlanReport { uploaded_bytes, launches })
    }

    /// How many tokens later every set of those spans ends than that on the device, and nothing else is
    /// different: 0 where nothing is, `None` where something else is.
    fn grown(&self, spans: &SpanBatch) -> Option<i32> {
        let (held, pairs) = (self.spans.held(), spans.spans().as_flattened());
        if self.span_ptr.held() != spans.span_ptr() || held.len() != pairs.len() {
            return None;
        }
        if held == pairs {
            return Some(0);
        }
        let mut grown = None;
        for ends in spans.span_ptr().windows(2) {
            let [first, end] = [ends[0], ends[1]].map(|end| 2 * end as usize);
            let last = end.checked_sub(1).filter(|_| first < end)?;
            let by = pairs[last] - held[last];
            let same = held[first..last] == pairs[first..last];
            if !same || by < 0 || *grown.get_or_insert(by) != by {
                return None;
            }
        }
        grown
    }

    fn addressing<'a>(&self, step: &DecodeStep<'a>, spans: &'a SpanBatch) -> Addressing<'a> {
        Addressing {
            spans,
            row_request: step.row_request,
            kv_len: step.pages.kv_len,
            page_table: step.pages.page_table,
            max_pages: step.pages.max_pages,
            pages: step.pages.pages,
        }
    }

    fn check_step(&self, step: &DecodeStep<'_>, spans: &SpanBatch) -> Result<(), AttentionError> {
        let limits = &self.limits;
        for (what, found, limit) in [
            ("rows", step.row_request.len(), limits.rows),
            ("spans", spans.spans().len(), limits.spans),
            ("requests", step.pages.kv_len.len(), limits.requests),
            ("page table entries per request", step.pages.max_pages, limits.max_pages),
        ] {
            if found > limit {
                return Err(AttentionError::Limit { what, found, limit });
            }
        }
        Ok(self.addressing(step, spans).check(&self.attention)?)
    }

    /// The launches of one layer's attention for the planned step: none without rows. For timing,
    /// or for a graph; [`run`](Self::run) queues them.
    pub fn launches(&self, operands: &StepOperands) -> Result<Vec<Launch>, AttentionError> {
        let planned = self.planned.as_ref().ok_or(AttentionError::NotPlanned)?;
        self.check_operands(operands, planned)?;
        if planned.rows == 0 {
            return Ok(Vec::new());
        }
        let a = &self.attention;
        let StepOperands { q, kv, out, lse, scale, soft_cap, sinks } = *operands;
        let (page_table, row_request) = (self.page_table.buffer(), self.row_request.buffer());
        let PagedKv { k, v, strides, k_scales, v_scales } = kv;
        let operands =
            Operands { q, k, v, page_table, row_request, sinks, k_scales, v_scales, out, lse };
        let workspace = Workspace {
            partial_acc: self.partial_acc.buffer(),
            partial_ml: self.partial_ml.buffer(),
            arrivals: self.arrivals.buffer(),
        };
        // All of these were checked to fit.
        let scalars = Scalars {
            tiles: planned.tiles as i32,
            kv_heads: a.kv_heads as i32,
            span_heads: planned.span_heads as i32,
            page_size: a.page_size as i32,
            max_pages: planned.max_pages as i32,
            page_stride: strides.page as i32,
            token_stride: strides.token as i32,
            head_stride: strides.head as i32,
            smallest_share: self.spec().configuration.smallest_share as i32,
            scale,
            soft_cap,
        };
        Ok(self.kernels.current().attention(&operands, &self.plan_buffers(), &workspace, &scalars))
    }

    /// Queues one layer's attention for the planned step; one report per launch. `&mut`, since
    /// launches share scratch memory: they are to follow each other on the device's queue.
    pub fn run(&mut self, operands: &StepOperands) -> Result<Vec<LaunchReport>, AttentionError> {
        let launches = self.launches(operands)?;
        let reports: Result<Vec<_>, _> =
            launches.iter().map(|launch| self.device.launch(launch)).collect();
        if reports.is_err() {
            self.forget();
        }
        Ok(reports?)
    }

    /// Adds attention over other tokens, `other`, to what a run has written for `rows` rows, `to`: outputs
    /// weighted by e^LSE. A sink may be in one of the two. Queued as a run is.
    ///
    /// # Errors
    /// Buffers that are too small or not aligned.
    pub fn merge_outputs(
        &self,
        to: &Written,
        other: &Written,
        rows: usize,
    ) -> Result<Option<LaunchReport>, AttentionError> {
        let a = &self.attention;
        let heads = rows.saturating_mul(a.query_heads as usize);
        let elements = heads.saturating_mul(a.head_dim as usize) as u64;
        let lse = 4 * heads as u64;
        check_buffers([
            ("out", to.out, 16, 2 * elements),
            ("lse", to.lse, 4, lse),
            ("other out", other.out, 16, 2 * elements),
            ("other lse", other.lse, 4, lse),
        ])?;
        let Ok(heads) = i32::try_from(heads) else {
            return Err(AttentionError::Limits { what: "rows x query heads", found: heads });
        };
        if heads == 0 {
            return Ok(None);
        }
        let launch = self.kernels.current().merge_outputs(to, other, heads);
        Ok(Some(self.device.launch(&launch)?))
    }

    /// To be called where [`launches`](Self::launches) that were queued have failed: the step is no
    /// longer planned, and what they may have left in scratch memory is cleared by the next plan.
    pub fn forget(&mut self) {
        self.arrivals_clear = false;
        self.planned = None;
    }

    fn plan_buffers(&self) -> PlanBuffers {
        PlanBuffers {
            span_ptr: self.span_ptr.buffer(),
            spans: self.spans.buffer(),
            // A kernel that takes one row at a time has no overlay, whatever others need.
            overlay: match self.spec().configuration.query_rows {
                1 => None,
                _ => self.overlay.as_ref().map(|overlay| OverlayBuffers {
                    tile_ptr: overlay.tile_ptr.buffer(),
                    tile_span_ptr: overlay.tile_span_ptr.buffer(),
                    tile_spans: overlay.tile_spans.buffer(),
                    span_rows: overlay.span_rows.buffer(),
                }),
            },
            set_tokens: self.set_tokens.buffer(),
            span_tokens: self.span_tokens.buffer(),
        }
    }

    fn check_operands(
        &self,
        operands: &StepOperands,
        planned: &Planned,
    ) -> Result<(), AttentionError> {
        let a = &self.attention;
        let fault = |operand, fault: String| Err(AttentionError::Operand { operand, fault });
        if !operands.scale.is_finite() {
            return fault("scale", format!("{} is not a finite number", operands.scale));
        }
        check_soft_cap(operands.soft_cap)?;
        let PagedKv { strides, k_scales, v_scales, .. } = operands.kv;
        let KvStrides { page, token, head } = strides;
        let kv_bytes = a.kv_bytes() as u64;
        let whole = 16 / kv_bytes;
        for (operand, stride) in
            [("page stride", page), ("token stride", token), ("head stride", head)]
        {
            if stride > i32::MAX as u64 || !stride.is_multiple_of(whole) {
                return fault(
                    operand,
                    format!("{stride} elements, expected a multiple of {whole} up to {}", i32::MAX),
                );
            }
        }
        let heads = planned.rows as u64 * u64::from(a.query_heads);
        let elements = heads.saturating_mul(u64::from(a.head_dim));
        let kv = strides.elements(a, planned.pages).unwrap_or(u64::MAX).saturating_mul(kv_bytes);
        check_buffers([
            ("q", operands.q, 16, elements.saturating_mul(2)),
            ("k", operands.kv.k, 16, kv),
            ("v", operands.kv.v, 16, kv),
            ("out", operands.out, 16, elements.saturating_mul(2)),
            ("lse", operands.lse, 4, heads.saturating_mul(4)),
        ])?;
        let [of_query_heads, of_kv_heads] = [a.query_heads, a.kv_heads].map(|n| 4 * u64::from(n));
        let optional = [
            ("sinks", operands.sinks, of_query_heads),
            ("k_scales", k_scales, of_kv_heads),
            ("v_scales", v_scales, of_kv_heads),
        ];
        if a.kv_dtype.is_same()
            && let Some((name, ..)) = optional[1..].iter().find(|(_, buffer, _)| buffer.is_some())
        {
            return fault(name, "only a cache of 8-bit elements has factors".to_owned());
        }
        let given = |(name, buffer, bytes): (_, Option<Buffer>, _)| Some((name, buffer?, 4, bytes));
        check_buffers(optional.into_iter().filter_map(given))
    }
}
