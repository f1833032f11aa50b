//! Mutants of what kernels run that take several rows at a time (`overlay.cuh`, and parts of others).

use super::Kind::*;
use super::Mutant;
use super::kernels::*;

/// What reads the spans of query tiles, or what was made of them.
const READS_OVERLAY: &[&str] = &[
    "end = a.span_tokens[of_lane + 1];",
    "shift = a.spans[of_lane].x - a.span_tokens[of_lane];",
    "return a.span_rows[span * Layout<C>::ROW_WORDS + word];",
];

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant::new(
        "overlay-room-of-tokens",
        Stride,
        ROWS,
        "const int room = 2 * (span_ptr[first_row * span_heads] + __reduce",
        "const int room = 1 * (span_ptr[first_row * span_heads] + __reduce",
    )
    .shows_at(READS_OVERLAY),
    Mutant::new(
        "overlay-heads-share-room",
        Overlap,
        ROWS,
        "before += next[w] - span_ptr[first_set];",
        "before += 0;",
    )
    .shows_at(READS_OVERLAY),
    Mutant::new(
        "overlay-head-of-first",
        Head,
        ROWS,
        "next[w] = span_ptr[first_set + head];",
        "next[w] = span_ptr[first_set];",
    ),
    Mutant::new("overlay-rows-beyond-tile", Bound, ROWS, "if (row < rows) {", "if (row <= rows) {"),
    Mutant::new(
        "overlay-begins-late",
        Bound,
        ROWS,
        "const bool within = span[w].x <= from;",
        "const bool within = span[w].x < from;",
    ),
    Mutant::new(
        "overlay-not-cut-where-spans-begin",
        Overlap,
        ROWS,
        "until = min(until, within ? span[w].y : span[w].x);",
        "until = min(until, within ? span[w].y : END);",
    ),
    Mutant::new(
        "overlay-rows-of-first-lane",
        Lane,
        ROWS,
        "by_any |= selecting[w] = __ballot_sync(~0u, within);",
        "by_any |= selecting[w] = __shfl_sync(~0u, within ? 1u : 0u, 0);",
    ),
    Mutant::new("overlay-gap-is-a-span", ExtraBytes, ROWS, "if (by_any != 0) {", "if (true) {")
        .shows_at(&["tile_spans[to] = make_int2(from, until);", "span_rows[to * WORDS + w] ="]),
    Mutant::new(
        "overlay-next-span-skipped",
        Bound,
        ROWS,
        "if (span[w].x <= from && span[w].y == until) {",
        "if (span[w].y == until || span[w].x == until) {",
    ),
    Mutant::new(
        "overlay-end-left-out",
        Uninitialised,
        ROWS,
        "if (to > room) span_tokens[to] = tokens;",
        "",
    )
    .shows_at(READS_OVERLAY),
    Mutant::new(
        "overlay-tokens-of-gaps-counted",
        Operands,
        ROWS,
        "            tokens += until - from;
            ++to;
        }",
        "            ++to;
        }
        tokens += until - from;",
    ),
    Mutant::new(
        "overlay-tokens-of-spans",
        Operands,
        ROWS,
        "= make_int4(room, to, tokens, 0);",
        "= make_int4(room, to, to - room, 0);",
    ),
    Mutant::new(
        "overlay-set-ends-early",
        Bound,
        ROWS,
        "= make_int4(room, to, tokens, 0);",
        "= make_int4(room, to - 1, tokens, 0);",
    ),
    Mutant::new(
        "tokens-before-set-left-out",
        Operands,
        ROWS,
        "const int uncounted = C::QUERY_ROWS > 1 ? begin : 0;",
        "const int uncounted = 0;",
    ),
    Mutant::new(
        "plan-of-tiles-without-total",
        Uninitialised,
        ROWS,
        "        set_tokens[sets] = total;",
        "",
    ),
    Mutant::new(
        "overlay-least-of-half-the-rows",
        Lane,
        ROWS,
        "until = __reduce_min_sync(~0u, until);",
        "until = __reduce_min_sync(~0u, lane % 8 < 4 ? until : END);",
    ),
    Mutant::new(
        "column-row-by-rows",
        Operands,
        ROWS,
        "return C::QUERY_ROWS > 1 ? c / C::GROUP : 0; }",
        "return C::QUERY_ROWS > 1 ? c / C::QUERY_ROWS : 0; }",
    ),
    Mutant::new(
        "rows-that-are-not-there",
        Bound,
        ROWS,
        "return C::QUERY_ROWS == 1 || row(c) < rows;",
        "return C::QUERY_ROWS == 1 || row(c) <= rows;",
    ),
    Mutant::new(
        "cursor-of-tile-number",
        Operands,
        ROWS,
        "TokenCursor<C> cursor(a, piece, first_query_row, piece.begin + tid / 32 * 32);",
        "TokenCursor<C> cursor(a, piece, piece.tile, piece.begin + tid / 32 * 32);",
    ),
    Mutant::new(
        "rows-ring-as-long-as-tiles",
        Overlap,
        ROWS,
        "rows[t % (C::STAGES + 1) * C::TILE + tid] =",
        "rows[t % C::STAGES * C::TILE + tid] =",
    )
    .shows_at(&["by_all &= of_token[i] ="]),
    Mutant::new(
        "rows-of-next-tile",
        Operands,
        ROWS,
        "state.tile(k, rows + t % (C::STAGES + 1) * C::TILE,",
        "state.tile(k, rows + (t + 1) % (C::STAGES + 1) * C::TILE,",
    ),
    Mutant::new(
        "rows-of-tokens-that-are-not-there",
        Bound,
        ROWS,
        "+ tid] = exists ? cursor.rows() : 0;",
        "+ tid] = cursor.rows();",
    ),
    Mutant::new(
        "rows-selected-by-any",
        Predicate,
        ROWS,
        "if (__all_sync(~0u, by_all == ~0u)) return;",
        "if (__any_sync(~0u, by_all == ~0u)) return;",
    ),
    Mutant::new(
        "rows-of-first-warp",
        Head,
        &[ROWS_SPLIT],
        "Columns<C>::row(head_warp * L::HEADS + 8 * f + lane % 4 * 2 + j);",
        "Columns<C>::row(8 * f + lane % 4 * 2 + j);",
    ),
    Mutant::new(
        "rows-of-first-eight-tokens",
        Lane,
        ROWS,
        "if (!(of_token[i] >> row & 1))",
        "if (!(of_token[0] >> row & 1))",
    ),
];
