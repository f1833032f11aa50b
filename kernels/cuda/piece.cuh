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

// Where the K and V rows of selected tokens lie. Each thread follows tokens in rising order and
// keeps the span it is in, so finding the next token's span is mostly one comparison.
struct TokenCursor {
    const DecodeArguments& a;
    const int* pages;
    int span;
    long long head_offset;

    // `row` is one of the piece's query tile.
    __device__ __forceinline__ TokenCursor(const DecodeArguments& a, const Piece& piece, int row,
                                           int first)
        : a(a), pages(a.page_table + static_cast<long long>(a.row_request[row]) * a.max_pages),
          head_offset(static_cast<long long>(piece.head) * a.head_stride) {
        const int low = a.span_ptr[piece.set];
        const int high = a.span_ptr[piece.set + 1];
        span = last_at_most(a.span_tokens, low, high, min(first, piece.end - 1));
    }

    // Byte offset of the K (and V) row of selected token `index` of the line.
    __device__ __forceinline__ long long offset(int index) {
        while (a.span_tokens[span + 1] <= index) ++span;
        const unsigned position = a.spans[span].x + (index - a.span_tokens[span]);
        const unsigned page = position / static_cast<unsigned>(a.page_size);
        const unsigned slot = position - page * a.page_size;
        return 2 * (pages[page] * static_cast<long long>(a.page_stride) +
                    slot * static_cast<long long>(a.token_stride) + head_offset);
    }

    // Which rows of the query tile select the token that `offset` was called for last.
    __device__ __forceinline__ unsigned rows() const { return a.span_rows[span]; }
};

}  // namespace spanforge
