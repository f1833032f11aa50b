// The exported kernels. Their arguments are pointers and 32-bit integers only, so that a loader in
// any language can launch them; `scale_bits` and `soft_cap_bits` are bit patterns of f32.
//
// One decode step launches spanforge_overlay (where query tiles have several rows) and spanforge_plan
// when the spans have changed, then spanforge_decode and, where the last arriver does not merge,
// spanforge_merge.
#pragma once

extern "C" __global__ void __launch_bounds__(spanforge::PLAN_THREADS)
spanforge_plan(const int* span_ptr, const int2* spans, int* set_tokens, int* span_tokens, int sets) {
    if constexpr (Configuration::QUERY_ROWS > 1) spanforge::plan_tiles(span_ptr, set_tokens, sets);
    else spanforge::plan_rows(span_ptr, spans, set_tokens, span_tokens, sets);
}

// One warp per query tile and set of spans.
extern "C" __global__ void __launch_bounds__(spanforge::OVERLAY_THREADS)
spanforge_overlay(const int* tile_ptr, const int* span_ptr, const int2* spans, int4* tile_span_ptr,
                  int2* tile_spans, unsigned* span_rows, int* span_tokens, int tiles, int span_heads) {
    spanforge::overlay_spans<spanforge::Layout<Configuration>::ROW_WORDS>(
        tile_ptr, span_ptr, spans, tile_span_ptr, tile_spans, span_rows, span_tokens, tiles, span_heads);
}

extern "C" __global__ void __launch_bounds__(spanforge::Layout<Configuration>::THREADS,
                                             Configuration::MIN_BLOCKS)
spanforge_decode(const void* q, const void* k, const void* v, const int* page_table,
                 const int* row_request, const int* tile_ptr, const int* span_ptr, const int2* spans,
                 const unsigned* span_rows, const int* set_tokens, const int* span_tokens,
                 const float* sinks, const float* k_scales, const float* v_scales, void* out, float* lse,
                 float* partial_acc, float2* partial_ml, int* arrivals, int tiles, int kv_heads,
                 int span_heads, int page_size, int max_pages, int page_stride, int token_stride,
                 int head_stride, int smallest_share, int scale_bits, int soft_cap_bits) {
    const spanforge::DecodeArguments a = {
        q, static_cast<const char*>(k), static_cast<const char*>(v), page_table, row_request,
        tile_ptr, span_ptr, spans, span_rows, set_tokens, span_tokens, sinks, k_scales, v_scales, out,
        lse, partial_acc, partial_ml, arrivals, tiles, kv_heads, span_heads, page_size, max_pages,
        page_stride, token_stride, head_stride, smallest_share, __int_as_float(scale_bits),
        __int_as_float(soft_cap_bits)};
    spanforge::decode<Configuration>(a);
}

// A grid of query tiles times KV heads, by any number of blocks that share the elements of each, of 1 to
// MERGE_SLICES times MERGE_THREADS threads; `blocks` and `smallest_share` are those of the decode launch.
extern "C" __global__ void __launch_bounds__(spanforge::MERGE_THREADS * spanforge::MERGE_SLICES)
spanforge_merge(const int* tile_ptr, const int* set_tokens, const float* sinks, void* out, float* lse,
                const float* partial_acc, const float2* partial_ml, int tiles, int kv_heads,
                int span_heads, int blocks, int smallest_share) {
    spanforge::DecodeArguments a = {};
    a.tile_ptr = tile_ptr;
    a.set_tokens = set_tokens;
    a.sinks = sinks;
    a.out = out;
    a.lse = lse;
    a.partial_acc = const_cast<float*>(partial_acc);
    a.partial_ml = const_cast<float2*>(partial_ml);
    a.tiles = tiles;
    a.kv_heads = kv_heads;
    a.span_heads = span_heads;
    const spanforge::Shares<Configuration> shares(set_tokens, tiles * span_heads,
                                                  kv_heads / span_heads, blocks, smallest_share);
    spanforge::merge_tile<Configuration, spanforge::MERGE_SLICES>(
        a, shares, blockIdx.x / kv_heads, blockIdx.x % kv_heads,
        blockDim.x / spanforge::MERGE_THREADS, blockIdx.y, gridDim.y);
}

// Adds attention over other tokens, such as those of a cache elsewhere, to what a step has written.
extern "C" __global__ void __launch_bounds__(spanforge::MERGE_THREADS)
spanforge_merge_outputs(void* out, float* lse, const void* other_out, const float* other_lse,
                        int heads) {
    spanforge::merge_outputs<Configuration>(out, lse, other_out, other_lse, heads);
}
