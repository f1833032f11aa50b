"""A stand-in for `spanforge.driver.Driver` that launches on the emulated GPU, by `spanforge emulate`:
the tensors are on the CPU, and the kernels are those of the artifact, as PTX."""

import ctypes
import json
import subprocess
import tempfile
from pathlib import Path

from spanforge import DeviceProperties, abi


class EmulatedDriver:
    def __init__(self, spanforge, multiprocessors=3):
        self.spanforge = spanforge
        # An architecture without machine code, so that PTX is loaded.
        self.properties = DeviceProperties("emulated", "sm_89", multiprocessors, 232_448)
        self.launched = []

    def load(self, code):
        return code

    def launch(self, code, kernel, grid, threads, shared_bytes, values, stream):
        self.launched.append(kernel)
        written = {
            "overlay": ["tile_span_ptr", "tile_spans", "span_rows", "span_tokens"],
            "plan": ["set_tokens", "span_tokens"],
            "decode": ["out", "lse", "partial_acc", "partial_ml", "arrivals"],
            "merge": ["out", "lse"],
            "merge-outputs": ["out", "lse"],
        }[kernel]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "kernel.ptx").write_bytes(code)
            arguments, outputs = [], []
            for index, (argument, kind) in enumerate(abi.ARGUMENTS[kernel]):
                if kind == "i32":
                    arguments.append({"i32": values[argument]})
                    continue
                tensor = values[argument]
                if tensor is None:
                    arguments.append({"u64": 0})
                    continue
                data = ctypes.string_at(tensor.data_ptr(), extent(tensor))
                (folder / f"{argument}.bin").write_bytes(data)
                arguments.append({"buffer": {"file": f"{argument}.bin"}})
                if argument in written:
                    outputs.append({"arg": index, "file": f"{argument}.out"})
            launch = {
                "ptx": "kernel.ptx",
                "entry": abi.SYMBOLS[kernel],
                "grid": [*grid, 1],
                "block": [threads, 1, 1],
                "shared_bytes": shared_bytes,
                "args": arguments,
                "outputs": outputs,
            }
            (folder / "launch.json").write_text(json.dumps(launch))
            ran = subprocess.run(
                [self.spanforge, "emulate", str(folder / "launch.json")],
                capture_output=True,
                text=True,
            )
            if ran.returncode != 0:
                raise AssertionError(f"{kernel}: {ran.stdout}{ran.stderr}")
            for argument in written:
                data = (folder / f"{argument}.out").read_bytes()
                ctypes.memmove(values[argument].data_ptr(), data, len(data))


def extent(tensor):
    """Bytes from a tensor's first element to its last."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return (steps + 1) * tensor.element_size()
