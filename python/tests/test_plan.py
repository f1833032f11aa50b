"""Plans: what is refused, and a reading of the arrays as the kernels read them
(`kernels/cuda/overlay.cuh`, `plan.cuh`, `decode.cuh`), which visits exactly the selected tokens, each
once."""

import bisect
import random
import unittest
from array import array
from collections import Counter
from dataclasses import replace
from itertools import accumulate, pairwise
from unittest import mock

from spanforge import AttentionShape, Bucket, plan_step
from spanforge.errors import StepError

SHAPE = AttentionShape("bf16", 8, 2, 128, page_size=16)


def step(**changes):
    """Two rows of two requests, of 20 and 40 tokens."""
    arguments = {
        "spans": [[(0, 4), (10, 20)], [(30, 40)]],
        "row_request": [0, 1],
        "page_table": [[3, 1, -1], [-1, 0, 2]],
        "kv_len": [20, 40],
        "pages": 4,
    }
    return plan_step(SHAPE, **arguments | changes)


def of_heads(*sets):
    """A change of the first row's spans to those of each KV head."""
    return {"spans": [list(sets), [[], []]], "per_head": True}


class Refusals(unittest.TestCase):
    def test_a_step_as_arrays(self):
        plan = step(spans=[[(10, 20), (0, 3), (2, 4), (7, 7)], [(30, 40)]])
        self.assertEqual(list(plan.span_ptr), [0, 2, 3])
        self.assertEqual(list(plan.spans), [0, 4, 10, 20, 30, 40])
        self.assertEqual(list(plan.page_table), [3, 1, -1, -1, 0, 2])
        self.assertEqual((plan.rows, plan.span_heads, plan.requests, plan.max_pages), (2, 1, 2, 3))
        self.assertEqual(plan.bucket, Bucket(2, 1, 16, 8))
        self.assertEqual(plan.row_spans(0), [(0, 4), (10, 20)])
        nothing = plan_step(SHAPE, [], [], [], [], 0)
        self.assertEqual((nothing.rows, nothing.max_pages, list(nothing.span_ptr)), (0, 0, [0]))

    def test_a_step_whose_kv_heads_have_spans_of_their_own(self):
        plan = step(spans=[[[(2, 4), (0, 3)], [(10, 20)]], [[], [(30, 40)]]], per_head=True)
        self.assertEqual((plan.rows, plan.span_heads), (2, 2))
        self.assertEqual(list(plan.span_ptr), [0, 1, 2, 2, 3])
        self.assertEqual(list(plan.spans), [0, 4, 10, 20, 30, 40])
        self.assertEqual([plan.row_spans(1, head) for head in range(2)], [[], [(30, 40)]])
        # Of the mean of both heads: 12 of 24 tokens, one of three spans.
        self.assertEqual(plan.bucket, Bucket(2, 1, 8, 16))
        # Of one KV head it is the same as of all.
        one = AttentionShape("bf16", 4, 1, 128, page_size=16)
        several, alone = (
            plan_step(one, spans, [0], [[0]], [16], 1, per_head)
            for spans, per_head in [([[[(1, 3)]]], True), ([[(1, 3)]], False)]
        )
        self.assertEqual(several, alone)

    def test_rows_of_one_request_count_where_they_follow_each_other(self):
        for row_request, rows_per_request, tiles in [
            ([0, 0, 1, 1], 2, [0, 2, 4]),
            ([0, 1, 0, 1], 1, [0, 1, 2, 3, 4]),
            ([1, 1, 1, 1], 4, [0, 3, 4]),
            ([0, 1, 1, 1], 2, [0, 1, 4]),
            ([], 1, [0]),
        ]:
            plan = step(
                spans=[[(0, 8)]] * len(row_request), row_request=row_request, page_table=[[0] * 3] * 2
            )
            self.assertEqual(plan.bucket.rows_per_request, rows_per_request, row_request)
            self.assertEqual(list(plan.query_tiles(3)), tiles)
            self.assertEqual(list(plan.query_tiles(1)), list(range(len(row_request) + 1)))
        plan = step(spans=[[]] * 8, row_request=[1, 1, 1, 1, 1, 0, 0, 1])
        self.assertEqual(list(plan.query_tiles(4)), [0, 4, 5, 7, 8])

    def test_a_plan_stays_what_was_checked(self):
        given = {"row_request": array("i", [0, 1]), "kv_len": array("i", [20, 40])}
        plan = step(**given)
        for values in given.values():
            values[0] = 99
        self.assertEqual((list(plan.row_request), list(plan.kv_len)), ([0, 1], [20, 40]))

    def test_everything_a_kernel_trusts_is_checked(self):
        for changes, message in [
            ({"spans": [[(0, 4)]]}, "row_request has 2 entries and spans 1 rows"),
            ({"spans": [[(4, 0)], []]}, r"row 0: \[4, 0\) is no span"),
            ({"spans": [[(-1, 4)], []]}, r"row 0: \[-1, 4\) is no span"),
            ({"spans": [[(0, 2**31)], []]}, "positions are 0 to 2147483647"),
            ({"spans": [[0, 4], []]}, "row 0: spans are pairs of start and end"),
            ({"spans": [[(0.5, 4)], []]}, "give two integers"),
            ({"spans": [[(0, 21)], []]}, r"row 0: \[0, 21\) ends past the KV length 20 of request 0"),
            ({"row_request": [0, 2]}, "row 1 belongs to request 2, but there are 2 requests"),
            ({"row_request": [-1, 1]}, "row 0 belongs to request -1"),
            ({"row_request": ["a", 1]}, "row_request: .* give integers of 32 bits"),
            ({"kv_len": [20, 49]}, r"kv_len\[1\] is 49, expected 0 to 48"),
            ({"kv_len": [20, -1]}, r"kv_len\[1\] is -1"),
            ({"kv_len": [20]}, "page_table has 2 requests and kv_len 1"),
            ({"page_table": [[3, 1, -1], [0, 2]]}, r"page_table\[1\] has 2 entries"),
            ({"page_table": [[3, 2**31, 0], [0, 0, 0]]}, r"page_table\[0\]: .* 32 bits"),
            ({"page_table": [[3, 4, -1], [-1, 0, 2]]}, r"page_table\[0, 1\] is 4, but row 0 selects"),
            ({"page_table": [[3, 1, -1], [-1, -1, 2]]}, r"page_table\[1, 1\] is -1, but row 1"),
            ({"pages": 3}, "the cache has pages 0 to 2"),
            (of_heads([], [(0, 21)]), r"row 0: \[0, 21\) ends past the KV length 20 of request 0"),
            (of_heads([], [(4, 0)]), r"row 0, KV head 1: \[4, 0\) is no span"),
            (of_heads((0, 4), []), r"row 0, KV head 0: spans are pairs of start and end, got \(0, 4\)"),
            (of_heads([]), "row 0 has 1 lists of spans, expected one for each of the 2 KV heads"),
            ({"spans": [7], "per_head": True}, "row 0: spans are a list for each KV head, got 7"),
            ({"spans": [[[], []]], "per_head": True}, "row_request has 2 entries and spans 1 rows"),
        ]:
            with self.subTest(message), self.assertRaisesRegex(StepError, message):
                step(**changes)

    def test_counts_beyond_32_bits_are_refused(self):
        page, most = 2**31 - 1, 2**31 - 1 - 256
        wide = AttentionShape("bf16", 8, 2, 128, page_size=page)
        one = {"page_table": [[0]], "kv_len": [page], "pages": 1}
        plan_step(wide, [[(0, most)]], [0], **one)
        with self.assertRaisesRegex(StepError, "tokens of all rows, and 256 for each row, is 2147483648"):
            plan_step(wide, [[(0, most + 1)]], [0], **one)
        # A batch of that many spans takes gigabytes, so the limit is a small one here.
        with mock.patch.multiple("spanforge.plan", I32_MAX=16, MOST_BEGINNING=0):
            step(spans=[[(0, 1), (2, 3), (4, 5), (6, 7)]] * 2, page_table=[[0] * 3] * 2, kv_len=[16] * 2)
            with self.assertRaisesRegex(StepError, "twice the spans is 18; the kernels count up to 16"):
                step(
                    spans=[[(0, 1), (2, 3), (4, 5), (6, 7)], [(at, at + 1) for at in range(0, 10, 2)]],
                    page_table=[[0] * 3] * 2,
                    kv_len=[16] * 2,
                )

    def test_shapes_are_checked(self):
        for shape, message in [
            (AttentionShape("bf16", 8, 3, 128, 16), "8 query heads and 3 KV heads"),
            (AttentionShape("bf16", 8, 2, 128, 0), "page_size is 0"),
            (AttentionShape("bf16", 8, 2, 128, 16, "NDH"), "layout 'NDH' is unknown"),
            (AttentionShape("bf16", 8, 2, 96, 16), "head_dim 96"),
            (AttentionShape("f32", 8, 2, 64, 16), "'f32' is not served"),
            (AttentionShape("f16", 512, 2, 64, 16), "256 query heads per KV head"),
        ]:
            with self.assertRaisesRegex(StepError, message):
                shape.kernel_shape()
        # Where no kernel is asked for, too.
        with self.assertRaisesRegex(StepError, "kv_dtype 'fp8' is unknown: use same or e4m3"):
            replace(SHAPE, kv_dtype="fp8").check()


def overlaid(plan, tile_ptr):
    """What the overlay kernel makes of a plan for those tiles: first spans, ends and tokens of the sets,
    the spans, the rows of each, and the tokens of its set before it. There is room for twice the spans of
    each set; what is not used stays None."""
    pairs = list(zip(plan.spans[::2], plan.spans[1::2]))
    span_ptr, heads = plan.span_ptr, plan.span_heads
    room = 2 * len(pairs)
    bounds, tile_spans, span_rows, span_tokens = [], [None] * room, [None] * room, [None] * room
    expected = 0
    for first, end in pairwise(tile_ptr):
        for head in range(heads):
            sets = [
                pairs[span_ptr[at] : span_ptr[at + 1]]
                for at in range(first * heads + head, end * heads, heads)
            ]
            before = sum(span_ptr[row * heads + head] - span_ptr[row * heads] for row in range(first, end))
            begin = to = 2 * (span_ptr[first * heads] + before)
            assert begin == expected, "room begins where that of the set before ends"
            expected += 2 * sum(map(len, sets))
            tokens = 0
            edges = sorted({edge for spans in sets for span in spans for edge in span})
            for start, stop in pairwise(edges):
                rows = sum(
                    1 << row for row, spans in enumerate(sets) if any(s <= start < e for s, e in spans)
                )
                if rows:
                    tile_spans[to], span_rows[to], span_tokens[to] = (start, stop), rows, tokens
                    tokens += stop - start
                    to += 1
            if to > begin:
                assert to < expected, "n spans give at most 2n - 1, and there is an end"
                span_tokens[to] = tokens
            bounds.append((begin, to, tokens))
    return bounds, tile_spans, span_rows, span_tokens


def visited(plan, kv_heads, page_size, blocks, smallest_share, query_rows, beginning):
    """Per (row, KV head) the (page, slot) pairs that the blocks of a decode launch read, in order; how many
    blocks take part in each (query tile, KV head), and how many tokens they read in all."""
    tile_ptr = plan.query_tiles(query_rows)
    tiles = len(tile_ptr) - 1
    if query_rows > 1:
        bounds, spans, span_rows, span_tokens = overlaid(plan, tile_ptr)
    else:
        bounds, spans = list(pairwise(plan.span_ptr)), list(zip(plan.spans[::2], plan.spans[1::2]))
        span_rows = [1] * len(spans)
    # The plan kernel.
    sets = tiles * plan.span_heads
    if query_rows > 1:
        set_tokens = list(accumulate((tokens for _, _, tokens in bounds), initial=0))
    else:
        span_tokens = list(accumulate((end - start for start, end in spans), initial=0))
        set_tokens = [span_tokens[at] for at in plan.span_ptr]
    # The decode kernel: KV heads that a set serves outermost, cut into equal shares. Behind each set there
    # are places without a token.
    set_begin = [tokens + of_set * beginning for of_set, tokens in enumerate(set_tokens)]
    work = set_begin[sets] * (kv_heads // plan.span_heads)
    share = max(-(-work // blocks), smallest_share)
    reads, pieces, tokens_read = {}, Counter(), 0
    for block in range(blocks):
        at, stop = block * share, min(work, (block + 1) * share)
        while at < stop:
            repeat, begin = divmod(at, set_begin[sets])
            of_set = bisect.bisect_right(set_begin, begin, 0, sets) - 1
            set_end = set_begin[of_set + 1] - beginning
            end = min(set_end, begin + stop - at)
            at += (set_begin[of_set + 1] if end == set_end else end) - begin
            if begin >= end:
                continue
            tile = of_set // plan.span_heads
            head = repeat + of_set % plan.span_heads
            pieces[tile, head] += 1
            tokens_read += end - begin
            table = plan.page_table[plan.row_request[tile_ptr[tile]] * plan.max_pages :]
            for index in range(begin, end):
                low, high = bounds[of_set][:2]
                token = index - set_begin[of_set] + (0 if query_rows > 1 else set_tokens[of_set])
                span = bisect.bisect_right(span_tokens, token, low, high) - 1
                position = spans[span][0] + token - span_tokens[span]
                page, slot = divmod(position, page_size)
                for row in range(tile_ptr[tile], tile_ptr[tile + 1]):
                    if span_rows[span] >> (row - tile_ptr[tile]) & 1:
                        reads.setdefault((row, head), []).append((table[page], slot))
    return reads, pieces, tokens_read


def selected_tokens(spans):
    return {token for start, end in spans for token in range(start, end)}


class Reading(unittest.TestCase):
    def test_exactly_the_selected_tokens_are_visited_once(self):
        seen = Counter()
        for seed in range(300):
            draw = random.Random(seed)
            page_size, kv_heads = draw.choice([1, 3, 16, 64]), draw.choice([1, 2, 3])
            per_head, query_rows = draw.random() < 0.4, draw.choice([1, 2, 4, 32])
            requests = draw.randrange(1, 4)
            kv_len = [draw.randrange(150) for _ in range(requests)]
            max_pages = max(-(-n // page_size) for n in kv_len) + draw.randrange(3)
            free = draw.sample(range(1000), requests * max_pages)
            page_table = [free[r * max_pages : (r + 1) * max_pages] for r in range(requests)]
            row_request = [draw.randrange(requests) for _ in range(draw.randrange(9))]
            if draw.random() < 0.6:
                row_request.sort()

            def drawn(kv_len, draw=draw):
                edges = [draw.randrange(kv_len + 1) for _ in range(2 * draw.randrange(5))]
                return [tuple(sorted(pair)) for pair in zip(edges[::2], edges[1::2])]

            # Per row the spans of each KV head.
            sets = []
            for request in row_request:
                own = [drawn(kv_len[request]) for _ in range(kv_heads)]
                sets.append(own if per_head else own[:1] * kv_heads)
            needed = {
                (request, token // page_size)
                for request, of_heads in zip(row_request, sets)
                for spans in of_heads
                for token in selected_tokens(spans)
            }
            for request in range(requests):
                for entry in range(max_pages):
                    if (request, entry) not in needed:
                        page_table[request][entry] = draw.choice([-1, -(2**31), 2**31 - 1])
            shape = AttentionShape("f16", kv_heads, kv_heads, 64, page_size)
            spans = sets if per_head else [of_heads[0] for of_heads in sets]
            plan = plan_step(shape, spans, row_request, page_table, kv_len, 1000, per_head)
            blocks, beginning = draw.choice([1, 2, 7, 64]), draw.choice([1, 16, 256])
            reads, pieces, tokens_read = visited(plan, kv_heads, page_size, blocks, 8, query_rows, beginning)
            for row, request in enumerate(row_request):
                for head in range(kv_heads):
                    expected = [
                        (page_table[request][token // page_size], token % page_size)
                        for token in sorted(selected_tokens(sets[row][head]))
                    ]
                    self.assertEqual(reads.get((row, head), []), expected, (seed, row, head))
            # What several rows of a tile select is read once.
            tile_ptr = plan.query_tiles(query_rows)
            unions = [
                len(set().union(*(selected_tokens(sets[row][head]) for row in range(*tile))))
                for tile in pairwise(tile_ptr)
                for head in range(kv_heads)
            ]
            self.assertEqual(tokens_read, sum(unions), seed)
            seen["a tile shared by blocks"] += any(count > 1 for count in pieces.values())
            seen["a token read for several rows"] += tokens_read < sum(map(len, reads.values()))
            seen["such a token for one KV head"] += per_head and tokens_read < sum(map(len, reads.values()))
        self.assertEqual(len(seen), 3)
        self.assertGreater(min(seen.values()), 20, seen)


if __name__ == "__main__":
    unittest.main()
