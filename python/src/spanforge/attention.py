"""The attention of a model: loads the kernels of an artifact once, plans each decode step once for all
layers, and runs once per layer.

    attention = SpanAttention(artifact, shape, Limits(rows=8, spans=1024, requests=8, max_pages=256))
    attention.plan(spans, row_request, page_table, kv_len, pages)   # once per step
    out, lse = attention(q, k_cache, v_cache)                       # once per layer

Calling it is the operator `torch.ops.spanforge.span_attention`, which torch.compile traces. On a CPU the
reference computes the same.
"""

import itertools
import math
import weakref
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import abi
from .artifact import ALIGNMENT_BYTES, Artifact, KernelEntry
from .configuration import AttentionShape, Configuration
from .driver import Driver
from .errors import DriverError, StepError
from .plan import I32_MAX, Plan, plan_step
from .reference import merge_outputs_reference, span_attention_reference
from .spans import Span

_F32_MAX = torch.finfo(torch.float32).max
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Limits:
    """The most that a step may ask for; device memory is allocated for it once. `spans` counts the
    canonical spans of all rows together, and of all KV heads where each has its own, `max_pages` the page
    table entries per request."""

    rows: int
    spans: int
    requests: int
    max_pages: int


class SpanAttention:
    """Span attention on one device, for one attention shape.

    `artifact` may be `None` on a CPU, where any dtype serves. `driver` is made for the device where none
    is given. Raises `ArtifactError` where the artifact has no kernel for the shape on the device,
    `DriverError` where there is no GPU, `StepError` for limits beyond what kernels count.

    Launches go to torch's current stream and share scratch memory: use one stream at a time. A launch
    that is captured in a CUDA graph has the kernel, the rows, their query tiles and sets of spans, and
    the page table's width of the step planned last; capture again where `captured` changes.
    """

    def __init__(
        self,
        artifact: Artifact | None,
        shape: AttentionShape,
        limits: Limits,
        device: torch.device | str = "cuda",
        driver: Any = None,
    ):
        shape.check()
        self.shape, self.limits = shape, limits
        self.device = torch.device(device)
        for what, found in (
            ("rows x KV heads", limits.rows * shape.kv_heads),
            ("spans", 2 * limits.spans),
            ("page table entries", limits.requests * limits.max_pages),
        ):
            if not 0 <= found < I32_MAX:
                raise StepError(f"limits of {found} {what}: the kernels count up to {I32_MAX}")
        if self.device.type == "cuda":
            index = self.device.index
            self.device = torch.device("cuda", _current_device() if index is None else index)
            driver = driver or Driver(self.device.index)
            if not torch.cuda.is_available():
                raise DriverError("torch sees no GPU, and the driver does: install a torch that has CUDA")
        self._artifact, self._driver = artifact, driver
        self._plan: Plan | None = None
        self._entry: KernelEntry | None = None
        self._tiles = 0
        # What the device holds, by buffer.
        self._held: dict[str, array] = {}
        self._appended = 0
        # Whether the plan on the device is that of the spans on the device.
        self._is_planned = False
        if driver is not None:
            if artifact is None:
                raise StepError("kernels come from an artifact: give one, or device='cpu' for none")
            self._allocate(artifact.fit(shape.kernel_shape(), driver.properties))
        self.handle = next(_handles)
        _instances[self.handle] = self

    def _allocate(self, entries: list[KernelEntry]) -> None:
        """Memory for steps within the limits, whichever kernel runs them."""
        shape, limits = self.shape, self.limits
        kernel_shape = shape.kernel_shape()
        configurations = [entry.spec.configuration for entry in entries]
        # Two partial states of each block, for all columns of a query tile.
        states = max(2 * self._blocks(c) * c.columns(kernel_shape) for c in configurations)
        has_overlay = any(c.query_rows > 1 for c in configurations)
        row_words = max(c.row_words for c in configurations)
        sets = limits.rows * shape.kv_heads
        planned_spans = (2 if has_overlay else 1) * limits.spans

        def empty(count: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            # Tensors without elements have no address.
            return torch.empty(max(count, 1), dtype=dtype, device=self.device)

        self._buffers = {
            "span_ptr": empty(sets + 1),
            "spans": empty(2 * limits.spans),
            "row_request": empty(limits.rows),
            "page_table": empty(limits.requests * limits.max_pages),
            "set_tokens": empty(sets + 2),
            "span_tokens": empty(planned_spans + 1),
            "partial_acc": empty(states * shape.head_dim, torch.float32),
            "partial_ml": empty(states * 2, torch.float32),
            "arrivals": empty(sets).zero_(),
        }
        if has_overlay:
            self._buffers |= {
                "tile_ptr": empty(limits.rows + 1),
                "tile_span_ptr": empty(4 * sets),
                "tile_spans": empty(2 * planned_spans),
                "span_rows": empty(row_words * planned_spans),
            }

    def _blocks(self, configuration: Configuration) -> int:
        """Blocks of a decode launch: fixed, whatever the step."""
        return self._driver.properties.multiprocessors * configuration.blocks_per_multiprocessor

    @property
    def kernel(self) -> str | None:
        """The kernel of the step planned last; `None` where the reference computes it."""
        return None if self._entry is None else self._entry.id

    @property
    def captured(self) -> tuple[str | None, int, int, int, int]:
        """What a captured launch depends on besides the arguments of the call: kernel, rows, query tiles,
        sets of spans of each row, page table width."""
        plan = self._current_plan()
        return self.kernel, plan.rows, self._tiles, plan.span_heads, plan.max_pages

    def plan(
        self,
        spans: Iterable[Iterable[Span]] | Iterable[Iterable[Iterable[Span]]],
        row_request: Iterable[int],
        page_table: Sequence[Sequence[int]],
        kv_len: Iterable[int],
        pages: int,
        per_head: bool = False,
    ) -> None:
        """Checks a step (see `plan_step`), copies what changed to the device and has the device plan
        it. Where the spans are those of the step before, the plan is reused; where every set ends as many
        tokens later, a kernel that takes one row at a time is told their number. Rows of one request that
        follow each other are read together by kernels that take several. Raises `StepError`; there is no
        plan then."""
        self._plan = None
        plan = plan_step(self.shape, spans, row_request, page_table, kv_len, pages, per_head)
        for what, found, limit in (
            ("rows", plan.rows, self.limits.rows),
            ("spans", len(plan.spans) // 2, self.limits.spans),
            ("requests", plan.requests, self.limits.requests),
            ("page table entries per request", plan.max_pages, self.limits.max_pages),
        ):
            if found > limit:
                raise StepError(
                    f"{found} {what}, and it was loaded for at most {limit}: load it with larger Limits"
                )
        if self._driver is not None:
            self._upload(plan)
        self._plan = plan

    def _upload(self, plan: Plan) -> None:
        properties = self._driver.properties
        shape = self.shape.kernel_shape()
        entry = self._artifact.select(shape, properties, plan.bucket).entry
        query_rows = entry.spec.configuration.query_rows
        tile_ptr = plan.query_tiles(query_rows)
        self._tiles = len(tile_ptr) - 1
        arrays = {name: getattr(plan, name) for name in ("span_ptr", "spans", "row_request", "page_table")}
        if query_rows > 1:
            arrays["tile_ptr"] = tile_ptr
        changed = {name: values for name, values in arrays.items() if self._held.get(name) != values}
        grown = self._grown(plan)
        appends = grown is not None and self._is_planned and entry is self._entry and query_rows == 1
        if appends:
            # The device holds the spans that were planned, and how much longer they are by now.
            changed.pop("spans", None)
            if grown != self._appended:
                self._buffers["set_tokens"][len(plan.span_ptr)] = grown
                self._appended = grown
        if entry is not self._entry or {"span_ptr", "spans", "tile_ptr"} & set(changed):
            self._is_planned = False
        self._entry = entry
        self._code = self._driver.load(self._artifact.code(entry, properties))
        for name, values in changed.items():
            # A copy that fails leaves open what is there.
            self._held.pop(name, None)
            if len(values):
                source = torch.frombuffer(values, dtype=torch.int32)
                self._buffers[name][: len(values)].copy_(source)
            self._held[name] = values
        if not self._is_planned and plan.rows:
            sets = self._tiles * plan.span_heads
            if query_rows > 1:
                grid = -(-sets // (abi.OVERLAY_THREADS // 32))
                values = self._buffers | {"tiles": self._tiles, "span_heads": plan.span_heads}
                self._launch("overlay", (grid, 1), abi.OVERLAY_THREADS, 0, values)
            self._launch("plan", (1, 1), abi.PLAN_THREADS, 0, self._planned_buffers() | {"sets": sets})
            self._is_planned, self._appended = True, 0

    def _grown(self, plan: Plan) -> int | None:
        """How many tokens later every set of the plan ends than that on the device, where nothing else is
        different: 0 where nothing is."""
        held = self._held.get("spans")
        if held is None or self._held.get("span_ptr") != plan.span_ptr or len(held) != len(plan.spans):
            return None
        if held == plan.spans:
            return 0
        if any(first == end for first, end in itertools.pairwise(plan.span_ptr)):
            return None
        lasts = [2 * end - 1 for end in plan.span_ptr[1:]]
        by = {plan.spans[last] - held[last] for last in lasts}
        before = plan.spans[:]
        for last in lasts:
            before[last] = held[last]
        return by.pop() if before == held and len(by) == 1 and min(by) > 0 else None

    def _planned_buffers(self) -> dict[str, torch.Tensor | None]:
        """The buffers as plan, decode and merge take them: with the spans of query tiles, where the kernel
        takes several rows at a time."""
        buffers = self._buffers
        if self._entry.spec.configuration.query_rows == 1:
            return buffers | {"tile_ptr": None, "span_rows": None}
        return buffers | {"span_ptr": buffers["tile_span_ptr"], "spans": buffers["tile_spans"]}

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float | None = None,
        soft_cap: float = 0.0,
        sinks: torch.Tensor | None = None,
        k_scales: torch.Tensor | None = None,
        v_scales: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of one layer for the planned step.

        `q` is `[rows, query_heads, head_dim]`, contiguous; `k` and `v` are the layer's pages, `[pages,
        page_size, kv_heads, head_dim]` (NHD) or `[pages, kv_heads, page_size, head_dim]` (HND), with any
        strides that are whole sixteens of bytes, the last one 1 element. `scale` is by default
        `1 / sqrt(head_dim)`. Logits are capped at `soft_cap`, smoothly: `soft_cap * tanh(logit /
        soft_cap)`; 0 is no cap. `sinks` is `[query_heads]` in float32, contiguous: a logit that the softmax
        of each query head has besides those of tokens, with a value of zero. `k_scales` and `v_scales` are
        `[kv_heads]` in float32, contiguous, positive: what the keys and values of a cache of 8-bit elements
        are multiplied by; `None` is 1. Returns `out`, as `q`, and the LSE `[rows, query_heads]` in float32.
        Raises `StepError` for tensors that do not serve the plan.
        """
        plan = self._current_plan()
        scale = 1 / math.sqrt(self.shape.head_dim) if scale is None else scale
        self._check_logits(scale, soft_cap, sinks)
        self._check_scales(k_scales, v_scales)
        self._check_tensors(plan, q, k, v)
        if self._driver is None:
            return self._by_reference(plan, q, k, v, scale, soft_cap, sinks, k_scales, v_scales)
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        if plan.rows == 0:
            return out, lse
        page, outer, inner, _ = k.stride()
        token, head = (outer, inner) if self.shape.layout == "NHD" else (inner, outer)
        kernel_shape, configuration = self._entry.spec.shape, self._entry.spec.configuration
        blocks = self._blocks(configuration)
        values = self._planned_buffers() | {
            "q": q,
            "k": k,
            "v": v,
            "sinks": sinks,
            "k_scales": k_scales,
            "v_scales": v_scales,
            "out": out,
            "lse": lse,
            "tiles": self._tiles,
            "kv_heads": self.shape.kv_heads,
            "span_heads": plan.span_heads,
            "page_size": self.shape.page_size,
            "max_pages": plan.max_pages,
            "page_stride": page,
            "token_stride": token,
            "head_stride": head,
            "smallest_share": configuration.smallest_share,
            "scale_bits": abi.float_bits(scale),
            "soft_cap_bits": abi.float_bits(soft_cap),
            "blocks": blocks,
        }
        self._launch("decode", (blocks, 1), self._entry.threads, self._entry.shared_bytes, values)
        if configuration.merge == "second-kernel":
            # Each thread merges four elements, in as many slices as there is room for.
            quads = configuration.columns(kernel_shape) * kernel_shape.head_dim // 4
            grid = self._tiles * self.shape.kv_heads, -(-quads // abi.MERGE_THREADS)
            room = abi.MERGE_RESIDENT * self._driver.properties.multiprocessors
            slices = min(max(room // (grid[0] * grid[1]), 1), abi.MERGE_SLICES)
            self._launch("merge", grid, slices * abi.MERGE_THREADS, 0, values)
        return out, lse

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float | None = None,
        soft_cap: float = 0.0,
        sinks: torch.Tensor | None = None,
        k_scales: torch.Tensor | None = None,
        v_scales: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`run` as an operator that torch.compile traces."""
        scale = 1 / math.sqrt(self.shape.head_dim) if scale is None else scale
        return torch.ops.spanforge.span_attention(
            q, k, v, self.handle, scale, soft_cap, sinks, k_scales, v_scales
        )

    def merge_outputs(
        self, out: torch.Tensor, lse: torch.Tensor, other_out: torch.Tensor, other_lse: torch.Tensor
    ) -> None:
        """Adds attention over other tokens, `other_out` and `other_lse`, to `out` and `lse`, in place:
        outputs weighted by e^LSE. A sink may be in one of the two.

        `out` and `other_out` are `[n, query_heads, head_dim]`, `lse` and `other_lse` `[n, query_heads]` in
        float32, all contiguous, of any `n` rows. Where one of the two is empty (its LSE is -inf) the result
        is the other, bit for bit; where both are, 0 and -inf. Raises `StepError` where there is no plan,
        which has the kernel, and for tensors that do not serve.
        """
        self._check_written(self._current_plan(), out, lse, other_out, other_lse)
        if self._driver is None:
            merged, merged_lse = merge_outputs_reference(out, lse, other_out, other_lse)
            out.copy_(merged)
            lse.copy_(merged_lse)
            return
        heads = lse.numel()
        if heads == 0:
            return
        grid = -(-heads // (abi.MERGE_THREADS // 32)), 1
        values = {"out": out, "lse": lse, "other_out": other_out, "other_lse": other_lse, "heads": heads}
        self._launch("merge-outputs", grid, abi.MERGE_THREADS, 0, values)

    def _launch(
        self, kernel: str, grid: tuple[int, int], threads: int, shared_bytes: int, values: dict[str, Any]
    ) -> None:
        stream = 0
        if self.device.type == "cuda":
            stream = torch.cuda.current_stream(self.device).cuda_stream
        try:
            self._driver.launch(self._code, kernel, grid, threads, shared_bytes, values, stream)
        except Exception:
            # Whether the arrivals are zero is open then.
            self._buffers["arrivals"].zero_()
            self._plan, self._is_planned = None, False
            raise

    def _by_reference(
        self,
        plan: Plan,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        soft_cap: float,
        sinks: torch.Tensor | None,
        k_scales: torch.Tensor | None,
        v_scales: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sets = [[plan.row_spans(row, head) for head in range(plan.span_heads)] for row in range(plan.rows)]
        per_head = plan.span_heads > 1
        spans = sets if per_head else [one for (one,) in sets]
        table = [
            plan.page_table[at : at + plan.max_pages]
            for at in range(0, plan.requests * plan.max_pages, plan.max_pages or 1)
        ]
        return span_attention_reference(
            q,
            k,
            v,
            spans,
            plan.row_request,
            table,
            scale,
            self.shape.layout,
            soft_cap,
            sinks,
            per_head,
            k_scales,
            v_scales,
        )

    def _current_plan(self) -> Plan:
        if self._plan is None:
            raise StepError("there is no plan: plan the step first, and again after an error")
        return self._plan

    def _check_logits(self, scale: float, soft_cap: float, sinks: torch.Tensor | None) -> None:
        if not abs(scale) <= _F32_MAX:
            raise StepError(f"scale is {scale}: give a number that is finite in float32")
        # Kernels divide by it.
        if soft_cap != 0 and not 1e-30 <= soft_cap <= 1e30:
            raise StepError(f"soft_cap is {soft_cap}: give a number from 1e-30 to 1e30, or 0 for no cap")
        if sinks is not None:
            self._check_whole("sinks", sinks, [self.shape.query_heads], torch.float32)

    def _check_scales(self, k_scales: torch.Tensor | None, v_scales: torch.Tensor | None) -> None:
        for name, scales in (("k_scales", k_scales), ("v_scales", v_scales)):
            if scales is None:
                continue
            if self.shape.kv_dtype == "same":
                raise StepError(
                    f"{name}: only a cache of 8-bit elements (kv_dtype e4m3) has factors; leave them out"
                )
            self._check_whole(name, scales, [self.shape.kv_heads], torch.float32)

    def _check_written(
        self,
        plan: Plan,
        out: torch.Tensor,
        lse: torch.Tensor,
        other_out: torch.Tensor,
        other_lse: torch.Tensor,
    ) -> None:
        heads = [out.shape[0] if out.dim() == 3 else plan.rows, self.shape.query_heads]
        if math.prod(heads) > I32_MAX:
            raise StepError(f"rows x query heads is {math.prod(heads)}; the kernels count up to {I32_MAX}")
        dtype = DTYPES.get(self.shape.dtype) if self._driver is not None else out.dtype
        for name, tensor in (("out", out), ("other_out", other_out)):
            self._check_whole(name, tensor, [*heads, self.shape.head_dim], dtype)
            self._check_aligned(name, tensor)
        for name, tensor in (("lse", lse), ("other_lse", other_lse)):
            self._check_whole(name, tensor, heads, torch.float32)

    def _check_whole(self, name: str, tensor: torch.Tensor, shape: list[int], dtype: torch.dtype) -> None:
        """A tensor that is read in one piece."""
        found = list(tensor.shape), tensor.dtype, tensor.device
        expected = shape, dtype, self.device
        if found != expected:
            raise StepError("{} is {} {} on {}, expected {} {} on {}".format(name, *found, *expected))
        if not tensor.is_contiguous():
            raise StepError(f"{name} is not contiguous: copy it with {name}.contiguous()")

    def _check_aligned(self, name: str, tensor: torch.Tensor) -> None:
        if self._driver is not None and tensor.data_ptr() % ALIGNMENT_BYTES:
            raise StepError(f"{name} is not {ALIGNMENT_BYTES}-byte aligned: copy it to a new tensor")

    def _check_tensors(self, plan: Plan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        shape = self.shape
        page = (shape.page_size, shape.kv_heads)
        if shape.layout == "HND":
            page = page[::-1]
        pages = (k.shape[0] if k.dim() == 4 else plan.pages, *page, shape.head_dim)
        of_q = DTYPES.get(shape.dtype) if self._driver is not None else q.dtype
        of_kv = DTYPES.get(shape.kv_dtype, of_q)
        for name, tensor, expected, dtype in (
            ("q", q, (plan.rows, shape.query_heads, shape.head_dim), of_q),
            ("k", k, pages, of_kv),
            ("v", v, pages, of_kv),
        ):
            if tuple(tensor.shape) != expected:
                raise StepError(f"{name} is {list(tensor.shape)}, expected {list(expected)}")
            if tensor.dtype != dtype or tensor.device != self.device:
                raise StepError(
                    f"{name} is {tensor.dtype} on {tensor.device}, expected {dtype} on {self.device}"
                )
            self._check_aligned(name, tensor)
        if k.shape[0] < plan.pages:
            raise StepError(f"k and v have {k.shape[0]} pages, and the step was planned for {plan.pages}")
        if self._driver is None:
            return
        if not q.is_contiguous():
            raise StepError("q is not contiguous: give q.contiguous()")
        if k.stride() != v.stride():
            raise StepError(f"k has strides {k.stride()} and v {v.stride()}: they must be the same")
        *strides, last = k.stride()
        whole = ALIGNMENT_BYTES // k.element_size()
        if last != 1 or any(s % whole or s > I32_MAX for s in strides):
            raise StepError(
                f"k and v have strides {k.stride()}: the last must be 1, the others multiples of {whole} up "
                f"to {I32_MAX}"
            )


def _current_device() -> int:
    """torch's current GPU; 0 where there is none, which the driver will explain."""
    return torch.cuda.current_device() if torch.cuda.is_available() else 0


# By handle, which is an integer since an operator takes no other reference to it.
_instances: weakref.WeakValueDictionary[int, SpanAttention] = weakref.WeakValueDictionary()
_handles = itertools.count(1)


@torch.library.custom_op("spanforge::span_attention", mutates_args=())
def _span_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    handle: int,
    scale: float,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
    k_scales: torch.Tensor | None = None,
    v_scales: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    attention = _instances.get(handle)
    if attention is None:
        raise StepError(f"there is no SpanAttention {handle}: keep the object while it is called")
    return attention.run(q, k, v, scale, soft_cap, sinks, k_scales, v_scales)


@_span_attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    handle: int,
    scale: float,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
    k_scales: torch.Tensor | None = None,
    v_scales: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
