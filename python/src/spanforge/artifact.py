"""An exported artifact: a folder with a manifest, the tuned kernels as source, PTX and machine code,
and the evidence that chose them (`kernels/src/artifact.rs`).

    artifact = Artifact.load("artifacts/da-qwen3.6-bf16-d256-g6")
    selected = artifact.select(KernelShape("bf16", 256, 6), device, Bucket.of(8, 8, 8 * 4096, 40))

Loading reads every file, compares its SHA-256, and holds the manifest against itself and the sources;
a changed byte is refused with the name of the file. The argument lists of the machine code are compared
when it is loaded on a GPU (`spanforge.driver`).
"""

import hashlib
import json
import math
import re
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from . import abi
from .bucket import Bucket
from .configuration import Configuration, KernelShape, KernelSpec
from .errors import ArtifactError, StepError

SCHEMA_VERSION = 1
ALIGNMENT_BYTES = 16
"""Alignment that the kernels need of q, k, v and the output."""

_MANIFEST = "manifest.json"
_SUMS = "SHA256SUMS"
_ID_MARKER = "// spanforge-kernel: "
_EXPORT_AGAIN = "export it again with `spanforge tune`"


@dataclass(frozen=True)
class DeviceProperties:
    """What the choice and the launch of a kernel depend on. `architecture` is `sm_80`, `sm_90a` and
    the like: with the `a` from compute capability 9.0 on, as `spanforge tune --arch` names it."""

    name: str
    architecture: str
    multiprocessors: int
    shared_bytes_per_block: int


@dataclass(frozen=True)
class InBucket:
    """How a kernel does in one bucket: microseconds, and time over that of the best configuration
    that is known there, less one."""

    bucket: Bucket
    time_us: float
    loss: float


@dataclass(frozen=True)
class KernelEntry:
    """One kernel of an artifact; `kernels/src/artifact.rs` says what each field is."""

    id: str
    spec: KernelSpec
    role: str
    time_us: float
    basis: str
    buckets: tuple[InBucket, ...]
    threads: int
    shared_bytes: int
    alignment_bytes: int
    source: str
    ptx: str
    ptx_architecture: str
    cubins: dict[str, str]
    """Paths of the machine code by architecture."""


@dataclass(frozen=True)
class Selected:
    """The kernel for a batch, and the bucket as which the batch is served; `None` where kernels were
    not timed by bucket."""

    entry: KernelEntry
    served_as: InBucket | None


class Artifact:
    """A verified artifact in memory; make one with `load`. `kernels` are in order of preference."""

    def __init__(self, root: Path, manifest: dict[str, Any], files: dict[str, bytes]):
        self.root = root
        self.manifest = manifest
        self._files = files
        self.kernels = _parse_kernels(root / _MANIFEST, manifest)

    @classmethod
    def load(cls, folder: str | Path) -> "Artifact":
        """Reads and verifies an artifact. Raises `ArtifactError` for anything that is not what was
        written, or that this version does not read."""
        root = Path(folder)
        files = _verified_files(root)
        path = root / _MANIFEST
        try:
            manifest = json.loads(_listed(root, files, _MANIFEST))
        except ValueError as error:
            raise ArtifactError(f"{path}: not JSON: {error}; {_EXPORT_AGAIN}") from None
        if not isinstance(manifest, dict):
            raise ArtifactError(f"{path}: not an object; {_EXPORT_AGAIN}")
        # The versions first: a newer manifest may not even have the fields of this one.
        for what, supported in (("schema", SCHEMA_VERSION), ("abi", abi.ABI_VERSION)):
            found = manifest.get(what)
            if found != supported:
                raise ArtifactError(
                    f"{path}: {what} {found} is not supported; this version reads {supported}: use "
                    "the versions of `spanforge` and of this package that belong together"
                )
        if manifest.get("interface") != _interface():
            raise ArtifactError(f"{path}: the interface is not that of ABI {abi.ABI_VERSION}")
        artifact = cls(root, manifest, files)
        for entry in artifact.kernels:
            for name in (entry.source, entry.ptx, *entry.cubins.values()):
                _listed(root, files, name)
            fault = _inconsistency(entry, files[entry.source])
            if fault is not None:
                raise ArtifactError(f"{path}: kernel `{entry.id}`: {fault}; {_EXPORT_AGAIN}")
        return artifact

    def select(self, shape: KernelShape, device: DeviceProperties, batch: Bucket) -> Selected:
        """The kernel that serves `shape` on the device: of those that can, the fastest in the bucket
        that is nearest to the batch's, the preferred one among equals; the first where kernels were
        not timed by bucket. Raises `ArtifactError`, with a reason per kernel, where none can."""
        fit = self.fit(shape, device)
        nearest = batch.nearest(served.bucket for entry in fit for served in entry.buckets)
        timed = [
            Selected(entry, served) for entry in fit for served in entry.buckets if served.bucket == nearest
        ]
        return min(timed, key=lambda s: s.served_as.time_us, default=Selected(fit[0], None))

    def fit(self, shape: KernelShape, device: DeviceProperties) -> list[KernelEntry]:
        """The kernels that can serve `shape` on the device, in order of preference, at least one.
        Raises `ArtifactError`, with a reason per kernel, where there is none."""
        reasons = [(entry, unfit(entry, shape, device)) for entry in self.kernels]
        fit = [entry for entry, reason in reasons if reason is None]
        if not fit:
            lines = "\n".join(f"  {entry.id}: {reason}" for entry, reason in reasons)
            of_8_bits = "" if shape.kv_dtype == "same" else f" --kv-dtype {shape.kv_dtype}"
            raise ArtifactError(
                f"no kernel of this artifact serves {shape} on {device.name}:\n{lines}\n`spanforge tune "
                f"--workload W{of_8_bits} --arch {device.architecture}` makes one, where W is a workload or "
                f"a trace in {shape.dtype} with head_dim {shape.head_dim} and {shape.group_size} query "
                "head(s) per KV head"
            )
        return fit

    def code(self, entry: KernelEntry, device: DeviceProperties) -> bytes:
        """What to load: the machine code for the device's architecture where there is some, else the
        PTX."""
        return self._files[entry.cubins.get(device.architecture, entry.ptx)]

    def text(self, name: str) -> str:
        """A file of the artifact, such as a kernel's `ptx` or `source`."""
        return _listed(self.root, self._files, name).decode()


def unfit(entry: KernelEntry, shape: KernelShape, device: DeviceProperties) -> str | None:
    """Why a kernel cannot serve a shape on a device; `None` where it can."""
    if entry.spec.shape != shape:
        return f"it is built for {entry.spec.shape}"
    if entry.shared_bytes > device.shared_bytes_per_block:
        return (
            f"it needs {entry.shared_bytes} bytes of shared memory per block and the device has "
            f"{device.shared_bytes_per_block}"
        )
    if device.architecture in entry.cubins:
        return None
    # PTX with instructions of one architecture alone is for no newer one.
    if entry.ptx_architecture[-1:] in ("a", "f"):
        runs, newer = entry.ptx_architecture == device.architecture, "alone"
    else:
        needed, here = map(_architecture, (entry.ptx_architecture, device.architecture))
        runs, newer = (needed or 0) <= (here or 0), "and newer"
    if not runs:
        return (
            f"there is no cubin for {device.architecture} and its PTX is for {entry.ptx_architecture} {newer}"
        )
    return None


def _architecture(name: str) -> int | None:
    """90 of `sm_90a`; `None` of anything else."""
    match = re.fullmatch(r"(?:sm|compute)_([0-9]{1,4})[af]?", name)
    return int(match[1]) if match else None


def _interface() -> list[dict[str, Any]]:
    return [
        {"kernel": kernel, "symbol": abi.SYMBOLS[kernel], "arguments": [list(a) for a in arguments]}
        for kernel, arguments in abi.ARGUMENTS.items()
    ]


def _parse_kernels(path: Path, manifest: dict[str, Any]) -> list[KernelEntry]:
    try:
        kernels = [_parse_kernel(kernel) for kernel in manifest["kernels"]]
    except (KeyError, TypeError, AttributeError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise ArtifactError(f"{path}: not a manifest: {what}; {_EXPORT_AGAIN}") from None
    if not kernels:
        raise ArtifactError(f"{path}: it lists no kernel; {_EXPORT_AGAIN}")
    return kernels


def _parse_kernel(kernel: dict[str, Any]) -> KernelEntry:
    spec = kernel["spec"]
    buckets = tuple(
        # Manifests leave out the rows of a request where they are one.
        InBucket(
            _typed(Bucket, {"rows_per_request": 1} | b["bucket"]), _number(b["time_us"]), _number(b["loss"])
        )
        for b in kernel.get("buckets", [])
    )
    values = kernel | {
        "spec": KernelSpec(_typed(KernelShape, spec["shape"]), _typed(Configuration, spec["configuration"])),
        "time_us": _number(kernel["time_us"]),
        "buckets": buckets,
        "cubins": {name: _text(cubin["file"]) for name, cubin in kernel["cubins"].items()},
    }
    return _typed(KernelEntry, values)


def _typed(kind: type, values: dict[str, Any]) -> Any:
    """An instance of a dataclass from the fields it has; other fields are ignored and those with a default
    may be missing, as the Rust loader does."""
    chosen = {}
    for field in fields(kind):
        if field.name not in values and field.default is not MISSING:
            continue
        value = chosen[field.name] = values[field.name]
        if field.type in (int, str) and type(value) is not field.type:
            raise TypeError(f"{field.name} is {value!r}, expected {field.type.__name__}")
    return kind(**chosen)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"{value!r} is not a text")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _inconsistency(entry: KernelEntry, source: bytes) -> str | None:
    """What an entry says against the spec in it, and the spec against the source."""
    spec = entry.spec
    shape, configuration = spec.shape, spec.configuration
    try:
        shape.check()
    except StepError as error:
        return str(error)
    if not configuration.is_within_bounds():
        return "its configuration has a value out of bounds"
    if entry.id != str(spec):
        return f"its spec is that of `{spec}`"
    for what, expected in (
        ("threads", configuration.threads(shape)),
        ("shared_bytes", configuration.shared_bytes(shape)),
        ("alignment_bytes", ALIGNMENT_BYTES),
    ):
        found = getattr(entry, what)
        if found != expected:
            return f"{what} is {found}, and its spec takes {expected}"
    numbers = [entry.time_us] + [n for b in entry.buckets for n in (b.time_us, b.loss)]
    powers = [n for b in entry.buckets for n in vars(b.bucket).values()]
    if not all(0 <= n < math.inf for n in numbers) or not all(n > 0 for n in powers):
        return "its times make no sense"
    for architecture in (entry.ptx_architecture, *entry.cubins):
        if _architecture(architecture) is None:
            return f"`{architecture}` is not an architecture"
    # Sources do not depend on what only a launch does.
    compiled = replace(configuration, blocks_per_multiprocessor=configuration.min_blocks, smallest_share=128)
    marker = f"{_ID_MARKER}{KernelSpec(shape, compiled)}"
    if marker not in (line.rstrip() for line in source.decode(errors="replace").splitlines()):
        return f"{entry.source} was rendered for another configuration"
    return None


def _listed(root: Path, files: dict[str, bytes], name: str) -> bytes:
    if name not in files:
        raise ArtifactError(f"{root / _SUMS}: does not list {name}; {_EXPORT_AGAIN}")
    return files[name]


def _verified_files(root: Path) -> dict[str, bytes]:
    """Every file that the list of digests names, compared; files it does not name are refused."""
    sums = root / _SUMS
    if root.is_dir() and not sums.exists():
        raise ArtifactError(f"{root}: not an artifact: it has no {_SUMS}; `spanforge tune` makes one")
    files = {}
    for number, line in enumerate(_read(sums).decode(errors="replace").splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if match is None:
            raise ArtifactError(f"{sums}: line {number} is not a digest and a file; {_EXPORT_AGAIN}")
        expected, name = match.groups()
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ArtifactError(f"{sums}: line {number} names a file outside the artifact")
        data = _read(root / name)
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise ArtifactError(
                f"{root / name}: changed since the artifact was written (SHA-256 {found}, expected "
                f"{expected}); {_EXPORT_AGAIN}"
            )
        files[name] = data
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if name != _SUMS and name not in files and (path.is_symlink() or not path.is_dir()):
            raise ArtifactError(
                f"{path}: is not listed in {_SUMS}: it does not belong to the artifact; remove it"
            )
    return files


def _read(path: Path) -> bytes:
    """A regular file; anything else might never end."""
    try:
        if path.exists() and not path.is_file():
            raise ArtifactError(f"{path}: is not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path}: {error.strerror}; give the folder that `spanforge tune` printed"
        ) from None
