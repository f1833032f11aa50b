"""The CUDA driver through ctypes: no toolkit, no compiler, only the `libcuda` that comes with the GPU's
driver. It launches on whatever stream it is given, in the device's primary context, which is torch's.

Loaded code stays loaded until the process ends, each image once.
"""

import ctypes
import hashlib
from collections.abc import Mapping
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from typing import Any

from . import abi
from .artifact import DeviceProperties
from .errors import DriverError

# Values of enumerations in cuda.h.
_SUCCESS = 0
_MULTIPROCESSOR_COUNT = 16
_COMPUTE_CAPABILITY = (75, 76)
_MAX_SHARED_BYTES_PER_BLOCK_OPT_IN = 97
_MAX_DYNAMIC_SHARED_BYTES = 8


class Driver:
    """One GPU: its properties, loading code, launching kernels. `ordinal` counts the GPUs that are
    visible to the process, as torch does. Raises `DriverError` where there is no driver or no such
    GPU."""

    def __init__(self, ordinal: int = 0, library: str = "libcuda.so.1"):
        try:
            self._cuda = ctypes.CDLL(library)
        except OSError as error:
            raise DriverError(
                f"no CUDA driver: {error}; kernels need an NVIDIA GPU with its driver installed "
                "(`nvidia-smi` says whether it is). Without one, SpanAttention(None, ..., device='cpu') "
                "computes the same by the reference"
            ) from None
        self._call("cuInit", c_uint(0))
        count = c_int()
        self._call("cuDeviceGetCount", byref(count))
        if not 0 <= ordinal < count.value:
            raise DriverError(f"there is no GPU {ordinal}: {count.value} are visible to this process")
        device = c_int()
        self._call("cuDeviceGet", byref(device), c_int(ordinal))
        self._context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(self._context), device)
        self.properties = self._describe(device)
        self._functions: dict[bytes, dict[str, c_void_p]] = {}
        self._opted_in: dict[tuple[bytes, str], int] = {}

    def load(self, code: bytes) -> bytes:
        """Loads a cubin or PTX, and returns what names it in `launch`. Raises `DriverError` where the
        driver refuses it, or a kernel takes other arguments than the ABI says."""
        name = hashlib.sha256(code).digest()
        if name not in self._functions:
            with _Current(self):
                module = c_void_p()
                # PTX ends with a zero byte; behind machine code one does no harm.
                self._call("cuModuleLoadData", byref(module), c_char_p(code + b"\0"))
                self._functions[name] = {kernel: self._function(module, kernel) for kernel in abi.SYMBOLS}
        return name

    def launch(
        self,
        code: bytes,
        kernel: str,
        grid: tuple[int, int],
        threads: int,
        shared_bytes: int,
        values: Mapping[str, Any],
        stream: int,
    ) -> None:
        """Queues a kernel, one of `abi.SYMBOLS`, on a stream (a `CUstream` as an integer), with `grid` blocks
        in x and y. `values` has its arguments by name: integers, and tensors, whose addresses are passed,
        null for `None`."""
        arguments = [
            _address(values[name]) if kind == "pointer" else c_int(values[name])
            for name, kind in abi.ARGUMENTS[kernel]
        ]
        pointers = (c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        function = self._functions[code][kernel]
        with _Current(self):
            # What a block may use without asking counts static memory too; asking for less is harmless.
            if shared_bytes > self._opted_in.get((code, kernel), 0):
                self._call(
                    "cuFuncSetAttribute",
                    function,
                    c_int(_MAX_DYNAMIC_SHARED_BYTES),
                    c_int(shared_bytes),
                )
                self._opted_in[code, kernel] = shared_bytes
            sizes = (c_uint(n) for n in (*grid, 1, threads, 1, 1, shared_bytes))
            self._call("cuLaunchKernel", function, *sizes, c_void_p(stream), pointers, None)

    def _describe(self, device: c_int) -> DeviceProperties:
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, c_int(len(name)), device)

        def attribute(number: int) -> int:
            value = c_int()
            self._call("cuDeviceGetAttribute", byref(value), c_int(number), device)
            return value.value

        major, minor = map(attribute, _COMPUTE_CAPABILITY)
        return DeviceProperties(
            name=name.value.decode(errors="replace"),
            # From 9.0 on there is code for one GPU alone, with every instruction that it has.
            architecture=f"sm_{10 * major + minor}{'a' if major >= 9 else ''}",
            multiprocessors=attribute(_MULTIPROCESSOR_COUNT),
            shared_bytes_per_block=attribute(_MAX_SHARED_BYTES_PER_BLOCK_OPT_IN),
        )

    def _function(self, module: c_void_p, kernel: str) -> c_void_p:
        """A kernel of a loaded module, its parameters compared with the ABI."""
        function = c_void_p()
        symbol = abi.SYMBOLS[kernel]
        self._call("cuModuleGetFunction", byref(function), module, c_char_p(symbol.encode()))
        expected = [abi.ARGUMENT_BYTES[kind] for _, kind in abi.ARGUMENTS[kernel]]
        found: list[int] = []
        offset, size = c_size_t(), c_size_t()
        # Past the last parameter the driver says that the number is invalid.
        while self._code(
            "cuFuncGetParamInfo", function, c_size_t(len(found)), byref(offset), byref(size)
        ) == _SUCCESS and len(found) <= len(expected):
            found.append(size.value)
        if found != expected:
            raise DriverError(
                f"{symbol} takes arguments of {found} bytes, but the interface says {expected}: the "
                "artifact is not of this version; export it again with `spanforge tune`"
            )
        return function

    def _code(self, name: str, *arguments: Any) -> int:
        try:
            return getattr(self._cuda, name)(*arguments)
        except AttributeError:
            raise DriverError(f"the driver has no {name}: install driver 580 or newer") from None

    def _call(self, name: str, *arguments: Any) -> None:
        code = self._code(name, *arguments)
        if code == _SUCCESS:
            return
        words = []
        for describe in ("cuGetErrorString", "cuGetErrorName"):
            text = c_char_p()
            self._code(describe, c_int(code), byref(text))
            words.append((text.value or b"unknown error").decode())
        raise DriverError(f"{name}: {words[0]} ({words[1]})")


def _address(tensor: Any) -> c_void_p:
    return c_void_p(0 if tensor is None else tensor.data_ptr())


class _Current:
    """Makes the driver's context the calling thread's, and puts back what was."""

    def __init__(self, driver: Driver):
        self._driver = driver

    def __enter__(self) -> None:
        self._driver._call("cuCtxPushCurrent_v2", self._driver._context)

    def __exit__(self, *_: object) -> None:
        self._driver._call("cuCtxPopCurrent_v2", byref(c_void_p()))
