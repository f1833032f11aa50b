"""On a GPU: the kernels of an artifact against the reference. `SPANFORGE_ARTIFACT=DIR` is the artifact."""

import os
import unittest
from dataclasses import replace

from needs import needs

needs("torch")

import torch

if not torch.cuda.is_available():
    raise unittest.SkipTest("needs a CUDA GPU")
if not os.environ.get("SPANFORGE_ARTIFACT"):
    raise unittest.SkipTest("needs an artifact: SPANFORGE_ARTIFACT=artifacts/NAME")

from problems import assert_close, parts, problem
from spanforge import Artifact, Limits, SpanAttention, merge_outputs_reference
from test_attention import reference

ARTIFACT = Artifact.load(os.environ["SPANFORGE_ARTIFACT"])
LIMITS = Limits(rows=64, spans=4096, requests=2, max_pages=8192)


def drawn(seed, **options):
    """A problem of the artifact's shape, on the GPU."""
    shape = ARTIFACT.kernels[seed % len(ARTIFACT.kernels)].spec.shape
    p = problem(seed, shape.dtype, shape.group_size, shape.head_dim, kv_dtype=shape.kv_dtype, **options)
    p.q, p.k, p.v, p.sinks = (tensor.cuda() for tensor in (p.q, p.k, p.v, p.sinks))
    if shape.kv_dtype == "e4m3":
        p.k_scales, p.v_scales = p.k_scales.cuda(), p.v_scales.cuda()
    return p


class Gpu(unittest.TestCase):
    def test_kernels_compute_the_reference(self):
        for seed in range(24):
            layout = "HND" if seed % 2 else "NHD"
            rows, longest = [(1, 50), (5, 300), (32, 4000)][seed % 3]
            p = drawn(seed, layout=layout, rows=rows, longest=longest, pad=seed % 2)
            attention = SpanAttention(ARTIFACT, p.shape, LIMITS)
            attention.plan(*p.step)
            first = attention(p.q, p.k, p.v, **p.scales)
            assert_close(self, first, reference(p))
            for one, other in zip(first, attention(p.q, p.k, p.v, **p.scales)):
                self.assertTrue(torch.equal(one, other), "bit for bit, with the scratch memory used")

    def test_with_soft_cap_sinks_and_spans_of_each_kv_head(self):
        for seed in range(12):
            p = drawn(seed, rows=16, longest=2000, per_head=seed % 2 == 1, in_runs=seed % 3 > 0)
            attention = SpanAttention(ARTIFACT, p.shape, LIMITS)
            attention.plan(*p.step)
            for soft_cap, sinks in [(1.5, None), (0.0, p.sinks), (30.0, p.sinks)]:
                found = attention(p.q, p.k, p.v, soft_cap=soft_cap, sinks=sinks, **p.scales)
                assert_close(self, found, reference(p, soft_cap=soft_cap, sinks=sinks))

    def test_two_parts_are_merged(self):
        for seed in range(6):
            p = drawn(seed, rows=17, longest=2000)
            attention = SpanAttention(ARTIFACT, p.shape, LIMITS)
            written = []
            for spans in parts(p):
                attention.plan(*replace(p, spans=spans).step)
                written += attention(p.q, p.k, p.v, **p.scales)
            expected = merge_outputs_reference(*written)
            attention.merge_outputs(*written)
            assert_close(self, written[:2], expected)

    def test_on_another_stream_and_after_other_steps(self):
        p = drawn(1, rows=8)
        attention = SpanAttention(ARTIFACT, p.shape, LIMITS)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for rows in (8, 3, 8):
                p.spans, p.row_request, p.q = p.spans[:rows], p.row_request[:rows], p.q[:rows]
                attention.plan(*p.step)
                found = attention(p.q, p.k, p.v, **p.scales)
                stream.synchronize()
                assert_close(self, found, reference(p))
                p = drawn(1, rows=8)

    def test_a_captured_step_follows_other_spans(self):
        p = drawn(2, rows=4)
        # torch has no `nan_to_num` of 8 bits.
        p.k, p.v = (tensor.float().nan_to_num().to(tensor.dtype) for tensor in (p.k, p.v))
        attention = SpanAttention(ARTIFACT, p.shape, LIMITS)
        attention.plan(*p.step)
        attention(p.q, p.k, p.v, **p.scales)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = attention(p.q, p.k, p.v, **p.scales)
        captured = attention.captured
        # As many tokens in as many spans: the same kernel.
        p.spans = [
            [(start - 1, end - 1) for start, end in row] if all(start for start, _ in row) else row
            for row in p.spans
        ]
        attention.plan(*p.step)
        self.assertEqual(attention.captured, captured)
        graph.replay()
        torch.cuda.synchronize()
        assert_close(self, found, reference(p))

    def test_torch_compile(self):
        p = drawn(3)
        attention = SpanAttention(ARTIFACT, p.shape, LIMITS)
        attention.plan(*p.step)
        compiled = torch.compile(lambda q, k, v: attention(q * 2, k, v, **p.scales), fullgraph=True)
        for one, other in zip(compiled(p.q, p.k, p.v), attention(p.q * 2, p.k, p.v, **p.scales)):
            torch.testing.assert_close(one, other)


if __name__ == "__main__":
    unittest.main()
