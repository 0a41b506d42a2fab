"""CIFAR-10's archive for Python (Krizhevsky 2009), packed or not, without executing anything in it."""

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from warm_lightning.data.readers import Reader, cannot_read, reason
from warm_lightning.errors import UserError, check

FOLDER = "cifar-10-batches-py"
BATCHES = {f"data_batch_{i}": "train" for i in range(1, 6)} | {"test_batch": "test"}
META = "batches.meta"
MAX_BATCH = 64 * 2**20  # bytes of a member; the true ones have 31 million


class _ByteType:
    """The array type u1, as it is pickled."""

    def __init__(self, kind: object, *copying: object) -> None:
        if kind != "u1":
            raise pickle.UnpicklingError(f"it holds numbers of type {str(kind)[:20]!r} instead of bytes")

    def __setstate__(self, state: object) -> None:
        """Nothing: what comes here is the order of bytes in a number, of which they have one."""


class _ByteArray:
    """An array of bytes, as it is pickled: NumPy has no part in reading it."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes | str]) -> None:
        _, shape, kind, by_columns, content = state
        if not isinstance(kind, _ByteType):
            raise pickle.UnpicklingError("it holds an array without a type")
        content = content.encode("latin1") if isinstance(content, str) else content  # Python 2's
        self.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_columns else "C")


def _reconstruct(*empty: object) -> _ByteArray:
    return _ByteArray()


ALLOWED = {  # what a pickled array is made of, by NumPy's old and new names
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): "ndarray",  # only an argument of the above: it cannot be called
    ("numpy", "dtype"): _ByteType,
}


class CIFARArchive(Reader):
    """Images of `cifar-10-python.tar.gz` or its folder as BMP files train/00000.bmp …, test/00000.bmp …

    They are in the archive's order, and in memory: 184 MB.

    Args:
        path: the archive, the folder cifar-10-batches-py or the folder around it.

    Attributes:
        class_names: the names of the classes.

    Raises:
        UserError: it is another archive, is damaged, or holds more than plain arrays.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._images: dict[str, np.ndarray] = {}
        self._labels: dict[str, int] = {}
        found = {name: self._unpickle(name, content) for name, content in _members(path)}
        missing = ({META} | set(BATCHES)) - set(found)
        check(not missing, f"{path} is not CIFAR-10's archive for Python: {min(missing, default='')} is not in it")
        counts = dict.fromkeys(BATCHES.values(), 0)
        try:
            self.class_names = tuple(found[META]["label_names"])
            check(all(type(name) is str for name in self.class_names), f"{path} has a class whose name is no text")
            for batch, split in BATCHES.items():
                images = found[batch]["data"].values.reshape(-1, 3, 32, 32)
                for image, label in zip(images, found[batch]["labels"], strict=True):
                    known = type(label) is int and 0 <= label < len(self.class_names)
                    check(known, f"{batch} in {path} has labels outside 0 to {len(self.class_names) - 1}")
                    name = f"{split}/{counts[split]:05}.bmp"
                    self._images[name], self._labels[name] = image, label
                    counts[split] += 1
        except UserError:
            raise
        except Exception as error:  # hostile content raises nearly anything
            raise self._damaged(reason(error)) from error

    def names(self) -> list[str]:
        return sorted(self._images)

    def labels(self) -> dict[str, int]:
        """The class of each image."""
        return self._labels

    def read(self, name: str) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(self._images[name].transpose(1, 2, 0))).save(file, "BMP")
        return file.getvalue()

    def _unpickle(self, name: str, content: bytes) -> Any:
        try:
            return _Arrays(io.BytesIO(content), encoding="latin1").load()
        except Exception as error:  # damaged pickles raise nearly anything
            raise self._damaged(f"{name}: {reason(error)}") from error

    def _damaged(self, why: str) -> UserError:
        return UserError(f"{self.path} is not a readable archive of CIFAR-10 ({why}): download it again")


class _Arrays(pickle.Unpickler):
    """Plain data and arrays only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")
        return ALLOWED[module, name]


def holds_cifar(path: Path) -> bool:
    """Whether a folder is the unpacked archive, or around it."""
    return (path / "data_batch_1").is_file() or (path / FOLDER / "data_batch_1").is_file()


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """The files of the archive that matter."""
    wanted = {META, *BATCHES}
    try:
        if path.is_dir():
            folder = path if (path / "data_batch_1").is_file() else path / FOLDER
            for name in sorted(wanted):
                if (folder / name).is_file():
                    with (folder / name).open("rb") as file:
                        yield name, file.read(MAX_BATCH)
            return
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if name in wanted and member.isfile():
                    check(member.size <= MAX_BATCH, f"{member.name} in {path} is too large for CIFAR-10")
                    content = archive.extractfile(member)
                    yield name, content.read() if content else b""
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is a truncated or corrupt archive ({reason(error)}): download it again") from error
    except OSError as error:  # also what gzip says of damaged data
        raise cannot_read(path, error) from error
