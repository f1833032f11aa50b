"""What the kernels compute, written down in torch."""

import math
from collections.abc import Sequence

import torch

from .spans import Span, canonical, tokens


def span_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spans: Sequence[Sequence[Span]],
    row_request: Sequence[int],
    page_table: Sequence[Sequence[int]],
    scale: float | None = None,
    layout: str = "NHD",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax over exactly the selected tokens, times V, per row and query head, in float64.

    `q` is `[rows, query_heads, head_dim]`; `k` and `v` are pages, `[pages, page_size, kv_heads,
    head_dim]` (NHD) or `[pages, kv_heads, page_size, head_dim]` (HND). `spans` has per row the selected
    tokens in logical positions: position `t` of request `r` is slot `t % page_size` of page
    `page_table[r][t // page_size]`. Query heads `h * group .. (h + 1) * group` read KV head `h`. `scale`
    is the factor of q . k, by default `1 / sqrt(head_dim)`.

    Returns `out`, as `q`, and `lse` `[rows, query_heads]` in float32, the natural logarithm of the
    softmax's denominator. A row that selects nothing gets 0 and -inf. Tokens that are not selected are
    not read and may be NaN.
    """
    if layout == "HND":
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    rows, query_heads, head_dim = q.shape
    page_size, kv_heads = k.shape[1:3]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    out = torch.zeros_like(q)
    lse = torch.full((rows, query_heads), -math.inf, device=q.device)
    for row in range(rows):
        positions = tokens(canonical(spans[row]))
        if not positions:
            continue
        table = page_table[row_request[row]]
        pages = torch.tensor([table[t // page_size] for t in positions], device=q.device)
        slots = torch.tensor([t % page_size for t in positions], device=q.device)
        # [tokens, kv_heads, head_dim], and the queries by the KV head they read.
        keys, values = k[pages, slots].double(), v[pages, slots].double()
        queries = q[row].double().view(kv_heads, query_heads // kv_heads, head_dim)
        logits = scale * torch.einsum("hgd,thd->hgt", queries, keys)
        out[row] = torch.einsum("hgt,thd->hgd", logits.softmax(-1), values).flatten(0, 1).to(q.dtype)
        lse[row] = logits.logsumexp(-1).flatten().float()
    return out, lse
