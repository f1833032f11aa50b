// A piece of a block's share, and where the K and V rows of its tokens lie.
#pragma once

#include "layout.cuh"
#include "plan.cuh"

namespace spanforge {

// Tokens [begin, end) of the plan's line that belong to one set of spans, for one KV head.
struct Piece {
    int set, tile, head;
    int begin, end;      // in selected tokens of all sets
    int appended;        // tokens of the set that its spans do not have yet
    bool first, last;    // whether it holds the set's first and last selected token
};

// The pieces of this block's share, one after the other.
template <class C>
struct Walk {
    const DecodeArguments& a;
    const Shares& shares;
    long long at, stop;  // on the line, once per KV head that a set serves

    __device__ __forceinline__ Walk(const DecodeArguments& a, const Shares& shares)
        : a(a), shares(shares), at(blockIdx.x * shares.share),
          stop(min(shares.work, (blockIdx.x + 1) * shares.share)) {}

    __device__ __forceinline__ bool more() const { return at < stop; }

    __device__ __forceinline__ Piece piece() const {
        Piece piece;
        const int repeat = static_cast<int>(at / shares.tokens);
        piece.begin = static_cast<int>(at - static_cast<long long>(repeat) * shares.tokens);
        piece.appended = shares.appended;
        piece.set = last_at_most(a.set_tokens, 0, a.tiles * a.span_heads, piece.begin,
                                 piece.appended);
        piece.tile = piece.set / a.span_heads;
        piece.head = repeat + piece.set - piece.tile * a.span_heads;
        const int begin = a.set_tokens[piece.set];  // both are asked for before one is used
        const int end = a.set_tokens[piece.set + 1];
        const int set_begin = begin + piece.set * piece.appended;
        const int set_end = end + (piece.set + 1) * piece.appended;
        piece.end = static_cast<int>(min(static_cast<long long>(set_end), piece.begin + (stop - at)));
        piece.first = piece.begin == set_begin;
        piece.last = piece.end == set_end;
        return piece;
    }

    __device__ __forceinline__ void pass(const Piece& piece) { at += piece.end - piece.begin; }
};

// Where the K and V rows of selected tokens lie. Each warp follows tokens in rising order and keeps 32
// spans, one per lane, so finding the next 32 tokens is mostly one load: of their pages.
template <class C>
struct TokenCursor {
    const DecodeArguments& a;
    const Piece& piece;
    int request;
    int window;  // the first span that is kept
    int end;     // of this lane's span, in selected tokens of all sets
    int shift;   // from there to logical positions
    int span;    // of the token that was located last

    // `row` is one of the piece's query tile, `first` the first token that the warp locates.
    __device__ __forceinline__ TokenCursor(const DecodeArguments& a, const Piece& piece, int row,
                                           int first)
        : a(a), piece(piece), request(a.row_request[row]) {
        const int token = min(first, piece.end - 1) - tokens_before();
        keep(last_at_most<32>(a.span_tokens, spans_begin(), spans_end(), token));
    }

    __device__ __forceinline__ int spans_begin() const {
        return a.span_ptr[C::QUERY_ROWS > 1 ? 4 * piece.set : piece.set];
    }
    __device__ __forceinline__ int spans_end() const {
        return a.span_ptr[C::QUERY_ROWS > 1 ? 4 * piece.set + 1 : piece.set + 1];
    }

    // Tokens of the line that `span_tokens` does not count.
    __device__ __forceinline__ int tokens_before() const {
        return (C::QUERY_ROWS > 1 ? a.set_tokens[piece.set] : 0) + piece.set * piece.appended;
    }

    // Behind the last span of the set lanes have that one too.
    __device__ __forceinline__ void keep(int first_span) {
        window = span = first_span;
        const int of_lane = min(window + static_cast<int>(threadIdx.x % 32), spans_end() - 1);
        end = tokens_before() + a.span_tokens[of_lane + 1];
        if (C::QUERY_ROWS == 1 && of_lane == spans_end() - 1) end += piece.appended;
        shift = a.spans[of_lane].x - tokens_before() - a.span_tokens[of_lane];
    }

    // Byte offset of the K (and V) row of selected token `index` of the line, for each lane one: the
    // least for lane 0, the greatest for lane 31, with up to 30 between them. The piece's last token
    // stands for those behind it.
    __device__ __forceinline__ long long offset(int index) {
        index = min(index, piece.end - 1);
        const int last = __shfl_sync(~0u, index, 31);
        int place = __shfl_sync(~0u, span, 31) - window;  // among the spans that are kept
        // Mostly all are in the span of the last one before.
        if (__shfl_sync(~0u, end, place) <= last) {
            while (__shfl_sync(~0u, end, 31) <= last)
                keep(window + __popc(__ballot_sync(~0u, end <= __shfl_sync(~0u, index, 0))));
            place = 0;
#pragma unroll
            for (int step = 16; step > 0; step /= 2)
                if (__shfl_sync(~0u, end, place + step - 1) <= index) place += step;
        }
        span = window + place;
        const unsigned position = __shfl_sync(~0u, shift, place) + index;
        const unsigned page = position / static_cast<unsigned>(a.page_size);
        const unsigned slot = position - page * a.page_size;
        const int* pages = a.page_table + static_cast<long long>(request) * a.max_pages;
        return C::Kv::BYTES * (pages[page] * static_cast<long long>(a.page_stride) +
                               slot * static_cast<long long>(a.token_stride) +
                               piece.head * static_cast<long long>(a.head_stride));
    }

    // Which rows of the query tile select the token that `offset` was called for last, of 32 rows.
    __device__ __forceinline__ unsigned rows(int word = 0) const {
        return a.span_rows[span * Layout<C>::ROW_WORDS + word];
    }
};

}  // namespace spanforge
