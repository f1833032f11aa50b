//! Mutants of what the decode kernels of CUDA cores run; those of tensor cores alone are in
//! `fragments.rs`. One file although it is long: it is a table.

use super::Kind::*;
use super::Mutant;
use super::kernels::*;

pub(super) const READS_TILE: &[&str] = &[
    "const uint4 u = *static",
    "const uint2 u = *static",
    "asm volatile(\"ldmatrix.sync.aligned.m8n8.x4.shared",
    "asm volatile(\"ldmatrix.sync.aligned.m8n8.x4.trans",
];
pub(super) const READS_STATES: &[&str] =
    &["Quad sum = {ml[c].x", "const float2 other = ml[w", "states[w * (L::COLUMNS"];
const WRITES_STATES: &[&str] = &[
    "*reinterpret_cast<float4*>(to) =",
    "sixteen[lane / 4] =",
    "sixteen[lane / 4 + 8] =",
    "maxima[head] =",
];
const READS_OFFSETS: &[&str] =
    &["const char* k = k_chunk + from[row];", "const char* v = v_chunk + from[row];"];
/// What is read of tiles and of their addresses.
const READS_RING: &[&str] = &[
    READS_TILE[0],
    READS_TILE[1],
    READS_TILE[2],
    READS_TILE[3],
    READS_OFFSETS[0],
    READS_OFFSETS[1],
];
const READS_PARTIALS: &[&str] = &["ml[j] = __ldcg", "acc[j] = __ldcg"];

pub(super) const MUTANTS: &[Mutant] = &[
    // TokenCursor
    Mutant::new(
        "row-for-request",
        Page,
        ANY,
        "request(a.row_request[row])",
        "request(row)",
    )
    .shows_at(&["return C::Kv::BYTES * (pages[page]"]),
    Mutant::new(
        "page-table-stride",
        Stride,
        ANY,
        "static_cast<long long>(request) * a.max_pages;",
        "static_cast<long long>(request) * a.page_size;",
    )
    .shows_at(&["return C::Kv::BYTES * (pages[page]"]),
    Mutant::new(
        "head-offset-by-token-stride",
        Stride,
        ANY,
        "head * static_cast<long long>(a.head_stride));",
        "head * static_cast<long long>(a.token_stride));",
    ),
    Mutant::new(
        "span-end-included",
        Bound,
        ANY,
        "place + step - 1) <= index) place += step;",
        "place + step - 1) < index) place += step;",
    ),
    Mutant::new(
        "window-held-too-long",
        Bound,
        SHORT_SPANS,
        "while (__shfl_sync(~0u, end, 31) <= last)",
        "while (__shfl_sync(~0u, end, 31) < last)",
    ),
    Mutant::new(
        "window-moved-once-at-most",
        Predicate,
        &[DIRECT_LONG],
        "while (__shfl_sync(~0u, end, 31) <= last)",
        "if (__shfl_sync(~0u, end, 31) <= last)",
    ),
    Mutant::new(
        "window-moved-behind-first-token",
        Bound,
        SHORT_SPANS,
        "keep(window + __popc(__ballot_sync(~0u, end <= __shfl_sync(~0u, index, 0))));",
        "keep(window + 32);",
    ),
    Mutant::new(
        "window-beyond-set",
        Bound,
        ANY,
        "threadIdx.x % 32), spans_end() - 1);",
        "threadIdx.x % 32), spans_end());",
    ),
    Mutant::new(
        "appended-to-every-span",
        Predicate,
        ANY,
        "if (C::QUERY_ROWS == 1 && of_lane == spans_end() - 1) end +=",
        "if (C::QUERY_ROWS == 1) end +=",
    ),
    Mutant::new(
        "appended-to-no-span",
        Operands,
        ANY,
        "if (C::QUERY_ROWS == 1 && of_lane == spans_end() - 1) end += piece.appended;",
        "",
    ),
    Mutant::new(
        "appended-before-a-piece-left-out",
        Operands,
        ANY,
        "place - piece.set * each) || next",
        "place - piece.set * C::BEGINNING) || next",
    ),
    Mutant::new(
        "places-before-a-piece-left-out",
        Operands,
        ANY,
        "place - piece.set * each) || next",
        "place - piece.set * piece.appended) || next",
    ),
    Mutant::new(
        "appended-to-no-piece",
        Operands,
        ANY,
        "const int end = a.set_tokens[piece.set + 1] + piece.appended;",
        "const int end = a.set_tokens[piece.set + 1];",
    ),
    Mutant::new(
        "what-lies-behind-a-set-not-passed",
        Operands,
        ANY,
        "left -= stop - token + (is_last ? C::BEGINNING : 0);",
        "left -= stop - token;",
    ),
    Mutant::new(
        "next-repeat-not-begun",
        Head,
        ANY,
        "                ++repeat;",
        "                ;",
    ),
    Mutant::new(
        "next-set-begun-late",
        Bound,
        ANY,
        "if (take(piece, a.set_tokens[piece.set])) return true;",
        "if (take(piece, a.set_tokens[piece.set] + 1)) return true;",
    ),
    Mutant::new(
        "span-of-last-token-taken-for-all",
        Predicate,
        ANY,
        "if (__shfl_sync(~0u, end, place) <= last) {",
        "if (__shfl_sync(~0u, end, place) < last) {",
    ),
    Mutant::new(
        "spans-of-half-a-window",
        Lane,
        SHORT_SPANS,
        "for (int step = 16; step > 0; step /= 2)
                if (__shfl_sync(~0u, end,",
        "for (int step = 8; step > 0; step /= 2)
                if (__shfl_sync(~0u, end,",
    ),
    Mutant::new(
        "next-token-taken",
        Bound,
        ANY,
        "const unsigned position = __shfl_sync(~0u, shift, place) + index;",
        "const unsigned position = __shfl_sync(~0u, shift, place) + index + 1;",
    ),
    Mutant::new(
        "position-from-span-end",
        Operands,
        ANY,
        "shift = a.spans[of_lane].x -",
        "shift = a.spans[of_lane].y -",
    ),
    Mutant::new(
        "slot-forgets-page-size",
        Page,
        ANY,
        "const unsigned slot = position - page * a.page_size;",
        "const unsigned slot = position - page;",
    ),
    Mutant::new(
        "logical-page-read",
        Page,
        ANY,
        "return C::Kv::BYTES * (pages[page] * static_cast<long long>(a.page_stride) +",
        "return C::Kv::BYTES * (page * static_cast<long long>(a.page_stride) +",
    ),
    Mutant::new(
        "page-offset-in-32-bits",
        Width,
        ANY,
        "return C::Kv::BYTES * (pages[page] * static_cast<long long>(a.page_stride) +",
        "return C::Kv::BYTES * (pages[page] * a.page_stride +",
    )
    .shows_at(&["k + c * 16, exists)", "v + c * 16, exists)", "(a.k + at,", "(a.v + at,"]),
    // exists
    Mutant::new(
        "padding-is-a-head",
        Predicate,
        SPLIT_HEADS,
        "head_warp * C::HEADS_PER_WARP + h < COLUMNS;",
        "head_warp * C::HEADS_PER_WARP + h <= COLUMNS;",
    )
    // The query of a head of padding is read, or its state stored over that of the next warp.
    .shows_at(&[
        "exists<C>(head_warp, h) ? from[w] : 0;",
        "*reinterpret_cast<float4*>(to) =",
    ]),
    // LaneState::begin
    Mutant::new(
        "scale-in-base-e",
        Scale,
        ANY,
        "const float scale = key_scale<C>(a, piece.head) * LOG2_E;",
        "const float scale = key_scale<C>(a, piece.head);",
    ),
    Mutant::new(
        "query-of-first-kv-head",
        Head,
        ANY,
        "const long long first_head = Columns<C>(a, piece.tile, piece.head).place(0);",
        "const long long first_head = Columns<C>(a, piece.tile, 0).place(0);",
    ),
    Mutant::new(
        "padding-takes-a-word",
        Bound,
        &[PADDED_SHARED],
        "if (i < C::GROUP * C::HEAD_DIM / 2) C::Element::widen",
        "if (i <= C::GROUP * C::HEAD_DIM / 2) C::Element::widen",
    ),
    Mutant::new(
        "shared-query-scaled-in-part",
        Scale,
        &[QUERY_SHARED, DIRECT_WIDE],
        "= make_float2(pair.x * scale, pair.y * scale);",
        "= make_float2(pair.x * scale, pair.y);",
    ),
    Mutant::new(
        "query-read-early",
        Barrier,
        &[DIRECT_WIDE],
        "__syncthreads();  // all queries are written before any lane reads them",
        "",
    )
    .shows_at(&["return *reinterpret_cast<const float4*>(from);"]),
    Mutant::new(
        "query-barrier-in-loop",
        Barrier,
        &[PADDED_SHARED],
        "= make_float2(pair.x * scale, pair.y * scale);
            }
            __syncthreads();  // all queries are written before any lane reads them",
        "= make_float2(pair.x * scale, pair.y * scale);
            __syncthreads();  // all queries are written before any lane reads them
            }",
    )
    .shows_at(&["__syncthreads();"]),
    Mutant::new(
        "shared-query-of-first-warp",
        Head,
        &[PADDED_SHARED],
        "head_warp * L::HEADS * C::HEAD_DIM + lane_in_row * 4;",
        "lane_in_row * 4;",
    ),
    Mutant::new(
        "query-of-first-warp",
        Head,
        &[PADDED],
        "const unsigned* from = q + (head_warp * L::HEADS + h) * (C::HEAD_DIM / 2) +",
        "const unsigned* from = q + h * (C::HEAD_DIM / 2) +",
    ),
    Mutant::new(
        "query-chunks-side-by-side",
        Stride,
        &[WIDE],
        "(c * L::LANES + lane_in_row) * (L::VECTOR / 2);",
        "(lane_in_row * L::CHUNKS + c) * (L::VECTOR / 2);",
    ),
    Mutant::new(
        "query-scaled-in-part",
        Scale,
        ANY,
        "query[h][e + 1] *= scale;",
        "",
    ),
    Mutant::new(
        "maximum-kept-from-last-piece",
        Uninitialised,
        ANY,
        "            m[h] = minus_infinity();
            l[h] = 0.f;",
        "            
            l[h] = 0.f;",
    )
    // Where the maximum is read that nothing has written.
    .shows_at(&["float largest = m[h];"]),
    // query_at, dot
    Mutant::new(
        "shared-query-chunk-stride",
        Stride,
        &[DIRECT_WIDE],
        "(chunk * VECTOR + element / 4 * 4) * LANES + element % 4;",
        "chunk * VECTOR + element / 4 * 4 * LANES + element % 4;",
    ),
    Mutant::new(
        "dot-pairs-wrong-elements",
        Operands,
        ANY,
        "fmaf(of_q.y, of_k.y, logit[h]);",
        "fmaf(of_q.x, of_k.y, logit[h]);",
    ),
    // weigh
    Mutant::new(
        "row-sum-ends-early",
        Lane,
        ANY,
        "for (int step = L::LANES / 2; step > 0; step /= 2)",
        "for (int step = L::LANES / 2; step > 1; step /= 2)",
    ),
    Mutant::new(
        "row-sum-by-shuffle-down",
        Lane,
        ANY,
        "logit[u][h] += __shfl_xor_sync(~0u, logit[u][h], step);",
        "logit[u][h] += __shfl_down_sync(~0u, logit[u][h], step);",
    ),
    Mutant::new(
        "validity-of-first-token",
        Predicate,
        ANY,
        "if (!(valid >> u & 1)) logit[u][h] = minus_infinity();",
        "if (!(valid & 1)) logit[u][h] = minus_infinity();",
    ),
    Mutant::new(
        "validity-ignored",
        Predicate,
        ANY,
        "if (!(valid >> u & 1)) logit[u][h] = minus_infinity();",
        "",
    ),
    Mutant::new(
        "masked-by-minus-10000",
        Infinity,
        ANY,
        "if (!(valid >> u & 1)) logit[u][h] = minus_infinity();",
        "if (!(valid >> u & 1)) logit[u][h] = -10000.f;",
    ),
    Mutant::new(
        "maximum-forgets-the-past",
        Merge,
        ANY,
        "float largest = m[h];",
        "float largest = minus_infinity();",
    ),
    Mutant::new(
        "step-unguarded",
        Infinity,
        ANY,
        "            const float base = subtrahend(largest);
            const float rescale",
        "            const float base = largest;
            const float rescale",
    ),
    Mutant::new(
        "rescale-inverted",
        Operands,
        ANY,
        "const float rescale = exp2_approximate(m[h] - base);",
        "const float rescale = exp2_approximate(base - m[h]);",
    ),
    Mutant::new(
        "rescale-after-update",
        Merge,
        ANY,
        "            const float rescale = exp2_approximate(m[h] - base);
            m[h] = largest;",
        "            m[h] = largest;
            const float rescale = exp2_approximate(m[h] - base);",
    ),
    Mutant::new("sum-not-rescaled", Merge, ANY, "l[h] *= rescale;", ""),
    Mutant::new(
        "accumulator-not-rescaled",
        Merge,
        ANY,
        "for (int e = 0; e < L::PER_LANE; ++e) acc[h][e] *= rescale;",
        "for (int e = 0; e < L::PER_LANE; ++e) acc[h][e] *= 1.f;",
    ),
    Mutant::new(
        "weight-of-first-token",
        Operands,
        &[PLAIN, DIRECT],
        "l[h] += logit[u][h];",
        "l[h] += logit[0][h];",
    ),
    // accumulate
    Mutant::new(
        "high-element-is-low",
        Operands,
        ANY,
        "to[1] = fmaf(weight[h], of_v.y, to[1]);",
        "to[1] = fmaf(weight[h], of_v.x, to[1]);",
    ),
    Mutant::new(
        "chunks-accumulate-in-one",
        Stride,
        &[WIDE, DIRECT_WIDE],
        "float* to = &acc[h][c * L::VECTOR + 4 * i];",
        "float* to = &acc[h][4 * i];",
    ),
    // merge_over_lanes
    Mutant::new(
        "lanes-merge-ends-early",
        Lane,
        ANY,
        "for (int step = L::LANES; step < 32; step *= 2)",
        "for (int step = L::LANES; step < 16; step *= 2)",
    ),
    Mutant::new(
        "lanes-merge-unguarded",
        Infinity,
        ANY,
        "                const float base = subtrahend(largest);
                const float mine",
        "                const float base = largest;
                const float mine",
    ),
    Mutant::new(
        "lanes-merge-weights-exchanged",
        Merge,
        ANY,
        "l[h] = l[h] * mine + other_l * theirs;",
        "l[h] = l[h] * theirs + other_l * mine;",
    ),
    Mutant::new(
        "lanes-merge-wrong-distance",
        Lane,
        ANY,
        "__shfl_xor_sync(~0u, acc[h][e], step) * theirs;",
        "__shfl_xor_sync(~0u, acc[h][e], step / 2) * theirs;",
    ),
    // store
    Mutant::new(
        "states-by-heads-per-warp",
        Stride,
        SPLIT_HEADS,
        "const int first_head = token_warp * L::COLUMNS + head_warp * L::HEADS;",
        "const int first_head = token_warp * L::HEADS + head_warp * L::HEADS;",
    )
    // States are stored over each other, and read where they were not stored.
    .shows_at(&[
        "*reinterpret_cast<float4*>(to) =",
        "Quad sum = {ml[c].x",
        "const float2 other = ml[w",
        "states[w * (L::COLUMNS",
    ]),
    Mutant::new(
        "padding-is-stored",
        Predicate,
        SPLIT_HEADS,
        "if (!exists<C>(head_warp, h)) continue;",
        "",
    )
    // What the line kept from being stored.
    .shows_at(WRITES_STATES),
    Mutant::new(
        "other-rows-lanes-store",
        Lane,
        ANY,
        "if (lane < L::LANES)",
        "if (lane < 32)",
    )
    // The store that the condition, now always true, kept other rows' lanes from.
    .shows_at(WRITES_STATES),
    Mutant::new(
        "maxima-of-first-warp",
        Slot,
        ANY,
        "if (lane == 0) ml[first_head + h] = make_float2(m[h], l[h]);",
        "if (lane == 0) ml[h] = make_float2(m[h], l[h]);",
    )
    .shows_at(READS_STATES),
    // merge_into, write_output
    Mutant::new(
        "merged-sum-unweighted",
        Merge,
        ANY,
        "sum.l = sum.l * mine + l * theirs;",
        "sum.l = sum.l * mine + l;",
    ),
    Mutant::new(
        "merged-element-copied-wrong",
        Operands,
        ANY,
        "sum.acc.z = sum.acc.z * mine + acc.z * theirs;",
        "sum.acc.z = sum.acc.z * mine + acc.y * theirs;",
    ),
    Mutant::new("merged-maximum-kept", Merge, ANY, "    sum.m = largest;", "    "),
    Mutant::new(
        "output-packed-in-reverse",
        Packing,
        ANY,
        "C::Element::narrow(state.acc.z * scale, state.acc.w * scale));",
        "C::Element::narrow(state.acc.w * scale, state.acc.z * scale));",
    ),
    Mutant::new(
        "half-the-output-normalised",
        Scale,
        ANY,
        "C::Element::narrow(state.acc.z * scale, state.acc.w * scale));",
        "C::Element::narrow(state.acc.z, state.acc.w));",
    ),
    Mutant::new(
        "lse-by-first-thread",
        Lane,
        ANY,
        "if (element == 0) a.lse[head]",
        "if (threadIdx.x == 0) a.lse[head]",
    ),
    Mutant::new(
        "lse-operands-exchanged",
        Operands,
        ANY,
        "a.lse[head] = natural_lse(state.m, state.l);",
        "a.lse[head] = natural_lse(state.l, state.m);",
    ),
    // merge_tile
    Mutant::new(
        "last-block-at-border",
        Bound,
        &[PLAIN, PADDED],
        "const int last = static_cast<int>((end - 1) / shares.share);",
        "const int last = static_cast<int>(end / shares.share);",
    )
    .shows_at(READS_PARTIALS),
    Mutant::new(
        "finished-rows-merged-again",
        Predicate,
        SECOND,
        "    if (first == last) return;",
        "    ",
    )
    .shows_at(READS_PARTIALS),
    Mutant::new(
        "last-partial-left-out",
        Bound,
        &[PLAIN, PADDED],
        "if (next + j < end) merge_into(sum, ml[j].x, ml[j].y, acc[j]);",
        "if (next + j < end - 1) merge_into(sum, ml[j].x, ml[j].y, acc[j]);",
    ),
    Mutant::new(
        "partials-beyond-six-left-out",
        Bound,
        &[PADDED],
        "for (int next = run_begin; next < run_end; next += MERGE_AHEAD) {",
        "for (int next = run_begin; next == run_begin; next += MERGE_AHEAD) {",
    ),
    Mutant::new(
        "partials-of-a-round-overlap",
        Overlap,
        &[PADDED],
        "for (int next = run_begin; next < run_end; next += MERGE_AHEAD) {",
        "for (int next = run_begin; next < run_end; next += MERGE_AHEAD - 1) {",
    ),
    Mutant::new(
        "five-partials-by-fours",
        Bound,
        &[PADDED],
        "if (left > 4) merge_partials",
        "if (left > 5) merge_partials",
    ),
    Mutant::new(
        "three-partials-by-twos",
        Bound,
        &[PLAIN, PADDED],
        "else if (left > 2) merge_partials",
        "else if (left > 3) merge_partials",
    ),
    Mutant::new(
        "runs-too-short",
        Bound,
        SECOND,
        "const int run = (last - first + slices) / slices;",
        "const int run = (last - first + 1) / slices;",
    ),
    Mutant::new(
        "run-beyond-last-block",
        Bound,
        SECOND,
        "const int run_end = min(run_begin + run, last + 1);",
        "const int run_end = run_begin + run;",
    )
    .shows_at(READS_PARTIALS),
    Mutant::new(
        "runs-merged-before-they-are-written",
        Barrier,
        SECOND,
        "__syncthreads();  // the states of all runs are written",
        "",
    ),
    Mutant::new(
        "run-of-last-slice-left-out",
        Bound,
        SECOND,
        "for (int s = 1; s < slices; ++s)",
        "for (int s = 1; s < slices - 1; ++s)",
    ),
    Mutant::new(
        "every-slice-writes",
        Overlap,
        SECOND,
        "if (slice == 0 && quad < QUADS)",
        "if (quad < QUADS)",
    ),
    Mutant::new(
        "slot-of-last-block",
        Slot,
        &[PLAIN, PADDED],
        "partial_slot(block, block == first);",
        "partial_slot(block, block == end - 1);",
    )
    .shows_at(READS_PARTIALS),
    Mutant::new(
        "partial-stride-forgets-group",
        Stride,
        &[PLAIN, PADDED],
        "__ldcg(a.partial_ml + slot * COLUMNS + c);",
        "__ldcg(a.partial_ml + slot + c);",
    ),
    Mutant::new(
        "partials-through-constant-path",
        Fence,
        LAST,
        "ml[j] = __ldcg(a.partial_ml + slot * COLUMNS + c);",
        "ml[j] = __ldg(a.partial_ml + slot * COLUMNS + c);",
    ),
    // finish_piece
    Mutant::new(
        "slot-by-end",
        Slot,
        &[PLAIN, PADDED],
        "const int slot = partial_slot(blockIdx.x, piece.is_first());",
        "const int slot = partial_slot(blockIdx.x, piece.is_last());",
    )
    .shows_at(READS_PARTIALS),
    Mutant::new(
        "last-warp-left-out",
        Bound,
        ANY,
        "for (int w = 1; w < L::TOKEN_WARPS; ++w) {",
        "for (int w = 1; w < L::TOKEN_WARPS - 1; ++w) {",
    ),
    Mutant::new(
        "first-warp-counted-twice",
        Overlap,
        ANY,
        "for (int w = 1; w < L::TOKEN_WARPS; ++w) {",
        "for (int w = 0; w < L::TOKEN_WARPS; ++w) {",
    ),
    Mutant::new(
        "states-of-other-heads",
        Head,
        ANY,
        "const float2 other = ml[w * L::COLUMNS + c];",
        "const float2 other = ml[w + c * L::TOKEN_WARPS];",
    ),
    Mutant::new(
        "unfinished-row-written",
        Predicate,
        ANY,
        "if (piece.is_whole()) {",
        "if (piece.is_first() || piece.is_last()) {",
    )
    // The call that the condition lets through.
    .shows_at(&["write_output<C>(a, columns, c, i % (C::HEAD_DIM / 4) * 4, sum);"]),
    Mutant::new(
        "maxima-of-first-head-only",
        Uninitialised,
        &[PLAIN, PADDED],
        "if (i % (C::HEAD_DIM / 4) == 0) a.partial_ml",
        "if (i == 0) a.partial_ml",
    )
    .shows_at(READS_PARTIALS),
    // attend_staged
    Mutant::new(
        "last-tile-left-out",
        Bound,
        STAGED,
        "const int tiles = (piece.end - piece.begin + C::TILE - 1) / C::TILE;",
        "const int tiles = (piece.end - piece.begin) / C::TILE;",
    ),
    Mutant::new(
        "addresses-beyond-tile",
        Bound,
        &[WIDE],
        "if (C::TILE % 32 != 0 && tid >= C::TILE) return;",
        "",
    )
    .shows_at(&["offsets[t % 2 * C::TILE + tid] = exists"]),
    Mutant::new(
        "one-set-of-addresses",
        Barrier,
        STAGED,
        "        offsets[t % 2 * C::TILE + tid] = exists ? offset : 0;
        if (C::QUERY_ROWS > 1) rows[t % (C::STAGES + 1) * C::TILE + tid] = exists ? cursor.rows() : 0;
    };
    // Starts the copies of tile `t`; a group is committed even where there is no such tile, so that
    // counting groups counts tiles.
    const auto copy = [&](int t) {
        if (t < tiles) {
            const int count = min(C::TILE, piece.end - piece.begin - t * C::TILE);
            const unsigned to = ring + t % C::STAGES * 2 * L::TILE_BYTES;
            const long long* from = offsets + t % 2 * C::TILE;",
        "        offsets[tid] = exists ? offset : 0;
        if (C::QUERY_ROWS > 1) rows[t % (C::STAGES + 1) * C::TILE + tid] = exists ? cursor.rows() : 0;
    };
    // Starts the copies of tile `t`; a group is committed even where there is no such tile, so that
    // counting groups counts tiles.
    const auto copy = [&](int t) {
        if (t < tiles) {
            const int count = min(C::TILE, piece.end - piece.begin - t * C::TILE);
            const unsigned to = ring + t % C::STAGES * 2 * L::TILE_BYTES;
            const long long* from = offsets;",
    ),
    Mutant::new(
        "tiles-overlap",
        Stride,
        STAGED,
        "const unsigned to = ring + t % C::STAGES * 2 * L::TILE_BYTES;",
        "const unsigned to = ring + t % C::STAGES * L::TILE_BYTES;",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "copies-half-a-step",
        Stride,
        STAGED,
        "const char* k_chunk = a.k + chunk * 16;",
        "const char* k_chunk = a.k + chunk * 8;",
    )
    .shows_at(&["asm volatile(\"cp.async.cg", "SPANFORGE_COPY(\"\")"]),
    Mutant::new(
        "row-after-last-copied",
        Bound,
        STAGED,
        "const bool exists = row < count;",
        "const bool exists = row <= count;",
    )
    .shows_at(READS_OFFSETS),
    Mutant::new(
        "keys-for-values",
        Operands,
        STAGED,
        "const char* v = v_chunk + from[row];",
        "const char* v = k_chunk + from[row];",
    ),
    Mutant::new(
        "values-not-cleared",
        Uninitialised,
        STAGED,
        "copy_async<C::L2_PREFETCH>(place + L::TILE_BYTES, v + c * 16, exists);",
        "if (exists) copy_async<C::L2_PREFETCH>(place + L::TILE_BYTES, v + c * 16, true);",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "commit-left-out",
        AsyncCopy,
        STAGED,
        "        commit_copies();
    };",
        "        
    };",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "commit-only-with-tile",
        AsyncCopy,
        STAGED,
        "            }
        }
        commit_copies();
    };",
        "            }
        commit_copies();
        }
    };",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "ring-filled-too-far",
        Overlap,
        STAGED,
        "for (int t = 0; t < C::STAGES - 1; ++t) {",
        "for (int t = 0; t < C::STAGES; ++t) {",
    ),
    Mutant::new(
        "addresses-read-early",
        Barrier,
        STAGED,
        "__syncthreads();  // the addresses of tile t are written; those of tile t - 1 are used",
        "",
    )
    .shows_at(READS_OFFSETS),
    Mutant::new(
        "wait-left-out",
        AsyncCopy,
        STAGED,
        "wait_copies<C::STAGES - 2>();  // this thread's part of tile t has landed",
        "",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "wait-counts-all-stages",
        AsyncCopy,
        STAGED,
        "wait_copies<C::STAGES - 2>();  // this thread's part of tile t has landed",
        "wait_copies<C::STAGES>();  // this thread's part of tile t has landed",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "tile-barrier-left-out",
        Barrier,
        STAGED,
        "__syncthreads();  // everybody's part has; and everybody has finished with tile t - 1",
        "",
    )
    .shows_at(READS_RING),
    Mutant::new(
        "barrier-before-wait",
        AsyncCopy,
        STAGED,
        "        wait_copies<C::STAGES - 2>();  // this thread's part of tile t has landed
        __syncthreads();  // everybody's part has; and everybody has finished with tile t - 1",
        "        __syncthreads();  // everybody's part has; and everybody has finished with tile t - 1
        wait_copies<C::STAGES - 2>();  // this thread's part of tile t has landed",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "buffer-filled-before-barrier",
        Barrier,
        STAGED,
        "        __syncthreads();  // everybody's part has; and everybody has finished with tile t - 1
        copy(t + C::STAGES - 1);",
        "        copy(t + C::STAGES - 1);
        __syncthreads();  // everybody's part has; and everybody has finished with tile t - 1",
    )
    .shows_at(READS_RING),
    Mutant::new(
        "addresses-of-other-tile",
        Bound,
        STAGED,
        "        locate(t + C::STAGES);",
        "        locate(t + C::STAGES - 1);",
    )
    .shows_at(READS_OFFSETS),
    Mutant::new(
        "last-tile-taken-for-full",
        Bound,
        STAGED,
        "        const char* k = shared + t % C::STAGES * 2 * L::TILE_BYTES;
        const int count = min(C::TILE, piece.end - piece.begin - t * C::TILE);",
        "        const char* k = shared + t % C::STAGES * 2 * L::TILE_BYTES;
        const int count = C::TILE;",
    ),
    Mutant::new(
        "token-warps-overlap",
        Overlap,
        &[PLAIN, QUERY_SHARED],
        "base < count; base += L::TOKEN_WARPS * L::STEP) {",
        "base < count; base += L::STEP) {",
    ),
    Mutant::new(
        "column-by-lane",
        Stride,
        &[PLAIN, PADDED],
        "const int column = lane % L::LANES * C::VECTOR_BYTES;",
        "const int column = lane * C::VECTOR_BYTES;",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "token-after-last-valid",
        Bound,
        STAGED,
        "valid |= (r < count ? 1u : 0u) << u;",
        "valid |= (r <= count ? 1u : 0u) << u;",
    ),
    Mutant::new(
        "values-of-neighbouring-rows",
        Stride,
        &[PLAIN],
        "(row + u * L::ROWS_PER_WARP) * L::ROW_BYTES +",
        "(row + u) * L::ROW_BYTES +",
    ),
    Mutant::new(
        "states-over-tiles",
        Barrier,
        STAGED,
        "__syncthreads();  // everybody has finished with the tiles: states may take their place",
        "",
    )
    .shows_at(WRITES_STATES),
    // attend_direct
    Mutant::new(
        "direct-warps-overlap",
        Overlap,
        DIRECT_BOTH,
        "for (int base = first; base < piece.end; base += L::TOKEN_WARPS * 32) {",
        "for (int base = first; base < piece.end; base += 32) {",
    ),
    Mutant::new(
        "direct-token-after-last",
        Bound,
        DIRECT_BOTH,
        "const long long mine = base + lane < piece.end ?",
        "const long long mine = base + lane <= piece.end ?",
    ),
    Mutant::new(
        "direct-no-token-is-the-first",
        Predicate,
        DIRECT_BOTH,
        "piece.end ? offset : -1;",
        "piece.end ? offset : 0;",
    ),
    Mutant::new(
        "direct-batch-one-too-long",
        Bound,
        DIRECT_BOTH,
        "for (int j = 0; j < 32 && base + j < piece.end; j += L::STEP) {",
        "for (int j = 0; j <= 32 && base + j < piece.end; j += L::STEP) {",
    ),
    Mutant::new(
        "direct-lanes-leave-alone",
        Predicate,
        &[DIRECT],
        "for (int j = 0; j < 32 && base + j < piece.end; j += L::STEP) {",
        "for (int j = 0; j < 32 && base + j + lane / L::LANES < piece.end; j += L::STEP) {",
    )
    .shows_at(&["__shfl_"]),
    Mutant::new(
        "direct-steps-overlap",
        Overlap,
        &[DIRECT],
        "base + j < piece.end; j += L::STEP) {",
        "base + j < piece.end; j += L::ROWS_PER_WARP) {",
    ),
    Mutant::new(
        "direct-address-of-other-lane",
        Lane,
        &[DIRECT],
        "__shfl_sync(~0u, mine, j + u * L::ROWS_PER_WARP + lane / L::LANES);",
        "__shfl_sync(~0u, mine, j + u + lane / L::LANES);",
    ),
    Mutant::new(
        "direct-first-row-invalid",
        Predicate,
        DIRECT_BOTH,
        "valid |= (from >= 0 ? 1u : 0u) << u;",
        "valid |= (from > 0 ? 1u : 0u) << u;",
    ),
    Mutant::new(
        "direct-chunk-stride",
        Stride,
        &[DIRECT_WIDE],
        "from + (c * L::LANES + lane % L::LANES) * C::VECTOR_BYTES;",
        "from + (c + lane % L::LANES * L::CHUNKS) * C::VECTOR_BYTES;",
    ),
    Mutant::new(
        "direct-values-not-cleared",
        Uninitialised,
        &[DIRECT],
        "                    v[u][c] = {};",
        "                    ",
    )
    .shows_at(&["state.accumulate(v[u][c], c, logit[u])"]),
    Mutant::new(
        "direct-rows-always-loaded",
        ExtraBytes,
        DIRECT_BOTH,
        "                    const long long at = from + (c * L::LANES + lane % L::LANES) * C::VECTOR_BYTES;
                    k[u][c] = {};
                    v[u][c] = {};
                    if (from >= 0) {",
        "                    const long long at = (from < 0 ? 0 : from) + (c * L::LANES + lane % L::LANES) * C::VECTOR_BYTES;
                    k[u][c] = {};
                    v[u][c] = {};
                    {",
    ),
    // write_empty_sets
    Mutant::new(
        "all-rows-written-empty",
        Predicate,
        ANY,
        "if (a.set_tokens[set] != a.set_tokens[set + 1]) continue;",
        "",
    )
    // The call that the line kept from sets that are not empty.
    .shows_at(&["i % (C::HEAD_DIM / 4) * 4, empty);"]),
    Mutant::new(
        "empty-rows-of-first-kv-head",
        Head,
        ANY,
        "for (int head = set % a.span_heads; head < a.kv_heads; head += a.span_heads) {",
        "for (int head = set % a.span_heads; head < a.span_heads; head += a.span_heads) {",
    ),
    Mutant::new(
        "empty-sets-of-every-kv-head",
        Head,
        ANY,
        "for (int head = set % a.span_heads; head < a.kv_heads; head += a.span_heads) {",
        "for (int head = set % a.span_heads; head < a.kv_heads; ++head) {",
    )
    // What writes heads that have tokens, at the same time as those who compute them.
    .shows_at(&["i % (C::HEAD_DIM / 4) * 4, empty);"]),
    // arrive_and_merge
    Mutant::new(
        "partial-not-published",
        Fence,
        LAST,
        "__threadfence();  // this thread's part of the partial state is visible to every block",
        "",
    )
    .shows_at(READS_PARTIALS),
    Mutant::new(
        "arrival-before-partial",
        Barrier,
        LAST,
        "__syncthreads();  // and so is every other thread's of this block",
        "",
    )
    .shows_at(READS_PARTIALS),
    Mutant::new(
        "sharing-counted-past-end",
        Bound,
        LAST,
        "shares.end_of(a.set_tokens, piece.set) - 1) / shares.share -",
        "shares.end_of(a.set_tokens, piece.set)) / shares.share -",
    ),
    Mutant::new(
        "arrivals-of-neighbours-meet",
        Arrivals,
        LAST,
        "a.arrivals + piece.tile * a.kv_heads + piece.head;",
        "a.arrivals + piece.tile + piece.head;",
    ),
    Mutant::new(
        "arrival-not-atomic",
        Fence,
        LAST,
        "const int before = atomicAdd(arrivals, 1);",
        "const int before = (*arrivals)++;",
    ),
    Mutant::new(
        "nobody-is-last",
        Arrivals,
        LAST,
        "is_last = before == sharing - 1;",
        "is_last = before == sharing;",
    ),
    Mutant::new(
        "last-block-taken-for-last-arriver",
        Arrivals,
        LAST,
        "is_last = before == sharing - 1;",
        "is_last = piece.is_last();",
    ),
    Mutant::new(
        "arrivals-not-reset",
        Arrivals,
        LAST,
        "if (is_last) *arrivals = 0;  // ready for the next launch",
        "",
    ),
    Mutant::new(
        "others-partials-not-acquired",
        Fence,
        LAST,
        "__threadfence();  // what the other blocks made visible before they arrived is seen from here",
        "",
    )
    .shows_at(READS_PARTIALS),
    Mutant::new(
        "is-last-read-early",
        Barrier,
        LAST,
        "__syncthreads();  // is_last is written",
        "",
    )
    .shows_at(&["if (is_last) merge_tile"]),
    // decode
    Mutant::new(
        "head-warp-by-division",
        Operands,
        SPLIT_HEADS,
        "const int head_warp = warp % L::HEAD_WARPS;",
        "const int head_warp = warp / L::HEAD_WARPS;",
    ),
    Mutant::new(
        "share-beyond-work",
        Bound,
        ANY,
        "left = min(shares.work - at, shares.share);",
        "left = shares.share;",
    ),
    Mutant::new(
        "last-row-not-searched",
        Bound,
        ANY,
        "last_at_most(a.set_tokens, 0, a.tiles * a.span_heads, place,",
        "last_at_most(a.set_tokens, 0, a.tiles * a.span_heads - 1, place,",
    ),
    Mutant::new(
        "share-ends-with-row",
        Overlap,
        &[PLAIN, DIRECT],
        "const int stop = is_last ? end : token + static_cast<int>(left);",
        "const int stop = end;",
    )
    // Where the partial states of a row that no block leaves in parts any more are read.
    .shows_at(READS_PARTIALS),
    Mutant::new(
        "piece-always-first",
        Predicate,
        ANY,
        "piece.ends = (token == begin ? 1 : 0)",
        "piece.ends = (token >= begin ? 1 : 0)",
    ),
    Mutant::new(
        "lane-not-within-row",
        Lane,
        ANY,
        "const int lane_in_row = lane % L::LANES;",
        "const int lane_in_row = lane;",
    ),
    Mutant::new(
        "states-read-early",
        Barrier,
        ANY,
        "__syncthreads();  // the states of all warps are written",
        "",
    )
    .shows_at(READS_STATES),
    Mutant::new(
        "states-overwritten",
        Barrier,
        &[DIRECT],
        "__syncthreads();  // states and queries are read before the next piece overwrites them",
        "",
    )
    .shows_at(WRITES_STATES),
    Mutant::new(
        "one-piece-per-block",
        Overlap,
        ANY,
        "while (left > 0) {",
        "while (false) {",
    ),
    Mutant::new(
        "head-of-set-left-out",
        Head,
        ANY,
        "piece.head = repeat + piece.set - piece.tile * a.span_heads;",
        "piece.head = repeat;",
    ),
    Mutant::new(
        "head-of-first-repeat",
        Head,
        ANY,
        "piece.head = repeat + piece.set - piece.tile * a.span_heads;",
        "piece.head = piece.set - piece.tile * a.span_heads;",
    ),
    Mutant::new(
        "sets-for-tiles",
        Operands,
        ANY,
        "piece.tile = piece.set / a.span_heads;",
        "piece.tile = piece.set;",
    ),
    Mutant::new(
        "merge-set-of-first-head",
        Head,
        SECOND,
        "const int set = a.span_heads == 1 ? tile : tile * a.span_heads + head;",
        "const int set = a.span_heads == 1 ? tile : tile * a.span_heads;",
    )
    .shows_at(READS_PARTIALS),
    Mutant::new(
        "merge-line-of-own-sets-repeated",
        Operands,
        SECOND,
        "const long long line = a.span_heads == 1 ? static_cast<long long>(head) * shares.places : 0;",
        "const long long line = static_cast<long long>(head) * shares.places;",
    )
    .shows_at(READS_PARTIALS),
    Mutant::new(
        "sink-of-kv-head",
        Head,
        ANY,
        "return head * C::GROUP + c - row(c) * C::GROUP;",
        "return head + c - row(c) * C::GROUP;",
    ),
    Mutant::new(
        "sink-in-base-e",
        Scale,
        ANY,
        "a.sinks[columns.query_head(c)] * LOG2_E, 1.f",
        "a.sinks[columns.query_head(c)], 1.f",
    ),
    Mutant::new(
        "sink-weighs-nothing",
        Merge,
        ANY,
        "a.sinks[columns.query_head(c)] * LOG2_E, 1.f",
        "a.sinks[columns.query_head(c)] * LOG2_E, 0.f",
    ),
    Mutant::new(
        "sink-for-partial-states",
        Overlap,
        ANY,
        "if (a.sinks != nullptr)",
        "if (a.sinks == nullptr)",
    ),
    Mutant::new(
        "cap-left-out",
        Predicate,
        ANY,
        "        if (soft_cap != 0.f)
#pragma unroll
            for (int u",
        "        if (soft_cap < 0.f)
#pragma unroll
            for (int u",
    ),
];
