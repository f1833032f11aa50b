"""The reference, the attention of a step on a CPU, its operator under torch.compile, and what is launched
where there is a GPU."""

import math
import tempfile
import unittest
from array import array
from dataclasses import replace
from pathlib import Path

from needs import needs

needs("torch")

import torch

from artifacts import kernel, manifest, spec, write
from problems import assert_close, parts, problem
from spanforge import (
    Artifact,
    AttentionShape,
    DeviceProperties,
    KernelShape,
    Limits,
    SpanAttention,
    abi,
    merge_outputs_reference,
    span_attention_reference,
)
from spanforge.errors import ArtifactError, DriverError, SpanforgeError, StepError

LIMITS = Limits(rows=8, spans=64, requests=2, max_pages=400)


def reference(p, scale=None, soft_cap=0.0, sinks=None):
    return span_attention_reference(
        p.q,
        p.k,
        p.v,
        p.spans,
        p.row_request,
        p.page_table,
        scale,
        p.shape.layout,
        soft_cap,
        sinks,
        p.per_head,
        p.k_scales,
        p.v_scales,
    )


def planned(p, **options):
    attention = SpanAttention(None, p.shape, LIMITS, "cpu", **options)
    attention.plan(*p.step)
    return attention


class Reference(unittest.TestCase):
    def assert_masked_dense(self, p, soft_cap=0.0, sinks=None):
        """Against torch's own attention over the whole cache, with a mask of the selected tokens and one
        token more, whose key and value are zero and whose logit is the sink. What a soft cap changes of a
        logit goes into the mask. In float64, of keys and values that are multiplied by their factors."""
        k, v, q = p.k.double().nan_to_num(), p.v.double().nan_to_num(), p.q.double()
        if p.shape.layout == "HND":
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        if p.k_scales is not None:
            k = k * p.k_scales.double()[:, None]
        if p.v_scales is not None:
            v = v * p.v_scales.double()[:, None]
        group = p.shape.query_heads // p.shape.kv_heads
        out, lse = reference(p, soft_cap=soft_cap, sinks=sinks)
        for row, request in enumerate(p.row_request):
            # [heads, tokens, head_dim] of the request, and one token more.
            keys, values = k[p.page_table[request]], v[p.page_table[request]]
            keys, values = (
                torch.nn.functional.pad(t.flatten(0, 1), (0, 0, 0, 0, 0, 1))
                .repeat_interleave(group, 1)
                .transpose(0, 1)
                for t in (keys, values)
            )
            logits = (q[row][:, None] * keys).sum(-1) / math.sqrt(p.shape.head_dim)
            mask = torch.full_like(logits, -math.inf)
            for head in range(p.shape.query_heads):
                for start, end in p.of_head(row, head // group):
                    mask[head, start:end] = 0
            if soft_cap:
                mask += soft_cap * (logits / soft_cap).tanh() - logits
            if sinks is not None:
                mask[:, -1] = sinks
            expected_lse = (logits + mask).logsumexp(-1).float()
            torch.testing.assert_close(lse[row], expected_lse, atol=1e-6, rtol=1e-6)
            dense = torch.nn.functional.scaled_dot_product_attention(
                q[row][:, None], keys, values, attn_mask=mask[:, None]
            )[:, 0].float()
            is_empty = mask.max(-1).values == -math.inf
            dense[is_empty] = 0
            self.assertTrue((out[row][is_empty] == 0).all())
            torch.testing.assert_close(out[row], dense, atol=1e-6, rtol=1e-6)

    def test_it_is_masked_dense_attention(self):
        for seed in range(10):
            layout, per_head = "HND" if seed % 2 else "NHD", seed % 3 == 1
            p = problem(seed, "f32", layout=layout, rows=6, per_head=per_head)
            self.assert_masked_dense(p)

    def test_with_soft_cap_and_sinks_too(self):
        for seed in range(10):
            layout, per_head = "HND" if seed % 2 else "NHD", seed % 3 == 1
            p = problem(seed, "f32", layout=layout, rows=6, per_head=per_head)
            self.assert_masked_dense(p, soft_cap=1.5)
            self.assert_masked_dense(p, sinks=p.sinks)
            self.assert_masked_dense(p, soft_cap=0.7, sinks=p.sinks)

    def test_keys_and_values_of_8_bits_have_a_factor_for_each_kv_head(self):
        for seed in range(10):
            layout, per_head = "HND" if seed % 2 else "NHD", seed % 3 == 1
            p = problem(seed, "f32", layout=layout, rows=6, per_head=per_head, kv_dtype="e4m3")
            self.assert_masked_dense(p)
            self.assert_masked_dense(p, soft_cap=0.7, sinks=p.sinks)
            for one in ("k_scales", "v_scales"):
                self.assert_masked_dense(replace(p, **{one: None}))

    def test_a_row_that_selects_nothing_has_its_sinks_alone(self):
        p = problem(1, rows=1)
        self.assertEqual(p.spans, [[]])
        out, lse = reference(p, sinks=p.sinks)
        self.assertTrue((out == 0).all())
        torch.testing.assert_close(lse[0], p.sinks)
        self.assertEqual(lse[0, -1], -math.inf)

    def test_lists_of_other_than_all_kv_heads_are_refused(self):
        p = problem(1, per_head=True)
        kv_heads = p.shape.kv_heads
        for sets in (p.spans[1][1:], p.spans[1] + [[]]):
            p.spans[1] = sets
            message = (
                f"row 1 has {len(sets)} lists of spans, expected one for each of the {kv_heads} KV heads"
            )
            with self.assertRaisesRegex(StepError, message):
                reference(p)

    def test_a_selection_is_a_set_and_the_scale_counts(self):
        p = problem(3)
        twice = [row + row[::-1] for row in p.spans]
        again = span_attention_reference(p.q, p.k, p.v, twice, p.row_request, p.page_table)
        for one, other in zip(reference(p), again):
            self.assertTrue(torch.equal(one, other))
        self.assertFalse(torch.equal(reference(p)[0], reference(p, 1.0)[0]))


class Merging(unittest.TestCase):
    def test_two_parts_are_merged_into_the_whole(self):
        for seed in range(10):
            p = problem(seed, "f32", layout="HND" if seed % 2 else "NHD", rows=6)
            # The sink is in one of the two.
            for sinks in (None, p.sinks):
                of_parts = parts(p)
                one = reference(replace(p, spans=of_parts[0]), sinks=sinks)
                other = reference(replace(p, spans=of_parts[1]))
                for two in ((*one, *other), (*other, *one)):
                    found = merge_outputs_reference(*two)
                    for part, whole in zip(found, reference(p, sinks=sinks)):
                        torch.testing.assert_close(part, whole, atol=2e-6, rtol=2e-6)

    def test_where_one_is_empty_the_other_stays_bit_for_bit(self):
        """An empty one has an output that is not looked at."""
        generator = torch.Generator().manual_seed(0)
        for dtype, bits in [(torch.bfloat16, torch.int16), (torch.float32, torch.int32)]:
            full = torch.randn(4, 2, 64, generator=generator).to(dtype)
            full[..., :2] = torch.tensor([-0.0, torch.finfo(dtype).tiny])
            lse = torch.tensor([-100.0, 0.3, 2e4, 1e-9])[:, None].expand(4, 2).contiguous()
            empty, no_lse = torch.full_like(full, math.nan), torch.full_like(lse, -math.inf)
            for two in ((full, lse, empty, no_lse), (empty, no_lse, full, lse)):
                out, merged_lse = merge_outputs_reference(*two)
                self.assertTrue(torch.equal(out.view(bits), full.view(bits)))
                self.assertTrue(torch.equal(merged_lse, lse))
            out, merged_lse = merge_outputs_reference(empty, no_lse, empty, no_lse)
            self.assertFalse(out.view(bits).any())
            self.assertTrue(torch.equal(merged_lse, no_lse))

    def test_on_a_cpu_it_is_done_in_place(self):
        p = problem(8, "f32", rows=6)
        attention = planned(p)
        expected = attention.run(p.q, p.k, p.v)
        written = []
        for spans in parts(p):
            attention.plan(*replace(p, spans=spans).step)
            written += attention.run(p.q, p.k, p.v)
        other = [tensor.clone() for tensor in written[2:]]
        # The rows are not those of the plan.
        attention.plan([[]], [0], p.page_table, p.kv_len, p.pages)
        attention.merge_outputs(*written)
        for found, wanted in zip(written, (*expected, *other)):
            torch.testing.assert_close(found, wanted, atol=2e-6, rtol=2e-6)


class Attention(unittest.TestCase):
    def test_on_a_cpu_the_reference_computes(self):
        for layout in ("NHD", "HND"):
            p = problem(5, layout=layout)
            out, lse = planned(p).run(p.q, p.k, p.v)
            self.assertEqual((out.dtype, out.shape), (p.q.dtype, p.q.shape))
            self.assertEqual((lse.dtype, lse.shape), (torch.float32, p.q.shape[:2]))
            assert_close(self, (out, lse), reference(p))
            p = problem(6, layout=layout, per_head=True, in_runs=True)
            self.assertGreater(p.shape.kv_heads, 1)
            found = planned(p).run(p.q, p.k, p.v, 0.2, 2.0, p.sinks)
            assert_close(self, found, reference(p, 0.2, 2.0, p.sinks))
            p = problem(6, layout=layout, kv_dtype="e4m3")
            found = planned(p).run(p.q, p.k, p.v, 0.2, 2.0, p.sinks, p.k_scales, p.v_scales)
            assert_close(self, found, reference(p, 0.2, 2.0, p.sinks))
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
            (
                lambda: attention.run(p.q, p.k, p.v, soft_cap=-1.0),
                "soft_cap is -1.0: give a number from 1e-30",
            ),
            (lambda: attention.run(p.q, p.k, p.v, soft_cap=9e-31), "soft_cap is 9e-31"),
            (lambda: attention.run(p.q, p.k, p.v, soft_cap=1.1e30), "to 1e30, or 0 for no cap"),
            (lambda: attention.run(p.q, p.k, p.v, soft_cap=math.nan), "soft_cap is nan"),
            (
                lambda: attention.run(p.q, p.k, p.v, sinks=p.sinks[:1]),
                r"sinks is \[1\] .*, expected \[[246]\]",
            ),
            (lambda: attention.run(p.q, p.k, p.v, sinks=p.sinks.half()), "sinks is .* torch.float16 on cpu"),
            (lambda: attention.run(p.q, p.k, p.v, sinks=p.sinks.repeat(2)[::2]), "sinks is not contiguous"),
            (lambda: attention.plan([[]] * (rows + 1), [0] * (rows + 1), [[0]], [1], 1), "9 rows, and"),
            (lambda: attention.run(p.q, p.k, p.v), "there is no plan"),
        ]:
            with self.subTest(message), self.assertRaisesRegex(StepError, message):
                call()

    def test_caches_and_factors_of_another_kind_are_refused(self):
        p, eight = problem(6), problem(6, kv_dtype="e4m3")
        kv_heads = p.shape.kv_heads
        scales = eight.k_scales
        for problem_of, changed, message in [
            (p, {"k_scales": scales}, "k_scales: only a cache of 8-bit elements .* has factors; leave them"),
            (p, {"v_scales": scales}, "v_scales: only a cache of 8-bit elements"),
            (p, {"k": eight.k, "v": eight.v}, "k is torch.float8_e4m3fn on cpu, expected torch.bfloat16"),
            (p, {"v": eight.v}, "v is torch.float8_e4m3fn on cpu, expected torch.bfloat16"),
            (eight, {"k": p.k, "v": p.v}, "k is torch.bfloat16 on cpu, expected torch.float8_e4m3fn"),
            (eight, {"v": p.v}, "v is torch.bfloat16 on cpu, expected torch.float8_e4m3fn"),
            (eight, {"k": eight.k.view(torch.float8_e5m2)}, "k is torch.float8_e5m2 on cpu, expected"),
            (eight, {"k_scales": scales[1:]}, rf"k_scales is \[{kv_heads - 1}\] .*, expected \[{kv_heads}\]"),
            (eight, {"v_scales": scales[:, None]}, rf"v_scales is \[{kv_heads}, 1\] .*, expected \["),
            (eight, {"v_scales": scales.half()}, "v_scales is .* torch.float16 on cpu, expected .*float32"),
            (eight, {"k_scales": scales.to("meta")}, "k_scales is .* on meta, expected .* on cpu"),
            (eight, {"v_scales": scales.repeat(2)[::2]}, "v_scales is not contiguous"),
        ]:
            given = {"q": problem_of.q, "k": problem_of.k, "v": problem_of.v, **problem_of.scales}
            with self.subTest(message), self.assertRaisesRegex(StepError, "^" + message):
                planned(problem_of).run(**given | changed)

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

        def layer(q, k, v, sinks=None):
            out, lse = attention(q * 2, k, v, soft_cap=2.0, sinks=sinks)
            return out + 1, lse

        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for change in range(2):
            p.spans = [row[change:] for row in p.spans]
            attention.plan(*p.step)
            for sinks in (None, p.sinks):
                for one, other in zip(compiled(p.q, p.k, p.v, sinks), layer(p.q, p.k, p.v, sinks)):
                    self.assertTrue(torch.equal(one, other))
        found = attention(p.q, p.k, p.v, soft_cap=2.0, sinks=p.sinks)
        assert_close(self, found, reference(p, soft_cap=2.0, sinks=p.sinks))

    def test_it_takes_a_cache_of_8_bits(self):
        p = problem(11, kv_dtype="e4m3")
        attention = planned(p)
        compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
        for found in (attention(p.q, p.k, p.v, **p.scales), compiled(p.q, p.k, p.v, **p.scales)):
            assert_close(self, found, reference(p))

    def test_what_torch_checks_of_operators(self):
        p = problem(13)
        attention = planned(p)
        for more in [(), (2.0,), (0.0, p.sinks)]:
            arguments = (p.q, p.k, p.v, attention.handle, 0.125, *more)
            torch.library.opcheck(torch.ops.spanforge.span_attention, arguments)
        # Not whether arguments are changed: torch does not compare elements of 8 bits.
        checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        p = problem(13, kv_dtype="e4m3")
        attention = planned(p)
        arguments = (p.q, p.k, p.v, attention.handle, 0.125, 0.0, None, p.k_scales, p.v_scales)
        torch.library.opcheck(torch.ops.spanforge.span_attention, arguments, test_utils=checks)

    def test_an_object_that_is_gone_is_named(self):
        p = problem(17)
        with self.assertRaisesRegex(SpanforgeError, "no SpanAttention 0: keep the object"):
            torch.ops.spanforge.span_attention(p.q, p.k, p.v, 0, 1.0)


class RecordingDriver:
    """A stand-in for `spanforge.driver.Driver` that keeps what is launched: kernel, grid, threads, and
    arguments by name."""

    properties = DeviceProperties("recording", "sm_90a", 3, 232_448)

    def __init__(self):
        self.launched = []

    def load(self, code):
        return code

    def launch(self, code, kernel, grid, threads, shared_bytes, values, stream):
        arguments = {name: values[name] for name, _ in abi.ARGUMENTS[kernel]}
        self.launched.append((kernel, grid, threads, arguments))

    def take(self):
        launched, self.launched = self.launched, []
        return launched


class Launches(unittest.TestCase):
    """Of two KV heads with groups of four, by 6 blocks, of kernels that take one row or four at a time."""

    SHAPE = AttentionShape("bf16", 8, 2, 128, page_size=16)
    LIMITS = Limits(rows=10, spans=20, requests=3, max_pages=4)
    ONE = spec()
    FOUR = spec(core="mma", query_rows=4, heads_per_warp=8)
    EIGHT_BITS = spec(KernelShape("bf16", 128, 4, "e4m3"))
    PAGES = {"page_table": [[0, 1, 2, 3]] * 3, "kv_len": [64] * 3, "pages": 4}

    def attention(self, *kernels, shape=SHAPE):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        artifact = Artifact.load(write(Path(folder.name) / "artifact", manifest(list(kernels))))
        self.driver = RecordingDriver()
        return SpanAttention(artifact, shape, self.LIMITS, "cpu", self.driver)

    def step(self, attention, row_request, spans=None, per_head=False, **pages):
        """Plans a step, whose rows all select the same where nothing else is said. Returns the names of
        what was launched."""
        spans = spans or [[(0, 8), (20, 30)]] * len(row_request)
        attention.plan(spans, row_request, **self.PAGES | pages, per_head=per_head)
        return [kernel for kernel, *_ in self.driver.launched]

    def tensors(self, rows):
        k, v = torch.zeros(2, 4, 16, 2, 128, dtype=torch.bfloat16)
        return torch.zeros(rows, 8, 128, dtype=torch.bfloat16), k, v

    def test_of_a_kernel_that_takes_one_row(self):
        attention = self.attention(kernel(self.ONE))
        buffers = attention._buffers
        self.assertNotIn("tile_spans", buffers)
        self.step(attention, [0, 0, 1])
        q, k, v = self.tensors(3)
        out, lse = attention.run(q, k, v, 0.5)
        plan, decode, merge = self.driver.take()
        names = ["span_ptr", "spans", "set_tokens", "span_tokens"]
        self.assertEqual(plan[:3], ("plan", (1, 1), 256))
        self.assertEqual([plan[3][name] is buffers[name] for name in names], [True] * 4)
        self.assertEqual(plan[3]["sets"], 3)
        self.assertEqual(decode[:3], ("decode", (6, 1), self.ONE.configuration.threads(self.ONE.shape)))
        arguments = decode[3]
        for name, expected in [("q", q), ("k", k), ("v", v), ("out", out), ("lse", lse)]:
            self.assertIs(arguments[name], expected)
        for name in ("span_ptr", "spans", "set_tokens", "span_tokens", "page_table", "row_request"):
            self.assertIs(arguments[name], buffers[name])
        for name in ("tile_ptr", "span_rows", "sinks", "k_scales", "v_scales"):
            self.assertIsNone(arguments[name])
        integers = {name: n for name, n in arguments.items() if isinstance(n, int)}
        self.assertEqual(
            integers,
            {
                **{"tiles": 3, "kv_heads": 2, "span_heads": 1, "page_size": 16, "max_pages": 4},
                **{"page_stride": 16 * 2 * 128, "token_stride": 2 * 128, "head_stride": 128},
                **{"smallest_share": 128, "scale_bits": 0x3F00_0000, "soft_cap_bits": 0},
            },
        )
        # Three multiprocessors have room for four slices of six blocks.
        self.assertEqual(merge[:3], ("merge", (3 * 2, 1), 4 * 128))
        self.assertEqual((merge[3]["tiles"], merge[3]["blocks"]), (3, 6))
        self.assertEqual((merge[3]["tile_ptr"], merge[3]["sinks"]), (None, None))

    def test_of_a_kernel_that_takes_several_rows(self):
        attention = self.attention(kernel(self.FOUR), kernel(self.ONE))
        buffers = attention._buffers
        # Two blocks on each of three multiprocessors, two states of 16 columns each.
        self.assertEqual(buffers["partial_acc"].numel(), 6 * 2 * 16 * 128)
        self.assertEqual(buffers["partial_ml"].numel(), 6 * 2 * 16 * 2)
        sizes = [("span_ptr", 21), ("set_tokens", 22), ("tile_span_ptr", 80), ("tile_ptr", 11), ("spans", 40)]
        sizes += [("tile_spans", 80), ("span_rows", 40), ("span_tokens", 41), ("arrivals", 20)]
        for name, size in sizes:
            self.assertEqual(buffers[name].numel(), size, name)
        self.step(attention, [0, 0, 0, 0, 0, 1, 2], [[[(0, 1)], [(4, 8)]]] * 7, per_head=True)
        self.assertEqual(buffers["tile_ptr"][:5].tolist(), [0, 4, 5, 6, 7])
        q, k, v = self.tensors(7)
        sinks = torch.zeros(8)
        attention.run(q, k, v, soft_cap=2.0, sinks=sinks)
        overlay, plan, decode, merge = self.driver.take()
        # Eight sets, four warps to a block.
        self.assertEqual(overlay[:3], ("overlay", (2, 1), 128))
        for name, argument in overlay[3].items():
            self.assertIs(argument, {"tiles": 4, "span_heads": 2}.get(name, buffers.get(name)))
        self.assertEqual(plan[3]["sets"], 8)
        for of_tiles in (plan[3], decode[3]):
            self.assertIs(of_tiles["span_ptr"], buffers["tile_span_ptr"])
            self.assertIs(of_tiles["spans"], buffers["tile_spans"])
        for name in ("tile_ptr", "span_rows", "row_request"):
            self.assertIs(decode[3][name], buffers[name])
        for launched in (decode[3], merge[3]):
            self.assertIs(launched["sinks"], sinks)
            self.assertEqual((launched["tiles"], launched["span_heads"]), (4, 2))
        self.assertEqual(decode[3]["soft_cap_bits"], 0x4000_0000)
        # 16 columns of 32 fours of elements, 128 to a block; these are more than are resident at once.
        self.assertEqual(merge[:3], ("merge", (4 * 2, 4), 128))
        self.assertIs(merge[3]["tile_ptr"], buffers["tile_ptr"])

    def test_the_kernel_with_most_words_of_rows_says_what_room_they_need(self):
        shape = KernelShape("bf16", 128, 1)
        few = spec(shape, core="mma", query_rows=4)
        many = spec(
            shape, core="wgmma", query_rows=33, tile_tokens=64, token_warps=1, heads_per_warp=16, unroll=1
        )
        attention = self.attention(
            *map(kernel, (few, many, spec(shape, heads_per_warp=1))),
            shape=AttentionShape("bf16", 2, 2, 128, page_size=16),
        )
        # Twice 20 spans, with two words for 33 rows each.
        self.assertEqual(attention._buffers["span_rows"].numel(), 80)
        self.assertEqual(attention._buffers["tile_spans"].numel(), 80)

    def test_of_layers_without_a_merge_kernel(self):
        last = spec(merge="last-arriver")
        attention = self.attention(kernel(last))
        self.step(attention, [0])
        attention.run(*self.tensors(1))
        self.assertEqual([name for name, *_ in self.driver.take()], ["plan", "decode"])

    def test_of_a_cache_of_8_bits(self):
        shape = replace(self.SHAPE, kv_dtype="e4m3")
        attention = self.attention(kernel(self.ONE), kernel(self.EIGHT_BITS), shape=shape)
        self.step(attention, [0])
        self.assertEqual(attention.kernel, str(self.EIGHT_BITS))
        q, *kv = self.tensors(1)
        k, v = (tensor.to(torch.float8_e4m3fn) for tensor in kv)
        k_scales, v_scales = torch.ones(2), torch.ones(2)
        for given in [{}, {"k_scales": k_scales}, {"k_scales": k_scales, "v_scales": v_scales}]:
            out, _ = attention.run(q, k, v, **given)
            self.assertEqual(out.dtype, torch.bfloat16)
            arguments = next(a for name, *_, a in self.driver.take() if name == "decode")
            expected = {"k": k, "v": v, "k_scales": None, "v_scales": None} | given
            for name, argument in expected.items():
                self.assertIs(arguments[name], argument)
            self.assertEqual(arguments["token_stride"], 2 * 128)
        with self.assertRaisesRegex(ArtifactError, "it is built for bf16-d128-g4\n"):
            self.attention(kernel(self.ONE), shape=shape)

    def test_caches_that_do_not_serve_are_refused(self):
        """Rows of K and V begin at whole sixteens of bytes, and elements are those of the shape."""
        for built, of_kv, other, whole in [
            (self.ONE, torch.bfloat16, torch.float16, 8),
            (self.EIGHT_BITS, torch.float8_e4m3fn, torch.bfloat16, 16),
        ]:
            attention = self.attention(
                kernel(built), shape=replace(self.SHAPE, kv_dtype=built.shape.kv_dtype)
            )
            self.step(attention, [0])
            q, *_ = self.tensors(1)
            good, bad = (
                torch.zeros(4, 16, 2, 128 + pad, dtype=of_kv)[..., :128] for pad in (whole, whole // 2)
            )
            attention.run(q, good, good)
            self.driver.take()
            for k, message in [
                (bad, rf"k and v have strides .*: the last must be 1, the others multiples of {whole} up to"),
                (good.to(other), f"k is {other} on cpu, expected {of_kv} on cpu"),
            ]:
                with self.assertRaisesRegex(StepError, message):
                    attention.run(q, k, k)
            self.assertEqual(self.driver.take(), [])

    def test_of_merging_outputs(self):
        """Of three query heads a row, four to a block, for any rows."""
        shape = AttentionShape("bf16", 3, 1, 128, page_size=16)
        three = kernel(spec(KernelShape("bf16", 128, 3), heads_per_warp=3))
        attention = self.attention(three, shape=shape)
        out, lse = torch.zeros(2, 3, 3, 128, dtype=torch.bfloat16), torch.zeros(2, 3, 3)
        with self.assertRaisesRegex(StepError, "there is no plan"):
            attention.merge_outputs(out[0], lse[0], out[1], lse[1])
        # The kernel alone is that of the plan.
        self.step(attention, [])
        for rows, blocks in [(1, 1), (3, 3)]:
            written = out[0, :rows], lse[0, :rows], out[1, :rows], lse[1, :rows]
            attention.merge_outputs(*written)
            ((*launch, arguments),) = self.driver.take()
            self.assertEqual(launch, ["merge-outputs", (blocks, 1), 128])
            names = "out", "lse", "other_out", "other_lse"
            self.assertEqual(arguments, dict(zip(names, written)) | {"heads": 3 * rows})
        attention.merge_outputs(out[0, :0], lse[0, :0], out[1, :0], lse[1, :0])
        self.assertEqual(self.driver.take(), [])

    def test_outputs_that_cannot_be_merged_are_refused(self):
        attention = self.attention(kernel(self.ONE))
        self.step(attention, [0])
        self.driver.take()
        wide = torch.zeros(2, 8, 136, dtype=torch.bfloat16)
        shifted = wide.flatten()[1 : 1 + 2 * 8 * 128].view(2, 8, 128)
        out, lse = wide[..., :128].contiguous(), torch.zeros(2, 8)
        good = {"out": out, "lse": lse, "other_out": out, "other_lse": lse}
        huge = out[:1].expand(2**28, 8, 128)
        for changed, message in [
            ({"out": out[0]}, r"out is \[8, 128\] .*, expected \[1, 8, 128\]"),
            ({"out": out[..., :64]}, r"out is \[2, 8, 64\] .*, expected \[2, 8, 128\]"),
            ({"out": out.half()}, "out is .* torch.float16 on cpu, expected .* torch.bfloat16 on cpu"),
            ({"out": huge}, "rows x query heads is 2147483648; the kernels count up to 2147483647"),
            ({"out": wide[..., :128]}, r"out is not contiguous: copy it with out.contiguous\(\)"),
            ({"out": shifted}, "out is not 16-byte aligned"),
            ({"other_out": out[:1]}, r"other_out is \[1, 8, 128\] .*, expected \[2"),
            ({"other_out": out.float()}, "other_out is .* torch.float32 on"),
            ({"other_out": out.to("meta")}, "other_out is .* on meta, expected .* on cpu"),
            ({"other_out": shifted}, "other_out is not 16-byte aligned"),
            ({"lse": lse[:1]}, r"lse is \[1, 8\] .*, expected \[2, 8\]"),
            ({"lse": lse.double()}, "lse is .* torch.float64 on cpu, expected .* torch.float32"),
            ({"lse": lse.T.contiguous().T}, "lse is not contiguous"),
            ({"other_lse": lse[:, :4]}, r"other_lse is \[2, 4\] .*, expected \[2, 8\]"),
            ({"other_lse": torch.zeros(2, 16)[:, ::2]}, "other_lse is not contiguous"),
        ]:
            with self.subTest(message), self.assertRaisesRegex(StepError, "^" + message):
                attention.merge_outputs(**good | changed)
        self.assertEqual(self.driver.take(), [])

    def test_tokens_are_appended_without_a_new_plan(self):
        attention = self.attention(kernel(self.ONE))
        buffers = attention._buffers

        def step(*ends):
            return self.step(attention, [0, 1], [[(0, 8), (20, end)] for end in ends])

        self.assertEqual(step(30, 40), ["plan"])
        for more in (1, 2, 5, 0, 3):
            self.assertEqual(step(30 + more, 40 + more), ["plan"])
            # Behind the sums over two sets; the spans are those that were planned.
            self.assertEqual(buffers["set_tokens"][3].item(), more)
            self.assertEqual(buffers["spans"][:8].tolist(), [0, 8, 20, 30, 0, 8, 20, 40])
        # One row alone, fewer tokens, and a row that selects nothing.
        self.assertEqual(step(33, 44), ["plan"] * 2)
        self.assertEqual(buffers["spans"][:8].tolist(), [0, 8, 20, 33, 0, 8, 20, 44])
        self.assertEqual(step(32, 43), ["plan"] * 3)
        for first in ((0, 8), (0, 9)):
            self.step(attention, [0, 1], [[first], []])
        self.assertEqual(len(self.driver.launched), 5)
        # A kernel that takes several rows plans anew.
        attention = self.attention(kernel(self.FOUR))
        self.assertEqual(step(30, 40), ["overlay", "plan"])
        self.assertEqual(step(31, 41), ["overlay", "plan"] * 2)

    def test_the_plan_is_made_when_spans_or_tiles_change_and_only_then(self):
        attention = self.attention(kernel(self.FOUR))
        row_request = array("i", [0, 0, 1])
        planned = ["overlay", "plan"]
        self.assertEqual(self.step(attention, row_request), planned)
        self.assertEqual(self.step(attention, row_request), planned)
        # Another request of the same rows, and other pages.
        row_request[2] = 2
        self.assertEqual(self.step(attention, row_request, page_table=[[3, 2, 1, 0]] * 3), planned)
        self.assertEqual(attention._buffers["row_request"][:3].tolist(), [0, 0, 2])
        self.assertEqual(attention._buffers["page_table"][:4].tolist(), [3, 2, 1, 0])
        captured = attention.captured
        self.assertEqual(captured, (str(self.FOUR), 3, 2, 1, 4))
        # A step that is refused leaves no plan, and the spans where they are.
        with self.assertRaises(StepError):
            self.step(attention, [0, 0, 7])
        with self.assertRaisesRegex(StepError, "there is no plan"):
            attention.run(*self.tensors(3))
        self.assertEqual(self.step(attention, row_request), planned)
        self.driver.take()
        # The same spans, other tiles.
        self.assertEqual(self.step(attention, [0, 1, 2]), planned)
        self.assertEqual(attention.captured, (str(self.FOUR), 3, 3, 1, 4))
        self.driver.take()
        # As many sets of the same spans, but of two KV heads each.
        spans = [[(0, 8), (20, 30)]] * 4
        self.step(attention, [0, 0, 1, 1], spans)
        self.driver.take()
        self.assertEqual(self.step(attention, [0, 1], [spans[:2]] * 2, per_head=True), planned)
        self.assertEqual(attention.captured, (str(self.FOUR), 2, 2, 2, 4))

    def test_each_step_has_the_kernel_of_its_bucket(self):
        one, four = (2, 1, 16, 8), (8, 4, 16, 8)
        attention = self.attention(kernel(self.ONE, {one: 1.0}), kernel(self.FOUR, {four: 1.0}))
        self.assertEqual(self.step(attention, [0, 1]), ["plan"])
        self.assertEqual(attention.kernel, str(self.ONE))
        self.driver.take()
        self.assertEqual(self.step(attention, [0] * 4 + [1] * 4), ["overlay", "plan"])
        self.assertEqual(attention.kernel, str(self.FOUR))
        self.assertEqual(attention._buffers["tile_ptr"][:3].tolist(), [0, 4, 8])
        self.driver.take()
        # The same spans, but not of query tiles.
        self.assertEqual(self.step(attention, [0, 1, 2, 0, 1, 2, 0, 1]), ["plan"])
        self.assertEqual(attention.kernel, str(self.ONE))
        self.assertIs(self.driver.take()[0][3]["spans"], attention._buffers["spans"])


if __name__ == "__main__":
    unittest.main()
