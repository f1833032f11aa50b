//! What a decode kernel is built for (its shape) and how it is built (its configuration), and the
//! readable identifier that says both.

use serde::{Deserialize, Serialize};
use spanforge_spans::{Dtype, KvDtype, KvLayout};
use std::fmt;
use std::str::FromStr;

/// The part of a problem that is fixed when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KernelShape {
    /// Element type of q and the output.
    pub dtype: Dtype,
    /// Element type of k and v.
    #[serde(default, skip_serializing_if = "KvDtype::is_same")]
    pub kv_dtype: KvDtype,
    /// Elements of one head's query, key or value.
    pub head_dim: u32,
    /// Query heads per KV head.
    pub group_size: u32,
}

/// Head dimensions the kernels are written for.
pub const HEAD_DIMS: [u32; 4] = [64, 128, 256, 512];

/// K and V bytes that a block reads in the time that it takes to begin with a set of spans, one load
/// after the other: 3 us of what 396 blocks read at 4.3 TB/s.
const BEGINNING_BYTES: u32 = 32 << 10;

/// [`KernelShape::beginning_tokens`] of the shortest rows, which have elements of 8 bits.
pub(crate) const MOST_BEGINNING_TOKENS: u32 = BEGINNING_BYTES / (2 * HEAD_DIMS[0]);

/// Largest group size; more query heads per KV head than this exceed a block's threads.
pub const MAX_GROUP_SIZE: u32 = 128;

impl KernelShape {
    /// The shape with a cache of the queries' element type.
    pub fn new(dtype: Dtype, head_dim: u32, group_size: u32) -> Self {
        Self { dtype, kv_dtype: KvDtype::Same, head_dim, group_size }
    }

    /// Bytes of an element of K or V.
    pub fn kv_bytes(&self) -> u32 {
        self.kv_dtype.bytes(self.dtype) as u32
    }

    /// Bytes of one K or V row: one token, one KV head.
    pub fn row_bytes(&self) -> u32 {
        self.head_dim * self.kv_bytes()
    }

    /// Tokens that a block reads in the time that it takes to begin with a set of spans. Shares of the work
    /// count them with each set.
    pub fn beginning_tokens(&self) -> u32 {
        BEGINNING_BYTES / (2 * self.row_bytes())
    }

    /// Fails for shapes that no configuration can serve, naming what is served.
    pub fn check(&self) -> Result<(), ShapeError> {
        if !HEAD_DIMS.contains(&self.head_dim) {
            return Err(ShapeError::HeadDim(self.head_dim));
        }
        if !(1..=MAX_GROUP_SIZE).contains(&self.group_size) {
            return Err(ShapeError::GroupSize(self.group_size));
        }
        Ok(())
    }
}

impl fmt::Display for KernelShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kv = match self.kv_dtype {
            KvDtype::Same => String::new(),
            other => format!("{other}-"),
        };
        write!(f, "{}-{kv}d{}-g{}", self.dtype, self.head_dim, self.group_size)
    }
}

/// A shape outside what the kernels serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Unsupported head dimension.
    #[error("head_dim {0} is not served: use 64, 128, 256 or 512")]
    HeadDim(u32),
    /// Unsupported group size.
    #[error("{0} query heads per KV head are not served: use 1 to {MAX_GROUP_SIZE}")]
    GroupSize(u32),
    /// Query heads that the KV heads do not divide.
    #[error(
        "{query} query heads and {kv} KV heads are not served: use at least one of each, and a number of query heads that is a multiple of the KV heads"
    )]
    Heads {
        /// Query heads.
        query: u32,
        /// KV heads.
        kv: u32,
    },
}

/// What multiplies.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Core {
    /// CUDA cores: a fused multiply-add per lane.
    #[default]
    Fma,
    /// Tensor cores: `mma.m16n8k16`, tokens for rows and query heads for columns.
    Mma,
    /// Tensor cores of sm_90a: `wgmma.m64n64k16` by warpgroups with 64 columns of a query tile each, and
    /// one warpgroup more that brings K and V.
    Wgmma,
}

/// How K and V rows reach the threads that use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadPath {
    /// `cp.async` into a ring of tiles in shared memory.
    Staged,
    /// Plain loads into registers.
    Direct,
}

/// Where a block keeps the queries it works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueryHome {
    /// In registers: f32, or as they are for tensor cores.
    Registers,
    /// In shared memory, likewise.
    Shared,
}

/// Who merges the partial states of a row that several blocks share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Merge {
    /// A second kernel.
    SecondKernel,
    /// The last of the row's blocks to finish.
    LastArriver,
}

/// One point of the search space. What each parameter does to the kernel is said in
/// `cuda/`; which values may meet is said in [`crate::space`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Configuration {
    /// What multiplies.
    #[serde(default)]
    pub core: Core,
    /// Rows of a request whose queries are computed together: the most that a query tile has.
    #[serde(default = "one")]
    pub query_rows: u32,
    /// Way of K and V into the block.
    pub load_path: LoadPath,
    /// Tokens per tile of the ring; for direct loads the 32 tokens whose addresses a warp finds at
    /// a time.
    pub tile_tokens: u32,
    /// Tiles in the ring; 1 for direct loads.
    pub stages: u32,
    /// Warps that split a piece's tokens.
    pub token_warps: u32,
    /// Columns (query heads of a query tile's rows) per warp; a tile with more is split over several
    /// warps.
    pub heads_per_warp: u32,
    /// Bytes that one load instruction of a lane moves; 16 for tensor cores.
    pub vector_bytes: u32,
    /// Tokens per lane, or sixteens of tokens per warp of tensor cores, and update of the softmax
    /// state; 1 for warpgroups, which take a whole tile.
    pub unroll: u32,
    /// Where queries are kept.
    pub query: QueryHome,
    /// Aligned run of bytes that L2 fetches along with a load; 0 leaves it to the hardware.
    pub l2_prefetch: u32,
    /// Blocks per multiprocessor that the compiler must leave registers for: the register cap.
    pub min_blocks: u32,
    /// Blocks launched per multiprocessor.
    pub blocks_per_multiprocessor: u32,
    /// Fewest selected tokens that are given to a block of their own, with those that stand for beginning
    /// with a set of spans ([`KernelShape::beginning_tokens`]).
    pub smallest_share: u32,
    /// Who merges.
    pub merge: Merge,
}

/// The architecture that has products of warpgroups: later ones lack them.
pub(crate) const WARPGROUP_ARCHITECTURE: &str = "sm_90a";

/// Columns of a query tile that a warpgroup multiplies.
pub const WARPGROUP_COLUMNS: u32 = 64;

/// What a number is that records from before it was written down lack.
pub(crate) fn one() -> u32 {
    1
}

impl Configuration {
    /// Query heads of all rows of a query tile that share a KV head.
    pub fn columns(&self, shape: &KernelShape) -> u32 {
        self.query_rows * shape.group_size
    }

    /// Words of 32 bits that have one for each row of a query tile.
    pub fn row_words(&self) -> u32 {
        self.query_rows.div_ceil(32)
    }

    /// Warps that split a query tile's columns.
    pub fn head_warps(&self, shape: &KernelShape) -> u32 {
        match self.core {
            Core::Wgmma => 4 * self.warpgroups(shape),
            _ => self.columns(shape).div_ceil(self.heads_per_warp),
        }
    }

    /// Warpgroups that split a query tile's columns; 0 where warps do.
    pub fn warpgroups(&self, shape: &KernelShape) -> u32 {
        match self.core {
            Core::Wgmma => self.columns(shape).div_ceil(WARPGROUP_COLUMNS),
            _ => 0,
        }
    }

    /// Threads per block, those of a warpgroup that only brings K and V included.
    pub fn threads(&self, shape: &KernelShape) -> u32 {
        let bringing = if self.core == Core::Wgmma { 128 } else { 0 };
        32 * self.head_warps(shape) * self.token_warps + bringing
    }

    /// Elements per lane load.
    pub fn vector(&self, shape: &KernelShape) -> u32 {
        self.vector_bytes / shape.kv_bytes()
    }

    /// Lanes that a K or V row is spread over.
    pub fn lanes_per_row(&self, shape: &KernelShape) -> u32 {
        (shape.head_dim / self.vector(shape)).min(32)
    }

    /// Elements of a row that one lane holds.
    pub fn elements_per_lane(&self, shape: &KernelShape) -> u32 {
        shape.head_dim / self.lanes_per_row(shape)
    }

    /// Tokens that a warp takes into one update of the softmax state.
    pub fn step_tokens(&self, shape: &KernelShape) -> u32 {
        let at_once = match self.core {
            Core::Fma => 32 / self.lanes_per_row(shape),
            Core::Mma | Core::Wgmma => 16,
        };
        at_once * self.unroll
    }

    /// Eights of columns that a warp of tensor cores multiplies by.
    pub fn fragments(&self) -> u32 {
        self.heads_per_warp.div_ceil(8)
    }

    /// Dynamic shared memory per block in bytes. The device code computes the same number and
    /// refuses to compile where the two differ.
    pub fn shared_bytes(&self, shape: &KernelShape) -> u64 {
        let [stages, tile, token_warps, heads] =
            [self.stages, self.tile_tokens, self.token_warps, self.heads_per_warp].map(u64::from);
        let [columns, head_dim] = [self.columns(shape), shape.head_dim].map(u64::from);
        let staged = self.load_path == LoadPath::Staged;
        let ring = if staged { stages * 2 * tile * u64::from(shape.row_bytes()) } else { 0 };
        let of_columns = u64::from(self.fragments() * 8 * 2 * shape.head_dim);
        let (states, queries) = match self.core {
            Core::Fma => (token_warps * columns * (head_dim + 2) * 4, heads * head_dim * 4),
            Core::Mma => (token_warps * columns * (head_dim + 4 + 2) * 4, of_columns),
            Core::Wgmma => (0, of_columns),
        };
        let query = match self.query {
            QueryHome::Registers => 0,
            QueryHome::Shared => u64::from(self.head_warps(shape)) * queries,
        };
        let factors = match (self.core, shape.kv_dtype, shape.dtype, self.query) {
            (Core::Mma, KvDtype::E4m3, Dtype::Bf16, QueryHome::Shared) => {
                u64::from(self.head_warps(shape) * self.fragments() * 8 * 4)
            }
            _ => 0,
        };
        let by_warpgroups = self.core == Core::Wgmma;
        let offsets = if staged && !by_warpgroups { 2 * tile * 8 } else { 0 };
        let located = if by_warpgroups { stages } else { stages + 1 };
        let words = u64::from(self.row_words());
        let rows = if self.query_rows > 1 { located * words * tile * 4 } else { 0 };
        let barriers_and_pieces = if by_warpgroups { stages * 32 } else { 0 };
        ring.max(states).next_multiple_of(16)
            + query
            + factors
            + offsets
            + rows
            + barriers_and_pieces
    }
}

/// A kernel to build: what for, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KernelSpec {
    /// What it serves.
    pub shape: KernelShape,
    /// How it is built and launched.
    pub configuration: Configuration,
}

impl KernelSpec {
    /// The one architecture that the kernel is for, where its instructions are of that one alone.
    pub fn own_architecture(&self) -> Option<&'static str> {
        (self.configuration.core == Core::Wgmma).then_some(WARPGROUP_ARCHITECTURE)
    }

    /// The same kernel with the parameters that only a launch depends on put to fixed values: specs
    /// that agree in this share one compiled image.
    pub fn compiled(&self) -> Self {
        let configuration = Configuration {
            blocks_per_multiprocessor: self.configuration.min_blocks,
            smallest_share: 128,
            ..self.configuration
        };
        Self { configuration, ..*self }
    }
}

/// Query heads, KV heads and head dimension of a model's attention, with the type of its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttentionShape {
    /// Element type of queries and outputs.
    pub dtype: Dtype,
    /// Element type of keys and values.
    #[serde(default, skip_serializing_if = "KvDtype::is_same")]
    pub kv_dtype: KvDtype,
    /// Query heads.
    pub query_heads: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Elements per head.
    pub head_dim: u32,
    /// Tokens per page of the cache.
    pub page_size: u32,
    /// Order of a page's elements.
    pub layout: KvLayout,
}

impl AttentionShape {
    /// The part that a kernel is compiled for.
    pub fn kernel_shape(&self) -> Result<KernelShape, ShapeError> {
        let (query, kv) = (self.query_heads, self.kv_heads);
        if kv == 0 || query == 0 || !query.is_multiple_of(kv) {
            return Err(ShapeError::Heads { query, kv });
        }
        let group_size = query / kv;
        let Self { dtype, kv_dtype, head_dim, .. } = *self;
        let shape = KernelShape { dtype, kv_dtype, head_dim, group_size };
        shape.check()?;
        Ok(shape)
    }

    /// Bytes of an element of K or V.
    pub fn kv_bytes(&self) -> usize {
        self.kv_dtype.bytes(self.dtype)
    }

    /// Bits of the element of K or V that is nearest to a number.
    pub fn encode_kv(&self, value: f32) -> u16 {
        self.kv_dtype.encode(self.dtype, value)
    }

    /// Floating-point operations of the two products over `tokens` selected tokens of all rows
    /// together (a multiply-add is two).
    pub fn flops(&self, tokens: u64) -> f64 {
        4.0 * tokens as f64 * f64::from(self.query_heads) * f64::from(self.head_dim)
    }
}

impl fmt::Display for KernelSpec {
    /// The identifier, such as
    /// `f16-d128-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x2-m128-second`, with `mma-` before
    /// `staged` for tensor cores, `wgmma-` for those of warpgroups, `r4-` before it for query tiles of four
    /// rows, and `e4m3-` before `d128` for a cache of such elements.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.configuration;
        let core = match c.core {
            Core::Fma => "",
            Core::Mma => "mma-",
            Core::Wgmma => "wgmma-",
        };
        let rows = match c.query_rows {
            1 => String::new(),
            rows => format!("r{rows}-"),
        };
        let load = match c.load_path {
            LoadPath::Staged => "staged",
            LoadPath::Direct => "direct",
        };
        let query = match c.query {
            QueryHome::Registers => "qr",
            QueryHome::Shared => "qs",
        };
        let merge = match c.merge {
            Merge::SecondKernel => "second",
            Merge::LastArriver => "last",
        };
        write!(
            f,
            "{}-{core}{rows}{load}-t{}-s{}-w{}-h{}-v{}-u{}-{query}-p{}-b{}-x{}-m{}-{merge}",
            self.shape,
            c.tile_tokens,
            c.stages,
            c.token_warps,
            c.heads_per_warp,
            c.vector_bytes,
            c.unroll,
            c.l2_prefetch,
            c.min_blocks,
            c.blocks_per_multiprocessor,
            c.smallest_share
        )
    }
}

/// An identifier that does not name a kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{id}` is not a kernel id: {fault}. An id looks like f16-d128-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x2-m128-second; `spanforge configs` lists them"
)]
pub struct IdError {
    id: String,
    fault: String,
}

impl FromStr for KernelSpec {
    type Err = IdError;

    fn from_str(id: &str) -> Result<Self, IdError> {
        let error = |fault: String| IdError { id: id.to_owned(), fault };
        let mut parts: Vec<&str> = id.split('-').collect();
        let kv_dtype = match parts.get(1) {
            Some(&"e4m3") => KvDtype::E4m3,
            _ => KvDtype::Same,
        };
        if !kv_dtype.is_same() {
            parts.remove(1);
        }
        let core = match parts.get(3) {
            Some(&"mma") => Core::Mma,
            Some(&"wgmma") => Core::Wgmma,
            _ => Core::Fma,
        };
        if core != Core::Fma {
            parts.remove(3);
        }
        let rows = parts.get(3).and_then(|part| part.strip_prefix('r')).map(str::parse);
        let query_rows = match rows {
            Some(Ok(0 | 1) | Err(_)) => {
                return Err(error(format!("`{}` is not `r` and a number from 2 on", parts[3])));
            }
            Some(Ok(rows)) => rows,
            None => 1,
        };
        if rows.is_some() {
            parts.remove(3);
        }
        if parts.len() != 16 {
            return Err(error(format!("it has {} parts where there are 16", parts.len())));
        }
        let number = |index: usize, prefix: &str| -> Result<u32, IdError> {
            parts[index]
                .strip_prefix(prefix)
                .and_then(|n| n.parse().ok())
                .ok_or_else(|| error(format!("`{}` is not `{prefix}` and a number", parts[index])))
        };
        let choice = |index: usize, names: [&str; 2]| match parts[index] {
            p if p == names[0] => Ok(true),
            p if p == names[1] => Ok(false),
            p => Err(error(format!("`{p}` is neither `{}` nor `{}`", names[0], names[1]))),
        };
        let dtype = Dtype::from_str(parts[0]).map_err(|e| error(e.to_string()))?;
        let (head_dim, group_size) = (number(1, "d")?, number(2, "g")?);
        let shape = KernelShape { dtype, kv_dtype, head_dim, group_size };
        shape.check().map_err(|e| error(e.to_string()))?;
        let configuration = Configuration {
            core,
            query_rows,
            load_path: if choice(3, ["staged", "direct"])? {
                LoadPath::Staged
            } else {
                LoadPath::Direct
            },
            tile_tokens: number(4, "t")?,
            stages: number(5, "s")?,
            token_warps: number(6, "w")?,
            heads_per_warp: number(7, "h")?,
            vector_bytes: number(8, "v")?,
            unroll: number(9, "u")?,
            query: if choice(10, ["qr", "qs"])? { QueryHome::Registers } else { QueryHome::Shared },
            l2_prefetch: number(11, "p")?,
            min_blocks: number(12, "b")?,
            blocks_per_multiprocessor: number(13, "x")?,
            smallest_share: number(14, "m")?,
            merge: if choice(15, ["second", "last"])? {
                Merge::SecondKernel
            } else {
                Merge::LastArriver
            },
        };
        Ok(Self { shape, configuration })
    }
}
