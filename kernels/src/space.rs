//! The search space of decode kernels: what each parameter may be, which values may meet, and the
//! name of the constraint that rules a point out. Constraints are checked before anything is
//! compiled.

use crate::configuration::{
    Configuration, Core, KernelShape, LoadPath, Merge, QueryHome, WARPGROUP_ARCHITECTURE,
    WARPGROUP_COLUMNS,
};
use serde::{Deserialize, Serialize};

mod defaults;
#[cfg(test)]
mod properties;

/// What a device can hold, as far as constraints ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Shared memory that one block can opt in to, in bytes.
    pub shared_bytes_per_block: u32,
    /// Shared memory of a multiprocessor, in bytes.
    pub shared_bytes_per_multiprocessor: u32,
    /// Threads that a multiprocessor holds.
    pub threads_per_multiprocessor: u32,
    /// Whether there are products of warpgroups.
    #[serde(default)]
    pub warpgroups: bool,
}

impl Limits {
    /// The limits of a device.
    pub fn of(properties: &spanforge_device::DeviceProperties) -> Self {
        Self {
            shared_bytes_per_block: properties.shared_bytes_per_block,
            shared_bytes_per_multiprocessor: properties.shared_bytes_per_multiprocessor,
            threads_per_multiprocessor: properties.threads_per_multiprocessor,
            warpgroups: properties.architecture == WARPGROUP_ARCHITECTURE,
        }
    }
}

/// Shared memory that the system keeps of each resident block, in bytes (CUDA C++ Programming
/// Guide, compute capability 8.0 and later).
const RESERVED_SHARED_BYTES: u64 = 1024;

/// 32-bit registers of a multiprocessor, every architecture since sm_80 (same source).
const REGISTERS_PER_MULTIPROCESSOR: u32 = 65_536;

/// Parts of a multiprocessor that have a quarter of its registers each, and whole warps (same source).
const PARTITIONS: u32 = 4;

/// No parameter of a configuration is larger than this; the bound keeps sizes computed from
/// hand-written configurations within their integers.
const LARGEST_VALUE: u32 = 4096;

/// The most rows of a query tile whose columns warps split: a word has a bit for each.
const LARGEST_WARP_ROWS: u32 = 32;

/// The most rows of any query tile: those that fill two warpgroups without a group.
const LARGEST_QUERY_ROWS: u32 = 128;

/// One tunable parameter and the values it is tried with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Parameter {
    /// Name, as in [`Configuration`].
    pub name: &'static str,
    /// Values as numbers; words are numbered in the order of `words`.
    pub values: Vec<u32>,
    /// The words of a parameter that is not a number, by value; empty for numbers.
    pub words: &'static [&'static str],
}

impl Parameter {
    /// Value number `index` as people write it.
    pub fn text(&self, index: usize) -> String {
        let value = self.values[index];
        self.words.get(value as usize).map_or_else(|| value.to_string(), |w| (*w).to_owned())
    }
}

type Holds = fn(&KernelShape, &Limits, &Configuration) -> bool;

/// A rule that configurations must keep.
pub struct Constraint {
    /// Short name, such as `shared-memory`.
    pub name: &'static str,
    /// Why the rule exists, in a sentence.
    pub reason: &'static str,
    holds: Holds,
}

/// Every constraint, in the order in which they are checked; a point is counted against the first
/// that it breaks.
pub static CONSTRAINTS: [Constraint; 18] = [
    Constraint {
        name: "positive",
        reason: "every size and count is between 1 and 4096 (l2_prefetch may be 0, query_rows is at most 128)",
        holds: |_, _, c| within_bounds(c),
    },
    Constraint {
        name: "tensor-cores-take-tiles",
        reason: "tensor cores take tiles from shared memory, 16 bytes of a row per lane",
        holds: |_, _, c| {
            c.core == Core::Fma || (c.load_path == LoadPath::Staged && c.vector_bytes == 16)
        },
    },
    Constraint {
        name: "warpgroups",
        reason: "warpgroups multiply on sm_90a only: query tiles, 16 columns per warp of at least 3 in 4 that are not padding, and 64 tokens of 16 bits at a time, of up to 256 elements; a second kernel merges",
        holds: |s, l, c| {
            c.core != Core::Wgmma
                || l.warpgroups
                    && s.kv_dtype.is_same()
                    && s.head_dim <= 256
                    && c.query_rows > 1
                    && (c.token_warps, c.heads_per_warp, c.unroll) == (1, 16, 1)
                    && [64, 128].contains(&c.tile_tokens)
                    && 4 * c.columns(s) >= 3 * WARPGROUP_COLUMNS * c.warpgroups(s)
                    && c.merge == Merge::SecondKernel
        },
    },
    Constraint {
        name: "query-rows",
        reason: "CUDA cores take one row at a time, and where warps split the columns of a query tile it has at most 32 rows",
        holds: |_, _, c| match c.core {
            Core::Fma => c.query_rows == 1,
            Core::Mma => c.query_rows <= LARGEST_WARP_ROWS,
            Core::Wgmma => true,
        },
    },
    Constraint {
        name: "fragments-filled",
        reason: "no more eights of columns are multiplied than a query tile has",
        holds: |s, _, c| {
            c.core != Core::Mma || c.fragments() * c.head_warps(s) == c.columns(s).div_ceil(8)
        },
    },
    Constraint {
        name: "direct-has-no-ring",
        reason: "direct loads keep no tiles: one stage, and the 32 tokens whose addresses a warp finds at a time",
        holds: |_, _, c| c.load_path == LoadPath::Staged || (c.stages == 1 && c.tile_tokens == 32),
    },
    Constraint {
        name: "staged-needs-a-ring",
        reason: "copies overlap computing only with two or more stages",
        holds: |_, _, c| c.load_path == LoadPath::Direct || c.stages >= 2,
    },
    Constraint {
        name: "heads-balanced",
        reason: "the warps of a query tile hold equally many columns, or the last one fewer by less than one each",
        holds: |s, _, c| {
            c.core == Core::Wgmma
                || c.heads_per_warp <= c.columns(s)
                    && c.heads_per_warp == c.columns(s).div_ceil(c.head_warps(s))
        },
    },
    Constraint {
        name: "direct-shares-nothing",
        reason: "direct loads are not shared between warps, so each warp holds all query heads of the group: K and V are read once",
        holds: |s, _, c| c.load_path == LoadPath::Staged || c.head_warps(s) == 1,
    },
    Constraint {
        name: "threads",
        reason: "a block has at most 1024 threads",
        holds: |s, _, c| c.threads(s) <= 1024,
    },
    Constraint {
        name: "whole-steps",
        reason: "a tile is a whole number of softmax steps of all its token warps",
        holds: |s, _, c| match c.load_path {
            LoadPath::Staged => c.tile_tokens % (c.token_warps * c.step_tokens(s)) == 0,
            LoadPath::Direct => 32 % c.step_tokens(s) == 0,
        },
    },
    Constraint {
        name: "thread-per-token",
        reason: "each thread finds the address of at most one token of a tile",
        holds: |s, _, c| c.load_path == LoadPath::Direct || c.tile_tokens <= c.threads(s),
    },
    Constraint {
        name: "prefetch-within-row",
        reason: "L2 fetches no bytes beyond the K or V row that was asked for",
        holds: |s, _, c| c.l2_prefetch <= s.row_bytes(),
    },
    Constraint {
        name: "shared-memory",
        reason: "the ring, the states and the queries fit the shared memory a block can have",
        holds: |s, l, c| c.shared_bytes(s) <= u64::from(l.shared_bytes_per_block),
    },
    Constraint {
        name: "resident-shared-memory",
        reason: "all blocks launched on a multiprocessor are resident at once: shared memory",
        holds: |s, l, c| {
            u64::from(c.blocks_per_multiprocessor) * (c.shared_bytes(s) + RESERVED_SHARED_BYTES)
                <= u64::from(l.shared_bytes_per_multiprocessor)
        },
    },
    Constraint {
        name: "resident-threads",
        reason: "all blocks launched on a multiprocessor are resident at once: threads",
        holds: |s, l, c| {
            c.blocks_per_multiprocessor.max(c.min_blocks) * c.threads(s)
                <= l.threads_per_multiprocessor
        },
    },
    Constraint {
        name: "register-cap-used",
        reason: "registers are not held back for blocks that are never launched",
        holds: |_, _, c| c.min_blocks <= c.blocks_per_multiprocessor,
    },
    Constraint {
        name: "registers",
        reason: "queries, accumulators and the rows in flight fit the registers that the cap leaves",
        holds: |s, _, c| {
            let blocks = c.blocks_per_multiprocessor.max(c.min_blocks);
            let warps = (c.threads(s) / 32 * blocks).div_ceil(PARTITIONS);
            // Registers are given out by eights.
            let cap = REGISTERS_PER_MULTIPROCESSOR / PARTITIONS / (32 * warps.max(1)) / 8 * 8;
            let cap = match c.warpgroups(s) {
                0 => cap.min(255),
                groups => computing_registers(cap, groups),
            };
            registers_needed(s, c) <= cap
        },
    },
];

/// Whether every value is one that sizes can be computed from; [`CONSTRAINTS`] are narrower.
pub(crate) fn within_bounds(c: &Configuration) -> bool {
    [
        c.query_rows,
        c.tile_tokens,
        c.stages,
        c.token_warps,
        c.heads_per_warp,
        c.unroll,
        c.min_blocks,
        c.blocks_per_multiprocessor,
        c.smallest_share,
    ]
    .iter()
    .all(|v| (1..=LARGEST_VALUE).contains(v))
        && [8, 16].contains(&c.vector_bytes)
        && [0, 64, 128, 256].contains(&c.l2_prefetch)
        && c.unroll <= 16
        && c.query_rows <= LARGEST_QUERY_ROWS
}

/// Registers that a lane holds through its main loop, estimated: accumulators, queries, logits, the
/// rows in flight, and 40 for addresses and loop state (what `ptxas` adds to the arrays in the
/// default configurations).
fn registers_needed(shape: &KernelShape, c: &Configuration) -> u32 {
    if c.core == Core::Wgmma {
        let query = match c.query {
            QueryHome::Registers => shape.head_dim / 4,
            QueryHome::Shared => 0,
        };
        // Accumulators, and logits half of which may not have become two 16-bit parts yet.
        return shape.head_dim / 2 + c.tile_tokens * 3 / 4 + query + 40;
    }
    if c.core == Core::Mma {
        let per_fragment = match c.query {
            QueryHome::Registers => shape.head_dim / 4 + shape.head_dim / 8,
            QueryHome::Shared => shape.head_dim / 4 + 4,
        };
        // Query tiles keep rows and places of columns besides.
        let others = match c.query_rows {
            1 => 48,
            2..=16 => 64,
            _ => 72,
        };
        // Eight bits are loaded for two products, and converted.
        let converting = if shape.kv_dtype.is_same() { 0 } else { 8 };
        return c.fragments() * (per_fragment + 6 * c.unroll + 4) + others + converting;
    }
    let elements = c.elements_per_lane(shape);
    let held = match c.query {
        QueryHome::Registers => 2,
        QueryHome::Shared => 1,
    };
    let words = elements * shape.kv_bytes() / 4;
    let in_flight = match c.load_path {
        LoadPath::Staged => words,
        LoadPath::Direct => 2 * c.unroll * words,
    };
    c.heads_per_warp * (held * elements + c.unroll + 2) + in_flight + 40
}

/// Registers of the threads that compute, where a warpgroup that needs few leaves them its own: as the
/// device code shares them out.
fn computing_registers(equal: u32, groups: u32) -> u32 {
    match equal {
        240.. => equal.min(255),
        _ => ((equal * (groups + 1)).saturating_sub(40) / groups / 8 * 8).min(240),
    }
}

/// How many points each constraint rules out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Census {
    /// Points of the product of all values.
    pub points: u64,
    /// Points that keep every constraint.
    pub valid: u64,
    /// Per constraint, points for which it is the first that they break.
    pub pruned: Vec<(&'static str, u64)>,
}

/// The configurations of one kernel shape on one device.
#[derive(Clone, Debug)]
pub struct SearchSpace {
    shape: KernelShape,
    limits: Limits,
    parameters: Vec<Parameter>,
}

impl SearchSpace {
    /// The space for `shape` under `limits`, of kernels that compute one row at a time.
    pub fn new(shape: KernelShape, limits: Limits) -> Self {
        Self::for_rows(shape, limits, 1)
    }

    /// The space for problems of which a request has up to `rows` rows: with query tiles of as many
    /// and of fewer.
    pub fn for_rows(shape: KernelShape, limits: Limits, rows: u32) -> Self {
        let mut query_rows: Vec<u32> =
            [1, 2, 4, 8, 16, 32].into_iter().filter(|tile| *tile < 2 * rows.max(1)).collect();
        let by_warpgroups = limits.warpgroups && rows > 1;
        if by_warpgroups {
            // Rows that fill a warpgroup or two.
            let filling = [1, 2].map(|groups| groups * WARPGROUP_COLUMNS / shape.group_size);
            query_rows.extend(filling.into_iter().filter(|tile| (2..=rows).contains(tile)));
            query_rows.retain(|tile| *tile <= LARGEST_QUERY_ROWS);
            query_rows.sort_unstable();
            query_rows.dedup();
        }
        let number = |name, values: &[u32]| Parameter { name, values: values.to_vec(), words: &[] };
        let word = |name, words: &'static [&'static str]| Parameter {
            name,
            values: (0..words.len() as u32).collect(),
            words,
        };
        let mut heads: Vec<u32> = (1..=shape.group_size.min(16))
            .filter(|h| *h == shape.group_size.div_ceil(shape.group_size.div_ceil(*h)))
            .collect();
        let by_warps = query_rows.iter().skip(1).filter(|rows| **rows <= LARGEST_WARP_ROWS);
        for columns in by_warps.map(|rows| rows * shape.group_size) {
            heads.extend([8, 16, 24, 32].map(|most| balanced(columns, most)));
        }
        if by_warpgroups {
            heads.push(16);
        }
        heads.sort_unstable();
        heads.dedup();
        let parameters = vec![
            word(
                "core",
                if by_warpgroups { &["fma", "mma", "wgmma"][..] } else { &["fma", "mma"] },
            ),
            number("query_rows", &query_rows),
            word("load_path", &["staged", "direct"]),
            number("tile_tokens", &[16, 32, 64, 128]),
            number("stages", &[1, 2, 3, 4]),
            number("token_warps", &[1, 2, 4, 8]),
            number("heads_per_warp", &heads),
            number("vector_bytes", &[8, 16]),
            number("unroll", &[1, 2, 4]),
            word("query", &["registers", "shared"]),
            number("l2_prefetch", &[0, 128, 256]),
            // Query tiles of few columns take small blocks.
            number(
                "min_blocks",
                if query_rows.len() > 1 { &[1, 2, 3, 4, 6, 8] } else { &[1, 2, 3, 4] },
            ),
            number("blocks_per_multiprocessor", &[1, 2, 3, 4, 6, 8]),
            number("smallest_share", &[64, 128, 256, 512]),
            word("merge", &["second-kernel", "last-arriver"]),
        ];
        Self { shape, limits, parameters }
    }

    /// The shape.
    pub fn shape(&self) -> KernelShape {
        self.shape
    }

    /// The parameters in the order of a point's indices.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The configuration at a point: one value index per parameter. `None` where the point has
    /// another number of indices or one out of range.
    pub fn at(&self, point: &[usize]) -> Option<Configuration> {
        if point.len() != self.parameters.len() {
            return None;
        }
        let mut values = [0; 15];
        for ((slot, parameter), &index) in values.iter_mut().zip(&self.parameters).zip(point) {
            *slot = *parameter.values.get(index)?;
        }
        let [
            core,
            query_rows,
            load,
            tile_tokens,
            stages,
            token_warps,
            heads_per_warp,
            vector_bytes,
            unroll,
            query,
            l2_prefetch,
            min_blocks,
            blocks_per_multiprocessor,
            smallest_share,
            merge,
        ] = values;
        Some(Configuration {
            core: [Core::Fma, Core::Mma, Core::Wgmma][core as usize],
            query_rows,
            load_path: if load == 0 { LoadPath::Staged } else { LoadPath::Direct },
            tile_tokens,
            stages,
            token_warps,
            heads_per_warp,
            vector_bytes,
            unroll,
            query: if query == 0 { QueryHome::Registers } else { QueryHome::Shared },
            l2_prefetch,
            min_blocks,
            blocks_per_multiprocessor,
            smallest_share,
            merge: if merge == 0 { Merge::SecondKernel } else { Merge::LastArriver },
        })
    }

    /// The point of a configuration: the inverse of [`SearchSpace::at`]. `None` where one of its
    /// values is not tried.
    pub fn point_of(&self, configuration: &Configuration) -> Option<Vec<usize>> {
        let c = configuration;
        let values = [
            c.core as u32,
            c.query_rows,
            u32::from(c.load_path == LoadPath::Direct),
            c.tile_tokens,
            c.stages,
            c.token_warps,
            c.heads_per_warp,
            c.vector_bytes,
            c.unroll,
            u32::from(c.query == QueryHome::Shared),
            c.l2_prefetch,
            c.min_blocks,
            c.blocks_per_multiprocessor,
            c.smallest_share,
            u32::from(c.merge == Merge::LastArriver),
        ];
        let places = self.parameters.iter().zip(values);
        places.map(|(p, value)| p.values.iter().position(|v| *v == value)).collect()
    }

    /// The first constraint that a configuration breaks, if any.
    pub fn broken_constraint(&self, configuration: &Configuration) -> Option<&'static Constraint> {
        CONSTRAINTS.iter().find(|c| !(c.holds)(&self.shape, &self.limits, configuration))
    }

    /// Every point that keeps all constraints, in lexical order of its indices.
    pub fn valid(&self) -> impl Iterator<Item = Configuration> + '_ {
        self.points().filter(|c| self.broken_constraint(c).is_none())
    }

    /// Counts what each constraint prunes.
    pub fn census(&self) -> Census {
        let mut pruned: Vec<_> = CONSTRAINTS.iter().map(|c| (c.name, 0)).collect();
        let mut valid = 0;
        let mut points = 0;
        for configuration in self.points() {
            points += 1;
            match CONSTRAINTS
                .iter()
                .position(|c| !(c.holds)(&self.shape, &self.limits, &configuration))
            {
                Some(index) => pruned[index].1 += 1,
                None => valid += 1,
            }
        }
        Census { points, valid, pruned }
    }

    fn points(&self) -> impl Iterator<Item = Configuration> + '_ {
        let mut point = vec![0; self.parameters.len()];
        let mut done = false;
        std::iter::from_fn(move || {
            if done {
                return None;
            }
            let configuration = self.at(&point);
            done = true;
            for (index, parameter) in point.iter_mut().zip(&self.parameters).rev() {
                *index += 1;
                if *index < parameter.values.len() {
                    done = false;
                    break;
                }
                *index = 0;
            }
            configuration
        })
    }
}

/// Columns per warp where as few warps as at most `most` each allow have equally many.
fn balanced(columns: u32, most: u32) -> u32 {
    columns.div_ceil(columns.div_ceil(most))
}
