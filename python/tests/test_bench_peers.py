"""`bench_peers.py` on the CPU: the peers that run there give the reference's answer, and one that does not
is told apart."""

import contextlib
import io
import json
import tempfile
import unittest
import warnings
from pathlib import Path
from unittest import mock

from needs import needs

needs("torch")

import bench_peers

CASE = {
    "name": "1x90+1x180",
    "attention": {"dtype": "bf16", "query_heads": 6, "kv_heads": 2, "head_dim": 64},
    "rows": [{"kv_len": 300, "spans": [[0, 10], [100, 180]]}, {"kv_len": 90, "spans": [[0, 90]]}],
}


def rows(peers, *arguments):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # flex_attention says that it is not compiled.
        cases = Path(folder) / "cases.json"
        cases.write_text(json.dumps([CASE]))
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            options = ["--device", "cpu", "--samples", "2", "--json"]
            assert bench_peers.main([str(cases), "--peers", peers, *options, *arguments]) == 0
    return json.loads(out.getvalue())["rows"]


class Peers(unittest.TestCase):
    def test_are_timed_as_they_are_and_dense(self):
        peers = ["sdpa", "flex_attention", "flashinfer"]
        found = rows(",".join(peers))
        expected = [(attention, peer) for attention in ("span", "dense") for peer in peers]
        self.assertEqual([(row["attention"], row["peer"]) for row in found], expected)
        for row in found:
            if row["peer"] == "flashinfer":
                self.assertIsNone(row["time_us"])
                self.assertTrue(row["why_not"])
            else:
                self.assertEqual((len(row["samples_us"]), row["why_not"]), (2, None))
                self.assertTrue(row["time_us"] > 0 and row["given"] and row["version"])

    def test_with_a_wrong_answer_are_not_timed(self):
        def everything(case):
            spans = [[(0, kv_len)] for kv_len in case.kv_len]
            whole = bench_peers.Case(case.name, case.kv_len, spans, case.q, case.k, case.v)
            return bench_peers.sdpa(whole)

        with mock.patch.dict(bench_peers.PEERS, sdpa=everything):
            span, dense = rows("sdpa")
        self.assertTrue(span["why_not"].startswith("wrong answer"))
        self.assertIsNone(span["time_us"])
        self.assertGreater(dense["time_us"], 0)

    def test_that_do_not_exist_are_named(self):
        with contextlib.redirect_stderr(io.StringIO()) as error, self.assertRaises(SystemExit):
            bench_peers.main(["cases.json", "--peers", "nobody"])
        self.assertIn("nobody", error.getvalue())

    def test_say_what_they_are_not_given(self):
        drafts = [CASE["rows"][0], CASE["rows"][0] | {"same_request": True}]
        of_8_bits = CASE["attention"] | {"kv_dtype": "e4m3"}
        for change, why in [
            ({"rows": drafts}, "several rows of one request"),
            ({"attention": of_8_bits}, "a cache of e4m3"),
        ]:
            with mock.patch.dict(CASE, change):
                found = rows("sdpa,flex_attention")
            self.assertEqual(len(found), 4)
            for row in found:
                self.assertIsNone(row["time_us"])
                self.assertTrue(row["why_not"].startswith(why), row["why_not"])


if __name__ == "__main__":
    unittest.main()
