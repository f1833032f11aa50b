"""Artifacts for tests: whole and consistent, with code that no device could run."""

import hashlib
import json
import shutil
from dataclasses import asdict

from spanforge import abi
from spanforge.configuration import Configuration, KernelShape, KernelSpec

SHAPE = KernelShape("bf16", 128, 4)


def spec(shape=SHAPE, **changes):
    configuration = {
        "load_path": "staged",
        "tile_tokens": 32,
        "stages": 3,
        "token_warps": 4,
        "heads_per_warp": 4,
        "vector_bytes": 16,
        "unroll": 2,
        "query": "registers",
        "l2_prefetch": 0,
        "min_blocks": 1,
        "blocks_per_multiprocessor": 2,
        "smallest_share": 128,
        "merge": "second-kernel",
    }
    return KernelSpec(shape, Configuration(**configuration | changes))


def kernel(kernel_spec, times=(), cubins=("sm_90a",), ptx_architecture="sm_80"):
    """One kernel of a manifest; `times` has per bucket `(rows, rows_per_request, tokens_per_row,
    tokens_per_span)` its microseconds."""
    folder = f"kernels/{kernel_spec}"
    keys = ("rows", "rows_per_request", "tokens_per_row", "tokens_per_span")
    return {
        "id": str(kernel_spec),
        "spec": asdict(kernel_spec),
        "role": "winner",
        "time_us": 10.0,
        "basis": "predicted",
        "buckets": [
            {"bucket": dict(zip(keys, bucket)), "time_us": time, "loss": 0.0}
            for bucket, time in dict(times).items()
        ],
        "threads": kernel_spec.configuration.threads(kernel_spec.shape),
        "shared_bytes": kernel_spec.configuration.shared_bytes(kernel_spec.shape),
        "alignment_bytes": 16,
        "source": f"{folder}/source.cu",
        "ptx": f"{folder}/kernel.ptx",
        "ptx_architecture": ptx_architecture,
        "cubins": {a: {"file": f"{folder}/{a}.cubin", "resources": {}} for a in cubins},
    }


def manifest(kernels):
    return {
        "schema": 1,
        "abi": 3,
        "created_by": "a test",
        "created_unix_s": 0,
        "workload": "none",
        "device": "emulated:h200",
        "interface": [
            {"kernel": k, "symbol": abi.SYMBOLS[k], "arguments": [list(a) for a in arguments]}
            for k, arguments in abi.ARGUMENTS.items()
        ],
        "kernels": kernels,
    }


def write(folder, content):
    """Writes a manifest with the files that it names, and their digests, in place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    files = {"manifest.json": json.dumps(content), "evidence.json": "{}"}
    for entry in content.get("kernels", []):
        c = entry["spec"]["configuration"]
        compiled = spec(
            KernelShape(**entry["spec"]["shape"]),
            **c | {"blocks_per_multiprocessor": c["min_blocks"], "smallest_share": 128},
        )
        files[entry["source"]] = f"// spanforge-kernel: {compiled}\n"
        files[entry["ptx"]] = f"ptx of {entry['id']}"
        for architecture, cubin in entry["cubins"].items():
            files[cubin["file"]] = f"{architecture} of {entry['id']}"
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    sums = (f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n" for name, text in files.items())
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder
