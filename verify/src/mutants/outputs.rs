//! Mutants of the kernel that merges attention over parts of the tokens (`merge_outputs` in `merge.cuh`).

use super::Kind::*;
use super::Mutant;
use super::kernels::*;

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant::new(
        "outputs-of-first-block-alone",
        Head,
        ANY,
        "const int head = (blockIdx.x * MERGE_THREADS + threadIdx.x) / 32;",
        "const int head = threadIdx.x / 32;",
    ),
    Mutant::new("outputs-beyond-heads", Bound, ANY, "    if (head >= heads) return;", "    ")
        .shows_at(&["const float one = lse[head];"]),
    Mutant::new(
        "outputs-of-last-head-left",
        Bound,
        ANY,
        "    if (head >= heads) return;",
        "    if (head >= heads - 1) return;",
    ),
    Mutant::new(
        "outputs-kept-where-one-is-empty",
        Predicate,
        ANY,
        "if (other == minus_infinity() && one != minus_infinity()) return;",
        "if (other == minus_infinity() || one == minus_infinity()) return;",
    ),
    Mutant::new(
        "outputs-weighted-by-lse-of-one",
        Merge,
        ANY,
        "const float largest = fmaxf(one, other);",
        "const float largest = one;",
    ),
    Mutant::new(
        "outputs-weighted-in-base-2",
        Scale,
        ANY,
        "const float theirs = exp2_approximate((other - base) * LOG2_E);",
        "const float theirs = exp2_approximate(other - base);",
    ),
    Mutant::new(
        "outputs-not-normalised",
        Merge,
        ANY,
        "a[e] = (a[e] * mine + b[e] * theirs) * scale;",
        "a[e] = a[e] * mine + b[e] * theirs;",
    ),
    Mutant::new(
        "outputs-with-weights-exchanged",
        Operands,
        ANY,
        "a[e] = (a[e] * mine + b[e] * theirs) * scale;",
        "a[e] = (a[e] * theirs + b[e] * mine) * scale;",
    ),
    Mutant::new(
        "outputs-of-first-head-added",
        Stride,
        ANY,
        "static_cast<const uint2*>(other_out) + static_cast<long long>(head)",
        "static_cast<const uint2*>(other_out) + 0 * static_cast<long long>(head)",
    ),
    Mutant::new(
        "outputs-halved",
        Bound,
        ANY,
        "for (int i = lane; i < C::HEAD_DIM / 4; i += 32) {",
        "for (int i = lane; i < C::HEAD_DIM / 8; i += 32) {",
    ),
    Mutant::new(
        "outputs-first-pair-twice",
        Packing,
        ANY,
        "C::Element::widen(was.y, a[2], a[3]);",
        "C::Element::widen(was.x, a[2], a[3]);",
    ),
    Mutant::new(
        "outputs-lse-in-base-2",
        Scale,
        ANY,
        "lse[head] = largest + log2_approximate(mine + theirs) * LN_2;",
        "lse[head] = largest + log2_approximate(mine + theirs);",
    ),
    Mutant::new(
        "outputs-lse-not-added",
        Merge,
        ANY,
        "lse[head] = largest + log2_approximate(mine + theirs) * LN_2;",
        "lse[head] = largest;",
    ),
    Mutant::new(
        "outputs-lse-read-late",
        Barrier,
        ANY,
        "    __syncwarp();  // every lane has read the LSE before one writes it",
        "    ",
    )
    .shows_at(&["const float one = lse[head];", "lse[head] = largest + log2"]),
];
