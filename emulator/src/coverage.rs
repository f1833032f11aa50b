//! From executed instructions to executed lines of CUDA source, as the line information of the PTX
//! has them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::findings::SourceLine;
use crate::kernel::Kernel;
use crate::op::Note;

/// How often a line of source was executed. A line has an entry when some instruction came from it,
/// or from a function that was inlined at it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineCount {
    /// The line.
    pub line: SourceLine,
    /// Times that a warp came by: those of the line's most executed instruction. The copies of an
    /// unrolled loop count as one.
    pub warps: u64,
    /// Warp instructions that were executed for the line itself, without what was inlined at it.
    pub instructions: u64,
}

impl LineCount {
    /// Counts of several kernels in one list, in order: a line that several have is there once.
    pub fn merged(mut counts: Vec<Self>) -> Vec<Self> {
        counts.sort_by(|a, b| a.line.cmp(&b.line));
        counts.dedup_by(|next, kept| {
            let same = next.line == kept.line;
            if same {
                kept.warps += next.warps;
                kept.instructions += next.instructions;
            }
            same
        });
        counts
    }
}

impl Kernel {
    /// The lines of the kernel in order, with their counts, from `executed` of a launch's report (or
    /// the sum of several). Empty for PTX without line information.
    pub fn line_counts(&self, executed: &[u64]) -> Vec<LineCount> {
        let mut lines: BTreeMap<(u32, u32), (u64, u64)> = BTreeMap::new();
        let counts = executed.iter().copied().chain(std::iter::repeat(0));
        for (note, executed) in self.notes.iter().zip(counts) {
            for (depth, place) in note.source.iter().flat_map(|place| place.iter()).enumerate() {
                let (warps, instructions) = lines.entry(*place).or_default();
                *warps = executed.max(*warps);
                *instructions += if depth == 0 { executed } else { 0 };
            }
        }
        let counts = lines
            .into_iter()
            .filter_map(|((file, line), (warps, instructions))| {
                let file = self.files.get(&file)?.clone();
                Some(LineCount { line: SourceLine { file, line }, warps, instructions })
            })
            .collect();
        LineCount::merged(counts)
    }

    /// Where an instruction comes from: its own line, then those of the calls that it was inlined by.
    pub(crate) fn places<'a>(&'a self, note: &'a Note) -> impl Iterator<Item = SourceLine> + 'a {
        note.source.iter().flat_map(|place| place.iter()).filter_map(|(file, line)| {
            Some(SourceLine { file: self.files.get(file)?.clone(), line: *line })
        })
    }
}
