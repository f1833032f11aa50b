// Query tiles on warpgroups of sm_90a, for tiles of many columns: prompts, and texts that are scored.
//
//   logits [64 columns, TILE tokens] = Q [64, head_dim] * K^T
//   acc [64 columns, head_dim]       = weights [64, TILE] * V
//
// Warps are specialised. Each warpgroup but the last has 64 of the query tile's columns, 16 of them in each
// warp, so a column's softmax stays within four lanes; the last warpgroup brings tiles of K and V rows into
// a ring, row by row as everywhere, and runs ahead of the others, into the next piece too. Two barriers for
// each stage of the ring say that it is filled and that it is free. A warpgroup multiplies while others
// work out weights.
//
// A tile is *empty* for a warpgroup none of whose rows selects a token of it: it is passed over. It is
// *full* where every row selects every token: no logit is looked at. Weights are multiplied in two parts,
// as in `fragments.cuh`.
#pragma once

#include "hopper.cuh"
#include "merge.cuh"
#include "overlay.cuh"

namespace spanforge {

// A warpgroup's softmax over the tokens of a piece. A lane has two columns of its warp's 16, and of their
// logits and accumulators what `mma.m16n8` gives it: two neighbours in every eight.
template <class C>
struct WarpgroupState {
    using L = Layout<C>;
    using Element = typename C::Element;
    static constexpr int DEPTH = C::HEAD_DIM / 16;   // products along the head dimension
    static constexpr int PANELS = C::HEAD_DIM / 64;  // 64 elements of all rows lie together
    static constexpr int SIXTY_FOURS = C::TILE / 64;

    unsigned query[C::QUERY_SHARED ? 1 : DEPTH][4];
    unsigned long long shared_query;
    float scale, soft_cap;
    unsigned rows[L::ROW_WORDS];  // of the query tile, those that this warpgroup has columns of
    int word;                     // that of this warp's rows: their 16 columns never lie in two
    int bit[2];                   // the row in it of each column of this lane
    float m[2], l[2], acc[PANELS][32];

    // Reads the queries of `piece`.
    __device__ __forceinline__ void begin(const DecodeArguments& a, const Piece& piece, char* shared,
                                          int warp, int lane) {
        scale = key_scale<C>(a, piece.head) * LOG2_E;
        soft_cap = a.soft_cap;
        const char* q = static_cast<const char*>(a.q);
        const Columns<C> columns(a, piece.tile, piece.head);
        const int group = warp / 4;
        const int first_row = Columns<C>::row(64 * group);
        const int end_row = min(Columns<C>::row(64 * group + 63) + 1, columns.rows);
#pragma unroll
        for (int w = 0; w < L::ROW_WORDS; ++w)
            rows[w] = bits_beyond(first_row - 32 * w) & ~bits_beyond(end_row - 32 * w);
        word = min(Columns<C>::row(16 * warp) / 32, L::ROW_WORDS - 1);
        const auto query_of = [&](int c) -> const char* {
            const bool is_query = c < L::COLUMNS && columns.has_row(c);
            return is_query ? q + columns.place(c) * L::QUERY_ROW_BYTES : nullptr;
        };
        if constexpr (C::QUERY_SHARED) {
            char* queries = shared + L::QUERY_AT;
            barrier_of(1 + group, 128);  // the products of all four warps with the last queries are over
            for (int i = lane; i < 16 * L::COPIES; i += 32) {
                const int c = 16 * warp + i / L::COPIES;
                const int chunk = i % L::COPIES;
                uint4 part = {0, 0, 0, 0};
                if (const char* of_column = query_of(c))
                    part = *reinterpret_cast<const uint4*>(of_column + chunk * 16);
                *reinterpret_cast<uint4*>(queries + L::in_panels(64 * L::GROUPS, c, chunk)) = part;
            }
            show_to_products();
            barrier_of(1 + group, 128);  // all four warps have written theirs
            shared_query = panel_at(shared_address(queries) + 64 * group * 128);
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int c = 16 * warp + lane / 4 + 8 * j;
            bit[j] = Columns<C>::row(c) % 32;
            if constexpr (!C::QUERY_SHARED) {
                // Of a column that does not exist the first one's, times zero: no branch comes between
                // the loads.
                const char* of_column = query_of(c);
                const unsigned* words = reinterpret_cast<const unsigned*>(
                    of_column != nullptr ? of_column : query_of(0));
                const unsigned mask = of_column != nullptr ? ~0u : 0;
#pragma unroll
                for (int i = 0; i < 2 * DEPTH; ++i)
                    query[i / 2][i % 2 * 2 + j] = words[4 * i + lane % 4];
#pragma unroll
                for (int i = 0; i < 2 * DEPTH; ++i) query[i / 2][i % 2 * 2 + j] &= mask;
            }
            m[j] = minus_infinity();
            l[j] = 0.f;
        }
#pragma unroll
        for (int p = 0; p < PANELS; ++p)
#pragma unroll
            for (int i = 0; i < 32; ++i) acc[p][i] = 0.f;
    }

    // Whether a row of this warpgroup selects a token of a tile; `selecting` says which rows of the query
    // tile select each token, word by word.
    __device__ __forceinline__ bool wants(const unsigned* selecting, int lane) const {
        unsigned by_some = 0;
#pragma unroll
        for (int i = 0; i < L::ROW_WORDS * C::TILE; i += 32)
            by_some |= selecting[i + lane] & rows[i / C::TILE];
        return __any_sync(~0u, by_some != 0);
    }

    // Takes in a tile: K rows at shared address `k`, V rows behind them.
    __device__ __forceinline__ void tile(unsigned k, const unsigned* selecting, int lane) {
        unsigned by_all = ~0u;
        selecting += word * C::TILE;
#pragma unroll
        for (int i = 0; i < C::TILE; i += 32) by_all &= selecting[i + lane];
        const bool full = __all_sync(~0u, by_all == ~0u);

        float logit[SIXTY_FOURS][32];
#pragma unroll
        for (int s = 0; s < SIXTY_FOURS; ++s)
#pragma unroll
            for (int i = 0; i < 32; ++i) logit[s][i] = 0.f;
        all_settled(logit);
        if constexpr (!C::QUERY_SHARED) all_settled(query);
        const unsigned long long keys = panel_at(k);
        begin_products();
#pragma unroll
        for (int s = 0; s < SIXTY_FOURS; ++s)
#pragma unroll
            for (int d = 0; d < DEPTH; ++d) {
                const unsigned sixteen = d % 4 * 32;  // of a panel's 64 elements
                const auto of_k = further(keys, (d / 4 * C::TILE + s * 64) * 128 + sixteen);
                if constexpr (C::QUERY_SHARED) {
                    const auto of_q = further(shared_query, d / 4 * 64 * L::GROUPS * 128 + sixteen);
                    multiply_add<Element, false>(logit[s], of_q, of_k);
                } else {
                    multiply_add<Element, false>(logit[s], query[d], of_k);
                }
            }
        wait_for_products();
        all_settled(logit);

        scale_all(logit);
        if (!full) select(logit, selecting, lane);
        Weights weight, rest;
        weigh(logit, weight, rest);
        all_settled(acc);
        all_settled(weight);
        all_settled(rest);
        const unsigned long long values = further(keys, L::TILE_BYTES);
        begin_products();
#pragma unroll
        for (int step = 0; step < C::TILE / 16; ++step)
#pragma unroll
            for (int p = 0; p < PANELS; ++p) {
                const auto of_v = further(values, (p * C::TILE + step * 16) * 128);
                multiply_add<Element, true>(acc[p], weight[step], of_v);
                multiply_add<Element, true>(acc[p], rest[step], of_v);
            }
        wait_for_products();
        all_settled(acc);
    }

    template <class T, int N, int M>
    static __device__ __forceinline__ void all_settled(T (&registers)[N][M]) {
#pragma unroll
        for (int i = 0; i < N; ++i) settled(registers[i]);
    }

    using Logits = float[SIXTY_FOURS][32];
    using Weights = unsigned[C::TILE / 16][4];

    __device__ __forceinline__ void scale_all(Logits& logit) const {
#pragma unroll
        for (int i = 0; i < C::TILE / 2; ++i) logit[i / 32][i % 32] *= scale;
        if (soft_cap != 0.f)
#pragma unroll
            for (int i = 0; i < C::TILE / 2; ++i)
                logit[i / 32][i % 32] = soft_capped(logit[i / 32][i % 32], soft_cap);
    }

    // Makes -inf of logits whose row does not select the token.
    __device__ __forceinline__ void select(Logits& logit, const unsigned* selecting, int lane) const {
#pragma unroll
        for (int eight = 0; eight < C::TILE / 8; ++eight) {
            float* of_eight = logit[eight / 8] + eight % 8 * 4;
            const uint2 by = *reinterpret_cast<const uint2*>(selecting + 8 * eight + lane % 4 * 2);
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                if (!(by.x >> bit[j] & 1)) of_eight[2 * j] = minus_infinity();
                if (!(by.y >> bit[j] & 1)) of_eight[2 * j + 1] = minus_infinity();
            }
        }
    }

    // Turns logits into weights 2^(logit - m + HEADROOM), in two parts. Where a logit exceeds m by more than
    // GROWTH, m becomes the largest one, and what was accumulated is rescaled.
    __device__ __forceinline__ void weigh(const Logits& logit, Weights& weight, Weights& rest) {
        float most[2] = {m[0], m[1]};
#pragma unroll
        for (int i = 0; i < C::TILE / 2; ++i)
            most[i / 2 % 2] = fmaxf(most[i / 2 % 2], logit[i / 32][i % 32]);
        float base[2], smaller[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
#pragma unroll
            for (int step = 1; step < 4; step *= 2)
                most[j] = fmaxf(most[j], __shfl_xor_sync(~0u, most[j], step));
            if (!(most[j] > m[j] + GROWTH)) most[j] = m[j];
            base[j] = subtrahend(most[j]);
            smaller[j] = exp2_approximate(m[j] - base[j]);
            m[j] = most[j];
            l[j] *= smaller[j];
        }
        // Seldom after the first tiles.
        if (!__all_sync(~0u, smaller[0] == 1.f && smaller[1] == 1.f))
#pragma unroll
            for (int p = 0; p < PANELS; ++p)
#pragma unroll
                for (int i = 0; i < 32; ++i) acc[p][i] *= smaller[i / 2 % 2];
#pragma unroll
        for (int i = 0; i < C::TILE / 4; ++i) {
            const int j = i % 2;
            const float* pair = logit[i / 16] + i % 16 * 2;
            const float x = exp2_approximate(pair[0] - (base[j] - HEADROOM));
            const float y = exp2_approximate(pair[1] - (base[j] - HEADROOM));
            l[j] += x + y;
            float low, high;
            const unsigned rounded = Element::narrow(x, y);
            Element::widen(rounded, low, high);
            weight[i / 4][i % 4] = rounded;
            rest[i / 4][i % 4] = Element::narrow(x - low, y - high);
        }
    }

    // Writes outputs or, where other blocks have a part in the query tile, partial states.
    __device__ __forceinline__ void finish(const DecodeArguments& a, const Piece& piece, int warp,
                                           int lane) {
        const Columns<C> columns(a, piece.tile, piece.head);
        const bool whole = piece.is_whole();
        const long long slot = partial_slot(blockIdx.x, piece.is_first());
#pragma unroll
        for (int j = 0; j < 2; ++j) {
#pragma unroll
            for (int step = 1; step < 4; step *= 2) l[j] += __shfl_xor_sync(~0u, l[j], step);
            const int c = 16 * warp + lane / 4 + 8 * j;
            const bool exists = c < L::COLUMNS && (!whole || columns.has_row(c));
            const long long column = whole ? columns.place(c) : slot * L::COLUMNS + c;
            Quad state = {m[j] - HEADROOM, l[j], make_float4(1.f, 1.f, 1.f, 1.f)};
            if (exists && whole) {
                add_sink<C>(a, columns, c, state);
                if (lane % 4 == 0) a.lse[column] = natural_lse(state.m, state.l);
            } else if (exists && lane % 4 == 0) {
                a.partial_ml[column] = make_float2(state.m, state.l);
            }
            const float scale = state.acc.x * normaliser(state.l);
            uint2* out = static_cast<uint2*>(a.out) + column * (C::HEAD_DIM / 4);
            float4* partial = reinterpret_cast<float4*>(a.partial_acc) + column * (C::HEAD_DIM / 4);
#pragma unroll
            for (int p = 0; p < PANELS; ++p)
#pragma unroll
                for (int eight = 0; eight < 8; eight += 2) {
                    // Two lanes with two neighbours in each of two eights: then each has four in one.
                    const int i = 4 * eight + 2 * j;
                    const float2 low = make_float2(acc[p][i], acc[p][i + 1]);
                    const float2 high = make_float2(acc[p][i + 4], acc[p][i + 5]);
                    const bool odd = lane % 2 != 0;
                    const float x = __shfl_xor_sync(~0u, odd ? low.x : high.x, 1);
                    const float y = __shfl_xor_sync(~0u, odd ? low.y : high.y, 1);
                    const float4 four = odd ? make_float4(x, y, high.x, high.y)
                                            : make_float4(low.x, low.y, x, y);
                    const int at = 16 * p + 2 * (eight + lane % 2) + lane % 4 / 2;
                    if (!exists) continue;
                    if (!whole) partial[at] = four;
                    else out[at] = make_uint2(Element::narrow(four.x * scale, four.y * scale),
                                              Element::narrow(four.z * scale, four.w * scale));
                }
        }
    }
};

// Brings the tiles of all pieces into the ring, by the warps of one warpgroup, each its part of every tile.
template <class C>
__device__ __forceinline__ void bring_tiles(const DecodeArguments& a, const Shares<C>& shares,
                                            char* shared, int warp, int lane) {
    using L = Layout<C>;
    constexpr int OWN = C::TILE / 4;      // tokens of a tile that a warp brings
    constexpr int LATER = C::STAGES - 2;  // tiles that are under way when one is waited for
    const unsigned ring = shared_address(shared);
    const unsigned barriers = ring + L::BARRIERS_AT;
    int4* pieces = reinterpret_cast<int4*>(shared + L::PIECES_AT);
    unsigned* selecting = reinterpret_cast<unsigned*>(shared + L::ROWS_AT);
    const int chunk = lane % L::COPIES;
    const char* k_rows = a.k + chunk * 16;
    const char* v_rows = a.v + chunk * 16;
    const auto hand_over = [&](int tile) {
        show_to_products();
        __syncwarp();  // every lane's part has landed, and is shown
        if (lane == 0) arrive(barriers + tile % C::STAGES * 16);
    };

    int count = 0;  // tiles so far
    Walk<C> walk(a);
    Piece piece;
    for (bool more = walk.first(shares, piece); more; more = walk.next(piece)) {
        const int first_query_row = Columns<C>(a, piece.tile, piece.head).first_row;
        int index = piece.begin + warp * OWN + lane % OWN;
        TokenCursor<C> cursor(a, piece, first_query_row, piece.begin + warp * OWN);
        long long offset = 0;
        unsigned rows[L::ROW_WORDS];
        const auto locate = [&] {
            const bool exists = index < piece.end;
            const long long at = cursor.offset(index);
            offset = exists ? at : 0;
#pragma unroll
            for (int w = 0; w < L::ROW_WORDS; ++w) rows[w] = exists ? cursor.rows(w) : 0;
        };
        locate();
        for (int begin = piece.begin; begin < piece.end; begin += C::TILE) {
            const int stage = count % C::STAGES;
            wait_for_phase(barriers + stage * 16 + 8, count / C::STAGES % 2 ^ 1);
            if (warp == 0 && lane == 0)
                pieces[stage] = make_int4(piece.tile, piece.head, (piece.end - begin + C::TILE - 1) / C::TILE,
                                          piece.ends);
#pragma unroll
            for (int w = 0; w < L::ROW_WORDS; ++w)
                if (lane < OWN)
                    selecting[(stage * L::ROW_WORDS + w) * C::TILE + warp * OWN + lane] = rows[w];
            const unsigned to = ring + stage * 2 * L::TILE_BYTES + warp * OWN * 128;
            const int exist = piece.end - begin - warp * OWN;
#pragma unroll 1
            for (int eight = 0; eight < OWN; eight += 8)
#pragma unroll
                for (int i = 0; i < 8; i += L::WARP_ROWS) {
                    const int row = i + lane / L::COPIES;  // of the eight: places repeat with them
                    const long long from = __shfl_sync(~0u, offset, eight + row);
                    const unsigned place = to + eight * 128 + L::place(row, chunk);
                    copy_async<C::L2_PREFETCH>(place, k_rows + from, eight + row < exist);
                    copy_async<C::L2_PREFETCH>(place + L::TILE_BYTES, v_rows + from,
                                               eight + row < exist);
                }
            commit_copies();
            index += C::TILE;
            locate();  // of the next tile, while this one is under way
            if (count >= LATER) {
                wait_copies<LATER>();
                hand_over(count - LATER);
            }
            ++count;
        }
    }
    // One more, of no piece.
    wait_for_phase(barriers + count % C::STAGES * 16 + 8, count / C::STAGES % 2 ^ 1);
    if (warp == 0 && lane == 0) pieces[count % C::STAGES] = make_int4(0, 0, 0, 0);
    wait_copies<0>();
    for (int tile = max(count - LATER, 0); tile <= count; ++tile) hand_over(tile);
}

// Attention of the tiles that the other warpgroup brings.
template <class C>
__device__ __forceinline__ void attend_tiles(const DecodeArguments& a, char* shared, int warp, int lane) {
    using L = Layout<C>;
    const unsigned ring = shared_address(shared);
    const unsigned barriers = ring + L::BARRIERS_AT;
    const int4* pieces = reinterpret_cast<const int4*>(shared + L::PIECES_AT);
    const unsigned* selecting = reinterpret_cast<const unsigned*>(shared + L::ROWS_AT);
    WarpgroupState<C> state;
    int count = 0;
    const auto wait = [&] {
        wait_for_phase(barriers + count % C::STAGES * 16, count / C::STAGES % 2);
    };
    const auto rows_of = [&] { return selecting + count % C::STAGES * L::ROW_WORDS * C::TILE; };
    const auto give_back = [&] {
        __syncwarp();  // every lane has done with the tile
        if (lane == 0) arrive(barriers + count % C::STAGES * 16 + 8);
        ++count;
    };
    while (true) {
        wait();
        const int4 of = pieces[count % C::STAGES];
        if (of.z == 0) break;
        const Piece piece = {0, of.x, of.y, 0, 0, 0, of.w};
        state.begin(a, piece, shared, warp, lane);
        const int end = count + of.z;
        while (count < end) {
            wait();
            if (state.wants(rows_of(), lane))
                state.tile(ring + count % C::STAGES * 2 * L::TILE_BYTES, rows_of(), lane);
            give_back();
        }
        state.finish(a, piece, warp, lane);
    }
}

template <class C>
__device__ __forceinline__ void attend_by_warpgroups(const DecodeArguments& a, const Shares<C>& shares,
                                                     char* shared) {
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
    static_assert(!C::WARPGROUPS, "products of warpgroups are for sm_90a only");
#endif
    using L = Layout<C>;
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const unsigned barriers = shared_address(shared) + L::BARRIERS_AT;
    if (threadIdx.x == 0)
        for (int stage = 0; stage < C::STAGES; ++stage) {
            init_barrier(barriers + stage * 16, 4);                  // filled, by the warps that bring
            init_barrier(barriers + stage * 16 + 8, 4 * L::GROUPS);  // free, by those that compute
        }
    __syncthreads();  // the barriers are there
    if (warp >= 4 * L::GROUPS) {
        if constexpr (L::SHARES_REGISTERS) give_registers_back<L::BRINGING_REGISTERS>();
        bring_tiles<C>(a, shares, shared, warp - 4 * L::GROUPS, lane);
    } else {
        if constexpr (L::SHARES_REGISTERS) take_registers<L::COMPUTING_REGISTERS>();
        attend_tiles<C>(a, shared, warp, lane);
    }
}

}  // namespace spanforge
