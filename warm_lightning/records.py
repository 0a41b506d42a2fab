"""Records of results: where they come from, JSON, hashes, and files that appear whole or not at all."""

import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warm_lightning.errors import UserError, check, error_text
from warm_lightning.paths import locked

PACKAGE_VERSION = version("warm-lightning")

# ---------------------------------------------------------------------- provenance


@cache
def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, with "-dirty" where files differ; None outside of one."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    tracked = ["git", "-C", str(folder), "ls-files", "--error-unmatch", __file__]
    try:
        if subprocess.run(tracked, capture_output=True, check=False).returncode:
            return None  # installed into an environment inside the checkout of another project
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def provenance(device: torch.device | str) -> dict[str, Any]:
    """The versions, commit and device that a result comes from, in the form that every result file has.

    Args:
        device: where it was computed.
    """
    return {
        "package_version": PACKAGE_VERSION,
        "git_commit": git_commit(),
        "torch_version": str(torch.__version__),
        "device": torch.device(device).type,
    }


def machine(device: str) -> dict[str, Any]:
    """The processor and GPU, beside the `provenance` of what runs on them; "cores" are logical processors.

    Args:
        device: "cpu" or "cuda".
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = provenance(device) | {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(models) or torch.multiprocessing.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        found |= {"gpu": gpu.name, "gpu_memory_bytes": gpu.total_memory, "cuda": torch.version.cuda}
    return found


# ---------------------------------------------------------------------- numbers and hashes


def finite(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def to_json(data: Any, indent: int | None = 2) -> str:
    """Plain data as JSON; numbers that are not finite, which JSON does not have, as null."""
    return json.dumps(_nulls(data), indent=indent, allow_nan=False)


def _nulls(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _nulls(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_nulls(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def tensors_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of tensors with their names and shapes, in the order of their names.

    Floating-point values count as float64, so that a file and a model of another precision made from it agree where
    no digit was lost.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        values = tensor.detach().cpu()
        values = values.double() if values.is_floating_point() else values
        digest.update(f"{name} {list(values.shape)}".encode())
        digest.update(values.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


FINGERPRINTED = 1 << 20
"""Bytes at each end of a file that its fingerprint is made from."""


def fingerprint(path: Path) -> str | None:
    """The size of a file with a hash of its beginning and end; None if there is no such file.

    A data set may have hundreds of gigabytes. The end of a zip file lists the checksums of all its members.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        size = file.seek(0, 2)
        parts = []
        for start in (0, max(0, size - FINGERPRINTED)):
            file.seek(start)
            parts.append(file.read(FINGERPRINTED))
    return f"{size}-{hashlib.sha256(b''.join(parts)).hexdigest()[:16]}"


def folder_fingerprint(path: Path) -> str:
    """A hash of the names, sizes and times of change of all files below a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            status = file.stat()
            digest.update(f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------------- tables


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]], words: int = 1) -> str:
    """A table in Markdown, for files; for a terminal see `text_table`.

    Args:
        header: names of the columns.
        rows: a text or number for each column.
        words: number of columns, from the left, that hold words; the others hold numbers and are aligned to the right.
    """
    lines = [list(header), ["---"] * words + ["---:"] * (len(header) - words), *([str(c) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text_table(rows: Iterable[Sequence[str]], align: str) -> str:
    """A table as plain text in columns that are two spaces apart, for a terminal.

    Args:
        rows: the cells; the header is the first row.
        align: "<" for left or ">" for right, one character for each column.
    """
    cells = list(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(f"{c:{a}{w}}" for c, a, w in zip(row, align, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


# ---------------------------------------------------------------------- files


LONGEST_NAME = 200
"""Bytes of a name to which more can be added; file systems allow 255."""


@contextmanager
def whole_file(path: Path, folder: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`, whose file or folder gets that name when the `with` block ends.

    The folder of `path` is made. A reader sees all of the file or none; if an error ends the block, nothing is left.
    What a killed process leaves is written over by the next one, since the temporary path has always the same name;
    processes that write the same file wait for each other.

    Args:
        path: of the file.
        folder: whether it is a folder; the temporary one is given empty.

    Raises:
        UserError: the file cannot be written.
    """
    name = path.name
    check(name not in ("", ".."), f"{path}: not a name that a new file or folder can have: give another one")
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    temporary = path.with_name(f".{name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(temporary, folder):
            try:
                if folder:
                    _empty(temporary)
                yield temporary
                temporary.replace(path)
            except BaseException:
                with suppress(OSError):
                    shutil.rmtree(temporary) if folder else temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error_text(error, 200)}); free space, or choose another folder"
        ) from error


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_file(path: Path, content: bytes) -> None:
    """Write a file in one go; see `whole_file`.

    Raises:
        UserError: the file cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def writable_folder(path: str | Path) -> Path:
    """The folder at a path, made if need be.

    Raises:
        UserError: files cannot be written there.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another folder") from error
    return folder


def check_out(path: str | None, replace: bool = False) -> None:
    """Check that a result can be written to a path, if one is given, before the work that leads to it.

    Args:
        path: of the file.
        replace: whether it may replace a file, as a picture may that can be drawn again.

    Raises:
        UserError: the path is a folder or, unless `replace`, a file, or nothing can be written there.
    """
    if path:
        check(not Path(path).is_dir(), f"{path} is a folder: give the path of a file")
        check(replace or not Path(path).exists(), f"{path} already exists: give another name, or remove it")
        writable_folder(Path(path).parent)
