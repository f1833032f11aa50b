"""From the spans of a decode step to the arrays that the kernels take, with every check that a kernel
relies on: rows name requests, no span ends past its request's KV length, KV lengths fit the page table,
entries that selected tokens need name pages, counts fit 32 bits (`kernels/src/addressing.rs`).
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

from .bucket import Bucket
from .configuration import AttentionShape
from .errors import StepError
from .spans import Span, canonical

I32_MAX = 2**31 - 1
# Tokens that stand for beginning with a set of spans, at most: of the shortest K and V rows.
MOST_BEGINNING = 256


@dataclass(frozen=True)
class Plan:
    """A checked step. All arrays are of 32-bit integers. A row has one *set* of spans, or one for each KV
    head: set `s` is `spans[2 * span_ptr[s] : 2 * span_ptr[s + 1]]`, start and end in turn, in logical
    positions of the row's request, canonical."""

    rows: int
    span_heads: int
    """Sets of spans of each row: 1, or as many as KV heads."""
    requests: int
    max_pages: int
    pages: int
    span_ptr: array
    """`[rows * span_heads + 1]`"""
    spans: array
    """`[spans, 2]`"""
    row_request: array
    """`[rows]`"""
    page_table: array
    """`[requests, max_pages]`"""
    kv_len: array
    """`[requests]`"""
    bucket: Bucket

    def row_spans(self, row: int, head: int = 0) -> list[Span]:
        """The canonical spans of one row; those of one KV head where each has its own."""
        at = row * self.span_heads + head
        pairs = self.spans[2 * self.span_ptr[at] : 2 * self.span_ptr[at + 1]]
        return list(zip(pairs[::2], pairs[1::2]))

    def query_tiles(self, query_rows: int) -> array:
        """The query tiles of a kernel whose tiles have up to `query_rows` rows: the first row of each, and
        the number of rows last. Rows of one request that follow each other share tiles."""
        first_rows, end = array("i"), 0
        for _, run in groupby(self.row_request):
            begin, end = end, end + len(list(run))
            first_rows.extend(range(begin, end, query_rows))
        first_rows.append(self.rows)
        return first_rows


def plan_step(
    shape: AttentionShape,
    spans: Iterable[Iterable[Span]] | Iterable[Iterable[Iterable[Span]]],
    row_request: Iterable[int],
    page_table: Sequence[Sequence[int]],
    kv_len: Iterable[int],
    pages: int,
    per_head: bool = False,
) -> Plan:
    """Checks one decode step and lays it out, for all layers.

    `spans` has per row the selected tokens as `(start, end)` ranges in logical positions, in any order;
    they may overlap, repeat and be empty. With `per_head` each KV head has its own: per row a list for each
    KV head. `row_request` is `[rows]`, `kv_len` `[requests]` in tokens, `page_table` `[requests,
    max_pages]`: the page of each run of `page_size` positions, where entries that no selected token needs
    may be anything. `pages` is how many each layer's cache has.

    Raises `StepError`, naming what is at fault.
    """
    shape.check()
    row_request = _integers("row_request", row_request)
    kv_len = _integers("kv_len", kv_len)
    table = array("i")
    max_pages = len(page_table[0]) if len(page_table) else 0
    for request, entries in enumerate(page_table):
        if len(entries) != max_pages:
            raise StepError(
                f"page_table[{request}] has {len(entries)} entries where page_table[0] has {max_pages}: "
                "all requests have the same number"
            )
        table.extend(_integers(f"page_table[{request}]", entries))
    span_heads = shape.kv_heads if per_head else 1
    span_ptr, flat = _lay_out(_of_heads(spans, shape.kv_heads) if per_head else _of_rows(spans))
    rows, requests = (len(span_ptr) - 1) // span_heads, len(kv_len)
    if len(page_table) != requests:
        raise StepError(f"page_table has {len(page_table)} requests and kv_len {requests}")
    if len(row_request) != rows:
        raise StepError(f"row_request has {len(row_request)} entries and spans {rows} rows")
    tokens = sum(flat[1::2]) - sum(flat[::2])
    for what, found in (
        ("rows x KV heads", rows * shape.kv_heads),
        ("tokens per page", shape.page_size),
        # Places of the line that the plan cuts.
        (
            f"selected tokens of all rows, and {MOST_BEGINNING} for each row,",
            tokens + MOST_BEGINNING * (len(span_ptr) - 1),
        ),
        # Query tiles have room for twice as many.
        ("twice the spans", len(flat)),
        ("pages", pages),
    ):
        if found > I32_MAX:
            raise StepError(f"{what} is {found}; the kernels count up to {I32_MAX}")
    room = max_pages * shape.page_size
    for request, length in enumerate(kv_len):
        if not 0 <= length <= room:
            raise StepError(
                f"kv_len[{request}] is {length}, expected 0 to {room}, which is what the page table has "
                f"room for (max_pages {max_pages} x page_size {shape.page_size})"
            )
    runs = sum(1 for _ in groupby(row_request))
    # Where each KV head has its own spans, those of the mean of all heads.
    bucket = Bucket.of(rows, runs, tokens // span_heads, len(flat) // 2 // span_heads)
    plan = Plan(
        rows, span_heads, requests, max_pages, pages, span_ptr, flat, row_request, table, kv_len, bucket
    )
    for row, request in enumerate(row_request):
        if not 0 <= request < requests:
            raise StepError(f"row {row} belongs to request {request}, but there are {requests} requests")
        _check_row(plan, shape.page_size, row, request)
    return plan


def _of_rows(spans: Iterable[Iterable[Span]]) -> Iterator[tuple[str, Iterable[Span]]]:
    """The sets of rows that have one each, and whose they are."""
    for row, raw in enumerate(spans):
        yield f"row {row}", raw


def _of_heads(
    spans: Iterable[Iterable[Iterable[Span]]], kv_heads: int
) -> Iterator[tuple[str, Iterable[Span]]]:
    """The sets of rows that have one for each KV head, and whose they are."""
    for row, sets in enumerate(spans):
        try:
            sets = list(sets)
        except TypeError:
            raise StepError(f"row {row}: spans are a list for each KV head, got {sets!r}") from None
        if len(sets) != kv_heads:
            raise StepError(
                f"row {row} has {len(sets)} lists of spans, expected one for each of the {kv_heads} KV heads"
            )
        for head, raw in enumerate(sets):
            yield f"row {row}, KV head {head}", raw


def _lay_out(sets: Iterable[tuple[str, Iterable[Span]]]) -> tuple[array, array]:
    """`span_ptr` and the flat canonical spans."""
    span_ptr, flat = array("i", [0]), array("i")
    for where, raw in sets:
        try:
            raw = [(start, end) for start, end in raw]
        except (TypeError, ValueError):
            raise StepError(f"{where}: spans are pairs of start and end, got {raw!r}") from None
        for start, end in raw:
            if not (isinstance(start, int) and isinstance(end, int)):
                raise StepError(f"{where}: [{start!r}, {end!r}) is not a span: give two integers")
            if not 0 <= start <= end <= I32_MAX:
                raise StepError(
                    f"{where}: [{start}, {end}) is no span: positions are 0 to {I32_MAX}, and the "
                    "start is not behind the end (spans are half-open)"
                )
        for span in canonical(raw):
            flat.extend(span)
        span_ptr.append(len(flat) // 2)
    return span_ptr, flat


def _check_row(plan: Plan, page_size: int, row: int, request: int) -> None:
    """No span of a row ends past the KV length, and the page table entries it needs name pages."""
    table = plan.page_table[request * plan.max_pages : (request + 1) * plan.max_pages]
    for start, end in chain(*(plan.row_spans(row, head) for head in range(plan.span_heads))):
        if end > plan.kv_len[request]:
            raise StepError(
                f"row {row}: [{start}, {end}) ends past the KV length {plan.kv_len[request]} of request "
                f"{request}"
            )
        for entry in range(start // page_size, (end - 1) // page_size + 1):
            if not 0 <= table[entry] < plan.pages:
                raise StepError(
                    f"page_table[{request}, {entry}] is {table[entry]}, but row {row} selects tokens "
                    f"there and the cache has pages 0 to {plan.pages - 1}"
                )


def _integers(what: str, values: Iterable[int]) -> array:
    """A copy, which stays what was checked whatever becomes of `values`."""
    try:
        return array("i", values)
    except (TypeError, OverflowError) as error:
        raise StepError(f"{what}: {error}: give integers of 32 bits") from None
