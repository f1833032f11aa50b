"""Loading artifacts, what is refused, and which kernel is chosen."""

import tempfile
import unittest
from dataclasses import replace
from pathlib import Path

from artifacts import SHAPE, kernel, manifest, spec, write
from spanforge import Artifact, Bucket, DeviceProperties, KernelShape
from spanforge.errors import ArtifactError

H200 = DeviceProperties("H200", "sm_90a", 132, 232_448)
FAST = spec(blocks_per_multiprocessor=4)
SMALL, LARGE = (1, 1, 512, 64), (64, 1, 4096, 512)
DRAFTS = (16, 4, 512, 64)


class Folder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name) / "artifact"

    def write(self, *kernels):
        return write(self.folder, manifest(list(kernels)))


class Loading(Folder):
    def test_an_artifact_is_read_whole(self):
        artifact = Artifact.load(self.write(kernel(spec()), kernel(FAST)))
        first, second = artifact.kernels
        self.assertEqual(first.id, "bf16-d128-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x2-m128-second")
        self.assertEqual((first.spec, second.spec), (spec(), FAST))
        self.assertEqual((first.threads, first.shared_bytes), (128, 49_664))
        self.assertTrue(artifact.text(first.source).startswith("// spanforge-kernel: "))

    def test_ids_and_sizes_are_those_of_the_rust_side(self):
        """As manifests of exported artifacts have them."""
        for shape, changes, name, threads, shared_bytes in [
            (
                KernelShape("bf16", 64, 2),
                {"heads_per_warp": 2},
                "bf16-d64-g2-staged-t32-s3-w4-h2-v16-u2-qr-p0-b1-x2-m128-second",
                128,
                25_088,
            ),
            (
                KernelShape("bf16", 256, 6),
                {
                    **{"tile_tokens": 16, "stages": 2, "token_warps": 1, "heads_per_warp": 3},
                    **{"vector_bytes": 8, "unroll": 4, "l2_prefetch": 256, "min_blocks": 2},
                    **{"blocks_per_multiprocessor": 4, "smallest_share": 64},
                    "merge": "last-arriver",
                },
                "bf16-d256-g6-staged-t16-s2-w1-h3-v8-u4-qr-p256-b2-x4-m64-last",
                64,
                33_024,
            ),
            (
                KernelShape("bf16", 256, 6),
                {
                    **{"core": "mma", "stages": 2, "token_warps": 2, "heads_per_warp": 6, "unroll": 1},
                    **{"query": "shared", "l2_prefetch": 128, "min_blocks": 2},
                    **{"blocks_per_multiprocessor": 3, "merge": "last-arriver"},
                },
                "bf16-d256-g6-mma-staged-t32-s2-w2-h6-v16-u1-qs-p128-b2-x3-m128-last",
                64,
                70_144,
            ),
            (
                # 24 columns over three warps of eight.
                KernelShape("bf16", 256, 6),
                {
                    **{"core": "mma", "query_rows": 4, "tile_tokens": 64, "stages": 2},
                    **{"heads_per_warp": 8, "unroll": 1, "query": "shared"},
                    **{"blocks_per_multiprocessor": 1, "smallest_share": 512, "merge": "last-arriver"},
                },
                "bf16-d256-g6-mma-r4-staged-t64-s2-w4-h8-v16-u1-qs-p0-b1-x1-m512-last",
                384,
                145_152,
            ),
            (
                # Of a ring of 8192 bytes and 30 states of 70 floats the states are larger.
                KernelShape("f16", 64, 5),
                {
                    **{"core": "mma", "query_rows": 2, "tile_tokens": 16, "stages": 2},
                    **{"token_warps": 3, "heads_per_warp": 5},
                },
                "f16-d64-g5-mma-r2-staged-t16-s2-w3-h5-v16-u2-qr-p0-b1-x2-m128-second",
                192,
                8_848,
            ),
            (
                # Queries of 16 bits, with a factor for each of three times eight columns.
                KernelShape("bf16", 256, 6, "e4m3"),
                {
                    **{"core": "mma", "query_rows": 4, "tile_tokens": 64, "stages": 2},
                    **{"heads_per_warp": 8, "unroll": 1, "query": "shared"},
                    **{"blocks_per_multiprocessor": 1, "smallest_share": 512, "merge": "last-arriver"},
                },
                "bf16-e4m3-d256-g6-mma-r4-staged-t64-s2-w4-h8-v16-u1-qs-p0-b1-x1-m512-last",
                384,
                114_784,
            ),
            (
                # Without factors: they are f16 already.
                KernelShape("f16", 256, 6, "e4m3"),
                {
                    **{"core": "mma", "query_rows": 4, "tile_tokens": 64, "stages": 2},
                    **{"heads_per_warp": 8, "unroll": 1, "query": "shared"},
                    **{"blocks_per_multiprocessor": 1, "smallest_share": 512, "merge": "last-arriver"},
                },
                "f16-e4m3-d256-g6-mma-r4-staged-t64-s2-w4-h8-v16-u1-qs-p0-b1-x1-m512-last",
                384,
                114_688,
            ),
            (
                # The same without tensor cores.
                KernelShape("bf16", 128, 4, "e4m3"),
                {
                    **{"tile_tokens": 64, "token_warps": 2, "vector_bytes": 8, "unroll": 1},
                    **{"query": "shared", "merge": "last-arriver"},
                },
                "bf16-e4m3-d128-g4-staged-t64-s3-w2-h4-v8-u1-qs-p0-b1-x2-m128-last",
                64,
                52_224,
            ),
            (
                # 128 columns over two warpgroups, and a third that brings tiles: a ring of 196608 bytes,
                # queries of 32768, a word for each of 384 tokens, and barriers and pieces of 96.
                KernelShape("bf16", 128, 4),
                {
                    **{"core": "wgmma", "query_rows": 32, "tile_tokens": 128, "token_warps": 1},
                    **{"heads_per_warp": 16, "unroll": 1, "query": "shared"},
                    **{"blocks_per_multiprocessor": 1},
                },
                "bf16-d128-g4-wgmma-r32-staged-t128-s3-w1-h16-v16-u1-qs-p0-b1-x1-m128-second",
                384,
                231_008,
            ),
            (
                # Four words for each of 128 tokens. There are no states: those of 128 columns would need more
                # than the ring.
                KernelShape("f16", 64, 1),
                {
                    **{"core": "wgmma", "query_rows": 128, "tile_tokens": 64, "stages": 2},
                    **{"token_warps": 1, "heads_per_warp": 16, "unroll": 1},
                    **{"blocks_per_multiprocessor": 1},
                },
                "f16-d64-g1-wgmma-r128-staged-t64-s2-w1-h16-v16-u1-qr-p0-b1-x1-m128-second",
                384,
                34_880,
            ),
            (
                # One warpgroup and two words, neither of them full.
                KernelShape("bf16", 128, 1),
                {
                    **{"core": "wgmma", "query_rows": 60, "tile_tokens": 64, "stages": 4},
                    **{"token_warps": 1, "heads_per_warp": 16, "unroll": 1, "query": "shared"},
                    **{"blocks_per_multiprocessor": 1},
                },
                "bf16-d128-g1-wgmma-r60-staged-t64-s4-w1-h16-v16-u1-qs-p0-b1-x1-m128-second",
                256,
                149_632,
            ),
        ]:
            made = spec(shape, **changes)
            c = made.configuration
            self.assertEqual(
                (str(made), c.threads(shape), c.shared_bytes(shape)), (name, threads, shared_bytes)
            )

    def test_a_changed_missing_or_added_file_is_named(self):
        ptx = kernel(spec())["ptx"]
        for change, message in [
            (lambda f: (f / ptx).write_text("other"), "kernel.ptx: changed since"),
            (lambda f: (f / ptx).unlink(), "kernel.ptx: No such file"),
            (lambda f: (f / "more.txt").write_text(""), "more.txt: is not listed"),
            (lambda f: (f / "SHA256SUMS").write_text("nonsense\n"), "line 1 is not a digest"),
            (
                lambda f: (f / "SHA256SUMS").write_text(f"{'0' * 64}  ../../secret\n"),
                "a file outside the artifact",
            ),
            (lambda f: (f / "SHA256SUMS").write_text(""), "is not listed in SHA256SUMS"),
            (lambda f: (f / "SHA256SUMS").unlink(), "not an artifact: it has no SHA256SUMS"),
        ]:
            folder = self.write(kernel(spec()))
            change(folder)
            with self.assertRaisesRegex(ArtifactError, message):
                Artifact.load(folder)
        with self.assertRaisesRegex(ArtifactError, "give the folder that `spanforge tune` printed"):
            Artifact.load(self.folder / "nowhere")

    def test_what_has_a_default_may_be_missing(self):
        content = manifest([kernel(spec(), {SMALL: 5.0})])
        (entry,) = content["kernels"]
        for name in ("core", "query_rows"):
            del entry["spec"]["configuration"][name]
        del entry["spec"]["shape"]["kv_dtype"]
        del entry["buckets"][0]["bucket"]["rows_per_request"]
        (loaded,) = Artifact.load(write(self.folder, content)).kernels
        self.assertEqual(loaded.spec, spec())
        self.assertEqual(loaded.buckets[0].bucket, Bucket(*SMALL))

    def test_kernels_of_every_core_are_read(self):
        several = {"query_rows": 32, "heads_per_warp": 16, "tile_tokens": 64, "unroll": 1}
        by_warpgroups = {**several, "core": "wgmma", "token_warps": 1}
        one_head = replace(SHAPE, group_size=1)
        specs = [
            spec(),
            spec(core="mma", **several),
            spec(**by_warpgroups),
            spec(one_head, **by_warpgroups | {"query_rows": 128}),
        ]
        loaded = Artifact.load(self.write(*map(kernel, specs))).kernels
        self.assertEqual([entry.spec for entry in loaded], specs)
        self.assertEqual([entry.id for entry in loaded], list(map(str, specs)))

    def test_a_manifest_that_makes_no_sense_is_refused(self):
        def changed(path, value):
            content = manifest([kernel(spec())])
            at = content
            for key in path[:-1]:
                at = at[key]
            if value is None:
                del at[path[-1]]
            else:
                at[path[-1]] = value
            return content

        entry = ("kernels", 0)
        for content, message in [
            (changed(["schema"], 2), "schema 2 is not supported; this version reads 1"),
            (changed(["abi"], 9), "abi 9 is not supported"),
            (changed(["interface", 0, "symbol"], "plan"), "interface is not that of ABI 3"),
            (changed(["interface", 2, "arguments", 5], ["tile_ptr", "i32"]), "not that of ABI 3"),
            (changed(["kernels"], []), "lists no kernel"),
            (changed([*entry, "threads"], None), "no field 'threads'"),
            (changed([*entry, "threads"], "many"), "threads is 'many', expected int"),
            (changed([*entry, "threads"], 64), "threads is 64, and its spec takes 128"),
            (changed([*entry, "shared_bytes"], 0), "shared_bytes is 0"),
            (changed([*entry, "time_us"], -1.0), "its times make no sense"),
            (changed([*entry, "ptx_architecture"], "hopper"), "`hopper` is not an architecture"),
            (changed([*entry, "id"], "bf16"), "its spec is that of `bf16-d128-g4-staged"),
            (changed([*entry, "spec", "configuration", "unroll"], 99), "a value out of bounds"),
            (changed([*entry, "spec", "configuration", "query_rows"], 0), "a value out of bounds"),
            (changed([*entry, "spec", "configuration", "query_rows"], 129), "a value out of bounds"),
            (changed([*entry, "spec", "configuration", "query_rows"], 128), "its spec is that of `.*-r128-"),
            (changed([*entry, "spec", "configuration", "tile_tokens"], None), "no field 'tile_tokens'"),
            (changed([*entry, "spec", "configuration", "core"], 1), "core is 1, expected str"),
            (changed([*entry, "spec", "configuration", "core"], "wmma"), "a value out of bounds"),
            (changed([*entry, "spec", "configuration", "core"], "wgmma"), "its spec is that of `.*-wgmma-"),
            (changed([*entry, "spec", "shape", "head_dim"], 96), "head_dim 96 is not served"),
            (changed([*entry, "spec", "shape", "kv_dtype"], "e5m2"), "kv_dtype 'e5m2' is unknown"),
            (changed([*entry, "spec", "shape", "kv_dtype"], 8), "kv_dtype is 8, expected str"),
            (changed([*entry, "spec", "shape", "kv_dtype"], "e4m3"), "its spec is that of `bf16-e4m3-d128"),
        ]:
            with self.subTest(message), self.assertRaisesRegex(ArtifactError, message):
                Artifact.load(write(self.folder, content))
        content = manifest([kernel(spec())])
        write(self.folder, content)
        with self.assertRaisesRegex(ArtifactError, "rendered for another configuration"):
            # The source of another kernel, with its right digest.
            other = kernel(spec(tile_tokens=64))
            content["kernels"][0]["source"] = other["source"]
            Artifact.load(write(self.folder, {**content, "kernels": [*content["kernels"], other]}))


class Selection(Folder):
    def choose(self, batch, device=H200, shape=SHAPE, kernels=None):
        kernels = kernels or [
            kernel(spec(), {SMALL: 5.0, LARGE: 90.0}),
            kernel(FAST, {SMALL: 7.0, LARGE: 80.0}),
        ]
        return Artifact.load(self.write(*kernels)).select(shape, device, Bucket(*batch))

    def test_the_fastest_in_the_nearest_bucket_is_chosen(self):
        for batch, kernel_spec, served in [
            (SMALL, spec(), SMALL),
            (LARGE, FAST, LARGE),
            ((2, 1, 512, 64), spec(), SMALL),
            ((32, 1, 8192, 512), FAST, LARGE),
            # As near to both: the smaller bucket.
            ((8, 1, 1024, 256), spec(), SMALL),
        ]:
            selected = self.choose(batch)
            self.assertEqual(selected.entry.spec, kernel_spec, batch)
            self.assertEqual(selected.served_as.bucket, Bucket(*served), batch)
        # The preferred one among equals, and the first where none was timed by bucket.
        equal = [kernel(spec(), {SMALL: 5.0}), kernel(FAST, {SMALL: 5.0})]
        self.assertEqual(self.choose(SMALL, kernels=equal).entry.spec, spec())
        first = self.choose(LARGE, kernels=[kernel(FAST), kernel(spec())])
        self.assertEqual((first.entry.spec, first.served_as), (FAST, None))

    def test_what_the_device_cannot_run_is_not_chosen(self):
        little = DeviceProperties("little", "sm_90a", 1, 49_664)
        large = spec(stages=4)
        kernels = [kernel(large, {SMALL: 1.0}), kernel(spec(), {SMALL: 5.0})]
        self.assertEqual(self.choose(SMALL, kernels=kernels).entry.spec, large)
        self.assertEqual(self.choose(SMALL, little, kernels=kernels).entry.spec, spec())
        with self.assertRaises(ArtifactError) as caught:
            self.choose(SMALL, DeviceProperties("V100", "sm_70", 80, 98_304))
        self.assertIn("no cubin for sm_70 and its PTX is for sm_80 and newer", str(caught.exception))
        # PTX of one architecture alone is for no newer one.
        hopper, blackwell = (DeviceProperties(a, a, 132, 232_448) for a in ("sm_90a", "sm_100a"))
        alone = [kernel(spec(), cubins=(), ptx_architecture="sm_90a")]
        self.assertEqual(self.choose(SMALL, hopper, kernels=alone).entry.spec, spec())
        with self.assertRaises(ArtifactError) as caught:
            self.choose(SMALL, blackwell, kernels=alone)
        self.assertIn("no cubin for sm_100a and its PTX is for sm_90a alone", str(caught.exception))
        with self.assertRaises(ArtifactError) as caught:
            self.choose(SMALL, shape=KernelShape("f16", 128, 4))
        message = str(caught.exception)
        self.assertIn("no kernel of this artifact serves f16-d128-g4 on H200", message)
        self.assertIn("it is built for bf16-d128-g4", message)
        self.assertIn("a trace in f16 with head_dim 128 and 4 query head(s)", message)

    def test_a_cache_of_8_bits_has_kernels_of_its_own(self):
        eight = spec(replace(SHAPE, kv_dtype="e4m3"))
        kernels = [kernel(one, {SMALL: 5.0}) for one in (spec(), eight)]
        for one in (spec(), eight):
            self.assertEqual(self.choose(SMALL, shape=one.shape, kernels=kernels).entry.spec, one)
        for one, other in [(spec(), eight), (eight, spec())]:
            with self.assertRaises(ArtifactError) as caught:
                self.choose(SMALL, shape=one.shape, kernels=[kernel(other)])
            message = str(caught.exception)
            self.assertIn(f"no kernel of this artifact serves {one.shape} on H200", message)
            self.assertIn(f"  {other}: it is built for {other.shape}\n", message)
            made_by = "W --kv-dtype e4m3 --arch" if one is eight else "W --arch"
            self.assertIn(f"`spanforge tune --workload {made_by} sm_90a`", message)

    def test_machine_code_where_there_is_some_else_ptx(self):
        artifact = Artifact.load(self.write(kernel(spec())))
        (entry,) = artifact.kernels
        self.assertTrue(artifact.code(entry, H200).startswith(b"sm_90a of "))
        newer = DeviceProperties("B200", "sm_100a", 148, 232_448)
        self.assertTrue(artifact.code(entry, newer).startswith(b"ptx of "))


class Buckets(unittest.TestCase):
    def test_a_bucket_is_the_nearest_power_of_two(self):
        for batch, text in [
            ((16, 16, 16 * 8192, 16), "16 rows x 8192 tokens in spans of 8192"),
            ((11, 11, 11 * 700, 70), "8 rows x 512 tokens in spans of 128"),
            ((12, 12, 12 * 750, 70), "16 rows x 1024 tokens in spans of 128"),
            ((16, 5, 16 * 512, 128), "16 rows, 4 per request, x 512 tokens in spans of 64"),
            ((0, 0, 0, 0), "1 row x 1 tokens in spans of 1"),
            ((5, 5, 0, 0), "4 rows x 1 tokens in spans of 1"),
        ]:
            self.assertEqual(str(Bucket.of(*batch)), text)

    def test_the_distance_counts_doublings(self):
        self.assertEqual(Bucket(1, 1, 1024, 64).distance(Bucket(8, 1, 512, 64)), 4.0)
        few, many = Bucket(2, 1, 512, 64), Bucket(8, 1, 512, 64)
        for known in [[few, many], [many, few]]:
            self.assertEqual(Bucket(4, 1, 512, 64).nearest(known), few)
        self.assertIsNone(few.nearest([]))
        # A step of 16 requests is served by what was tuned for one row, not by what was tuned for as many
        # rows of four requests.
        one, drafts = Bucket(*SMALL), Bucket(*DRAFTS)
        self.assertEqual(Bucket(16, 1, 512, 64).nearest([one, drafts]), one)
        self.assertEqual(drafts.distance(one), 12.0)


if __name__ == "__main__":
    unittest.main()
