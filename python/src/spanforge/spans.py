"""Span sets: sorted lists of half-open `(start, end)` token ranges, disjoint, non-empty, adjacent
ones merged. Two sets of the same tokens are equal."""

from collections.abc import Iterable

Span = tuple[int, int]


def canonical(raw: Iterable[Span]) -> list[Span]:
    """The union of spans in any order; they may overlap, repeat, touch and be empty."""
    merged: list[Span] = []
    for start, end in sorted((start, end) for start, end in raw if start < end):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def union(*sets: Iterable[Span]) -> list[Span]:
    """Tokens in any of the sets."""
    return canonical(span for one in sets for span in one)


def tokens(spans: Iterable[Span]) -> list[int]:
    """The tokens of a canonical set, ascending."""
    return [token for start, end in spans for token in range(start, end)]
