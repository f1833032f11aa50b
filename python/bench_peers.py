"""Times other libraries' decode attention on the cases that `spanforge bench` times its kernels on.

    spanforge bench --case da-qwen3.6/16,64x2K/128 --list --json > cases.json
    python bench_peers.py cases.json --json > peers.json

Each peer gets the same queries, keys, values and spans in the form that it takes, planned ahead and warmed
up; what it was given is part of its line. Its answer is compared with the reference first, and a peer that
cannot run a case says why. On a GPU times are between CUDA events with a cold L2; on the CPU, where only the
way of this script can be tried, they are of the host's clock.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch.nn.functional import scaled_dot_product_attention

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}
# As FlashMLA's tests have it for 16-bit answers, which are rounded weights times rounded values.
ABSOLUTE, RELATIVE = 1e-2, 2.01 / 128
FLEX_BLOCK = 128


class Unsupported(Exception):
    """Why a peer does not run a case."""


@dataclass
class Case:
    """A batch of decode steps, each row a request of its own, with tensors that lie one request behind the
    other: `q` is `[rows, query_heads, head_dim]`, `k` and `v` are `[tokens, kv_heads, head_dim]`."""

    name: str
    kv_len: list[int]
    spans: list[list[tuple[int, int]]]
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor

    @property
    def begins(self) -> list[int]:
        """The first token of each request."""
        begins = [0]
        for kv_len in self.kv_len:
            begins.append(begins[-1] + kv_len)
        return begins

    def selected(self, row: int) -> torch.Tensor:
        """The selected tokens of a row, in positions of its request."""
        spans = [torch.arange(start, end) for start, end in self.spans[row]]
        return torch.cat(spans or [torch.empty(0, dtype=torch.long)]).to(self.q.device)

    def padded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`k` and `v` as `[rows, kv_heads, longest, head_dim]`."""
        longest = max(self.kv_len)
        out = []
        for tensor in (self.k, self.v):
            padded = tensor.new_zeros(len(self.kv_len), longest, *tensor.shape[1:])
            for row, (begin, kv_len) in enumerate(zip(self.begins, self.kv_len)):
                padded[row, :kv_len] = tensor[begin : begin + kv_len]
            out.append(padded.transpose(1, 2).contiguous())
        return out[0], out[1]

    def mask(self) -> torch.Tensor:
        """`[rows, longest]`: whether a token is selected."""
        mask = torch.zeros(len(self.kv_len), max(self.kv_len), dtype=torch.bool, device=self.q.device)
        for row in range(len(self.kv_len)):
            mask[row, self.selected(row)] = True
        return mask


def make_case(described: dict, device: str, seed: int, is_dense: bool) -> Case:
    """A case as `spanforge bench --list --json` describes it, with random tensors."""
    attention, rows = described["attention"], described["rows"]
    generator = torch.Generator(device).manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        tensor = torch.randn(*shape, generator=generator, device=device)
        return tensor.to(DTYPES[attention["dtype"]])

    kv_len = [row["kv_len"] for row in rows]
    spans = [[(0, row["kv_len"])] if is_dense else [tuple(s) for s in row["spans"]] for row in rows]
    head_dim = attention["head_dim"]
    kv = (sum(kv_len), attention["kv_heads"], head_dim)
    q = random(len(rows), attention["query_heads"], head_dim)
    return Case(described["name"], kv_len, spans, q, random(*kv), random(*kv))


def reference(case: Case) -> torch.Tensor:
    """Softmax over exactly the selected tokens, in float64."""
    rows, query_heads, head_dim = case.q.shape
    kv_heads = case.k.shape[1]
    out = torch.zeros_like(case.q)
    for row in range(rows):
        tokens = case.begins[row] + case.selected(row)
        q = case.q[row].double().view(kv_heads, query_heads // kv_heads, head_dim)
        k, v = case.k[tokens].double(), case.v[tokens].double()
        weights = (torch.einsum("hgd,thd->hgt", q, k) / math.sqrt(head_dim)).softmax(-1)
        out[row] = torch.einsum("hgt,thd->hgd", weights, v).flatten(0, 1).to(out.dtype)
    return out


Run = Callable[[], torch.Tensor]


def sdpa(case: Case) -> tuple[Run, str]:
    """PyTorch's own, with a mask of every token."""
    k, v = case.padded()
    mask = case.mask()[:, None, None, :]
    q = case.q[:, :, None]

    def run() -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)[:, :, 0]

    return run, "padded to the longest request, boolean mask of every token"


def flex(case: Case) -> tuple[Run, str]:
    """PyTorch's flex_attention with its decode kernel, blocks of 128 tokens."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    group = case.q.shape[1] // case.k.shape[1]
    if case.q.is_cuda and group & (group - 1):
        raise Unsupported(f"groups of {group} query heads: its decode kernel takes powers of two")
    k, v = case.padded()
    mask = case.mask()
    q = case.q[:, :, None]
    block_mask = create_block_mask(
        lambda b, h, q_index, kv_index: mask[b, kv_index],
        len(case.kv_len),
        None,
        1,
        k.shape[2],
        device=q.device,
        BLOCK_SIZE=(1, FLEX_BLOCK),
    )
    attend = torch.compile(flex_attention) if q.is_cuda else flex_attention

    def run() -> torch.Tensor:
        return attend(q, k, v, block_mask=block_mask, enable_gqa=True)[:, :, 0]

    return run, f"padded to the longest request, block mask of {FLEX_BLOCK} tokens made ahead"


def flashinfer(case: Case) -> tuple[Run, str]:
    """FlashInfer's paged decode over the selected tokens alone: pages of one token."""
    try:
        from flashinfer import BatchDecodeWithPagedKVCacheWrapper
    except ImportError as error:
        raise Unsupported(f"not installed: {error}") from error
    if not case.q.is_cuda:
        raise Unsupported("needs a GPU")
    tokens = [case.begins[row] + case.selected(row) for row in range(len(case.kv_len))]
    counts = [len(of_row) for of_row in tokens]
    starts = torch.tensor([sum(counts[:row]) for row in range(len(counts) + 1)], dtype=torch.int32)
    workspace = torch.empty(512 << 20, dtype=torch.uint8, device=case.q.device)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
    wrapper.plan(
        starts.to(case.q.device),
        torch.cat(tokens).int(),
        torch.ones(len(counts), dtype=torch.int32, device=case.q.device),
        case.q.shape[1],
        case.k.shape[1],
        case.q.shape[2],
        1,
        q_data_type=case.q.dtype,
    )
    pages = (case.k[:, None], case.v[:, None])
    return lambda: wrapper.run(case.q, pages), "pages of one token, the selected ones, planned ahead"


def flash_attention(case: Case) -> tuple[Run, str]:
    """FlashAttention's decode over the selected tokens, compacted ahead: the strong baseline's best case."""
    try:
        from flash_attn import flash_attn_with_kvcache
    except ImportError as error:
        raise Unsupported(f"not installed: {error}") from error
    counts = [int(case.selected(row).numel()) for row in range(len(case.kv_len))]
    k = case.k.new_zeros(len(counts), max(counts), *case.k.shape[1:])
    v = torch.zeros_like(k)
    for row, count in enumerate(counts):
        tokens = case.begins[row] + case.selected(row)
        k[row, :count], v[row, :count] = case.k[tokens], case.v[tokens]
    lengths = torch.tensor(counts, dtype=torch.int32, device=case.q.device)
    q = case.q[:, None]
    return (
        lambda: flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths)[:, 0],
        "keys and values of the selected tokens gathered ahead, which is not part of the time",
    )


PEERS = {"sdpa": sdpa, "flex_attention": flex, "flashinfer": flashinfer, "flash_attn": flash_attention}
PACKAGES = {
    "sdpa": "torch",
    "flex_attention": "torch",
    "flashinfer": "flashinfer-python",
    "flash_attn": "flash-attn",
}


def time_us(run: Run, samples: int, device: str) -> list[float]:
    """Microseconds of each sample, after three that are not counted."""
    if device == "cpu":
        times = []
        for _ in range(3 + samples):
            begun = time.perf_counter()
            run()
            times.append(1e6 * (time.perf_counter() - begun))
        return times[3:]
    flush = torch.empty(
        2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device
    )
    events = []
    for _ in range(3 + samples):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [1e3 * start.elapsed_time(end) for start, end in events[3:]]


@dataclass
class Line:
    """One peer on one case."""

    case: str
    attention: str
    peer: str
    version: str
    given: str = ""
    time_us: float | None = None
    samples_us: list[float] | None = None
    basis: str = "measured"
    gb_per_second: float | None = None
    """K and V bytes of the selected tokens over the time, as `spanforge bench` has it."""
    why_not: str | None = None


def measure(name: str, case: Case, attention: str, samples: int, expected: torch.Tensor) -> Line:
    try:
        line = Line(case.name, attention, name, version(PACKAGES[name]))
    except PackageNotFoundError:
        return Line(case.name, attention, name, "none", why_not="not installed")
    try:
        run, line.given = PEERS[name](case)
        difference = (run().double() - expected.double()).abs()
        wrong = difference > ABSOLUTE + RELATIVE * expected.double().abs()
        if bool(wrong.any()):
            line.why_not = f"wrong answer: off by {float(difference.max()):.1e}"
            return line
        line.samples_us = time_us(run, samples, str(case.q.device))
    except (Unsupported, torch.OutOfMemoryError, RuntimeError, NotImplementedError) as error:
        line.why_not = str(error).splitlines()[0]
        return line
    line.time_us = statistics.median(line.samples_us)
    selected = sum(end - start for spans in case.spans for start, end in spans)
    row_bytes = case.k.shape[1] * case.k.shape[2] * case.k.element_size()
    line.gb_per_second = 2 * selected * row_bytes / (1e3 * line.time_us)
    return line


def not_given(described: dict) -> str | None:
    """Why peers are not given a case; None for those that they are."""
    if any(row.get("same_request") for row in described["rows"]):
        return "several rows of one request: peers are given a request for each row"
    kv_dtype = described["attention"].get("kv_dtype", "same")
    if kv_dtype != "same":
        return f"a cache of {kv_dtype}: peers are given caches of 16 bits"
    return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", help="what `spanforge bench --list --json` printed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peers", default=",".join(PEERS), help="names with commas: " + ", ".join(PEERS))
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.peers.split(",") if name not in PEERS]
    if unknown:
        parser.error(f"there is no peer {unknown[0]!r}; there are: {', '.join(PEERS)}")
    with open(arguments.cases) as file:
        described = json.load(file)
    lines = []
    for one in described:
        why_not = not_given(one)
        for attention in ("span", "dense"):
            if why_not is None:
                case = make_case(one, arguments.device, arguments.seed, attention == "dense")
                expected = reference(case)
            for name in arguments.peers.split(","):
                if why_not is None:
                    line = measure(name, case, attention, arguments.samples, expected)
                else:
                    line = Line(one["name"], attention, name, "none", why_not=why_not)
                lines.append(line)
                if not arguments.json:
                    took = f"{line.time_us:12.1f} us" if line.time_us else f"  {line.why_not}"
                    print(f"{line.case:20} {attention:6} {name:16} {took}", flush=True)
    if arguments.json:
        report = {
            "device": arguments.device,
            "torch": torch.__version__,
            "rows": [asdict(line) for line in lines],
        }
        if arguments.device != "cpu":
            report["device"] = torch.cuda.get_device_name(arguments.device)
        json.dump(report, sys.stdout, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
