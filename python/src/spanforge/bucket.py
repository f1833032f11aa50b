"""What decides, besides the shape, which kernel is fast: how many rows a batch has, how much each
selects, and in what pieces. A batch is served as the bucket that is nearest to it."""

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass


@dataclass(frozen=True, order=True)
class Bucket:
    """A kind of batch: rows, selected tokens per row and tokens per span, on average. Each is a power
    of two, the nearest one by ratio."""

    rows: int
    tokens_per_row: int
    tokens_per_span: int

    @classmethod
    def of(cls, rows: int, tokens: int, spans: int) -> "Bucket":
        """The bucket of a batch with so many rows, selected tokens and canonical spans in all."""
        return cls(
            _nearest_power(rows),
            _nearest_power(tokens / max(rows, 1)),
            _nearest_power(tokens / max(spans, 1)),
        )

    def distance(self, other: "Bucket") -> float:
        """How far two are apart: the factors between their numbers, as doublings, added up."""
        pairs = zip(astuple(self), astuple(other))
        return sum(abs(math.log2(max(one, 1) / max(other, 1))) for one, other in pairs)

    def nearest(self, known: Iterable["Bucket"]) -> "Bucket | None":
        """The nearest of some buckets, of equally near ones the smallest; `None` of none."""
        return min(known, key=lambda bucket: (self.distance(bucket), bucket), default=None)

    def __str__(self) -> str:
        noun = "row" if self.rows == 1 else "rows"
        return f"{self.rows} {noun} x {self.tokens_per_row} tokens in spans of {self.tokens_per_span}"


def _nearest_power(value: float) -> int:
    # Python rounds halves to even, and a bucket rounds them up.
    return 1 << min(31, math.floor(math.log2(max(value, 1)) + 0.5))
