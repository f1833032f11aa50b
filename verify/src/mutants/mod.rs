//! Planted bugs: the project's own kernels with one mistake each, to measure what the checks find.
//!
//! A mutant is a plausible slip of a person's hand: an exact text of the device code, what it
//! becomes, and the kernels in which the changed line does something. [`run`] hunts it with the
//! problems that `check` uses, under several schedules of warps, and says which check caught it.

mod decode;
mod eight_bits;
mod fragments;
mod outputs;
mod rows;
mod run;
mod shared;
mod warpgroups;

pub use run::{
    Catch, Hunt, HuntError, HuntOptions, InTrail, MutantReport, NamedLine, baseline, hunt,
};

use crate::source_map::SourceMap;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use spanforge_device::Source;
use spanforge_kernels::KernelSpec;
use spanforge_kernels::render::{RenderError, render};
use std::collections::BTreeSet;
use std::fmt;

/// What sort of mistake a mutant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A barrier is left out, moved, or put where not every thread comes by.
    Barrier,
    /// A wait for asynchronous copies is left out, too lax, or counts groups that were not made.
    AsyncCopy,
    /// A fence, an atomic or a coherent load that orders blocks is left out.
    Fence,
    /// A loop or an index goes one too far or not far enough.
    Bound,
    /// A condition asks for something else.
    Predicate,
    /// A stride or offset is that of something else.
    Stride,
    /// A lane exchanges with the wrong lane, or the wrong lane acts.
    Lane,
    /// A query or KV head is taken for another.
    Head,
    /// The scale or the base of the exponential is wrong or forgotten.
    Scale,
    /// -inf is not what it has to be, or its arithmetic is not guarded.
    Infinity,
    /// Something is read that was not written.
    Uninitialised,
    /// A partial state goes to, or is taken from, the wrong slot.
    Slot,
    /// Operands are swapped or one is taken for its neighbour.
    Operands,
    /// Elements are rounded, widened or packed wrongly.
    Packing,
    /// A page or the token's place in it is wrong.
    Page,
    /// Two states are merged with wrong weights or in part.
    Merge,
    /// The count of blocks that have arrived is wrong, or not ready for the next launch.
    Arrivals,
    /// A product of sizes does not fit its integer.
    Width,
    /// Tokens are counted twice or not at all.
    Overlap,
    /// Bytes are read that nobody needs.
    ExtraBytes,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The word that is also written to records.
        let word = serde_json::to_value(self).map_err(|_| fmt::Error)?;
        f.write_str(word.as_str().ok_or(fmt::Error)?)
    }
}

/// One planted bug.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// Short name.
    pub name: &'static str,
    /// What sort of mistake it is.
    pub kind: Kind,
    /// Ids of the kernels that it is planted in: those that run the changed line.
    pub kernels: &'static [&'static str],
    /// Text that occurs once in the device code.
    pub text: &'static str,
    /// What it becomes; as many lines.
    pub replacement: &'static str,
    /// Texts of lines that a diagnosis may rightly name besides those that were changed: where
    /// what was not ordered or not written is read. Where the compiler leaves no instruction of the
    /// changed line, also the statement that the line lets through, or that reads what it computes.
    pub shows_at: &'static [&'static str],
    /// Why no check finds it today and what it would take; `None` where it must be caught.
    pub needs: Option<&'static str>,
}

impl Mutant {
    const fn new(
        name: &'static str,
        kind: Kind,
        kernels: &'static [&'static str],
        text: &'static str,
        replacement: &'static str,
    ) -> Self {
        Self { name, kind, kernels, text, replacement, shows_at: &[], needs: None }
    }

    const fn shows_at(self, shows_at: &'static [&'static str]) -> Self {
        Self { shows_at, ..self }
    }

    const fn needs(self, what: &'static str) -> Self {
        Self { needs: Some(what), ..self }
    }
}

/// Every mutant.
pub fn all() -> impl Iterator<Item = &'static Mutant> {
    let tables = [
        shared::MUTANTS,
        decode::MUTANTS,
        fragments::MUTANTS,
        rows::MUTANTS,
        eight_bits::MUTANTS,
        warpgroups::MUTANTS,
        outputs::MUTANTS,
    ];
    tables.into_iter().flatten()
}

/// `count` mutants drawn without repetition, in the order of the table.
pub fn sample(count: usize, seed: u64) -> Vec<&'static Mutant> {
    let all: Vec<_> = all().collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = rand::seq::index::sample(&mut rng, all.len(), count.min(all.len())).into_vec();
    drawn.sort_unstable();
    drawn.into_iter().map(|index| all[index]).collect()
}

/// A source with a bug in it.
#[derive(Clone, Debug)]
pub struct Planted {
    /// The changed source.
    pub source: Source,
    /// File of the device code that was changed.
    pub file: String,
    /// Its changed lines, from 1.
    pub lines: BTreeSet<u32>,
    /// The source before the change.
    original: SourceMap,
}

impl Planted {
    /// Whether the source before the change has a line with that text.
    pub fn has_line_with(&self, text: &str) -> bool {
        self.original.lines().any(|(.., line)| line.contains(text))
    }

    /// A line of the source before the change.
    pub fn original_line(&self, file: &str, line: u32) -> Option<&str> {
        self.original.text(file, line)
    }
}

/// A mutant that no longer fits the device code.
#[derive(Debug, thiserror::Error)]
pub enum PlantError {
    /// The kernel cannot be rendered.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// The text is gone or has become ambiguous.
    #[error(
        "the text of mutant {mutant} occurs {count} times in the source where it has to occur once; \
         the device code has changed and the mutant must follow:\n{text}"
    )]
    NotOnce {
        /// The mutant.
        mutant: &'static str,
        /// How often the text occurs.
        count: usize,
        /// The text.
        text: &'static str,
    },
    /// Lines after the change would have other numbers than in the device code.
    #[error("the replacement of mutant {0} has another number of lines than its text")]
    OtherLength(&'static str),
}

/// Plants a bug in the source of a kernel.
pub fn plant(mutant: &Mutant, spec: &KernelSpec) -> Result<Planted, PlantError> {
    let rendered = render(spec)?;
    let count = rendered.text.matches(mutant.text).count();
    if count != 1 {
        return Err(PlantError::NotOnce { mutant: mutant.name, count, text: mutant.text });
    }
    if mutant.text.lines().count() != mutant.replacement.split('\n').count() {
        return Err(PlantError::OtherLength(mutant.name));
    }
    let original = SourceMap::new(&rendered.name, &rendered.text);
    let text = rendered.text.replacen(mutant.text, mutant.replacement, 1);
    let planted = SourceMap::new(&rendered.name, &text);
    let changed = planted.changed_from(&original);
    let file = changed.first().map(|(file, _)| (*file).to_owned()).unwrap_or_default();
    let lines = changed.into_iter().map(|(_, line)| line).collect();
    Ok(Planted { source: Source::new(rendered.name, text), file, lines, original })
}

/// The kernels that bugs are planted in: among them both kinds of cores, one row at a time and several,
/// every load path, home of queries and way to
/// merge, both types, rows of one and of several loads per lane, several stages, heads over one
/// warp and over several with padding, shares so small that a row has many blocks, and shares so
/// large that the ring goes round more than once.
mod kernels {
    pub const PLAIN: &str = "f16-d64-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x1-m64-second";
    pub const LONG: &str = "f16-d64-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x1-m512-second";
    pub const QUERY_SHARED: &str = "bf16-d128-g3-staged-t32-s4-w2-h3-v8-u1-qs-p0-b1-x2-m256-last";
    pub const PADDED: &str = "f16-d64-g5-staged-t32-s3-w2-h3-v16-u1-qr-p0-b1-x1-m1-last";
    pub const PADDED_SHARED: &str = "f16-d64-g5-staged-t32-s2-w2-h3-v16-u1-qs-p0-b1-x1-m64-second";
    pub const WIDE: &str = "bf16-d256-g2-staged-t16-s3-w2-h2-v8-u2-qr-p0-b1-x1-m32-last";
    pub const DIRECT: &str = "f16-d128-g2-direct-t32-s1-w4-h2-v16-u2-qr-p0-b1-x1-m64-second";
    pub const DIRECT_WIDE: &str = "bf16-d512-g1-direct-t32-s1-w2-h1-v16-u1-qs-p0-b1-x1-m32-last";

    pub const DIRECT_LONG: &str = "f16-d64-g1-direct-t32-s1-w4-h1-v16-u1-qr-p0-b1-x1-m512-second";

    pub const TENSOR: &str = "f16-d64-g5-mma-staged-t32-s3-w2-h5-v16-u1-qr-p0-b1-x1-m256-second";
    pub const TENSOR_SPLIT: &str =
        "bf16-d128-g12-mma-staged-t32-s2-w2-h6-v16-u1-qr-p0-b1-x1-m1-last";
    pub const TENSOR_SHARED: &str =
        "f16-d128-g12-mma-staged-t64-s3-w2-h12-v16-u2-qs-p0-b1-x1-m96-second";

    pub const ROWS_SHARED: &str =
        "f16-d64-g3-mma-r4-staged-t32-s3-w2-h12-v16-u1-qs-p0-b1-x1-m96-second";
    pub const ROWS_SPLIT: &str =
        "bf16-d64-g2-mma-r8-staged-t32-s2-w1-h8-v16-u2-qr-p0-b1-x1-m1-last";

    pub const EIGHT_BITS: &str =
        "f16-e4m3-d64-g2-staged-t32-s3-w2-h2-v16-u1-qr-p0-b1-x1-m64-second";
    pub const EIGHT_BITS_DIRECT: &str =
        "bf16-e4m3-d128-g2-direct-t32-s1-w4-h2-v8-u2-qs-p0-b1-x1-m64-last";
    pub const EIGHT_BITS_TENSOR: &str =
        "bf16-e4m3-d64-g10-mma-staged-t32-s3-w2-h10-v16-u1-qr-p0-b1-x1-m96-second";
    pub const EIGHT_BITS_TENSOR_SHARED: &str =
        "bf16-e4m3-d128-g12-mma-staged-t64-s3-w2-h6-v16-u2-qs-p0-b1-x1-m96-last";
    pub const EIGHT_BITS_F16: &str =
        "f16-e4m3-d256-g6-mma-staged-t32-s2-w2-h6-v16-u1-qs-p0-b1-x1-m96-second";

    pub const WARPGROUPS_ROWS: &str =
        "f16-d64-g2-wgmma-r64-staged-t64-s3-w1-h16-v16-u1-qr-p0-b1-x1-m96-second";
    pub const WARPGROUPS_SHARED: &str =
        "bf16-d128-g5-wgmma-r25-staged-t128-s2-w1-h16-v16-u1-qs-p0-b1-x1-m160-second";

    pub const WARPGROUPS_LONG: &str =
        "f16-d64-g2-wgmma-r64-staged-t64-s3-w1-h16-v16-u1-qr-p0-b1-x1-m512-second";

    pub const WARPGROUPS: &[&str] = &[WARPGROUPS_ROWS, WARPGROUPS_SHARED];
    pub const ROWS: &[&str] = &[ROWS_SHARED, ROWS_SPLIT];
    pub const TENSOR_CORES: &[&str] = &[TENSOR, TENSOR_SHARED];
    pub const ANY: &[&str] = &[PLAIN, DIRECT];
    pub const STAGED: &[&str] = &[LONG, QUERY_SHARED, PADDED, TENSOR];
    pub const DIRECT_BOTH: &[&str] = &[DIRECT, DIRECT_WIDE];
    pub const SHORT_SPANS: &[&str] = &[LONG, DIRECT_LONG];
    pub const SECOND: &[&str] = &[PLAIN, DIRECT];
    pub const LAST: &[&str] = &[WIDE, PADDED, DIRECT_WIDE];
    pub const SPLIT_HEADS: &[&str] = &[PADDED, PADDED_SHARED];
}
