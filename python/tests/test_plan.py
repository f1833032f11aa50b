"""Plans: what is refused, and a reading of the arrays as the kernels read them
(`kernels/cuda/plan.cuh`, `decode.cuh`), which visits exactly the selected tokens, each once."""

import bisect
import random
import unittest
from collections import Counter
from itertools import accumulate

from spanforge import AttentionShape, Bucket, plan_step
from spanforge.errors import StepError
from spanforge.spans import canonical, tokens

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


class Refusals(unittest.TestCase):
    def test_a_step_as_arrays(self):
        plan = step(spans=[[(10, 20), (0, 3), (2, 4), (7, 7)], [(30, 40)]])
        self.assertEqual(list(plan.span_ptr), [0, 2, 3])
        self.assertEqual(list(plan.spans), [0, 4, 10, 20, 30, 40])
        self.assertEqual(list(plan.page_table), [3, 1, -1, -1, 0, 2])
        self.assertEqual((plan.rows, plan.requests, plan.max_pages), (2, 2, 3))
        self.assertEqual(plan.bucket, Bucket(2, 16, 8))
        self.assertEqual(plan.row_spans(0), [(0, 4), (10, 20)])
        nothing = plan_step(SHAPE, [], [], [], [], 0)
        self.assertEqual((nothing.rows, nothing.max_pages, list(nothing.span_ptr)), (0, 0, [0]))

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
        ]:
            with self.subTest(message), self.assertRaisesRegex(StepError, message):
                step(**changes)

    def test_counts_beyond_32_bits_are_refused(self):
        most = 2**31 - 1
        wide = AttentionShape("bf16", 8, 2, 128, page_size=most)
        one = {"page_table": [[0]], "kv_len": [most], "pages": 1}
        plan_step(wide, [[(0, most)]], [0], **one)
        with self.assertRaisesRegex(StepError, "selected tokens of all rows is 4294967294"):
            plan_step(wide, [[(0, most)]] * 2, [0, 0], **one)

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


def visited(plan, kv_heads, page_size, blocks, smallest_share):
    """Per (row, KV head) the (page, slot) pairs that the blocks of a decode launch read, in order, and
    how many blocks take part in each."""
    span_ptr, spans = plan.span_ptr, list(zip(plan.spans[::2], plan.spans[1::2]))
    # The plan kernel.
    span_tokens = list(accumulate((end - start for start, end in spans), initial=0))
    row_tokens = [span_tokens[at] for at in span_ptr]
    # The decode kernel: heads outermost, cut into equal shares.
    selected = row_tokens[plan.rows]
    share = max(-(-selected * kv_heads // blocks), smallest_share)
    reads, pieces = {}, Counter()
    for block in range(blocks):
        at, stop = block * share, min(selected * kv_heads, (block + 1) * share)
        while at < stop:
            head, begin = divmod(at, selected)
            row = bisect.bisect_right(row_tokens, begin, 0, plan.rows) - 1
            end = min(row_tokens[row + 1], begin + stop - at)
            pieces[row, head] += 1
            table = plan.page_table[plan.row_request[row] * plan.max_pages :]
            for index in range(begin, end):
                low, high = span_ptr[row], span_ptr[row + 1]
                span = bisect.bisect_right(span_tokens, index, low, high) - 1
                position = spans[span][0] + index - span_tokens[span]
                page, slot = divmod(position, page_size)
                reads.setdefault((row, head), []).append((table[page], slot))
            at += end - begin
    return reads, pieces


class Reading(unittest.TestCase):
    def test_exactly_the_selected_tokens_are_visited_once(self):
        shared = 0
        for seed in range(300):
            draw = random.Random(seed)
            page_size, kv_heads = draw.choice([1, 3, 16, 64]), draw.choice([1, 2, 3])
            requests = draw.randrange(1, 4)
            kv_len = [draw.randrange(150) for _ in range(requests)]
            max_pages = max(-(-n // page_size) for n in kv_len) + draw.randrange(3)
            free = draw.sample(range(1000), requests * max_pages)
            page_table = [free[r * max_pages : (r + 1) * max_pages] for r in range(requests)]
            row_request = [draw.randrange(requests) for _ in range(draw.randrange(6))]
            spans = []
            for request in row_request:
                edges = [draw.randrange(kv_len[request] + 1) for _ in range(2 * draw.randrange(5))]
                spans.append([tuple(sorted(pair)) for pair in zip(edges[::2], edges[1::2])])
            needed = {
                (request, token // page_size)
                for request, row in zip(row_request, spans)
                for token in tokens(canonical(row))
            }
            for request in range(requests):
                for entry in range(max_pages):
                    if (request, entry) not in needed:
                        page_table[request][entry] = draw.choice([-1, -(2**31), 2**31 - 1])
            shape = AttentionShape("f16", kv_heads, kv_heads, 64, page_size)
            plan = plan_step(shape, spans, row_request, page_table, kv_len, pages=1000)
            reads, pieces = visited(plan, kv_heads, page_size, draw.choice([1, 2, 7, 64]), 8)
            shared += any(count > 1 for count in pieces.values())
            for row, request in enumerate(row_request):
                expected = [
                    (page_table[request][token // page_size], token % page_size)
                    for token in sorted({t for start, end in spans[row] for t in range(start, end)})
                ]
                for head in range(kv_heads):
                    self.assertEqual(reads.get((row, head), []), expected, (seed, row, head))
        self.assertGreater(shared, 50, "rows that several blocks share are among the cases")


if __name__ == "__main__":
    unittest.main()
