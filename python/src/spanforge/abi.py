"""The binary interface of the exported kernels: names and argument lists. `kernels/src/abi.rs` is the
other side. Arguments are pointers and 32-bit integers only."""

import struct

ABI_VERSION = 3

OVERLAY_THREADS = 128
"""Threads of a block of the overlay kernel; it is launched with one warp per set of spans."""
PLAN_THREADS = 256
"""Threads of a block of the plan kernel; it is launched with one block."""
MERGE_THREADS = 128
"""Threads of a slice of a block of the merge kernel; it is launched with a grid of query tiles times KV heads
by as many blocks as share the elements of each. That which merges outputs is launched with one warp per
query head of all rows."""
MERGE_SLICES = 4
"""Slices of a block of the merge kernel, at most: each merges a run of the states."""
MERGE_RESIDENT = 8
"""Slices that are resident on a multiprocessor at once: what a slice's registers leave room for."""

SYMBOLS = {
    "overlay": "spanforge_overlay",
    "plan": "spanforge_plan",
    "decode": "spanforge_decode",
    "merge": "spanforge_merge",
    "merge-outputs": "spanforge_merge_outputs",
}


def _arguments(pointers: str, integers: str) -> list[tuple[str, str]]:
    return [(name, "pointer") for name in pointers.split()] + [(name, "i32") for name in integers.split()]


ARGUMENTS = {
    "overlay": _arguments(
        "tile_ptr span_ptr spans tile_span_ptr tile_spans span_rows span_tokens",
        "tiles span_heads",
    ),
    "plan": _arguments("span_ptr spans set_tokens span_tokens", "sets"),
    "decode": _arguments(
        "q k v page_table row_request tile_ptr span_ptr spans span_rows set_tokens span_tokens sinks "
        "k_scales v_scales out lse partial_acc partial_ml arrivals",
        "tiles kv_heads span_heads page_size max_pages page_stride token_stride head_stride smallest_share "
        "scale_bits soft_cap_bits",
    ),
    "merge": _arguments(
        "tile_ptr set_tokens sinks out lse partial_acc partial_ml",
        "tiles kv_heads span_heads blocks smallest_share",
    ),
    "merge-outputs": _arguments("out lse other_out other_lse", "heads"),
}
"""Per kernel the arguments in order: name, and `pointer` (a 64-bit device address) or `i32`. To decode and
merge, `tile_ptr`, `span_rows` and `sinks` may be null: where a tile is a row, and where there are none.
`k_scales` and `v_scales` are read for caches of 8-bit elements alone; null is 1."""

ARGUMENT_BYTES = {"pointer": 8, "i32": 4}


def float_bits(value: float) -> int:
    """The bits of `value` as an f32, as the kernels take it."""
    return struct.unpack("<i", struct.pack("<f", value))[0]
