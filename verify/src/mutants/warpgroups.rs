//! Mutants of what kernels of warpgroups run (`warpgroups.cuh`, `hopper.cuh`).

use super::Kind::*;
use super::Mutant;
use super::kernels::*;

/// What reads a tile, or which rows select its tokens, or what piece it is of.
const READS_TILE: &[&str] = &[
    "multiply_add<Element, false>(logit[s], of_q, of_k);",
    "multiply_add<Element, false>(logit[s], query[d], of_k);",
    "multiply_add<Element, true>(acc[p], weight[step], of_v);",
    "by_some |= selecting[i + lane] & rows[i / C::TILE];",
    "by_all &= selecting[i + lane];",
    "const uint2 by =",
    "const int4 of = pieces[count % C::STAGES];",
];

/// What writes them.
const WRITES_TILE: &[&str] = &[
    "copy_async<C::L2_PREFETCH>(place, k_rows + from,",
    "copy_async<C::L2_PREFETCH>(place + L::TILE_BYTES, v_rows + from,",
    "selecting[(stage * L::ROW_WORDS + w) * C::TILE",
    "pieces[stage] = make_int4(piece.tile, piece.head,",
];

/// What waits at a barrier, for ever where nobody arrives.
const WAITS: &[&str] = &["wait_for_phase(barriers + "];

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant::new(
        "filled-by-three-warps",
        Barrier,
        WARPGROUPS,
        "init_barrier(barriers + stage * 16, 4);",
        "init_barrier(barriers + stage * 16, 3);",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "free-before-all-warps",
        Barrier,
        WARPGROUPS,
        "init_barrier(barriers + stage * 16 + 8, 4 * L::GROUPS);",
        "init_barrier(barriers + stage * 16 + 8, 4 * L::GROUPS - 1);",
    )
    .shows_at(WRITES_TILE),
    Mutant::new(
        "free-never-waited-for",
        Barrier,
        WARPGROUPS,
        "            wait_for_phase(barriers + stage * 16 + 8, count / C::STAGES % 2 ^ 1);",
        "            ;",
    )
    .shows_at(WRITES_TILE),
    Mutant::new(
        "filled-waited-for-in-the-phase-before",
        Barrier,
        WARPGROUPS,
        "wait_for_phase(barriers + count % C::STAGES * 16, count / C::STAGES % 2);",
        "wait_for_phase(barriers + count % C::STAGES * 16, count / C::STAGES % 2 ^ 1);",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "never-given-back",
        Barrier,
        WARPGROUPS,
        "if (lane == 0) arrive(barriers + count % C::STAGES * 16 + 8);",
        ";",
    )
    .shows_at(WAITS),
    Mutant::new(
        "copies-of-one-tile-later",
        AsyncCopy,
        WARPGROUPS,
        "wait_copies<LATER>();",
        "wait_copies<LATER + 1>();",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "last-copies-not-waited-for",
        AsyncCopy,
        &[WARPGROUPS_ROWS],
        "    wait_copies<0>();
    for (int tile = max",
        "
    for (int tile = max",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "tile-not-shown-to-products",
        Fence,
        WARPGROUPS,
        "        show_to_products();
        __syncwarp();  // every lane's part",
        "
        __syncwarp();  // every lane's part",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "tile-handed-over-by-lane-alone",
        Barrier,
        WARPGROUPS,
        "__syncwarp();  // every lane's part has landed, and is shown",
        ";",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "queries-not-shown-to-products",
        Fence,
        &[WARPGROUPS_SHARED],
        "            show_to_products();
            barrier_of",
        "
            barrier_of",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "queries-of-other-warps-not-waited-for",
        Barrier,
        &[WARPGROUPS_SHARED],
        "barrier_of(1 + group, 128);  // all four warps have written theirs",
        ";",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "queries-written-under-products",
        Barrier,
        &[WARPGROUPS_SHARED],
        "barrier_of(1 + group, 128);  // the products of all four warps with the last queries are over",
        ";",
    )
    .needs("a schedule in which one warp of a warpgroup is a whole piece behind another: all four meet at every product"),
    Mutant::new(
        "products-not-waited-for",
        AsyncCopy,
        WARPGROUPS,
        "wgmma.wait_group.sync.aligned 0;",
        "wgmma.wait_group.sync.aligned 1;",
    )
    .shows_at(&["logit[i / 32][i % 32] *= scale;", "asm volatile(\"\" : SPANFORGE_SUMS(d)::\"memory\");"]),
    Mutant::new(
        "products-without-fence",
        Fence,
        WARPGROUPS,
        "asm volatile(\"wgmma.fence.sync.aligned;\" ::: \"memory\");",
        "asm volatile(\"\" ::: \"memory\");",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "rows-of-first-word",
        Operands,
        &[WARPGROUPS_ROWS],
        "selecting += word * C::TILE;",
        "selecting += 0;",
    ),
    Mutant::new(
        "row-bit-of-warp",
        Lane,
        WARPGROUPS,
        "bit[j] = Columns<C>::row(c) % 32;",
        "bit[j] = Columns<C>::row(16 * warp) % 32;",
    ),
    Mutant::new(
        "row-bit-of-upper-column",
        Lane,
        WARPGROUPS,
        "const int c = 16 * warp + lane / 4 + 8 * j;
            bit[j] =",
        "const int c = 16 * warp + lane / 4;
            bit[j] =",
    ),
    Mutant::new(
        "token-selected-with-its-neighbour",
        Operands,
        WARPGROUPS,
        "if (!(by.y >> bit[j] & 1))",
        "if (!(by.x >> bit[j] & 1))",
    ),
    Mutant::new(
        "full-where-some-token-is",
        Predicate,
        WARPGROUPS,
        "const bool full = __all_sync(~0u, by_all == ~0u);",
        "const bool full = __any_sync(~0u, by_all == ~0u);",
    ),
    Mutant::new(
        "wanted-by-rows-of-first-word",
        Operands,
        &[WARPGROUPS_ROWS],
        "by_some |= selecting[i + lane] & rows[i / C::TILE];",
        "by_some |= selecting[i + lane] & rows[0];",
    ),
    Mutant::new(
        "wanted-without-last-row",
        Bound,
        WARPGROUPS,
        "min(Columns<C>::row(64 * group + 63) + 1, columns.rows);",
        "min(Columns<C>::row(64 * group + 63), columns.rows);",
    ),
    Mutant::new(
        "wanted-from-second-row",
        Bound,
        WARPGROUPS,
        "rows[w] = bits_beyond(first_row - 32 * w)",
        "rows[w] = bits_beyond(first_row + 1 - 32 * w)",
    ),
    Mutant::new(
        "weights-of-one-part",
        Packing,
        WARPGROUPS,
        "rest[i / 4][i % 4] = Element::narrow(x - low, y - high);",
        "rest[i / 4][i % 4] = 0;",
    ),
    Mutant::new(
        "rest-in-other-order",
        Packing,
        WARPGROUPS,
        "rest[i / 4][i % 4] = Element::narrow(x - low, y - high);",
        "rest[i / 4][i % 4] = Element::narrow(y - high, x - low);",
    ),
    Mutant::new(
        "weights-grow-beyond-f16",
        Scale,
        &[WARPGROUPS_ROWS],
        "constexpr float GROWTH = 3.f;",
        "constexpr float GROWTH = 9.f;",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "maximum-kept-where-it-grows",
        Predicate,
        WARPGROUPS,
        "if (!(most[j] > m[j] + GROWTH)) most[j] = m[j];",
        "if (most[j] > m[j] + GROWTH) most[j] = m[j];",
    ),
    Mutant::new(
        "warpgroup-sum-not-rescaled",
        Merge,
        WARPGROUPS,
        "            l[j] *= smaller[j];
        }
        // Seldom",
        "
        }
        // Seldom",
    ),
    Mutant::new(
        "accumulators-rescaled-as-first-column",
        Operands,
        WARPGROUPS,
        "acc[p][i] *= smaller[i / 2 % 2];",
        "acc[p][i] *= smaller[0];",
    ),
    Mutant::new(
        "accumulators-rescaled-where-first-column-grew",
        Predicate,
        WARPGROUPS,
        "smaller[0] == 1.f && smaller[1] == 1.f",
        "smaller[0] == 1.f",
    ),
    Mutant::new(
        "accumulators-rescaled-where-all-lanes-want-it",
        Predicate,
        WARPGROUPS,
        "if (!__all_sync(~0u, smaller[0]",
        "if (!__any_sync(~0u, smaller[0]",
    ),
    Mutant::new(
        "maximum-of-two-lanes",
        Lane,
        WARPGROUPS,
        "for (int step = 1; step < 4; step *= 2)
                most[j] =",
        "for (int step = 1; step < 2; step *= 2)
                most[j] =",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "sum-of-two-lanes",
        Lane,
        WARPGROUPS,
        "for (int step = 1; step < 4; step *= 2) l[j] +=",
        "for (int step = 1; step < 2; step *= 2) l[j] +=",
    ),
    Mutant::new(
        "keys-of-first-sixty-four",
        Stride,
        &[WARPGROUPS_SHARED],
        "further(keys, (d / 4 * C::TILE + s * 64) * 128 + sixteen);",
        "further(keys, d / 4 * C::TILE * 128 + sixteen);",
    ),
    Mutant::new(
        "keys-of-next-panel-too-near",
        Stride,
        &[WARPGROUPS_SHARED],
        "further(keys, (d / 4 * C::TILE + s * 64) * 128 + sixteen);",
        "further(keys, (d / 4 * 64 + s * 64) * 128 + sixteen);",
    ),
    Mutant::new(
        "queries-of-next-panel-too-near",
        Stride,
        &[WARPGROUPS_SHARED],
        "further(shared_query, d / 4 * 64 * L::GROUPS * 128 + sixteen);",
        "further(shared_query, d / 4 * 64 * 128 / 2 + sixteen);",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "queries-of-first-warpgroup",
        Head,
        &[WARPGROUPS_SHARED],
        "panel_at(shared_address(queries) + 64 * group * 128);",
        "panel_at(shared_address(queries));",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "query-words-of-neighbour",
        Lane,
        &[WARPGROUPS_ROWS],
        "= words[4 * i + lane % 4];",
        "= words[4 * i + (lane + 1) % 4];",
    ),
    Mutant::new(
        "query-halves-as-columns",
        Operands,
        &[WARPGROUPS_ROWS],
        "query[i / 2][i % 2 * 2 + j] = words",
        "query[i / 2][i % 2 + 2 * j] = words",
    ),
    Mutant::new(
        "queries-where-there-is-no-column",
        Predicate,
        WARPGROUPS,
        "const bool is_query = c < L::COLUMNS && columns.has_row(c);",
        "const bool is_query = c < L::COLUMNS;",
    )
    .shows_at(&["part = *reinterpret_cast<const uint4*>(of_column + chunk * 16);", "= words[4 * i + lane % 4];"]),
    Mutant::new(
        "values-are-keys",
        Operands,
        WARPGROUPS,
        "further(keys, L::TILE_BYTES);",
        "further(keys, 0);",
    ),
    Mutant::new(
        "values-of-eight-tokens",
        Stride,
        WARPGROUPS,
        "further(values, (p * C::TILE + step * 16) * 128);",
        "further(values, (p * C::TILE + step * 8) * 128);",
    ),
    Mutant::new(
        "values-of-first-panel",
        Stride,
        &[WARPGROUPS_SHARED],
        "further(values, (p * C::TILE + step * 16) * 128);",
        "further(values, step * 16 * 128);",
    ),
    Mutant::new(
        "fours-exchanged-the-other-way",
        Lane,
        WARPGROUPS,
        "odd ? low.x : high.x, 1);",
        "odd ? high.x : low.x, 1);",
    ),
    Mutant::new(
        "fours-at-the-place-of-the-other-lane",
        Stride,
        WARPGROUPS,
        "16 * p + 2 * (eight + lane % 2) + lane % 4 / 2;",
        "16 * p + 2 * (eight + lane % 4 / 2) + lane % 2;",
    ),
    Mutant::new(
        "columns-that-are-not-there-written",
        Bound,
        &[WARPGROUPS_ROWS],
        "const bool exists = c < L::COLUMNS && (!whole || columns.has_row(c));",
        "const bool exists = c < L::COLUMNS;",
    )
    .shows_at(&["out[at] = make_uint2(", "Element::narrow(four.z * scale, four.w * scale));", "a.lse[column] =", "merge_into(state, a.sinks["]),
    Mutant::new(
        "partial-columns-without-rows-left-out",
        Uninitialised,
        &[WARPGROUPS_ROWS],
        "const bool exists = c < L::COLUMNS && (!whole || columns.has_row(c));",
        "const bool exists = c < L::COLUMNS && columns.has_row(c);",
    )
    .shows_at(&["ml[j] = __ldcg(", "acc[j] = __ldcg("]),
    Mutant::new(
        "state-with-headroom",
        Scale,
        WARPGROUPS,
        "Quad state = {m[j] - HEADROOM, l[j],",
        "Quad state = {m[j], l[j],",
    ),
    Mutant::new(
        "sink-left-out-of-outputs",
        Scale,
        &[WARPGROUPS_LONG],
        "const float scale = state.acc.x * normaliser(state.l);",
        "const float scale = normaliser(state.l);",
    ),
    Mutant::new(
        "first-and-last-exchanged",
        Operands,
        WARPGROUPS,
        "        piece.ends);",
        "        (piece.is_first() ? 2 : 0) + (piece.is_last() ? 1 : 0));",
    )
    .shows_at(&["ml[j] = __ldcg(", "acc[j] = __ldcg("]),
    Mutant::new(
        "tiles-of-piece-rounded-down",
        Bound,
        WARPGROUPS,
        "(piece.end - begin + C::TILE - 1) / C::TILE,",
        "(piece.end - begin) / C::TILE,",
    )
    .shows_at(WAITS),
    Mutant::new(
        "one-tile-too-many",
        Bound,
        WARPGROUPS,
        "(piece.end - begin + C::TILE - 1) / C::TILE,",
        "(piece.end - begin) / C::TILE + 1,",
    ),
    Mutant::new(
        "end-is-not-told",
        Bound,
        WARPGROUPS,
        "pieces[count % C::STAGES] = make_int4(0, 0, 0, 0);",
        "pieces[count % C::STAGES].x = 0;",
    )
    .shows_at(READS_TILE),
    Mutant::new(
        "last-tile-handed-over-twice",
        Bound,
        WARPGROUPS,
        "for (int tile = max(count - LATER, 0); tile <= count; ++tile) hand_over(tile);",
        "for (int tile = max(count - LATER - 1, 0); tile <= count; ++tile) hand_over(tile);",
    )
    .shows_at(WAITS),
    Mutant::new(
        "tokens-of-tile-before",
        Overlap,
        WARPGROUPS,
        "            index += C::TILE;
            locate();",
        "            locate();
            index += C::TILE;",
    ),
    Mutant::new(
        "tokens-of-first-warp",
        Overlap,
        WARPGROUPS,
        "int index = piece.begin + warp * OWN + lane % OWN;",
        "int index = piece.begin + lane % OWN;",
    ),
    Mutant::new(
        "rows-copied-beyond-piece",
        ExtraBytes,
        WARPGROUPS,
        "copy_async<C::L2_PREFETCH>(place, k_rows + from, eight + row < exist);",
        "copy_async<C::L2_PREFETCH>(place, k_rows + from, eight + row <= exist);",
    ),
    Mutant::new(
        "rows-of-eight-from-first-eight",
        Stride,
        WARPGROUPS,
        "__shfl_sync(~0u, offset, eight + row);",
        "__shfl_sync(~0u, offset, row);",
    ),
    Mutant::new(
        "selected-where-there-is-no-token",
        Bound,
        WARPGROUPS,
        "rows[w] = exists ? cursor.rows(w) : 0;",
        "rows[w] = cursor.rows(w);",
    ),
    Mutant::new(
        "rows-of-all-words-from-first",
        Operands,
        &[WARPGROUPS_ROWS],
        "rows[w] = exists ? cursor.rows(w) : 0;",
        "rows[w] = exists ? cursor.rows(0) : 0;",
    ),
];
