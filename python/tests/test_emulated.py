"""Against the Rust side: `SPANFORGE=PATH` is the `spanforge` command. Artifacts are tuned and loaded, one for
steps of all kinds, one for several rows of each request and one for such with a cache of 8 bits, the choice
of kernels is compared with that of `inspect`, and the kernels are run by `SpanAttention` on the emulated GPU,
which checks every access."""

import json
import os
import subprocess
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path

from needs import needs

needs("torch")
if not os.environ.get("SPANFORGE"):
    raise unittest.SkipTest("needs the command: SPANFORGE=target/release/spanforge")

import torch

from emulated import EmulatedDriver
from problems import assert_close, parts, problem
from spanforge import Artifact, Bucket, DeviceProperties, Limits, SpanAttention, merge_outputs_reference
from spanforge.artifact import unfit
from spanforge.spans import canonical
from test_attention import reference

SPANFORGE = str(Path(os.environ["SPANFORGE"]).resolve())
LIMITS = Limits(rows=8, spans=64, requests=2, max_pages=400)


def spanforge(folder, *arguments):
    ran = subprocess.run([SPANFORGE, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise AssertionError(f"spanforge {' '.join(arguments)}: {ran.stderr}")
    return ran.stdout


def setUpModule():
    global ARTIFACT, SEVERAL_ROWS, EIGHT_BITS
    ARTIFACT = tuned("--batch 1,16 --queries 1,4 --budget 12")
    SEVERAL_ROWS = tuned("--batch 4 --queries 4 --budget 6")
    EIGHT_BITS = tuned("--batch 4 --queries 4 --budget 6 --kv-dtype e4m3")


def tuned(options):
    folder = tempfile.TemporaryDirectory()
    unittest.addModuleCleanup(folder.cleanup)
    tune = "tune --workload ssas-llama2 --query-heads 2 --kv-heads 1 --head-dim 64 --dtype bf16 --device"
    printed = spanforge(folder.name, *tune.split(), *f"emulated:h200 --cases 1 {options}".split())
    return Artifact.load(Path(folder.name) / printed.splitlines()[-1])


def only(artifact, entry):
    """The artifact with one of its kernels."""
    one = Artifact(artifact.root, artifact.manifest, artifact._files)
    one.kernels = [entry]
    return one


class AgainstRust(unittest.TestCase):
    def test_the_kernel_chosen_is_that_of_inspect(self):
        device = DeviceProperties("H200", "sm_90a", 132, 232_448)
        shape = ARTIFACT.kernels[0].spec.shape
        for batch in [
            (1, 1, 1, 1),
            (1, 1, 512, 32),
            (3, 1, 300, 40),
            (4, 1, 512, 32),
            (16, 1, 512, 32),
            (16, 4, 512, 32),
            (64, 1, 9999, 64),
        ]:
            rows, queries, *rest = map(str, batch)
            options = ["--explain", "--json", "--queries", queries, "--bucket", ",".join([rows, *rest])]
            said = json.loads(spanforge(".", "inspect", str(ARTIFACT.root), *options))["explanation"]
            selected = ARTIFACT.select(shape, device, Bucket(*batch))
            chosen = said["kernels"][said["chosen"]]
            self.assertEqual(selected.entry.id, chosen["id"], batch)
            self.assertEqual(
                vars(selected.served_as.bucket), {"rows_per_request": 1} | said["served_as"], batch
            )

    def test_kernels_for_another_cache_are_refused_as_by_inspect(self):
        device = DeviceProperties("H200", "sm_90a", 132, 232_448)
        for artifact, kv_dtype in [(ARTIFACT, "e4m3"), (EIGHT_BITS, "same")]:
            shape = replace(artifact.kernels[0].spec.shape, kv_dtype=kv_dtype)
            options = ["--explain", "--json", "--kv-dtype", kv_dtype]
            said = json.loads(spanforge(".", "inspect", str(artifact.root), *options))["explanation"]
            self.assertIsNone(said["chosen"])
            reasons = [unfit(entry, shape, device) for entry in artifact.kernels]
            self.assertEqual(reasons, [kernel["unfit"] for kernel in said["kernels"]])

    def test_kernels_on_the_emulated_gpu_compute_the_reference(self):
        merges, query_rows, kv_dtypes = set(), set(), set()
        artifacts = (ARTIFACT, SEVERAL_ROWS, EIGHT_BITS)
        for artifact, entry in [(a, e) for a in artifacts for e in a.kernels]:
            configuration, kv_dtype = entry.spec.configuration, entry.spec.shape.kv_dtype
            for seed, layout, pad, multiprocessors, options in [
                (1, "NHD", 0, 3, {}),
                (5, "HND", 0, 7, {"in_runs": True}),
                (3, "NHD", 1, 1, {"in_runs": True}),
                (6, "HND", 8, 3, {"in_runs": True, "per_head": True}),
            ]:
                p = problem(seed, layout=layout, pad=pad, rows=8, longest=500, kv_dtype=kv_dtype, **options)
                driver = EmulatedDriver(SPANFORGE, multiprocessors)
                attention = SpanAttention(only(artifact, entry), p.shape, LIMITS, "cpu", driver)
                attention.plan(*p.step)
                self.assertEqual(attention.kernel, entry.id)
                for more in [(0.2,), (0.2, 1.5, p.sinks)]:
                    first = attention.run(p.q, p.k, p.v, *more, **p.scales)
                    assert_close(self, first, reference(p, *more))
                    # The next layer, with the scratch memory of the first.
                    for one, other in zip(first, attention.run(p.q, p.k, p.v, *more, **p.scales)):
                        self.assertTrue(torch.equal(one, other))
                merges.add(configuration.merge)
                query_rows.add(configuration.query_rows)
                kv_dtypes.add(kv_dtype)
                self.assertEqual(driver.launched.count("plan"), 1)
                self.assertEqual(driver.launched.count("overlay"), configuration.query_rows > 1)
        self.assertIn("second-kernel", merges)
        self.assertGreater(max(query_rows), 1)
        self.assertEqual(kv_dtypes, {"same", "e4m3"})

    def test_without_factors_elements_of_8_bits_are_as_they_are(self):
        p = replace(problem(5, rows=6, kv_dtype="e4m3"), k_scales=None, v_scales=None)
        for entry in EIGHT_BITS.kernels:
            attention = SpanAttention(
                only(EIGHT_BITS, entry), p.shape, LIMITS, "cpu", EmulatedDriver(SPANFORGE)
            )
            attention.plan(*p.step)
            assert_close(self, attention.run(p.q, p.k, p.v), reference(p))

    def test_two_parts_are_merged_on_the_emulated_gpu(self):
        p = problem(5, rows=6)
        driver = EmulatedDriver(SPANFORGE)
        attention = SpanAttention(ARTIFACT, p.shape, LIMITS, "cpu", driver)
        written = []
        for spans in parts(p):
            attention.plan(*replace(p, spans=spans).step)
            written.append(attention.run(p.q, p.k, p.v))
        one, other = written
        expected = merge_outputs_reference(*one, *other)
        is_empty = (one[1] == -torch.inf) | (other[1] == -torch.inf)
        self.assertTrue(is_empty.any() and not is_empty.all())
        attention.merge_outputs(*one, *other)
        self.assertEqual(driver.launched[-1], "merge-outputs")
        assert_close(self, one, expected)
        for found, wanted, bits in zip(one, expected, (torch.int16, torch.int32)):
            self.assertTrue(torch.equal(found[is_empty].view(bits), wanted[is_empty].view(bits)))

    def test_the_plan_kernel_runs_when_spans_change_and_only_then(self):
        p = problem(6, rows=4)
        driver = EmulatedDriver(SPANFORGE)
        entry = next(e for e in ARTIFACT.kernels if e.spec.configuration.query_rows == 1)
        attention = SpanAttention(only(ARTIFACT, entry), p.shape, LIMITS, "cpu", driver)
        for _ in range(2):
            attention.plan(*p.step)
        self.assertEqual(driver.launched, ["plan"])
        plan = attention._plan
        lengths = [sum(end - start for start, end in canonical(row)) for row in p.spans]
        made = attention._buffers["set_tokens"][: plan.rows + 1].tolist()
        self.assertEqual(made, [sum(lengths[:row]) for row in range(plan.rows + 1)])
        # Other pages alone need no plan; other spans do, fewer rows too.
        p.page_table = p.page_table[::-1]
        p.kv_len = p.kv_len[::-1]
        p.row_request = [1 - request for request in p.row_request]
        attention.plan(*p.step)
        self.assertEqual(driver.launched, ["plan"])
        p.spans[1] = [(0, 1)]
        attention.plan(*p.step)
        self.assertEqual(driver.launched, ["plan", "plan"])

    def test_a_launch_that_fails_leaves_no_plan_and_clear_scratch(self):
        p = problem(6, rows=4)
        driver = EmulatedDriver(SPANFORGE)
        attention = SpanAttention(ARTIFACT, p.shape, LIMITS, "cpu", driver)
        attention.plan(*p.step)
        attention._buffers["arrivals"].fill_(7)
        driver.launch, launch = None, driver.launch
        with self.assertRaises(TypeError):
            attention.run(p.q, p.k, p.v)
        driver.launch = launch
        with self.assertRaisesRegex(Exception, "there is no plan"):
            attention.run(p.q, p.k, p.v)
        attention.plan(*p.step)
        assert_close(self, attention.run(p.q, p.k, p.v), reference(p))


if __name__ == "__main__":
    unittest.main()
