"""Masks over tokens, from what characters attend to."""

import random
import unittest

from needs import needs

needs("torch")

import torch

from spanforge import attention_mask
from spanforge.dataset import Phase, Sample
from spanforge.errors import DatasetError
from spanforge.spans import tokens
from test_dataset import ARITHMETIC, NAMED


def sample(fields):
    first = len(fields["prompt"])
    phases = [
        Phase(p["tokens"], [tuple(s) for s in p["spans"]], p.get("tail_start", first))
        for p in fields["phases"]
    ]
    return Sample(fields["prompt"], fields["response"], fields["names"], phases)


def by_definition(one, offsets):
    """Token by token, with sets of characters."""
    attended = list(one.attended())
    mask = []
    for at, (start, end) in enumerate(offsets):
        row = []
        for other, (s, e) in enumerate(offsets):
            sees = other <= at
            if sees and start < end and end > len(one.prompt) and s < e:
                selected = set(tokens(attended[end - 1 - len(one.prompt)]))
                sees = not selected.isdisjoint(range(s, e))
            row.append(sees)
        mask.append(row)
    return mask


class Masks(unittest.TestCase):
    def test_characters_as_tokens(self):
        for one in (sample(ARITHMETIC), sample(NAMED)):
            first = len(one.prompt)
            mask = attention_mask(one, [(at, at + 1) for at in range(first + len(one.response))])
            self.assertTrue(torch.equal(mask[:first], torch.ones_like(mask[:first]).tril()))
            for row, expected in zip(mask[first:], one.attended()):
                self.assertEqual(row.nonzero().flatten().tolist(), tokens(expected))
        # `+` of the last computation sees the first token, line a and its own, and not the prompt.
        at = ARITHMETIC["prompt"] + ARITHMETIC["response"]
        mask = attention_mask(sample(ARITHMETIC), [(i, i + 1) for i in range(len(at))])
        seen = "".join(c for c, sees in zip(at, mask[at.rindex("+")]) if sees)
        self.assertEqual(seen, "^a<8-2>8-2=6;b<a+4>6+")

    def test_tokens_of_any_length(self):
        for seed in range(100):
            draw = random.Random(seed)
            one = sample(draw.choice([ARITHMETIC, NAMED]))
            end = len(one.prompt) + len(one.response)
            edges = sorted({0, end, *draw.choices(range(end + 1), k=draw.randrange(30))})
            # The beginning of the text stands for none of it, and so does the end.
            offsets = [(0, 0), *zip(edges, edges[1:]), (0, 0)]
            mask = attention_mask(one, offsets)
            self.assertEqual(mask.tolist(), by_definition(one, offsets), (seed, offsets))
            self.assertTrue(mask.diagonal().all(), "a softmax needs something")
            dense = attention_mask(one, offsets, is_dense=True)
            self.assertTrue(torch.equal(dense, torch.ones_like(dense).tril()))
            self.assertFalse((mask & ~dense).any())

    def test_offsets_past_the_end_are_refused(self):
        one = sample(NAMED)
        with self.assertRaisesRegex(DatasetError, "a token ends at character 29 of a text of 28"):
            attention_mask(one, [(0, 10), (10, 29)])
        self.assertEqual(attention_mask(one, []).shape, (0, 0))


if __name__ == "__main__":
    unittest.main()
