// The exported kernels. Their arguments are pointers and 32-bit integers only, so that a loader in
// any language can launch them; `scale_bits` is the bit pattern of an f32.
//
// One decode step launches spanforge_plan (when the spans have changed), spanforge_decode and, where
// the last arriver does not merge, spanforge_merge.
#pragma once

extern "C" __global__ void __launch_bounds__(spanforge::PLAN_THREADS)
spanforge_plan(const int* span_ptr, const int2* spans, int* row_tokens, int* span_tokens, int rows) {
    spanforge::plan_spans(span_ptr, spans, row_tokens, span_tokens, rows);
}

extern "C" __global__ void __launch_bounds__(spanforge::Layout<Configuration>::THREADS,
                                             Configuration::MIN_BLOCKS)
spanforge_decode(const void* q, const void* k, const void* v, const int* page_table,
                 const int* row_request, const int* span_ptr, const int2* spans,
                 const int* row_tokens, const int* span_tokens, void* out, float* lse,
                 float* partial_acc, float2* partial_ml, int* arrivals, int rows, int kv_heads,
                 int page_size, int max_pages, int page_stride, int token_stride, int head_stride,
                 int smallest_share, int scale_bits) {
    const spanforge::DecodeArguments a = {
        q, static_cast<const char*>(k), static_cast<const char*>(v), page_table, row_request,
        span_ptr, spans, row_tokens, span_tokens, out, lse, partial_acc, partial_ml, arrivals, rows,
        kv_heads, page_size, max_pages, page_stride, token_stride, head_stride, smallest_share,
        __int_as_float(scale_bits)};
    spanforge::decode<Configuration>(a);
}

// One block per row and KV head; `blocks` and `smallest_share` are those of the decode launch.
extern "C" __global__ void __launch_bounds__(128)
spanforge_merge(const int* row_tokens, void* out, float* lse, const float* partial_acc,
                const float2* partial_ml, int rows, int kv_heads, int blocks, int smallest_share) {
    spanforge::DecodeArguments a = {};
    a.row_tokens = row_tokens;
    a.out = out;
    a.lse = lse;
    a.partial_acc = const_cast<float*>(partial_acc);
    a.partial_ml = const_cast<float2*>(partial_ml);
    a.rows = rows;
    a.kv_heads = kv_heads;
    const spanforge::Shares shares(row_tokens, rows, kv_heads, blocks, smallest_share);
    spanforge::merge_row<Configuration>(a, shares, blockIdx.x / kv_heads, blockIdx.x % kv_heads);
}
