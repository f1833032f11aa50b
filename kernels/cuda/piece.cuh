// A piece of a block's share, and where the K and V rows of its tokens lie.
#pragma once

#include "layout.cuh"
#include "plan.cuh"

namespace spanforge {

// Tokens [begin, end) of the plan's line that belong to one set of spans, for one KV head.
struct Piece {
    int set, tile, head;
    int begin, end;      // in selected tokens of all sets
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
        piece.set = last_at_most(a.set_tokens, 0, a.tiles * a.span_heads, piece.begin);
        piece.tile = piece.set / a.span_heads;
        piece.head = repeat + piece.set - piece.tile * a.span_heads;
        const int set_end = a.set_tokens[piece.set + 1];
        piece.end = static_cast<int>(min(static_cast<long long>(set_end), piece.begin + (stop - at)));
        piece.first = piece.begin == a.set_tokens[piece.set];
        piece.last = piece.end == set_end;
        return piece;
    }

    __device__ __forceinline__ void pass(const Piece& piece) { at += piece.end - piece.begin; }
};

// Where the K and V rows of selected tokens lie. Each thread follows tokens in rising order and
// keeps the span it is in, so finding the next token is mostly one comparison and one load: of its page.
template <class C>
struct TokenCursor {
    const DecodeArguments& a;
    int request;
    int span;
    int end;    // of the span, in selected tokens of all sets
    int shift;  // from there to logical positions
    int head;

    // `row` is one of the piece's query tile.
    __device__ __forceinline__ TokenCursor(const DecodeArguments& a, const Piece& piece, int row,
                                           int first)
        : a(a), request(a.row_request[row]), head(piece.head) {
        const int low = a.span_ptr[piece.set];
        const int high = a.span_ptr[piece.set + 1];
        enter(last_at_most(a.span_tokens, low, high, min(first, piece.end - 1)));
    }

    __device__ __forceinline__ void enter(int next) {
        span = next;
        end = a.span_tokens[span + 1];
        shift = a.spans[span].x - a.span_tokens[span];
    }

    // Byte offset of the K (and V) row of selected token `index` of the line.
    __device__ __forceinline__ long long offset(int index) {
        while (end <= index) enter(span + 1);
        const unsigned position = shift + index;
        const unsigned page = position / static_cast<unsigned>(a.page_size);
        const unsigned slot = position - page * a.page_size;
        const int* pages = a.page_table + static_cast<long long>(request) * a.max_pages;
        return C::Kv::BYTES * (pages[page] * static_cast<long long>(a.page_stride) +
                               slot * static_cast<long long>(a.token_stride) +
                               head * static_cast<long long>(a.head_stride));
    }

    // Which rows of the query tile select the token that `offset` was called for last, of 32 rows.
    __device__ __forceinline__ unsigned rows(int word = 0) const {
        return a.span_rows[span * Layout<C>::ROW_WORDS + word];
    }
};

}  // namespace spanforge
