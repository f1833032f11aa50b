//! A GPU on the CPU: parses PTX, runs it warp by warp, checks every access, counts every
//! transaction and estimates time for a named GPU. It knows nothing of attention.
//!
//! ```
//! use spanforge_emulator::{Argument, Check, Launch, Memory, Module, Options, launch};
//!
//! // y[i] = 2 x[i], by one block; the PTX may as well come from `nvcc --ptx` or NVRTC.
//! let ptx = "
//!     .version 8.0
//!     .target sm_80
//!     .address_size 64
//!     .visible .entry twice(.param .u64 x, .param .u64 y)
//!     {
//!         .reg .b32 %r<3>;
//!         .reg .b64 %rd<3>;
//!         ld.param.u64 %rd0, [x];
//!         ld.param.u64 %rd1, [y];
//!         mov.u32 %r0, %tid.x;
//!         mad.wide.u32 %rd0, %r0, 4, %rd0;
//!         mad.wide.u32 %rd1, %r0, 4, %rd1;
//!         ld.global.u32 %r1, [%rd0];
//!         shl.b32 %r1, %r1, 1;
//!         st.global.u32 [%rd1], %r1;
//!         ret;
//!     }";
//! let module = Module::parse(ptx)?;
//!
//! let mut memory = Memory::new();
//! let x = memory.allocate("x", 256)?;
//! let y = memory.allocate("y", 256)?;
//! let bytes: Vec<u8> = (0..64u32).flat_map(u32::to_le_bytes).collect();
//! memory.write(x, &bytes)?;
//!
//! let arguments = [Argument::U64(x), Argument::U64(y)];
//! let what = Launch {
//!     kernel: "twice",
//!     grid: [1, 1, 1],
//!     block: [64, 1, 1],
//!     dynamic_shared_bytes: 0,
//!     arguments: &arguments,
//! };
//! let report = launch(&module, &mut memory, &what, &Options::default())?;
//! assert!(report.findings.is_empty());
//! assert_eq!(report.counters.global_load.sectors, 8); // of 32 bytes
//! let mut last = [0; 4];
//! memory.read(y + 252, &mut last)?;
//! assert_eq!(u32::from_le_bytes(last), 126);
//!
//! // A warp too many leaves x: that is found, with its place.
//! let what = Launch { block: [96, 1, 1], ..what };
//! let report = launch(&module, &mut memory, &what, &Options::default())?;
//! let finding = &report.findings[0];
//! assert_eq!(finding.check, Check::OutOfBounds);
//! assert_eq!(finding.address.as_deref(), Some("`x` + 256"));
//! assert_eq!(finding.instruction, "ld.global.u32 %r1, [%rd0];");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/reverse.rs` is a whole program with a race in its second part.
//!
//! How it works. `lex` and `parse` make a tree of the text; `decode` turns each instruction into
//! operations with modifiers and types resolved, refusing what it does not know; `link` lays a
//! kernel and the functions it calls out as one run of code; `allocate` gives registers slots.
//! At a launch, `launch` runs blocks and their warps in the turns that `schedule` gives, and `machine` is
//! the loop that runs one warp, 32 lanes at a time. Registers are typeless arrays of 32 lanes
//! (`registers`); constants, special registers and parameters stand in slots of their own, so an
//! arithmetic instruction is: some arrays in, one array out, blended by the mask of active lanes.
//! What it computes on one lane is said in `arithmetic`, `convert` and `math`; `lanes` makes a
//! function for 32 lanes of it, once for any processor and once for AVX2 with FMA, with the same
//! results. `access` does loads, stores and asynchronous copies, `exchange` what lanes tell each
//! other, `matrix` the tensor cores, `hopper` what came with that architecture: mbarriers, bulk copies,
//! warpgroup products.
//!
//! Lanes that branch apart form groups, each with its own instruction; the lowest runs first and
//! groups that meet merge. Asynchronous copies read and land when they are waited for and not before,
//! or, as `schedule` has it, at once.
//! Barriers and warp-wide instructions wait for lanes that can still come, and report the rest.
//!
//! `order` knows which accesses are ordered before which, `races` finds those that are not, and `hazards` words them.
//! `trail` says where what was found came from, by the flow of data and control that `dataflow` knows.
//! `provenance` says which pointers a kernel may store through: memory that is only read cannot
//! race.
//!
//! Checks and counters are const generics of the loop: switched off, they cost nothing.
//!
//! Addresses. Each allocation has a window of 2^40 addresses; shared, local and parameter memory
//! have one each for generic addresses.
//!
//! To add an opcode that computes lane by lane: one line in a match of `arithmetic` (or
//! `convert`), and, if its operands are of a new shape, a case in `decode`. To add any other: a
//! [`Code`](op::Code), a case in `decode` that fills the operation, and an arm in `machine`. Either
//! way its forms go into the list of `forms`, without which they are refused at load.
//! Results must not depend on the host: no libm, no contraction; fused multiply-add only through
//! `math::fma`.

// A lane number indexes several arrays at once throughout; comparisons of floats are negated
// where NaN must count as true.
#![allow(clippy::needless_range_loop, clippy::neg_cmp_op_on_partial_ord)]

mod access;
mod allocate;
#[cfg(test)]
mod approximations;
mod arithmetic;
mod atomic;
mod convert;
pub mod cost;
pub mod counters;
mod coverage;
mod dataflow;
mod deadlock;
mod decode;
mod directed;
mod error;
mod exchange;
mod findings;
mod forms;
mod hazards;
mod hopper;
mod kernel;
mod lanes;
mod launch;
mod lex;
mod link;
mod machine;
mod math;
mod matrix;
mod memory;
mod moves;
pub mod occupancy;
mod op;
mod order;
mod parse;
mod poison;
mod print;
pub mod profile;
mod provenance;
mod races;
mod registers;
mod schedule;
mod shadow;
mod syntax;
mod tensor_cores;
mod trail;
mod transactions;
mod undefined;

pub use counters::Counters;
pub use coverage::LineCount;
pub use error::{LaunchError, LoadError, MemoryError};
pub use findings::{Check, Finding, Party, SourceLine, TrailLine, Why};
pub use forms::{form_of, opcode_forms};
pub use hopper::tensor_map::{
    OutOfBoundsFill, Swizzle, TENSOR_MAP_BYTES, TensorElement, TensorMap, TensorMapError,
};
pub use kernel::{Kernel, Module, Parameter};
pub use launch::{Argument, BlockSelection, Launch, Options, Report, launch};
pub use memory::Memory;
pub use tensor_cores::MatrixModel;
