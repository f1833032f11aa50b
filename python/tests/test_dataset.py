"""Data sets: reading, refusals, and the phases against the protocol.

`SPANFORGE_DATASET=FILE` checks a file that `spanforge dataset` has written: its phases are derived once
more by the protocol of this package, character by character.
"""

import json
import os
import tempfile
import unittest
from pathlib import Path

from spanforge.dataset import named_tokens, read_dataset
from spanforge.errors import DatasetError

ARITHMETIC = {
    "prompt": "^(8-2)+4;",
    "response": "a<8-2>8-2=6;b<a+4>6+4=10;$",
    "names": {},
    # a [9, 21), b [21, 34), $ 34.
    "phases": [
        {"tokens": 5, "spans": [[0, 9]]},
        {"tokens": 6, "spans": [[0, 1]]},
        {"tokens": 1, "spans": [[0, 9]]},
        {"tokens": 5, "spans": [[0, 9]], "tail_start": 21},
        {"tokens": 7, "spans": [[0, 1], [9, 21]], "tail_start": 21},
        {"tokens": 1, "spans": [[0, 9]], "tail_start": 21},
        {"tokens": 1, "spans": [[0, 9]], "tail_start": 34},
    ],
}
NAMED = {
    "prompt": "^ Rain falls. Sun.",
    "response": "x<s0>wet;$",
    "names": {"s0": [2, 13], "s1": [14, 18]},
    "phases": [
        {"tokens": 4, "spans": [[0, 18]]},
        {"tokens": 4, "spans": [[0, 1], [2, 13]]},
        {"tokens": 1, "spans": [[0, 18]]},
        {"tokens": 1, "spans": [[0, 18]], "tail_start": 27},
    ],
}


class Dataset(unittest.TestCase):
    def read(self, *samples):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.jsonl"
            path.write_text("".join(json.dumps(sample) + "\n\n" for sample in samples))
            return read_dataset(path)

    def test_phases_are_what_the_protocol_declares(self):
        for sample in self.read(ARITHMETIC, NAMED):
            self.assertEqual(list(sample.attended()), list(sample.declared()))

    def test_names_in_tokens(self):
        offsets = [(0, 0), (0, 1), (1, 7), (7, 13), (13, 15), (15, 18)]
        names = {"s0": (2, 13), "s1": (14, 18), "first": (0, 1), "none": (13, 13)}
        self.assertEqual(
            named_tokens(names, offsets),
            {"s0": (2, 4), "s1": (4, 6), "first": (1, 2), "none": (0, 0)},
        )

    @unittest.skipUnless(os.environ.get("SPANFORGE_DATASET"), "SPANFORGE_DATASET names no file")
    def test_a_file_of_the_rust_side(self):
        for number, sample in enumerate(read_dataset(os.environ["SPANFORGE_DATASET"]), 1):
            for step, sets in enumerate(zip(sample.attended(), sample.declared(), strict=True)):
                self.assertEqual(*sets, f"sample {number}, character {step} of its response")

    def test_what_is_no_sample_is_refused_with_its_line(self):
        phase = {"tokens": 26, "spans": []}
        for changes, message in [
            ({"prompt": 7}, "line 3: not a sample: prompt and response are texts"),
            ({"phases": None}, "line 3: not a sample"),
            ({"prompt_tokens": 8}, "prompt_tokens is not the prompt's 9 characters"),
            ({"phases": [{"spans": []}]}, "no field 'tokens'"),
            ({"phases": [phase | {"spans": [[4, 2]]}]}, r"\[4, 2\] is not a span"),
            ({"phases": [phase | {"tokens": 0}]}, "phase 0 has 0 tokens"),
            ({"phases": [phase | {"tokens": 25}]}, "25 steps, and the response has 26"),
            ({"phases": [phase | {"spans": [[0, 11]]}]}, "behind its first character 9"),
            ({"phases": [phase | {"tail_start": 10}]}, "behind its first character 9"),
        ]:
            with self.subTest(message), self.assertRaisesRegex(DatasetError, message):
                self.read(NAMED, ARITHMETIC | changes)
        with self.assertRaisesRegex(DatasetError, "no samples"):
            self.read()
        with self.assertRaisesRegex(DatasetError, "`spanforge dataset` writes such files"):
            read_dataset("nowhere.jsonl")


if __name__ == "__main__":
    unittest.main()
