//! Mutants of the files that all kernels use: plan, softmax, element types, memory, exported
//! kernels.

use super::Kind::*;
use super::Mutant;
use super::kernels::*;

pub(super) const MUTANTS: &[Mutant] = &[
    // plan.cuh
    Mutant::new(
        "plan-sums-read-early",
        Barrier,
        ANY,
        "__syncthreads();  // every warp's sum is written before any is read",
        "",
    )
    .shows_at(&["before += warp_sums[w]", "total += warp_sums[w]"]),
    Mutant::new(
        "plan-sums-overwritten",
        Barrier,
        ANY,
        "__syncthreads();  // every sum is read before the next round overwrites it",
        "",
    )
    .shows_at(&["before += warp_sums[w]", "total += warp_sums[w]"]),
    Mutant::new(
        "plan-rows-read-early",
        Barrier,
        ANY,
        "__syncthreads();  // span_tokens is complete, for this block, before sets are read from it",
        "",
    )
    .shows_at(&["set_tokens[set] = span_tokens[span_ptr[set]]"]),
    Mutant::new(
        "plan-barrier-in-branch",
        Barrier,
        ANY,
        "        if (lane == 31) warp_sums[warp] = sum;
        __syncthreads();",
        "        if (lane == 31) { warp_sums[warp] = sum;
        __syncthreads(); }",
    )
    .shows_at(&["before += warp_sums[w]", "total += warp_sums[w]", "__syncthreads();"]),
    Mutant::new(
        "plan-scan-stops-at-16",
        Lane,
        ANY,
        "for (int step = 1; step < 32; step *= 2) {",
        "for (int step = 1; step < 16; step *= 2) {",
    ),
    Mutant::new(
        "plan-scan-predicate",
        Predicate,
        ANY,
        "if (lane >= step) sums[j] += below;",
        "if (lane > step) sums[j] += below;",
    ),
    Mutant::new(
        "plan-sum-of-first-lane",
        Lane,
        ANY,
        "sum = __shfl_sync(~0u, sums[j], 31);",
        "sum = __shfl_sync(~0u, sums[j], 0);",
    ),
    Mutant::new(
        "plan-own-sum-counted",
        Bound,
        ANY,
        "if (w < warp) before += warp_sums[w];",
        "if (w <= warp) before += warp_sums[w];",
    ),
    Mutant::new(
        "plan-inclusive-sum",
        Bound,
        ANY,
        "store(index, before + sums[j] - length[j]);",
        "store(index, before + sums[j]);",
    ),
    Mutant::new(
        "plan-runs-begin-at-none",
        Merge,
        ANY,
        "            sums[j] += sum;",
        "            ;",
    ),
    Mutant::new(
        "plan-runs-of-warps-overlap",
        Stride,
        ANY,
        "const int first = base + warp * 32 * each + lane;",
        "const int first = base + warp * 32 + lane;",
    )
    .shows_at(&["set_tokens[set] = span_tokens[span_ptr[set]];", "end = a.span_tokens[of_lane + 1];"]),
    Mutant::new("plan-carry-replaced", Overlap, ANY, "carry += total;", "carry = total;"),
    Mutant::new(
        "plan-closed-spans",
        Bound,
        ANY,
        "span[j].y - span[j].x : 0;",
        "span[j].y - span[j].x + 1 : 0;",
    ),
    Mutant::new(
        "plan-reads-past-spans",
        Bound,
        ANY,
        "index < count ? span[j].y",
        "index <= count ? span[j].y",
    ),
    Mutant::new(
        "plan-last-row-left-out",
        Uninitialised,
        ANY,
        "set <= sets; set += PLAN_THREADS",
        "set < sets; set += PLAN_THREADS",
    )
    .shows_at(&["return set_tokens[set] + set * (appended + C::BEGINNING);"]),
    Mutant::new(
        "plan-total-misplaced",
        Bound,
        ANY,
        "if (threadIdx.x == 0) span_tokens[count] = total;",
        "if (threadIdx.x == 0) span_tokens[count - 1] = total;",
    )
    .shows_at(&["set_tokens[set] = span_tokens[span_ptr[set]];"]),
    Mutant::new(
        "share-rounded-down",
        Bound,
        &[PADDED],
        "share = (work + blocks - 1) / blocks;",
        "share = work / blocks;",
    ),
    Mutant::new(
        "work-in-32-bits",
        Width,
        ANY,
        "work(static_cast<long long>(places) * heads_per_set)",
        "work(places * heads_per_set)",
    )
    .needs("launches of 2^31 selected tokens times KV heads, which take hours on the emulated device"),
    Mutant::new(
        "slots-of-neighbours-meet",
        Slot,
        &[PLAIN, PADDED],
        "return 2 * block + (begins_here ? 1 : 0);",
        "return block + (begins_here ? 1 : 0);",
    ),
    Mutant::new(
        "one-slot-per-block",
        Slot,
        &[LONG],
        "return 2 * block + (begins_here ? 1 : 0);",
        "return 2 * block;",
    ),
    Mutant::new(
        "search-strict",
        Predicate,
        ANY,
        "place < high && prefix[place] + place * each <= value;",
        "place < high && prefix[place] + place * each < value;",
    ),
    Mutant::new(
        "search-without-appended",
        Operands,
        ANY,
        "place < high && prefix[place] + place * each <= value;",
        "place < high && prefix[place] <= value;",
    ),
    Mutant::new(
        "work-of-tokens-alone",
        Operands,
        ANY,
        "places(begin_of(set_tokens, sets)),",
        "places(set_tokens[sets]),",
    ),
    Mutant::new(
        "appended-left-out-of-sets-before",
        Operands,
        ANY,
        "return set_tokens[set] + set * (appended + C::BEGINNING);",
        "return set_tokens[set] + set * C::BEGINNING;",
    ),
    Mutant::new(
        "set-ends-where-the-next-begins",
        Bound,
        &[PLAIN, PADDED],
        "return begin_of(set_tokens, set + 1) - C::BEGINNING;",
        "return begin_of(set_tokens, set + 1);",
    ),
    Mutant::new(
        "appended-not-begun",
        Uninitialised,
        ANY,
        "if (threadIdx.x == 0) set_tokens[sets + 1] = 0;",
        "",
    )
    .shows_at(&["appended(C::QUERY_ROWS > 1 ? 0 : set_tokens[sets + 1])"]),
    Mutant::new(
        "search-ends-early",
        Bound,
        ANY,
        "while (high - low > WITHIN) {",
        "while (high - low > WITHIN + 1) {",
    ),
    Mutant::new(
        "search-steps-too-short",
        Bound,
        ANY,
        "const int step = (high - low + 31) / 32;",
        "const int step = max((high - low) / 32, 1);",
    ),
    Mutant::new(
        "search-beyond-range",
        Bound,
        ANY,
        "const bool at_most = place < high && prefix",
        "const bool at_most = prefix",
    ),
    // softmax.cuh
    Mutant::new(
        "lse-parenthesis",
        Scale,
        ANY,
        "(m + log2_approximate(l)) * LN_2;",
        "m + log2_approximate(l) * LN_2;",
    ),
    Mutant::new(
        "lse-in-base-2",
        Scale,
        ANY,
        "(m + log2_approximate(l)) * LN_2;",
        "m + log2_approximate(l);",
    ),
    Mutant::new(
        "log2-e-mistyped",
        Scale,
        ANY,
        "LOG2_E = 1.4426950408889634f",
        "LOG2_E = 1.4427950408889634f",
    ),
    Mutant::new(
        "finite-sentinel",
        Infinity,
        ANY,
        "__uint_as_float(0xff800000u)",
        "-1e30f",
    ),
    Mutant::new(
        "subtrahend-unguarded",
        Infinity,
        ANY,
        "return m == minus_infinity() ? 0.f : m;",
        "return m;",
    ),
    Mutant::new(
        "normaliser-unguarded",
        Infinity,
        ANY,
        "return l == 0.f ? 0.f : 1.f / l;",
        "return 1.f / l;",
    ),
    Mutant::new(
        "empty-lse-is-zero",
        Infinity,
        ANY,
        "return l == 0.f ? minus_infinity() :",
        "return l == 0.f ? 0.f :",
    ),
    // element.cuh
    Mutant::new(
        "f16-widened-in-reverse",
        Packing,
        ANY,
        r"cvt.f32.f16 %0, a;\n cvt.f32.f16 %1, b;",
        r"cvt.f32.f16 %0, b;\n cvt.f32.f16 %1, a;",
    ),
    Mutant::new(
        "f16-packed-in-reverse",
        Packing,
        ANY,
        r#"asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));"#,
        r#"asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(low), "f"(high));"#,
    ),
    Mutant::new("f16-truncated", Packing, ANY, "cvt.rn.f16x2.f32", "cvt.rz.f16x2.f32"),
    Mutant::new(
        "bf16-truncated",
        Packing,
        &[WIDE, DIRECT_WIDE],
        "cvt.rn.bf16x2.f32",
        "cvt.rz.bf16x2.f32",
    ),
    Mutant::new(
        "bf16-high-unmasked",
        Packing,
        &[WIDE, DIRECT_WIDE],
        "high = __uint_as_float(packed & 0xffff0000u);",
        "high = __uint_as_float(packed);",
    ),
    Mutant::new(
        "bf16-widened-in-reverse",
        Packing,
        &[WIDE, DIRECT_WIDE],
        "        low = __uint_as_float(packed << 16);
        high = __uint_as_float(packed & 0xffff0000u);",
        "        high = __uint_as_float(packed << 16);
        low = __uint_as_float(packed & 0xffff0000u);",
    ),
    // memory.cuh
    Mutant::new(
        "unwanted-rows-copied",
        ExtraBytes,
        STAGED,
        "const int bytes = wanted ? 16 : 0;",
        "const int bytes = 16;",
    ),
    Mutant::new(
        "half-rows-copied",
        Bound,
        STAGED,
        "const int bytes = wanted ? 16 : 0;",
        "const int bytes = wanted ? 8 : 0;",
    ),
    Mutant::new(
        "wait-lax-by-one",
        AsyncCopy,
        STAGED,
        r#""cp.async.wait_group %0;" ::"n"(PENDING)"#,
        r#""cp.async.wait_group %0;" ::"n"(PENDING + 1)"#,
    )
    .shows_at(&["const uint4 u = *static", "const uint2 u = *static"]),
    Mutant::new(
        "words-loaded-in-other-order",
        Operands,
        DIRECT_BOTH,
        r#": "=r"(r.word[0]), "=r"(r.word[1]), "=r"(r.word[2]), "=r"(r.word[3]) \"#,
        r#": "=r"(r.word[0]), "=r"(r.word[2]), "=r"(r.word[1]), "=r"(r.word[3]) \"#,
    ),
    Mutant::new(
        "shared-words-in-other-order",
        Operands,
        &[PLAIN],
        "return {u.x, u.y, u.z, u.w};",
        "return {u.x, u.y, u.w, u.z};",
    ),
    // kernels.cuh
    Mutant::new(
        "strides-exchanged",
        Operands,
        ANY,
        "token_stride, head_stride, smallest_share, __int_as_float(scale_bits),",
        "head_stride, token_stride, smallest_share, __int_as_float(scale_bits),",
    ),
    Mutant::new(
        "scale-converted",
        Scale,
        ANY,
        "smallest_share, __int_as_float(scale_bits),",
        "smallest_share, static_cast<float>(scale_bits),",
    ),
    Mutant::new(
        "merge-has-other-shares",
        Slot,
        SECOND,
        "kv_heads / span_heads, blocks,",
        "kv_heads / span_heads, gridDim.x,",
    )
    .shows_at(&["ml[j] = __ldcg", "acc[j] = __ldcg"]),
    Mutant::new(
        "merge-rows-for-heads",
        Head,
        SECOND,
        "a, shares, blockIdx.x / kv_heads, blockIdx.x % kv_heads,",
        "a, shares, blockIdx.x / tiles, blockIdx.x % tiles,",
    ),
    Mutant::new(
        "merge-by-first-block-only",
        Bound,
        &[TENSOR, TENSOR_SHARED],
        "blockDim.x / spanforge::MERGE_THREADS, blockIdx.y, gridDim.y",
        "blockDim.x / spanforge::MERGE_THREADS, 0, gridDim.y",
    ),
    Mutant::new(
        "cap-converted",
        Scale,
        ANY,
        "__int_as_float(soft_cap_bits)}",
        "static_cast<float>(soft_cap_bits)}",
    ),
    // softmax.cuh
    Mutant::new(
        "cap-in-base-e",
        Scale,
        ANY,
        "const float most = cap * LOG2_E;",
        "const float most = cap;",
    ),
    Mutant::new(
        "cap-of-half-the-angle",
        Scale,
        ANY,
        "exp2_approximate(logit * (2.f / cap)) + 1.f",
        "exp2_approximate(logit / cap) + 1.f",
    ),
];
