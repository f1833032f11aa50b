// A piece of a block's share, and where the K and V rows of its tokens lie.
#pragma once

#include "layout.cuh"
#include "plan.cuh"

namespace spanforge {

// Tokens [begin, end) of one set of spans, numbered as `span_tokens` counts them, for one KV head.
struct Piece {
    int set, tile, head;
    int begin, end;
    int appended;        // tokens of the set that its spans do not have yet
    int ends;            // 1 if it holds the set's first selected token, and 2 if it holds the last

    __device__ __forceinline__ bool is_first() const { return ends & 1; }
    __device__ __forceinline__ bool is_last() const { return ends & 2; }
    __device__ __forceinline__ bool is_whole() const { return ends == 3; }
};

// The pieces of this block's share, one after the other. What lies behind a set's tokens on the line is
// none, so a share may have no piece.
template <class C>
struct Walk {
    const DecodeArguments& a;
    long long left;  // places of the share behind the piece

    __device__ __forceinline__ explicit Walk(const DecodeArguments& a) : a(a) {}

    // The first piece, if there is one.
    __device__ __forceinline__ bool first(const Shares<C>& shares, Piece& piece) {
        const long long at = blockIdx.x * shares.share;
        left = min(shares.work - at, shares.share);
        if (left <= 0) return false;
        const int repeat = static_cast<int>(at / shares.places);
        const int place = static_cast<int>(at - static_cast<long long>(repeat) * shares.places);
        piece.appended = shares.appended;
        const int each = piece.appended + C::BEGINNING;
        piece.set = last_at_most(a.set_tokens, 0, a.tiles * a.span_heads, place, each);
        serve(piece, repeat);
        return take(piece, place - piece.set * each) || next(piece);
    }

    // The next one, if there is one: it begins with the next set that has a token.
    __device__ __forceinline__ bool next(Piece& piece) {
        while (left > 0) {
            int repeat = piece.head - piece.set + piece.tile * a.span_heads;
            if (++piece.set == a.tiles * a.span_heads) {
                piece.set = 0;
                ++repeat;
            }
            serve(piece, repeat);
            if (take(piece, a.set_tokens[piece.set])) return true;
        }
        return false;
    }

    // Sets query tile and KV head to those that the set serves the `repeat`th time that the line has it.
    __device__ __forceinline__ void serve(Piece& piece, int repeat) const {
        piece.tile = piece.set / a.span_heads;
        piece.head = repeat + piece.set - piece.tile * a.span_heads;
    }

    // Takes the set's tokens from number `token` on, counted as `set_tokens` does, as many as are left to the
    // share. There may be none.
    __device__ __forceinline__ bool take(Piece& piece, int token) {
        const int begin = a.set_tokens[piece.set];  // both are asked for before one is used
        const int end = a.set_tokens[piece.set + 1] + piece.appended;
        const bool is_last = end - token <= left;
        piece.ends = (token == begin ? 1 : 0) + (is_last ? 2 : 0);
        const int stop = is_last ? end : token + static_cast<int>(left);
        left -= stop - token + (is_last ? C::BEGINNING : 0);
        const int uncounted = C::QUERY_ROWS > 1 ? begin : 0;
        piece.begin = token - uncounted;
        piece.end = stop - uncounted;
        return token < stop;
    }
};

// Where the K and V rows of selected tokens lie. Each warp follows tokens in rising order and keeps 32
// spans, one per lane, so finding the next 32 tokens is mostly one load: of their pages.
template <class C>
struct TokenCursor {
    const DecodeArguments& a;
    const Piece& piece;
    int request;
    int window;  // the first span that is kept
    int end;     // of this lane's span, as `span_tokens` counts
    int shift;   // from there to logical positions
    int span;    // of the token that was located last

    // `row` is one of the piece's query tile, `first` the first token that the warp locates.
    __device__ __forceinline__ TokenCursor(const DecodeArguments& a, const Piece& piece, int row,
                                           int first)
        : a(a), piece(piece), request(a.row_request[row]) {
        keep(last_at_most<32>(a.span_tokens, spans_begin(), spans_end(), min(first, piece.end - 1)));
    }

    __device__ __forceinline__ int spans_begin() const {
        return a.span_ptr[C::QUERY_ROWS > 1 ? 4 * piece.set : piece.set];
    }
    __device__ __forceinline__ int spans_end() const {
        return a.span_ptr[C::QUERY_ROWS > 1 ? 4 * piece.set + 1 : piece.set + 1];
    }

    // Behind the last span of the set lanes have that one too.
    __device__ __forceinline__ void keep(int first_span) {
        window = span = first_span;
        const int of_lane = min(window + static_cast<int>(threadIdx.x % 32), spans_end() - 1);
        end = a.span_tokens[of_lane + 1];
        if (C::QUERY_ROWS == 1 && of_lane == spans_end() - 1) end += piece.appended;
        shift = a.spans[of_lane].x - a.span_tokens[of_lane];
    }

    // Byte offset of the K (and V) row of selected token `index`, for each lane one: the least for lane 0,
    // the greatest for lane 31, with up to 30 between them. The piece's last token stands for those behind
    // it.
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
