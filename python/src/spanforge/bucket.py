"""What decides, besides the shape, which kernel is fast: how many rows a batch has and each of its
requests, how much each selects, and in what pieces. A batch is served as the bucket that is nearest to
it."""

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass

_WEIGHTS = (1, 4, 1, 1)
"""How much a doubling of each number counts in a distance. That of the rows of a request counts most: a
kernel that takes several rows at a time computes in vain where there is one, and one that takes one reads
again what the row before has read."""


@dataclass(frozen=True, order=True)
class Bucket:
    """A kind of batch: rows, rows that follow each other and are of one request, selected tokens per row
    and tokens per span, the last three on average. Each is a power of two, the nearest one by ratio."""

    rows: int
    rows_per_request: int
    tokens_per_row: int
    tokens_per_span: int

    @classmethod
    def of(cls, rows: int, requests: int, tokens: int, spans: int) -> "Bucket":
        """The bucket of a batch with so many rows, requests (as often as rows of another one follow),
        selected tokens and canonical spans in all."""
        return cls(
            _nearest_power(rows),
            _nearest_power(rows / max(requests, 1)),
            _nearest_power(tokens / max(rows, 1)),
            _nearest_power(tokens / max(spans, 1)),
        )

    def distance(self, other: "Bucket") -> float:
        """How far two are apart: the factors between their numbers, as doublings, added up, those between
        rows per request four times."""
        triples = zip(_WEIGHTS, astuple(self), astuple(other))
        return sum(weight * abs(math.log2(max(one, 1) / max(another, 1))) for weight, one, another in triples)

    def nearest(self, known: Iterable["Bucket"]) -> "Bucket | None":
        """The nearest of some buckets, of equally near ones the smallest; `None` of none."""
        return min(known, key=lambda bucket: (self.distance(bucket), bucket), default=None)

    def __str__(self) -> str:
        noun = "row" if self.rows == 1 else "rows"
        per_request = f", {self.rows_per_request} per request," if self.rows_per_request != 1 else ""
        return (
            f"{self.rows} {noun}{per_request} x {self.tokens_per_row} tokens in spans of "
            f"{self.tokens_per_span}"
        )


def _nearest_power(value: float) -> int:
    # Python rounds halves to even, and a bucket rounds them up.
    return 1 << min(31, math.floor(math.log2(max(value, 1)) + 0.5))
