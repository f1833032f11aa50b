"""What a decode kernel is built for (its shape) and how it is built (its configuration), as an
artifact's manifest says it, and the shape of a model's attention."""

from dataclasses import dataclass

from .errors import StepError

DTYPES = ("f16", "bf16")
KV_DTYPES = ("same", "e4m3")
LAYOUTS = ("NHD", "HND")
HEAD_DIMS = (64, 128, 256, 512)
MAX_GROUP_SIZE = 128
QUERY_BYTES = 2
"""Of an element of q or the output."""

_LARGEST_VALUE = 4096
"""Beyond this no parameter of a configuration is meant."""
_LARGEST_QUERY_ROWS = 128
"""The most rows of a query tile: those that fill two warpgroups without a group."""
_WARPGROUP_COLUMNS = 64
"""Columns of a query tile that a warpgroup multiplies."""


@dataclass(frozen=True)
class KernelShape:
    """The part of a problem that is fixed when a kernel is compiled: element type of queries and outputs
    (`f16` or `bf16`), elements per head, query heads per KV head, element type of keys and values (`same` or
    `e4m3`)."""

    dtype: str
    head_dim: int
    group_size: int
    kv_dtype: str = "same"

    def __str__(self) -> str:
        kv = "" if self.kv_dtype == "same" else f"{self.kv_dtype}-"
        return f"{self.dtype}-{kv}d{self.head_dim}-g{self.group_size}"

    @property
    def kv_bytes(self) -> int:
        """Bytes of an element of K or V."""
        return 1 if self.kv_dtype == "e4m3" else QUERY_BYTES

    def check(self) -> None:
        """Raises `StepError` for a shape that no kernel serves."""
        if self.dtype not in DTYPES:
            raise StepError(f"{self.dtype!r} is not served: use f16 or bf16")
        _check_kv_dtype(self.kv_dtype)
        if self.head_dim not in HEAD_DIMS:
            raise StepError(f"head_dim {self.head_dim} is not served: use 64, 128, 256 or 512")
        if not 1 <= self.group_size <= MAX_GROUP_SIZE:
            raise StepError(
                f"{self.group_size} query heads per KV head are not served: use 1 to {MAX_GROUP_SIZE}"
            )


def _check_kv_dtype(kv_dtype: str) -> None:
    if kv_dtype not in KV_DTYPES:
        raise StepError(f"kv_dtype {kv_dtype!r} is unknown: use same or e4m3")


@dataclass(frozen=True)
class Configuration:
    """One point of the search space; `kernels/src/configuration.rs` says what each parameter is."""

    load_path: str
    tile_tokens: int
    stages: int
    token_warps: int
    heads_per_warp: int
    vector_bytes: int
    unroll: int
    query: str
    l2_prefetch: int
    min_blocks: int
    blocks_per_multiprocessor: int
    smallest_share: int
    merge: str
    core: str = "fma"
    query_rows: int = 1

    def is_within_bounds(self) -> bool:
        """Whether every value is one that sizes can be computed from."""
        counts = (
            self.query_rows,
            self.tile_tokens,
            self.stages,
            self.token_warps,
            self.heads_per_warp,
            self.unroll,
            self.min_blocks,
            self.blocks_per_multiprocessor,
            self.smallest_share,
        )
        return (
            all(1 <= count <= _LARGEST_VALUE for count in counts)
            and self.unroll <= 16
            and self.query_rows <= _LARGEST_QUERY_ROWS
            and self.vector_bytes in (8, 16)
            and self.l2_prefetch in (0, 64, 128, 256)
            and self.core in ("fma", "mma", "wgmma")
            and self.load_path in ("staged", "direct")
            and self.query in ("registers", "shared")
            and self.merge in ("second-kernel", "last-arriver")
        )

    def columns(self, shape: KernelShape) -> int:
        """Query heads of all rows of a query tile that share a KV head."""
        return self.query_rows * shape.group_size

    @property
    def row_words(self) -> int:
        """Words of 32 bits that have one for each row of a query tile."""
        return -(-self.query_rows // 32)

    def _head_warps(self, shape: KernelShape) -> int:
        if self.core == "wgmma":
            return 4 * -(-self.columns(shape) // _WARPGROUP_COLUMNS)
        return -(-self.columns(shape) // self.heads_per_warp)

    def threads(self, shape: KernelShape) -> int:
        """Threads per block of the decode kernel, those of a warpgroup that only brings K and V
        included."""
        bringing = 128 if self.core == "wgmma" else 0
        return 32 * self._head_warps(shape) * self.token_warps + bringing

    def shared_bytes(self, shape: KernelShape) -> int:
        """Dynamic shared memory per block of the decode kernel, in bytes."""
        is_staged, by_warpgroups = self.load_path == "staged", self.core == "wgmma"
        row_bytes = shape.kv_bytes * shape.head_dim
        ring = self.stages * 2 * self.tile_tokens * row_bytes if is_staged else 0
        query, factors = self.heads_per_warp * shape.head_dim * 4, 0
        if self.core != "fma":
            padded_heads = -(-self.heads_per_warp // 8) * 8
            query = padded_heads * QUERY_BYTES * shape.head_dim
            # Queries in bf16 are multiplied as f16 by elements of 8 bits, with a factor for each.
            if self.core == "mma" and shape.kv_dtype == "e4m3" and shape.dtype == "bf16":
                factors = padded_heads * 4
        state = {"fma": shape.head_dim + 2, "mma": shape.head_dim + 4 + 2, "wgmma": 0}[self.core]
        states = self.token_warps * self.columns(shape) * state * 4
        query = self._head_warps(shape) * (query + factors) if self.query == "shared" else 0
        offsets = 2 * self.tile_tokens * 8 if is_staged and not by_warpgroups else 0
        located = self.stages if by_warpgroups else self.stages + 1
        rows = located * self.row_words * self.tile_tokens * 4 if self.query_rows > 1 else 0
        barriers_and_pieces = 32 * self.stages if by_warpgroups else 0
        return -(-max(ring, states) // 16) * 16 + query + offsets + rows + barriers_and_pieces


@dataclass(frozen=True)
class KernelSpec:
    """A kernel: what for, and how. As text it is its identifier, such as
    `f16-d128-g4-staged-t32-s3-w4-h4-v16-u2-qr-p0-b1-x2-m128-second`, with `mma-` before `staged` for
    tensor cores, `wgmma-` for those of warpgroups, `r4-` before it for query tiles of four rows, and `e4m3-`
    before `d128` for a cache of such elements."""

    shape: KernelShape
    configuration: Configuration

    def __str__(self) -> str:
        c = self.configuration
        core = "" if c.core == "fma" else f"{c.core}-"
        rows = f"r{c.query_rows}-" if c.query_rows != 1 else ""
        return (
            f"{self.shape}-{core}{rows}{c.load_path}-t{c.tile_tokens}-s{c.stages}-w{c.token_warps}"
            f"-h{c.heads_per_warp}-v{c.vector_bytes}-u{c.unroll}-q{c.query[:1]}-p{c.l2_prefetch}"
            f"-b{c.min_blocks}-x{c.blocks_per_multiprocessor}-m{c.smallest_share}"
            f"-{c.merge.split('-')[0]}"
        )


@dataclass(frozen=True)
class AttentionShape:
    """Heads and head dimension of a model's attention, with the type and the pages of its cache.

    `layout` is the order of a page: `NHD` for `[pages, page_size, kv_heads, head_dim]`, `HND` for
    `[pages, kv_heads, page_size, head_dim]`. A contiguous cache is one page per request. `dtype` is the
    element type of queries and outputs, `kv_dtype` that of keys and values: `same`, or `e4m3` for 8 bits.
    """

    dtype: str
    query_heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    layout: str = "NHD"
    kv_dtype: str = "same"

    def check(self) -> None:
        """Raises `StepError` for a shape that makes no sense. Kernels serve fewer: see
        `kernel_shape`."""
        if min(self.query_heads, self.kv_heads) < 1 or self.query_heads % self.kv_heads:
            raise StepError(
                f"{self.query_heads} query heads and {self.kv_heads} KV heads are not served: use at "
                "least one of each, and a number of query heads that is a multiple of the KV heads"
            )
        if self.page_size < 1:
            raise StepError(f"page_size is {self.page_size}: a page holds at least one token")
        if self.layout not in LAYOUTS:
            raise StepError(f"layout {self.layout!r} is unknown: use NHD or HND")
        _check_kv_dtype(self.kv_dtype)

    def kernel_shape(self) -> KernelShape:
        """The part that a kernel is compiled for. Raises `StepError` for one that none serves."""
        self.check()
        shape = KernelShape(self.dtype, self.head_dim, self.query_heads // self.kv_heads, self.kv_dtype)
        shape.check()
        return shape
