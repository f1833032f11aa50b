//! Mutants of what kernels for caches of 8-bit elements run besides (`E4m3`, `ToF16` and where they are
//! used).

use super::Kind::*;
use super::Mutant;
use super::kernels::*;

const BOTH_CORES: &[&str] = &[EIGHT_BITS, EIGHT_BITS_DIRECT, EIGHT_BITS_TENSOR];
const CUDA_CORES: &[&str] = &[EIGHT_BITS, EIGHT_BITS_DIRECT];
const TENSOR: &[&str] = &[EIGHT_BITS_TENSOR, EIGHT_BITS_TENSOR_SHARED, EIGHT_BITS_F16];
const CONVERTED: &[&str] = &[EIGHT_BITS_TENSOR, EIGHT_BITS_TENSOR_SHARED];

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant::new(
        "eight-bits-in-order",
        Packing,
        BOTH_CORES,
        "__byte_perm(four, 0, 0x3120)",
        "__byte_perm(four, 0, 0x3210)",
    ),
    Mutant::new(
        "eight-bits-halves-exchanged",
        Packing,
        CUDA_CORES,
        "F16::widen(odd, r.y, r.w);",
        "F16::widen(odd, r.w, r.y);",
    ),
    Mutant::new(
        "eight-bits-offset-of-sixteen",
        Stride,
        BOTH_CORES,
        "return C::Kv::BYTES * (pages[page]",
        "return 2 * (pages[page]",
    )
    .shows_at(&["k + c * 16, exists)", "v + c * 16, exists)", "(a.k + at,", "(a.v + at,"]),
    Mutant::new(
        "key-factor-left-out",
        Scale,
        BOTH_CORES,
        "return C::Kv::BYTES == 1 ? a.scale * scale_of(a.k_scales, head) : a.scale;",
        "return a.scale;",
    ),
    Mutant::new(
        "key-factor-of-first-head",
        Head,
        BOTH_CORES,
        "a.scale * scale_of(a.k_scales, head)",
        "a.scale * scale_of(a.k_scales, 0)",
    ),
    Mutant::new(
        "value-factor-of-keys",
        Operands,
        BOTH_CORES,
        "scale_of(a.v_scales, piece.head)",
        "scale_of(a.k_scales, piece.head)",
    ),
    Mutant::new(
        "value-factor-in-part",
        Scale,
        BOTH_CORES,
        "make_float4(sum.acc.x * scale, sum.acc.y * scale, sum.acc.z * scale,",
        "make_float4(sum.acc.x * scale, sum.acc.y * scale, sum.acc.z,",
    ),
    Mutant::new(
        "factor-missing-is-zero",
        Predicate,
        BOTH_CORES,
        "return scales == nullptr ? 1.f : scales[head];",
        "return scales == nullptr ? 0.f : scales[head];",
    ),
    Mutant::new(
        "rows-of-64-bytes-unswizzled",
        Stride,
        &[EIGHT_BITS_TENSOR],
        "at[i / 2 % 4] + step_offset(u, d / 2));",
        "at[i % 4] + step_offset(u, d / 2));",
    ),
    Mutant::new(
        "eight-bits-key-chunks-exchanged",
        Operands,
        TENSOR,
        "E4m3::halves(four[j], of_k[j / 2][j % 2], of_k[j / 2][j % 2 + 2]);",
        "E4m3::halves(four[j], of_k[j % 2][j / 2], of_k[j % 2][j / 2 + 2]);",
    ),
    Mutant::new(
        "eight-bits-value-rows-exchanged",
        Operands,
        TENSOR,
        "E4m3::halves(four[j], of_v[j % 2][j / 2 * 2], of_v[j % 2][j / 2 * 2 + 1]);",
        "E4m3::halves(four[j], of_v[j % 2][j / 2 * 2 + 1], of_v[j % 2][j / 2 * 2]);",
    ),
    Mutant::new(
        "eight-bits-query-pairs-of-16-bits",
        Packing,
        &[EIGHT_BITS_TENSOR, EIGHT_BITS_F16],
        "pairs[1] = __byte_perm(four.x, four.y, 0x7632);",
        "pairs[1] = four.y;",
    ),
    Mutant::new(
        "eight-bits-query-half-repeated",
        Stride,
        &[EIGHT_BITS_TENSOR_SHARED, EIGHT_BITS_F16],
        "L::query_place(row, four / 4 * 2 + half) + four % 4 * 4;",
        "L::query_place(row, four / 4 * 2) + four % 4 * 4;",
    ),
    Mutant::new(
        "eight-bits-output-as-16-bits",
        Stride,
        TENSOR,
        "reinterpret_cast<float2*>(sixteen)[lane / 4] = pair;",
        "reinterpret_cast<float2*>(sixteen)[lane % 8] = pair;",
    ),
    Mutant::new(
        "query-power-of-own-elements",
        Lane,
        &[EIGHT_BITS_TENSOR],
        "const ToF16 f16(max(largest, __shfl_xor_sync(~0u, largest, 2)));",
        "const ToF16 f16(largest);",
    ),
    Mutant::new(
        "query-power-too-large",
        Bound,
        CONVERTED,
        "min(141 - static_cast<int>(largest >> 7), 100);",
        "min(143 - static_cast<int>(largest >> 7), 100);",
    ),
    Mutant::new(
        "query-power-not-taken-back",
        Scale,
        &[EIGHT_BITS_TENSOR_SHARED],
        "of_all * factors[head_warp * ROWS + 8 * f + lane % 4 * 2 + j];",
        "of_all;",
    ),
    Mutant::new(
        "query-power-of-first-warp",
        Head,
        &[EIGHT_BITS_TENSOR_SHARED],
        "of_all * factors[head_warp * ROWS + 8 * f + lane % 4 * 2 + j];",
        "of_all * factors[8 * f + lane % 4 * 2 + j];",
    ),
    Mutant::new(
        "query-power-of-neighbour",
        Lane,
        &[EIGHT_BITS_TENSOR],
        "of_all * __shfl_sync(~0u, f16.back, (lane % 4 * 2 + j) * 4);",
        "of_all * __shfl_sync(~0u, f16.back, lane % 4 * 2 + j);",
    ),
    Mutant::new(
        "query-factors-read-early",
        Barrier,
        &[EIGHT_BITS_TENSOR_SHARED],
        "__syncthreads();  // the factors are written",
        "",
    )
    .shows_at(&["of_all * factors[head_warp * ROWS"]),
];
