"""The binary interface of the exported kernels: names and argument lists. `kernels/src/abi.rs` is the
other side. Arguments are pointers and 32-bit integers only."""

import struct

ABI_VERSION = 1

PLAN_THREADS = 256
"""Threads of a block of the plan kernel; it is launched with one block."""
MERGE_THREADS = 128
"""Threads of a block of the merge kernel; it is launched with one block per row and KV head."""

SYMBOLS = {"plan": "spanforge_plan", "decode": "spanforge_decode", "merge": "spanforge_merge"}

ARGUMENTS = {
    "plan": [(name, "pointer") for name in ("span_ptr", "spans", "row_tokens", "span_tokens")]
    + [("rows", "i32")],
    "decode": [
        (name, "pointer")
        for name in (
            "q",
            "k",
            "v",
            "page_table",
            "row_request",
            "span_ptr",
            "spans",
            "row_tokens",
            "span_tokens",
            "out",
            "lse",
            "partial_acc",
            "partial_ml",
            "arrivals",
        )
    ]
    + [
        (name, "i32")
        for name in (
            "rows",
            "kv_heads",
            "page_size",
            "max_pages",
            "page_stride",
            "token_stride",
            "head_stride",
            "smallest_share",
            "scale_bits",
        )
    ],
    "merge": [(name, "pointer") for name in ("row_tokens", "out", "lse", "partial_acc", "partial_ml")]
    + [(name, "i32") for name in ("rows", "kv_heads", "blocks", "smallest_share")],
}
"""Per kernel the arguments in order: name, and `pointer` (a 64-bit device address) or `i32`."""

ARGUMENT_BYTES = {"pointer": 8, "i32": 4}


def scale_bits(scale: float) -> int:
    """The bits of `scale` as an f32, as the kernels take it."""
    return struct.unpack("<i", struct.pack("<f", scale))[0]
