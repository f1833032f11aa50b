"""The reference, the attention of a step on a CPU, and its operator under torch.compile."""

import math
import unittest

from needs import needs

needs("torch")

import torch

from problems import assert_close, problem
from spanforge import AttentionShape, Limits, SpanAttention, span_attention_reference
from spanforge.errors import DriverError, SpanforgeError, StepError

LIMITS = Limits(rows=8, spans=64, requests=2, max_pages=400)


def reference(p, scale=None):
    return span_attention_reference(
        p.q, p.k, p.v, p.spans, p.row_request, p.page_table, scale, p.shape.layout
    )


def planned(p, **options):
    attention = SpanAttention(None, p.shape, LIMITS, "cpu", **options)
    attention.plan(*p.step)
    return attention


class Reference(unittest.TestCase):
    def test_it_is_masked_dense_attention(self):
        """Against torch's own attention over the whole cache, with a mask of the selected tokens."""
        for seed in range(10):
            p = problem(seed, "f32", layout="HND" if seed % 2 else "NHD", rows=6)
            k, v = p.k.nan_to_num(), p.v.nan_to_num()
            if p.shape.layout == "HND":
                k, v = k.transpose(1, 2), v.transpose(1, 2)
            out, lse = reference(p)
            for row, request in enumerate(p.row_request):
                # [tokens, heads, head_dim] of the request, and its mask.
                keys, values = k[p.page_table[request]], v[p.page_table[request]]
                keys, values = (
                    t.flatten(0, 1).repeat_interleave(p.shape.query_heads // p.shape.kv_heads, 1)
                    for t in (keys, values)
                )
                mask = torch.zeros(len(keys), dtype=torch.bool)
                for start, end in p.spans[row]:
                    mask[start:end] = True
                if not mask.any():
                    self.assertTrue((out[row] == 0).all() and (lse[row] == -math.inf).all())
                    continue
                dense = torch.nn.functional.scaled_dot_product_attention(
                    *(t.transpose(0, 1) for t in (p.q[row][None], keys, values)), attn_mask=mask
                )
                torch.testing.assert_close(out[row], dense[:, 0], atol=2e-6, rtol=1e-5)
                logits = torch.einsum("hd,thd->ht", p.q[row], keys)[:, mask]
                expected = (logits / math.sqrt(p.shape.head_dim)).logsumexp(-1)
                torch.testing.assert_close(lse[row], expected, atol=1e-5, rtol=1e-5)

    def test_a_selection_is_a_set_and_the_scale_counts(self):
        p = problem(3)
        twice = [row + row[::-1] for row in p.spans]
        again = span_attention_reference(p.q, p.k, p.v, twice, p.row_request, p.page_table)
        for one, other in zip(reference(p), again):
            self.assertTrue(torch.equal(one, other))
        self.assertFalse(torch.equal(reference(p)[0], reference(p, 1.0)[0]))


class Attention(unittest.TestCase):
    def test_on_a_cpu_the_reference_computes(self):
        for layout in ("NHD", "HND"):
            p = problem(5, layout=layout)
            out, lse = planned(p).run(p.q, p.k, p.v)
            self.assertEqual((out.dtype, out.shape), (p.q.dtype, p.q.shape))
            self.assertEqual((lse.dtype, lse.shape), (torch.float32, p.q.shape[:2]))
            assert_close(self, (out, lse), reference(p))
        self.assertIsNone(planned(p).kernel)

    def test_steps_and_tensors_that_do_not_fit_are_refused(self):
        p = problem(7)
        attention = planned(p)
        shape = AttentionShape("bf16", 4, 2, 64, 16)
        rows = attention.limits.rows
        for call, message in [
            (lambda: SpanAttention(None, shape, Limits(2**30, 1, 1, 1), "cpu"), "the kernels count"),
            (lambda: SpanAttention(None, shape, Limits(1, 1, 1, 1), "cpu", object()), "give one, or"),
            (lambda: attention.run(p.q[:1], p.k, p.v), r"q is \[1, .*\], expected \[3"),
            (lambda: attention.run(p.q.float(), p.k, p.v), "k is torch.bfloat16 on cpu, expected tor"),
            (lambda: attention.run(p.q, p.k[..., :32], p.v), "k is .*, expected "),
            (lambda: attention.run(p.q, p.k[0], p.v), "k is .*, expected "),
            (lambda: attention.run(p.q, p.k[:-1], p.v[:-1]), "pages, and the step was planned for"),
            (lambda: attention.run(p.q, p.k, p.v, math.nan), "scale is nan"),
            (lambda: attention.run(p.q, p.k, p.v, 1e300), "scale is 1e"),
            (lambda: attention.plan([[]] * (rows + 1), [0] * (rows + 1), [[0]], [1], 1), "9 rows, and"),
            (lambda: attention.run(p.q, p.k, p.v), "there is no plan"),
        ]:
            with self.subTest(message), self.assertRaisesRegex(StepError, message):
                call()

    @unittest.skipIf(torch.cuda.is_available(), "has a GPU")
    def test_without_a_gpu_the_message_says_what_to_do(self):
        with self.assertRaisesRegex(DriverError, "no CUDA driver.*device='cpu'"):
            SpanAttention(None, problem(0).shape, LIMITS)

    def test_a_step_without_rows(self):
        p = problem(0)
        attention = SpanAttention(None, p.shape, LIMITS, "cpu")
        attention.plan([], [], p.page_table, p.kv_len, p.pages)
        out, lse = attention(p.q[:0], p.k, p.v)
        self.assertEqual((out.shape[0], lse.shape[0]), (0, 0))


class Operator(unittest.TestCase):
    def test_torch_compile_traces_it(self):
        """One graph without a break, and a step planned later is seen by it."""
        p = problem(11)
        attention = planned(p)

        def layer(q, k, v):
            out, lse = attention(q * 2, k, v)
            return out + 1, lse

        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for change in range(2):
            p.spans = [row[change:] for row in p.spans]
            attention.plan(*p.step)
            for one, other in zip(compiled(p.q, p.k, p.v), layer(p.q, p.k, p.v)):
                self.assertTrue(torch.equal(one, other))

    def test_what_torch_checks_of_operators(self):
        p = problem(13)
        attention = planned(p)
        torch.library.opcheck(torch.ops.spanforge.span_attention, (p.q, p.k, p.v, attention.handle, 0.125))

    def test_an_object_that_is_gone_is_named(self):
        p = problem(17)
        with self.assertRaisesRegex(SpanforgeError, "no SpanAttention 0: keep the object"):
            torch.ops.spanforge.span_attention(p.q, p.k, p.v, 0, 1.0)


if __name__ == "__main__":
    unittest.main()
