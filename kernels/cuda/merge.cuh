// From the states of warps and blocks to outputs, merged in a fixed order.
#pragma once

#include "piece.cuh"
#include "softmax.cuh"

namespace spanforge {

// Threads of a slice of a block of the merge kernel, and slices at most.
constexpr int MERGE_THREADS = 128;
constexpr int MERGE_SLICES = 4;

// Partial states that a thread loads before it merges them: one after the other each load would wait for
// memory.
constexpr int MERGE_AHEAD = 6;

// Four consecutive elements of a head's merged state.
struct Quad {
    float m, l;
    float4 acc;
};

// Adds a state to another, both for the same elements. Order matters for the last bit, so callers
// fix it.
__device__ __forceinline__ void merge_into(Quad& sum, float m, float l, float4 acc) {
    const float largest = fmaxf(sum.m, m);
    const float base = subtrahend(largest);
    const float mine = exp2_approximate(sum.m - base);
    const float theirs = exp2_approximate(m - base);
    sum.m = largest;
    sum.l = sum.l * mine + l * theirs;
    sum.acc.x = sum.acc.x * mine + acc.x * theirs;
    sum.acc.y = sum.acc.y * mine + acc.y * theirs;
    sum.acc.z = sum.acc.z * mine + acc.z * theirs;
    sum.acc.w = sum.acc.w * mine + acc.w * theirs;
}

// Adds the attention sink of a column, if there is one: a token whose logit is given and whose value is zero.
template <class C>
__device__ __forceinline__ void add_sink(const DecodeArguments& a, const Columns<C>& columns, int c,
                                         Quad& state) {
    if (a.sinks != nullptr)
        merge_into(state, a.sinks[columns.query_head(c)] * LOG2_E, 1.f, make_float4(0.f, 0.f, 0.f, 0.f));
}

// Writes four elements of the final output of one column, and its LSE with the first four.
template <class C>
__device__ __forceinline__ void write_output(const DecodeArguments& a, const Columns<C>& columns,
                                             int c, int element, Quad state) {
    if (!columns.has_row(c)) return;
    add_sink<C>(a, columns, c, state);
    const long long head = columns.place(c);
    const float scale = normaliser(state.l);
    const uint2 packed = make_uint2(C::Element::narrow(state.acc.x * scale, state.acc.y * scale),
                                    C::Element::narrow(state.acc.z * scale, state.acc.w * scale));
    static_cast<uint2*>(a.out)[(head * C::HEAD_DIM + element) / 4] = packed;
    if (element == 0) a.lse[head] = natural_lse(state.m, state.l);
}

// Adds the partial states of blocks [next, next + AHEAD), of those before `end`, that share a tile which
// begins in block `first`.
template <class C, int AHEAD>
__device__ __forceinline__ void merge_partials(const DecodeArguments& a, int first, int next, int end,
                                               int c, int quad, Quad& sum) {
    constexpr int COLUMNS = Layout<C>::COLUMNS;
    float2 ml[AHEAD];
    float4 acc[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) {
        const int block = min(next + j, end - 1);  // no branch comes between the loads
        const int slot = partial_slot(block, block == first);
        // Written by other blocks of the same launch where the last arriver merges, so these loads may
        // not go through the read-only path or a stale L1 line.
        ml[j] = __ldcg(a.partial_ml + slot * COLUMNS + c);
        acc[j] = __ldcg(reinterpret_cast<const float4*>(a.partial_acc) +
                        static_cast<long long>(slot) * (COLUMNS * C::HEAD_DIM / 4) + quad);
    }
#pragma unroll
    for (int j = 0; j < AHEAD; ++j)
        if (next + j < end) merge_into(sum, ml[j].x, ml[j].y, acc[j]);
}

// Merges the partial states that blocks left of one tile and KV head, in the order of blocks, four
// elements per thread. The threads of a block are in up to SLICES slices, which each merge a run of the
// states; then those of the first one merge the runs. This block is number `part` of `parts` that share
// the elements. Does nothing for a tile that one block has finished.
template <class C, int SLICES>
__device__ __forceinline__ void merge_tile(const DecodeArguments& a, const Shares<C>& shares, int tile,
                                           int head, int slices, int part, int parts) {
    const int set = a.span_heads == 1 ? tile : tile * a.span_heads + head;
    const long long line = a.span_heads == 1 ? static_cast<long long>(head) * shares.places : 0;
    const long long begin = line + shares.begin_of(a.set_tokens, set);
    const long long end = line + shares.end_of(a.set_tokens, set);
    if (begin == end) return;
    const int first = static_cast<int>(begin / shares.share);
    const int last = static_cast<int>((end - 1) / shares.share);
    if (first == last) return;
    constexpr int QUADS = Layout<C>::COLUMNS * C::HEAD_DIM / 4;
    const int threads = blockDim.x / slices;  // of a slice
    const int slice = threadIdx.x / threads;
    const int thread = threadIdx.x - slice * threads;
    const int run = (last - first + slices) / slices;
    const int run_begin = first + slice * run;
    const int run_end = min(run_begin + run, last + 1);
    for (int base = part * threads; base < QUADS; base += parts * threads) {
        const int quad = base + thread;
        const int c = quad / (C::HEAD_DIM / 4);
        Quad sum = {minus_infinity(), 0.f, make_float4(0.f, 0.f, 0.f, 0.f)};
        if (quad < QUADS)
            for (int next = run_begin; next < run_end; next += MERGE_AHEAD) {
                const int left = run_end - next;
                if (left > 4) merge_partials<C, MERGE_AHEAD>(a, first, next, run_end, c, quad, sum);
                else if (left > 2) merge_partials<C, 4>(a, first, next, run_end, c, quad, sum);
                else merge_partials<C, 2>(a, first, next, run_end, c, quad, sum);
            }
        if constexpr (SLICES > 1) {
            __shared__ float2 run_ml[SLICES][MERGE_THREADS];
            __shared__ float4 run_acc[SLICES][MERGE_THREADS];
            if (slice > 0) {
                run_ml[slice][thread] = make_float2(sum.m, sum.l);
                run_acc[slice][thread] = sum.acc;
            }
            __syncthreads();  // the states of all runs are written
            if (slice == 0)
                for (int s = 1; s < slices; ++s)
                    merge_into(sum, run_ml[s][thread].x, run_ml[s][thread].y, run_acc[s][thread]);
            __syncthreads();  // they are read before those of other elements take their place
        }
        if (slice == 0 && quad < QUADS)
            write_output<C>(a, Columns<C>(a, tile, head), c, quad % (C::HEAD_DIM / 4) * 4, sum);
    }
}

// Merges the token warps' states from shared memory in warp order, and writes the tile's output or,
// where other blocks have a part in it, its partial state.
template <class C>
__device__ __forceinline__ void finish_piece(const DecodeArguments& a, const Piece& piece,
                                             const char* shared) {
    using L = Layout<C>;
    const float4* states = reinterpret_cast<const float4*>(shared);
    const float2* ml = reinterpret_cast<const float2*>(
        shared + L::TOKEN_WARPS * L::COLUMNS * L::STATE * 4);
    const Columns<C> columns(a, piece.tile, piece.head);
    const int slot = partial_slot(blockIdx.x, piece.is_first());
    for (int i = threadIdx.x; i < L::COLUMNS * C::HEAD_DIM / 4; i += L::THREADS) {
        const int c = i / (C::HEAD_DIM / 4);
        const int at = c * (L::STATE / 4) + i % (C::HEAD_DIM / 4);
        Quad sum = {ml[c].x, ml[c].y, states[at]};
#pragma unroll
        for (int w = 1; w < L::TOKEN_WARPS; ++w) {
            const float2 other = ml[w * L::COLUMNS + c];
            merge_into(sum, other.x, other.y, states[w * (L::COLUMNS * L::STATE / 4) + at]);
        }
        if constexpr (C::Kv::BYTES == 1) {
            const float scale = scale_of(a.v_scales, piece.head);
            sum.acc = make_float4(sum.acc.x * scale, sum.acc.y * scale, sum.acc.z * scale,
                                  sum.acc.w * scale);
        }
        if (piece.is_whole()) {
            write_output<C>(a, columns, c, i % (C::HEAD_DIM / 4) * 4, sum);
        } else {
            float4* acc = reinterpret_cast<float4*>(a.partial_acc) +
                          static_cast<long long>(slot) * (L::COLUMNS * C::HEAD_DIM / 4);
            acc[i] = sum.acc;
            if (i % (C::HEAD_DIM / 4) == 0) a.partial_ml[slot * L::COLUMNS + c] = make_float2(sum.m, sum.l);
        }
    }
}

// Sets without a selected token: +0 and -inf, spread over the blocks.
template <class C>
__device__ __forceinline__ void write_empty_sets(const DecodeArguments& a) {
    const Quad empty = {minus_infinity(), 0.f, make_float4(0.f, 0.f, 0.f, 0.f)};
    for (int set = blockIdx.x; set < a.tiles * a.span_heads; set += gridDim.x) {
        if (a.set_tokens[set] != a.set_tokens[set + 1]) continue;
        const int tile = set / a.span_heads;
        for (int head = set % a.span_heads; head < a.kv_heads; head += a.span_heads) {
            const Columns<C> columns(a, tile, head);
            for (int i = threadIdx.x; i < Layout<C>::COLUMNS * C::HEAD_DIM / 4; i += blockDim.x)
                write_output<C>(a, columns, i / (C::HEAD_DIM / 4), i % (C::HEAD_DIM / 4) * 4, empty);
        }
    }
}

// The last block to arrive at a tile that several share merges it. Which block that is depends on
// timing; what it computes does not.
template <class C>
__device__ __forceinline__ void arrive_and_merge(const DecodeArguments& a, const Shares<C>& shares,
                                                 const Piece& piece) {
    if (piece.is_whole()) return;
    __shared__ int is_last;
    __threadfence();  // this thread's part of the partial state is visible to every block
    __syncthreads();  // and so is every other thread's of this block
    const long long line =
        a.span_heads == 1 ? static_cast<long long>(piece.head) * shares.places : 0;
    const int sharing =
        static_cast<int>((line + shares.end_of(a.set_tokens, piece.set) - 1) / shares.share -
                         (line + shares.begin_of(a.set_tokens, piece.set)) / shares.share) + 1;
    if (threadIdx.x == 0) {
        int* arrivals = a.arrivals + piece.tile * a.kv_heads + piece.head;
        const int before = atomicAdd(arrivals, 1);
        is_last = before == sharing - 1;
        if (is_last) *arrivals = 0;  // ready for the next launch
        __threadfence();  // what the other blocks made visible before they arrived is seen from here
    }
    __syncthreads();  // is_last is written
    if (is_last) merge_tile<C, 1>(a, shares, piece.tile, piece.head, 1, 0, 1);
    __syncthreads();  // is_last is read before the next piece writes it
}

// Adds attention over other tokens to attention over some, both as they are written: outputs weighted by
// e^LSE. One warp per query head. Where one of the two is empty the other stays as it is, bit for bit.
template <class C>
__device__ __forceinline__ void merge_outputs(void* out, float* lse, const void* other_out,
                                              const float* other_lse, int heads) {
    const int head = (blockIdx.x * MERGE_THREADS + threadIdx.x) / 32;
    const int lane = threadIdx.x % 32;
    if (head >= heads) return;
    const float one = lse[head];
    const float other = other_lse[head];
    __syncwarp();  // every lane has read the LSE before one writes it
    if (other == minus_infinity() && one != minus_infinity()) return;
    const float largest = fmaxf(one, other);
    const float base = subtrahend(largest);
    const float mine = exp2_approximate((one - base) * LOG2_E);
    const float theirs = exp2_approximate((other - base) * LOG2_E);
    const float scale = normaliser(mine + theirs);
    uint2* to = static_cast<uint2*>(out) + static_cast<long long>(head) * (C::HEAD_DIM / 4);
    const uint2* from =
        static_cast<const uint2*>(other_out) + static_cast<long long>(head) * (C::HEAD_DIM / 4);
    for (int i = lane; i < C::HEAD_DIM / 4; i += 32) {
        uint2 merged = from[i];
        // Of two empty ones neither output is looked at.
        if (largest == minus_infinity()) merged = make_uint2(0, 0);
        else if (one != minus_infinity()) {
            const uint2 was = to[i];
            float a[4], b[4];
            C::Element::widen(was.x, a[0], a[1]);
            C::Element::widen(was.y, a[2], a[3]);
            C::Element::widen(merged.x, b[0], b[1]);
            C::Element::widen(merged.y, b[2], b[3]);
#pragma unroll
            for (int e = 0; e < 4; ++e) a[e] = (a[e] * mine + b[e] * theirs) * scale;
            merged = make_uint2(C::Element::narrow(a[0], a[1]), C::Element::narrow(a[2], a[3]));
        }
        to[i] = merged;
    }
    if (lane == 0) lse[head] = largest + log2_approximate(mine + theirs) * LN_2;
}

}  // namespace spanforge
