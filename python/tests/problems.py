"""Random decode steps as torch tensors, with NaN wherever nothing is selected."""

import random
from dataclasses import dataclass

import torch

from spanforge import AttentionShape
from spanforge.spans import canonical, tokens


@dataclass
class Problem:
    shape: AttentionShape
    spans: list
    row_request: list
    page_table: list
    kv_len: list
    pages: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    sinks: torch.Tensor
    per_head: bool
    k_scales: torch.Tensor | None
    v_scales: torch.Tensor | None

    @property
    def scales(self):
        """The factors of K and V as arguments of a call."""
        return {"k_scales": self.k_scales, "v_scales": self.v_scales}

    @property
    def step(self):
        return self.spans, self.row_request, self.page_table, self.kv_len, self.pages, self.per_head

    def of_head(self, row, head):
        """The spans of one row that a KV head serves."""
        return self.spans[row][head] if self.per_head else self.spans[row]


def problem(
    seed,
    dtype="bf16",
    group=2,
    head_dim=64,
    layout="NHD",
    rows=3,
    longest=300,
    pad=0,
    per_head=False,
    in_runs=False,
    kv_dtype="same",
):
    """`pad` times 16 bytes lie between the rows of K and V. With `in_runs` the rows of a request follow each
    other. The sinks are logits that matter, but one that is none. Where K and V have 8 bits each KV head has
    factors of them."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    element = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    of_kv = torch.float8_e4m3fn if kv_dtype == "e4m3" else element
    kv_heads, page_size = draw.choice([1, 2, 3]), draw.choice([1, 16, 48])
    shape = AttentionShape(dtype, kv_heads * group, kv_heads, head_dim, page_size, layout, kv_dtype)
    requests = 2
    kv_len = [draw.randrange(1, longest) for _ in range(requests)]
    max_pages = max(-(-n // page_size) for n in kv_len) + 1
    pages = requests * max_pages
    numbers = draw.sample(range(pages), pages)
    page_table = [numbers[r * max_pages : (r + 1) * max_pages] for r in range(requests)]
    row_request = [draw.randrange(requests) for _ in range(rows)]
    if in_runs:
        row_request.sort()
    # The spans of each KV head, or of all.
    sets = [[] for _ in range(kv_heads if per_head else 1)]
    for row, request in enumerate(row_request):
        for head, of_head in enumerate(sets):
            edges = [draw.randrange(kv_len[request] + 1) for _ in range(2 * ((row + head) % 4))]
            of_head.append([tuple(sorted(pair)) for pair in zip(edges[::2], edges[1::2])])
    page = (page_size, kv_heads) if layout == "NHD" else (kv_heads, page_size)
    width = head_dim + 16 * pad // of_kv.itemsize
    nan = torch.full((pages, *page, width), float("nan"), dtype=of_kv)
    k, v = nan[..., :head_dim], nan.clone()[..., :head_dim]
    for head, of_head in enumerate(sets):
        heads = slice(head, head + 1) if per_head else slice(None)
        for request, row in zip(row_request, of_head):
            for token in tokens(canonical(row)):
                page, slot = page_table[request][token // page_size], token % page_size
                at = (page, slot, heads) if layout == "NHD" else (page, heads, slot)
                for tensor in (k, v):
                    tensor[at] = torch.randn(tensor[at].shape, generator=generator).to(of_kv)
    q = torch.randn(rows, shape.query_heads, head_dim, generator=generator).to(element)
    sinks = 3 + torch.randn(shape.query_heads, generator=generator)
    sinks[-1] = -torch.inf
    scales = [None, None]
    if kv_dtype == "e4m3":
        scales = (0.5 + torch.rand(2, kv_heads, generator=generator)).unbind()
    spans = [list(row) for row in zip(*sets)] if per_head else sets[0]
    return Problem(shape, spans, row_request, page_table, kv_len, pages, q, k, v, sinks, per_head, *scales)


def parts(p):
    """The spans of each row in two parts, before a position and from it on: row by row in turn all are in
    the second, all in the first, and some in both."""
    before, behind = [], []
    for row, spans in enumerate(p.spans):
        selected = tokens(canonical(spans))
        middle = selected[len(selected) // 2] if selected else 0
        cut = (0, p.kv_len[p.row_request[row]], middle)[row % 3]
        before.append([(min(start, cut), min(end, cut)) for start, end in spans])
        behind.append([(max(start, cut), max(end, cut)) for start, end in spans])
    return before, behind


def assert_close(case, found, expected):
    """FlashMLA's tolerances: absolute or relative, and the cosine; the LSE tighter."""
    (out, lse), (wanted, wanted_lse) = found, expected
    difference = (out.double() - wanted.double()).abs()
    case.assertFalse(out.isnan().any() or lse.isnan().any())
    close = (difference < 8e-4) | (difference < 2.01 / 128 * wanted.double().abs())
    case.assertTrue(close.all(), f"out is off by up to {difference.max()}")
    both = (out.double() ** 2 + wanted.double() ** 2).sum()
    if both > 0:
        case.assertLess(1 - 2 * (out.double() * wanted.double()).sum() / both, 5e-6)
    torch.testing.assert_close(lse, wanted_lse, atol=1e-6, rtol=8.01 / 65536)
