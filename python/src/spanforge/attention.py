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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import abi
from .artifact import ALIGNMENT_BYTES, Artifact, KernelEntry
from .configuration import AttentionShape
from .driver import Driver
from .errors import DriverError, StepError
from .plan import I32_MAX, Plan, plan_step
from .reference import span_attention_reference
from .spans import Span

_F32_MAX = torch.finfo(torch.float32).max
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Limits:
    """The most that a step may ask for; device memory is allocated for it once. `spans` counts the
    canonical spans of all rows together, `max_pages` the page table entries per request."""

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
    that is captured in a CUDA graph has the kernel, the rows and the page table's width of the step
    planned last; capture again where `captured` changes.
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
        slots = 2 * max(self._blocks(entry) for entry in entries) * shape.query_heads // shape.kv_heads

        def empty(count: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            # Tensors without elements have no address.
            return torch.empty(max(count, 1), dtype=dtype, device=self.device)

        self._buffers = {
            "span_ptr": empty(limits.rows + 1),
            "spans": empty(2 * limits.spans),
            "row_request": empty(limits.rows),
            "page_table": empty(limits.requests * limits.max_pages),
            "row_tokens": empty(limits.rows + 1),
            "span_tokens": empty(limits.spans + 1),
            "partial_acc": empty(slots * shape.head_dim, torch.float32),
            "partial_ml": empty(slots * 2, torch.float32),
            "arrivals": empty(limits.rows * shape.kv_heads).zero_(),
        }

    def _blocks(self, entry: KernelEntry) -> int:
        """Blocks of a decode launch: fixed, whatever the step."""
        per_multiprocessor = entry.spec.configuration.blocks_per_multiprocessor
        return self._driver.properties.multiprocessors * per_multiprocessor

    @property
    def kernel(self) -> str | None:
        """The kernel of the step planned last; `None` where the reference computes it."""
        return None if self._entry is None else self._entry.id

    @property
    def captured(self) -> tuple[str | None, int, int]:
        """What a captured launch depends on besides addresses: kernel, rows, page table width."""
        plan = self._current_plan()
        return self.kernel, plan.rows, plan.max_pages

    def plan(
        self,
        spans: Iterable[Iterable[Span]],
        row_request: Iterable[int],
        page_table: Sequence[Sequence[int]],
        kv_len: Iterable[int],
        pages: int,
    ) -> None:
        """Checks a step (see `plan_step`), copies what changed to the device and has the device plan
        it. Where the spans are those of the step before, the plan is reused. Raises `StepError`; there
        is no plan then."""
        last, self._plan = self._plan, None
        plan = plan_step(self.shape, spans, row_request, page_table, kv_len, pages)
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
            self._upload(plan, last)
        self._plan = plan

    def _upload(self, plan: Plan, last: Plan | None) -> None:
        properties = self._driver.properties
        shape = self.shape.kernel_shape()
        entry = self._artifact.select(shape, properties, plan.bucket).entry
        changed = [
            name
            for name in ("span_ptr", "spans", "row_request", "page_table")
            if last is None or getattr(plan, name).tobytes() != getattr(last, name).tobytes()
        ]
        if entry is not self._entry or {"span_ptr", "spans"} & set(changed):
            self._is_planned = False
        self._entry = entry
        self._code = self._driver.load(self._artifact.code(entry, properties))
        for name in changed:
            values = getattr(plan, name)
            if len(values):
                source = torch.frombuffer(values, dtype=torch.int32)
                self._buffers[name][: len(values)].copy_(source)
        if not self._is_planned and plan.rows:
            values = self._buffers | {"rows": plan.rows}
            self._launch("plan", 1, abi.PLAN_THREADS, 0, values)
            self._is_planned = True

    def run(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of one layer for the planned step.

        `q` is `[rows, query_heads, head_dim]`, contiguous; `k` and `v` are the layer's pages, `[pages,
        page_size, kv_heads, head_dim]` (NHD) or `[pages, kv_heads, page_size, head_dim]` (HND), with any
        strides that are multiples of 8 elements, the last one 1. `scale` is by default
        `1 / sqrt(head_dim)`. Returns `out`, as `q`, and the LSE `[rows, query_heads]` in float32. Raises
        `StepError` for tensors that do not serve the plan.
        """
        plan = self._current_plan()
        scale = 1 / math.sqrt(self.shape.head_dim) if scale is None else scale
        self._check(plan, q, k, v, scale)
        if self._driver is None:
            return self._by_reference(plan, q, k, v, scale)
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        if plan.rows == 0:
            return out, lse
        page, outer, inner, _ = k.stride()
        token, head = (outer, inner) if self.shape.layout == "NHD" else (inner, outer)
        spec = self._entry.spec
        values = self._buffers | {
            "q": q,
            "k": k,
            "v": v,
            "out": out,
            "lse": lse,
            "rows": plan.rows,
            "kv_heads": self.shape.kv_heads,
            "page_size": self.shape.page_size,
            "max_pages": plan.max_pages,
            "page_stride": page,
            "token_stride": token,
            "head_stride": head,
            "smallest_share": spec.configuration.smallest_share,
            "scale_bits": abi.scale_bits(scale),
            "blocks": self._blocks(self._entry),
        }
        self._launch("decode", values["blocks"], self._entry.threads, self._entry.shared_bytes, values)
        if spec.configuration.merge == "second-kernel":
            grid = plan.rows * self.shape.kv_heads
            self._launch("merge", grid, abi.MERGE_THREADS, 0, values)
        return out, lse

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`run` as an operator that torch.compile traces."""
        scale = 1 / math.sqrt(self.shape.head_dim) if scale is None else scale
        return torch.ops.spanforge.span_attention(q, k, v, self.handle, scale)

    def _launch(
        self, kernel: str, grid: int, threads: int, shared_bytes: int, values: dict[str, Any]
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
        self, plan: Plan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        spans = [plan.row_spans(row) for row in range(plan.rows)]
        table = [
            plan.page_table[at : at + plan.max_pages]
            for at in range(0, plan.requests * plan.max_pages, plan.max_pages or 1)
        ]
        return span_attention_reference(q, k, v, spans, plan.row_request, table, scale, self.shape.layout)

    def _current_plan(self) -> Plan:
        if self._plan is None:
            raise StepError("there is no plan: plan the step first, and again after an error")
        return self._plan

    def _check(self, plan: Plan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> None:
        shape = self.shape
        if not abs(scale) <= _F32_MAX:
            raise StepError(f"scale is {scale}: give a number that is finite in float32")
        page = (shape.page_size, shape.kv_heads)
        if shape.layout == "HND":
            page = page[::-1]
        pages = (k.shape[0] if k.dim() == 4 else plan.pages, *page, shape.head_dim)
        dtype = DTYPES.get(shape.dtype) if self._driver is not None else q.dtype
        for name, tensor, expected in (
            ("q", q, (plan.rows, shape.query_heads, shape.head_dim)),
            ("k", k, pages),
            ("v", v, pages),
        ):
            if tuple(tensor.shape) != expected:
                raise StepError(f"{name} is {list(tensor.shape)}, expected {list(expected)}")
            if tensor.dtype != dtype or tensor.device != self.device:
                raise StepError(
                    f"{name} is {tensor.dtype} on {tensor.device}, expected {dtype} on {self.device}"
                )
            if self._driver is not None and tensor.data_ptr() % ALIGNMENT_BYTES:
                raise StepError(f"{name} is not {ALIGNMENT_BYTES}-byte aligned: copy it to a new tensor")
        if k.shape[0] < plan.pages:
            raise StepError(f"k and v have {k.shape[0]} pages, and the step was planned for {plan.pages}")
        if self._driver is None:
            return
        if not q.is_contiguous():
            raise StepError("q is not contiguous: give q.contiguous()")
        if k.stride() != v.stride():
            raise StepError(f"k has strides {k.stride()} and v {v.stride()}: they must be the same")
        *strides, last = k.stride()
        if last != 1 or any(s % 8 or s > I32_MAX for s in strides):
            raise StepError(
                f"k and v have strides {k.stride()}: the last must be 1, the others multiples of 8 up to "
                f"{I32_MAX}"
            )


def _current_device() -> int:
    """torch's current GPU; 0 where there is none, which the driver will explain."""
    return torch.cuda.current_device() if torch.cuda.is_available() else 0


# By handle, which is an integer since an operator takes no other reference to it.
_instances: weakref.WeakValueDictionary[int, SpanAttention] = weakref.WeakValueDictionary()
_handles = itertools.count(1)


@torch.library.custom_op("spanforge::span_attention", mutates_args=())
def _span_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, handle: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    attention = _instances.get(handle)
    if attention is None:
        raise StepError(f"there is no SpanAttention {handle}: keep the object while it is called")
    return attention.run(q, k, v, scale)


@_span_attention.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, handle: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
