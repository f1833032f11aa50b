//! Mutants of what the decode kernels of tensor cores run (`fragments.cuh`).

use super::Kind::*;
use super::Mutant;
use super::decode::READS_STATES;
use super::kernels::*;

/// What a state is written to and read from that lies where another's is, or partly.
const STATES: &[&str] = &[
    "sixteen[lane / 4] =",
    "sixteen[lane / 4 + 8] =",
    "maxima[head] =",
    READS_STATES[0],
    READS_STATES[1],
    READS_STATES[2],
];

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant::new(
        "fragment-query-of-first-warp",
        Head,
        &[TENSOR_SPLIT],
        "const char* of_head = q + columns.place(c) * L::QUERY_ROW_BYTES;",
        "const char* of_head = q + columns.place(h) * L::QUERY_ROW_BYTES;",
    ),
    Mutant::new(
        "fragment-query-half-too-near",
        Operands,
        &[TENSOR, TENSOR_SPLIT],
        "pairs[1] = words[4];",
        "pairs[1] = words[2];",
    ),
    Mutant::new(
        "fragment-query-rows-of-group",
        Stride,
        &[TENSOR_SHARED],
        "const int c = row / ROWS * L::HEADS + h;",
        "const int c = row * L::HEADS / ROWS;",
    ),
    Mutant::new(
        "fragment-padding-is-a-head",
        Predicate,
        &[TENSOR_SPLIT],
        "return h < L::HEADS && exists<C>(head_warp, h);",
        "return exists<C>(head_warp, h);",
    )
    // Heads of the next warp are stored by both.
    .shows_at(&["sixteen[lane / 4] =", "sixteen[lane / 4 + 8] =", "maxima[head] ="]),
    Mutant::new(
        "fragment-query-eight-of-first",
        Operands,
        &[TENSOR_SHARED],
        "shared_query + L::query_place(8 * f + lane % 8, chunk));",
        "shared_query + L::query_place(lane % 8, chunk));",
    ),
    Mutant::new(
        "fragment-query-second-step-is-first",
        Operands,
        &[TENSOR, TENSOR_SPLIT],
        "of_q[2] = query[f][d + 1][0];",
        "of_q[2] = query[f][d][0];",
    ),
    Mutant::new(
        "fragment-rows-unswizzled",
        Stride,
        TENSOR_CORES,
        "L::place(row, 2 * i + chunk);",
        "row * L::ROW_BYTES + (2 * i + chunk) * 16;",
    ),
    Mutant::new(
        "fragment-steps-side-by-side",
        Stride,
        &[TENSOR_SPLIT, TENSOR_SHARED],
        "u * 16 * L::ROW_BYTES + step / 4 * 128;",
        "u * 16 * L::ROW_BYTES + step / 4 * 64;",
    ),
    Mutant::new(
        "fragment-second-sixteen-is-first",
        Stride,
        &[TENSOR_SHARED],
        "u * 16 * L::ROW_BYTES + step / 4 * 128;",
        "u * 8 * L::ROW_BYTES + step / 4 * 128;",
    ),
    Mutant::new(
        "fragment-token-warps-overlap",
        Overlap,
        TENSOR_CORES,
        "first < count; first += L::TOKEN_WARPS * L::STEP) {",
        "first < count; first += L::STEP) {",
    ),
    Mutant::new(
        "fragment-keys-in-order-of-values",
        Lane,
        TENSOR_CORES,
        "rows_at(k, lane % 16, lane / 16, first, at);",
        "rows_at(k, lane / 16 * 8 + lane % 8, lane / 8 % 2, first, at);",
    ),
    Mutant::new(
        "fragment-values-in-order-of-keys",
        Lane,
        TENSOR_CORES,
        "lane / 16 * 8 + lane % 8, lane / 8 % 2, first, at);",
        "lane % 16, lane / 16, first, at);",
    ),
    Mutant::new(
        "fragment-values-upright",
        Packing,
        TENSOR_CORES,
        "load_matrices_transposed(of_v[0], at",
        "load_matrices(of_v[0], at",
    ),
    Mutant::new(
        "fragment-query-half-repeated",
        Operands,
        TENSOR_CORES,
        "Factor::multiply_add(logit[u][f], of_k[half], of_q[f][2 * half],",
        "Factor::multiply_add(logit[u][f], of_k[half], of_q[f][half],",
    ),
    Mutant::new(
        "fragment-weights-upright",
        Packing,
        TENSOR_CORES,
        "weight[u][f][i] = transposed(rounded);",
        "weight[u][f][i] = rounded;",
    ),
    Mutant::new(
        "fragment-rest-of-low-weight-only",
        Operands,
        TENSOR_CORES,
        "transposed(Factor::narrow(w[0] - low, w[1] - high));",
        "transposed(Factor::narrow(w[0] - low, w[1] - low));",
    ),
    Mutant::new(
        "fragment-rest-left-out",
        Packing,
        TENSOR_CORES,
        "Factor::multiply_add(sum, of_v[half], rest[u][f][0], rest[u][f][1]);",
        ";",
    ),
    Mutant::new(
        "fragment-token-after-last-weighed",
        Bound,
        TENSOR_CORES,
        "if (8 * i + lane / 4 >= count)",
        "if (8 * i + lane / 4 > count)",
    ),
    Mutant::new(
        "fragment-scale-left-out",
        Scale,
        TENSOR_CORES,
        "logit[u][f][i] *= scale[L::CONVERTED ? f : 0][L::CONVERTED ? i % 2 : 0];",
        "",
    ),
    Mutant::new(
        "fragment-maximum-of-half-the-tokens",
        Lane,
        TENSOR_CORES,
        "for (int step = 4; step < 32; step *= 2)
                    most = fmaxf",
        "for (int step = 4; step < 16; step *= 2)
                    most = fmaxf",
    ),
    Mutant::new(
        "fragment-step-unguarded",
        Infinity,
        TENSOR_CORES,
        "const float base = subtrahend(most);",
        "const float base = most;",
    ),
    Mutant::new(
        "fragment-accumulator-half-rescaled",
        Merge,
        TENSOR_CORES,
        "for (int j = 0; j < 4; ++j) acc[f][d][j] *= smaller",
        "for (int j = 0; j < 2; ++j) acc[f][d][j] *= smaller",
    ),
    Mutant::new(
        "fragment-accumulator-rescaled-as-first-head",
        Head,
        TENSOR_CORES,
        "acc[f][d][j] *= smaller[f][j % 2];",
        "acc[f][d][j] *= smaller[f][0];",
    ),
    Mutant::new("fragment-sum-not-rescaled", Merge, TENSOR_CORES, "l[f][j] *= smaller[f][j];", ""),
    Mutant::new(
        "fragment-rescaled-where-all-lanes-want-it",
        Predicate,
        TENSOR_CORES,
        "if (__all_sync(~0u, same)) return;",
        "if (__any_sync(~0u, same)) return;",
    ),
    Mutant::new(
        "fragment-rescaled-where-last-head-grew",
        Predicate,
        TENSOR_CORES,
        "same = same && smaller[f][j] == 1.f;",
        "same = smaller[f][j] == 1.f;",
    ),
    Mutant::new(
        "fragment-maximum-kept-where-it-grows",
        Predicate,
        TENSOR_CORES,
        "if (!(most > m[f][j] + GROWTH)) most = m[f][j];",
        "if (most > m[f][j] + GROWTH) most = m[f][j];",
    ),
    Mutant::new(
        "fragment-sum-of-half-the-lanes",
        Lane,
        TENSOR_CORES,
        "for (int step = 4; step < 32; step *= 2)
                    l[f][j] +=",
        "for (int step = 4; step < 16; step *= 2)
                    l[f][j] +=",
    ),
    Mutant::new(
        "fragment-headroom-kept",
        Scale,
        TENSOR_CORES,
        "make_float2(m[f][j] - HEADROOM, l[f][j]);",
        "make_float2(m[f][j], l[f][j]);",
    ),
    Mutant::new(
        "fragment-states-by-heads-per-warp",
        Stride,
        &[TENSOR_SPLIT],
        "const int head = token_warp * L::COLUMNS + head_warp * L::HEADS + h;",
        "const int head = token_warp * L::HEADS + head_warp * L::HEADS + h;",
    )
    // States are stored over each other, and read where they were not stored.
    .shows_at(STATES),
    Mutant::new(
        "fragment-states-unpadded",
        Stride,
        TENSOR_CORES,
        "float* of_head = states + head * L::STATE;",
        "float* of_head = states + head * C::HEAD_DIM;",
    )
    .shows_at(STATES),
    Mutant::new(
        "fragment-lower-half-stored-early",
        Stride,
        TENSOR_CORES,
        "sixteen[lane / 4 + 8] = acc",
        "sixteen[lane / 4 + 4] = acc",
    )
    .shows_at(STATES),
    Mutant::new(
        "fragment-maxima-by-one-lane",
        Lane,
        TENSOR_CORES,
        "if (lane < 4) maxima[head]",
        "if (lane == 0) maxima[head]",
    )
    .shows_at(READS_STATES),
    Mutant::new(
        "fragment-cap-left-out",
        Predicate,
        TENSOR_CORES,
        "if (soft_cap != 0.f) logit[u]",
        "if (soft_cap < 0.f) logit[u]",
    ),
];
