//! The binary interface of the exported kernels: names, argument lists, and how they are packed.
//! `cuda/kernels.cuh` is the other side; the artifact's manifest repeats it for loaders in other
//! languages, and it is verified against the cubin when an artifact is made and when it is loaded.

use serde::{Deserialize, Serialize};
use spanforge_device::{Argument, Buffer};

/// Raised whenever an argument is added, removed or given another meaning.
pub const ABI_VERSION: u32 = 1;

/// Threads of a block of the plan kernel; it is launched with one block.
pub const PLAN_THREADS: u32 = 256;

/// Threads of a block of the merge kernel; it is launched with one block per row and KV head.
pub const MERGE_THREADS: u32 = 128;

/// The exported kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kernel {
    /// Prefix sums over the spans.
    Plan,
    /// Attention over each block's share of the selected tokens.
    Decode,
    /// Merging the states of rows that several blocks shared.
    Merge,
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
    pub const ALL: [Self; 3] = [Self::Plan, Self::Decode, Self::Merge];

    /// The name it is exported under.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Plan => "spanforge_plan",
            Self::Decode => "spanforge_decode",
            Self::Merge => "spanforge_merge",
        }
    }

    /// The arguments in order.
    pub fn arguments(self) -> &'static [(&'static str, ArgumentKind)] {
        use ArgumentKind::{I32, Pointer};
        match self {
            Self::Plan => &[
                ("span_ptr", Pointer),
                ("spans", Pointer),
                ("row_tokens", Pointer),
                ("span_tokens", Pointer),
                ("rows", I32),
            ],
            Self::Decode => &[
                ("q", Pointer),
                ("k", Pointer),
                ("v", Pointer),
                ("page_table", Pointer),
                ("row_request", Pointer),
                ("span_ptr", Pointer),
                ("spans", Pointer),
                ("row_tokens", Pointer),
                ("span_tokens", Pointer),
                ("out", Pointer),
                ("lse", Pointer),
                ("partial_acc", Pointer),
                ("partial_ml", Pointer),
                ("arrivals", Pointer),
                ("rows", I32),
                ("kv_heads", I32),
                ("page_size", I32),
                ("max_pages", I32),
                ("page_stride", I32),
                ("token_stride", I32),
                ("head_stride", I32),
                ("smallest_share", I32),
                ("scale_bits", I32),
            ],
            Self::Merge => &[
                ("row_tokens", Pointer),
                ("out", Pointer),
                ("lse", Pointer),
                ("partial_acc", Pointer),
                ("partial_ml", Pointer),
                ("rows", I32),
                ("kv_heads", I32),
                ("blocks", I32),
                ("smallest_share", I32),
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
    /// `[rows, query_heads, head_dim]`.
    pub out: Buffer,
    /// `[rows, query_heads]` f32.
    pub lse: Buffer,
}

/// Spans and the plan made of them.
#[derive(Clone, Copy, Debug)]
pub struct PlanBuffers {
    /// `[rows + 1]` i32.
    pub span_ptr: Buffer,
    /// `[spans, 2]` i32, canonical.
    pub spans: Buffer,
    /// `[rows + 1]` i32, written by the plan kernel.
    pub row_tokens: Buffer,
    /// `[spans + 1]` i32, written by the plan kernel.
    pub span_tokens: Buffer,
}

/// Scratch memory that launches of one decoder share.
#[derive(Clone, Copy, Debug)]
pub struct Workspace {
    /// `[2 * blocks, group_size, head_dim]` f32.
    pub partial_acc: Buffer,
    /// `[2 * blocks, group_size, 2]` f32.
    pub partial_ml: Buffer,
    /// `[rows, kv_heads]` i32, zero before a launch and after it.
    pub arrivals: Buffer,
}

/// The integers of a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scalars {
    /// Rows.
    pub rows: i32,
    /// KV heads.
    pub kv_heads: i32,
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
    /// Fewest selected tokens of a block.
    pub smallest_share: i32,
    /// Factor of q . k.
    pub scale: f32,
}

/// Arguments of [`Kernel::Plan`].
pub fn plan_arguments(plan: &PlanBuffers, rows: i32) -> Vec<Argument> {
    vec![
        plan.span_ptr.at(0),
        plan.spans.at(0),
        plan.row_tokens.at(0),
        plan.span_tokens.at(0),
        Argument::I32(rows),
    ]
}

/// Arguments of [`Kernel::Decode`].
pub fn decode_arguments(
    operands: &Operands,
    plan: &PlanBuffers,
    workspace: &Workspace,
    scalars: &Scalars,
) -> Vec<Argument> {
    let mut arguments: Vec<Argument> = [
        operands.q,
        operands.k,
        operands.v,
        operands.page_table,
        operands.row_request,
        plan.span_ptr,
        plan.spans,
        plan.row_tokens,
        plan.span_tokens,
        operands.out,
        operands.lse,
        workspace.partial_acc,
        workspace.partial_ml,
        workspace.arrivals,
    ]
    .iter()
    .map(|buffer| buffer.at(0))
    .collect();
    let s = scalars;
    arguments.extend(
        [
            s.rows,
            s.kv_heads,
            s.page_size,
            s.max_pages,
            s.page_stride,
            s.token_stride,
            s.head_stride,
            s.smallest_share,
            s.scale.to_bits().cast_signed(),
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
    let mut arguments: Vec<Argument> =
        [plan.row_tokens, operands.out, operands.lse, workspace.partial_acc, workspace.partial_ml]
            .iter()
            .map(|buffer| buffer.at(0))
            .collect();
    arguments.extend(
        [scalars.rows, scalars.kv_heads, blocks, scalars.smallest_share].map(Argument::I32),
    );
    arguments
}
