"""Attention masks over tokens, from what characters attend to: for training with declared spans, whatever
the tokenizer."""

from collections.abc import Sequence

import torch

from .dataset import Sample
from .errors import DatasetError
from .spans import Span


def attention_mask(sample: Sample, offsets: Sequence[Span], is_dense: bool = False) -> torch.Tensor:
    """Which tokens each token attends to: bool `[tokens, tokens]`, queries by keys.

    `offsets` has per token the characters `(start, end)` of prompt and response, one behind the other,
    that it stands for, as a fast tokenizer gives them; a token that was added, such as the beginning of
    the text, stands for none. Tokens of the prompt attend to everything before them and to themselves. A
    token of the response attends as its last character does: to all tokens that overlap the selected
    characters and come no later than itself, and to tokens that stand for no text. With `is_dense` every
    token attends to everything before it.

    Raises `DatasetError` for offsets past the end of the text.
    """
    count, text = len(offsets), len(sample.prompt) + len(sample.response)
    mask = torch.ones(count, count, dtype=torch.bool).tril()
    if is_dense or not count:
        return mask
    starts, ends = torch.tensor(offsets).T
    if int(ends.max()) > text:
        raise DatasetError(
            f"a token ends at character {int(ends.max())} of a text of {text}: give the offsets of prompt "
            "and response one behind the other"
        )
    has_text = starts < ends
    # What the tokens whose last character lies in a phase attend to is the same but for the tail.
    first = len(sample.prompt)
    for phase in sample.phases:
        end = first + phase.tokens
        queries = has_text & (ends > first) & (ends <= end)
        # The tail ends with the query, and so does what is causal.
        attended = ~has_text | (ends > phase.tail_start)
        for start, stop in phase.spans:
            attended |= (starts < stop) & (ends > start)
        mask[queries] &= attended
        first = end
    return mask
