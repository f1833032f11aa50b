//! The binary interface of the exported kernels: names, argument lists, and how they are packed.
//! `cuda/kernels.cuh` is the other side; the artifact's manifest repeats it for loaders in other
//! languages, and it is verified against the cubin when an artifact is made and when it is loaded.

use serde::{Deserialize, Serialize};
use spanforge_device::{Argument, Buffer};

/// Raised whenever an argument is added, removed or given another meaning.
pub const ABI_VERSION: u32 = 3;

/// Threads of a block of the plan kernel; it is launched with one block.
pub const PLAN_THREADS: u32 = 256;

/// Threads of a block of the overlay kernel; it is launched with one warp per set.
pub const OVERLAY_THREADS: u32 = 128;

/// Threads of a slice of a block of the merge kernel, which has 1 to [`MERGE_SLICES`]; it is launched with
/// a grid of query tiles times KV heads by as many blocks as share the elements of each.
pub const MERGE_THREADS: u32 = 128;

/// Slices of a block of the merge kernel, at most: each merges a run of the states.
pub const MERGE_SLICES: u32 = 4;

/// Slices that are resident on a multiprocessor at once: what a slice's registers leave room for.
pub const MERGE_RESIDENT: u32 = 8;

/// The exported kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kernel {
    /// The spans of query tiles, from those of their rows.
    Overlay,
    /// Prefix sums over the spans.
    Plan,
    /// Attention over each block's share of the selected tokens.
    Decode,
    /// Merging the states of tiles that several blocks shared.
    Merge,
    /// Adding attention over other tokens to what was written.
    MergeOutputs,
}

/// What an argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArgumentKind {
    /// 64-bit device address.
    Pointer,
    /// 32-bit signed integer.
    I32,
}

impl ArgumentKind {
    /// Size in bytes.
    pub fn bytes(self) -> u32 {
        match self {
            Self::Pointer => 8,
            Self::I32 => 4,
        }
    }
}

impl Kernel {
    /// Every kernel.
    pub const ALL: [Self; 5] =
        [Self::Overlay, Self::Plan, Self::Decode, Self::Merge, Self::MergeOutputs];

    /// The name it is exported under.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Overlay => "spanforge_overlay",
            Self::Plan => "spanforge_plan",
            Self::Decode => "spanforge_decode",
            Self::Merge => "spanforge_merge",
            Self::MergeOutputs => "spanforge_merge_outputs",
        }
    }

    /// The arguments in order.
    pub fn arguments(self) -> &'static [(&'static str, ArgumentKind)] {
        use ArgumentKind::{I32, Pointer};
        match self {
            Self::Overlay => &[
                ("tile_ptr", Pointer),
                ("span_ptr", Pointer),
                ("spans", Pointer),
                ("tile_span_ptr", Pointer),
                ("tile_spans", Pointer),
                ("span_rows", Pointer),
                ("span_tokens", Pointer),
                ("tiles", I32),
                ("span_heads", I32),
            ],
            Self::Plan => &[
                ("span_ptr", Pointer),
                ("spans", Pointer),
                ("set_tokens", Pointer),
                ("span_tokens", Pointer),
                ("sets", I32),
            ],
            Self::Decode => &[
                ("q", Pointer),
                ("k", Pointer),
                ("v", Pointer),
                ("page_table", Pointer),
                ("row_request", Pointer),
                ("tile_ptr", Pointer),
                ("span_ptr", Pointer),
                ("spans", Pointer),
                ("span_rows", Pointer),
                ("set_tokens", Pointer),
                ("span_tokens", Pointer),
                ("sinks", Pointer),
                ("k_scales", Pointer),
                ("v_scales", Pointer),
                ("out", Pointer),
                ("lse", Pointer),
                ("partial_acc", Pointer),
                ("partial_ml", Pointer),
                ("arrivals", Pointer),
                ("tiles", I32),
                ("kv_heads", I32),
                ("span_heads", I32),
                ("page_size", I32),
                ("max_pages", I32),
                ("page_stride", I32),
                ("token_stride", I32),
                ("head_stride", I32),
                ("smallest_share", I32),
                ("scale_bits", I32),
                ("soft_cap_bits", I32),
            ],
            Self::Merge => &[
                ("tile_ptr", Pointer),
                ("set_tokens", Pointer),
                ("sinks", Pointer),
                ("out", Pointer),
                ("lse", Pointer),
                ("partial_acc", Pointer),
                ("partial_ml", Pointer),
                ("tiles", I32),
                ("kv_heads", I32),
                ("span_heads", I32),
                ("blocks", I32),
                ("smallest_share", I32),
            ],
            Self::MergeOutputs => &[
                ("out", Pointer),
                ("lse", Pointer),
                ("other_out", Pointer),
                ("other_lse", Pointer),
                ("heads", I32),
            ],
        }
    }
}

/// Device memory of one launch, as the kernels name it.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// `[rows, query_heads, head_dim]`.
    pub q: Buffer,
    /// Pages of keys.
    pub k: Buffer,
    /// Pages of values.
    pub v: Buffer,
    /// `[requests, max_pages]` i32.
    pub page_table: Buffer,
    /// `[rows]` i32.
    pub row_request: Buffer,
    /// `[query_heads]` f32: a logit for each query head that its softmax has besides those of tokens.
    pub sinks: Option<Buffer>,
    /// `[kv_heads]` f32: factors of elements of k of 8 bits. 1 where they are not given.
    pub k_scales: Option<Buffer>,
    /// As `k_scales`, of v.
    pub v_scales: Option<Buffer>,
    /// `[rows, query_heads, head_dim]`.
    pub out: Buffer,
    /// `[rows, query_heads]` f32.
    pub lse: Buffer,
}

/// Spans and the plan made of them. A *set* is that of a row, or of a query tile of several rows, or of
/// one KV head of it where those have spans of their own.
#[derive(Clone, Copy, Debug)]
pub struct PlanBuffers {
    /// `[rows * span_heads + 1]` i32.
    pub span_ptr: Buffer,
    /// `[spans, 2]` i32, canonical.
    pub spans: Buffer,
    /// Where query tiles have several rows.
    pub overlay: Option<OverlayBuffers>,
    /// `[sets + 2]` i32, written by the plan kernel. The last is the number of tokens that were appended to
    /// the last span of every set since, 0 to begin with: who raises it needs no new plan, if no set is
    /// empty and each has a query tile of one row.
    pub set_tokens: Buffer,
    /// `[spans + 1]` i32, written by the plan kernel; `[2 * spans]` with an overlay, by that.
    pub span_tokens: Buffer,
}

/// The spans of query tiles of several rows. All but the first are written by the overlay kernel.
#[derive(Clone, Copy, Debug)]
pub struct OverlayBuffers {
    /// `[tiles + 1]` i32: the first row of each tile (see [`query_tiles`](crate::launch::query_tiles)).
    pub tile_ptr: Buffer,
    /// `[tiles * span_heads, 4]` i32: the first span of each set, what is behind its last, tokens, and 0.
    pub tile_span_ptr: Buffer,
    /// `[2 * spans, 2]` i32.
    pub tile_spans: Buffer,
    /// `[2 * spans, row_words]` u32: a bit for each row of the tile, set where it selects the span (and
    /// where there is no such row); see [`Configuration::row_words`].
    ///
    /// [`Configuration::row_words`]: crate::Configuration::row_words
    pub span_rows: Buffer,
}

impl PlanBuffers {
    /// Offsets and spans that are planned: those of the overlay where there is one.
    fn planned(&self) -> [Buffer; 2] {
        match &self.overlay {
            Some(overlay) => [overlay.tile_span_ptr, overlay.tile_spans],
            None => [self.span_ptr, self.spans],
        }
    }
}

/// The address of a buffer that need not be there: null where it is not.
fn optional(buffer: Option<Buffer>) -> Argument {
    buffer.map_or(Argument::Pointer(0), |buffer| buffer.at(0))
}

/// Scratch memory that launches of one decoder share.
#[derive(Clone, Copy, Debug)]
pub struct Workspace {
    /// `[2 * blocks, columns, head_dim]` f32.
    pub partial_acc: Buffer,
    /// `[2 * blocks, columns, 2]` f32.
    pub partial_ml: Buffer,
    /// `[tiles, kv_heads]` i32, zero before a launch and after it.
    pub arrivals: Buffer,
}

/// The integers of a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scalars {
    /// Query tiles: rows, where those have one each.
    pub tiles: i32,
    /// KV heads.
    pub kv_heads: i32,
    /// Sets of spans of each row: 1, or as many as KV heads.
    pub span_heads: i32,
    /// Tokens per page.
    pub page_size: i32,
    /// Entries of a request's row of the page table.
    pub max_pages: i32,
    /// Elements from one page to the next.
    pub page_stride: i32,
    /// Elements from one token of a page to the next.
    pub token_stride: i32,
    /// Elements from one KV head to the next.
    pub head_stride: i32,
    /// Fewest selected tokens of a block, as in the configuration.
    pub smallest_share: i32,
    /// Factor of q . k.
    pub scale: f32,
    /// What logits are capped at, smoothly; 0 where they are not.
    pub soft_cap: f32,
}

/// Arguments of [`Kernel::Overlay`] for `tiles` query tiles of rows with `span_heads` sets each.
pub fn overlay_arguments(
    plan: &PlanBuffers,
    overlay: &OverlayBuffers,
    tiles: i32,
    span_heads: i32,
) -> Vec<Argument> {
    vec![
        overlay.tile_ptr.at(0),
        plan.span_ptr.at(0),
        plan.spans.at(0),
        overlay.tile_span_ptr.at(0),
        overlay.tile_spans.at(0),
        overlay.span_rows.at(0),
        plan.span_tokens.at(0),
        Argument::I32(tiles),
        Argument::I32(span_heads),
    ]
}

/// Attention that is written: output `[heads, head_dim]` and LSE `[heads]` f32, of query heads of any
/// rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// In the kernel's dtype.
    pub out: Buffer,
    /// Natural logarithm.
    pub lse: Buffer,
}

/// Arguments of [`Kernel::MergeOutputs`], which adds `other` to `to`.
pub fn merge_outputs_arguments(to: &Written, other: &Written, heads: i32) -> Vec<Argument> {
    let [out, lse] = [to.out, to.lse].map(|buffer| buffer.at(0));
    let [other_out, other_lse] = [other.out, other.lse].map(|buffer| buffer.at(0));
    vec![out, lse, other_out, other_lse, Argument::I32(heads)]
}

/// Arguments of [`Kernel::Plan`].
pub fn plan_arguments(plan: &PlanBuffers, sets: i32) -> Vec<Argument> {
    let [span_ptr, spans] = plan.planned();
    vec![
        span_ptr.at(0),
        spans.at(0),
        plan.set_tokens.at(0),
        plan.span_tokens.at(0),
        Argument::I32(sets),
    ]
}

/// Arguments of [`Kernel::Decode`].
pub fn decode_arguments(
    operands: &Operands,
    plan: &PlanBuffers,
    workspace: &Workspace,
    scalars: &Scalars,
) -> Vec<Argument> {
    let [span_ptr, spans] = plan.planned();
    let mut arguments: Vec<Argument> = [
        Some(operands.q),
        Some(operands.k),
        Some(operands.v),
        Some(operands.page_table),
        Some(operands.row_request),
        plan.overlay.map(|overlay| overlay.tile_ptr),
        Some(span_ptr),
        Some(spans),
        plan.overlay.map(|overlay| overlay.span_rows),
        Some(plan.set_tokens),
        Some(plan.span_tokens),
        operands.sinks,
        operands.k_scales,
        operands.v_scales,
        Some(operands.out),
        Some(operands.lse),
        Some(workspace.partial_acc),
        Some(workspace.partial_ml),
        Some(workspace.arrivals),
    ]
    .into_iter()
    .map(optional)
    .collect();
    let s = scalars;
    arguments.extend(
        [
            s.tiles,
            s.kv_heads,
            s.span_heads,
            s.page_size,
            s.max_pages,
            s.page_stride,
            s.token_stride,
            s.head_stride,
            s.smallest_share,
            s.scale.to_bits().cast_signed(),
            s.soft_cap.to_bits().cast_signed(),
        ]
        .map(Argument::I32),
    );
    arguments
}

/// Arguments of [`Kernel::Merge`]; `blocks` is the grid of the decode launch.
pub fn merge_arguments(
    operands: &Operands,
    plan: &PlanBuffers,
    workspace: &Workspace,
    scalars: &Scalars,
    blocks: i32,
) -> Vec<Argument> {
    let mut arguments: Vec<Argument> = [
        plan.overlay.map(|overlay| overlay.tile_ptr),
        Some(plan.set_tokens),
        operands.sinks,
        Some(operands.out),
        Some(operands.lse),
        Some(workspace.partial_acc),
        Some(workspace.partial_ml),
    ]
    .into_iter()
    .map(optional)
    .collect();
    let s = scalars;
    arguments
        .extend([s.tiles, s.kv_heads, s.span_heads, blocks, s.smallest_share].map(Argument::I32));
    arguments
}
