"""What the kernels compute, written down in torch."""

import math
from collections.abc import Sequence

import torch

from .errors import StepError
from .spans import Span, canonical, tokens


def span_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spans: Sequence[Sequence[Span]] | Sequence[Sequence[Sequence[Span]]],
    row_request: Sequence[int],
    page_table: Sequence[Sequence[int]],
    scale: float | None = None,
    layout: str = "NHD",
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
    per_head: bool = False,
    k_scales: torch.Tensor | None = None,
    v_scales: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax over exactly the selected tokens, times V, per row and query head, in float64.

    `q` is `[rows, query_heads, head_dim]`; `k` and `v` are pages, `[pages, page_size, kv_heads,
    head_dim]` (NHD) or `[pages, kv_heads, page_size, head_dim]` (HND). `spans` has per row the selected
    tokens in logical positions, with `per_head` a list of them for each KV head: position `t` of request
    `r` is slot `t % page_size` of page `page_table[r][t // page_size]`. Query heads `h * group .. (h + 1) *
    group` read KV head `h`. `scale` is the factor of q . k, by default `1 / sqrt(head_dim)`. Logits are
    capped at `soft_cap`, smoothly: `soft_cap * tanh(logit / soft_cap)`; 0 is no cap. `sinks` is
    `[query_heads]`: a logit that the softmax of each query head has besides those of tokens, with a value
    of zero; -inf is none. `k_scales` and `v_scales` are `[kv_heads]`: what the keys and values of each KV
    head are multiplied by, such as those of an 8-bit cache; `None` is 1.

    Returns `out`, as `q`, and `lse` `[rows, query_heads]` in float32, the natural logarithm of the
    softmax's denominator. A row that selects nothing gets 0, and its sinks or -inf. Tokens that are not
    selected are not read and may be NaN. Raises `StepError` for a row with other than a list for each KV
    head where it is to have one.
    """
    if layout == "HND":
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    rows, query_heads, head_dim = q.shape
    page_size, kv_heads = k.shape[1:3]
    group = query_heads // kv_heads
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    if sinks is None:
        sinks = torch.full((query_heads,), -math.inf, device=q.device)
    no_scales = torch.ones(kv_heads, device=q.device)
    k_scales, v_scales = (no_scales if s is None else s for s in (k_scales, v_scales))
    out = torch.empty_like(q)
    lse = torch.empty(rows, query_heads, device=q.device)
    # KV heads that a set of spans serves.
    served = 1 if per_head else kv_heads
    for row in range(rows):
        table = page_table[row_request[row]]
        sets = spans[row] if per_head else [spans[row]]
        if len(sets) * served != kv_heads:
            raise StepError(
                f"row {row} has {len(sets)} lists of spans, expected one for each of the {kv_heads} KV heads"
            )
        for head, selected in zip(range(0, kv_heads, served), sets):
            places = [(table[t // page_size], t % page_size) for t in tokens(canonical(selected))]
            pages, slots = torch.tensor(places, dtype=torch.long, device=q.device).view(-1, 2).unbind(1)
            # [tokens, served, head_dim], and the queries by the KV head they read.
            heads = slice(head, head + served)
            keys, values = (
                tensor[pages, slots, heads].double() * scales[heads, None].double()
                for tensor, scales in ((k, k_scales), (v, v_scales))
            )
            readers = slice(head * group, (head + served) * group)
            queries = q[row, readers].double().view(served, group, head_dim)
            logits = scale * torch.einsum("hgd,thd->hgt", queries, keys)
            if soft_cap:
                logits = soft_cap * torch.tanh(logits / soft_cap)
            logits = torch.cat([logits, sinks[readers].double().view(served, group, 1)], -1)
            weights = logits.softmax(-1)[..., :-1]
            out[row, readers] = torch.einsum("hgt,thd->hgd", weights, values).flatten(0, 1).to(q.dtype)
            lse[row, readers] = logits.logsumexp(-1).flatten().float()
    return out, lse


def merge_outputs_reference(
    out: torch.Tensor, lse: torch.Tensor, other_out: torch.Tensor, other_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the tokens of two attentions that have none in common, from what they have returned:
    outputs weighted by e^LSE, in float64. A sink may be in one of the two.

    `out` and `other_out` are `[rows, query_heads, head_dim]`, `lse` and `other_lse` `[rows, query_heads]`.
    Returns both merged, in the dtypes of `out` and `lse`. Where one of the two is empty (its LSE is -inf) the
    other comes back bit for bit, and where both are, 0 and -inf. The output of an empty one may be NaN.
    """
    both = torch.stack([lse, other_lse]).double()
    mine, theirs = both.softmax(0)[..., None]
    merged = (mine * out.double() + theirs * other_out.double()).to(out.dtype)
    merged_lse = both.logsumexp(0).to(lse.dtype)
    is_empty, other_is_empty = lse == -math.inf, other_lse == -math.inf
    merged[is_empty] = other_out[is_empty]
    merged[other_is_empty] = out[other_is_empty]
    merged[is_empty & other_is_empty] = 0
    return merged, merged_lse
