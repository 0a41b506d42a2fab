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


def _reconstruct(kind: type[np.ndarray], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The array of zero length that a pickled array begins as."""
    return np.ndarray.__new__(kind, shape, dtype)


ALLOWED = {  # what a pickled array is made of, by NumPy's old and new names
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
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
            self.class_names = tuple(map(str, found[META]["label_names"]))
            for batch, split in BATCHES.items():
                images = found[batch]["data"].reshape(-1, 3, 32, 32)
                check(images.dtype == np.uint8, f"{batch} in {path} holds {images.dtype} instead of bytes")
                for image, label in zip(images, found[batch]["labels"], strict=True):
                    name = f"{split}/{counts[split]:05}.bmp"
                    self._images[name], self._labels[name] = image, int(label)
                    counts[split] += 1
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise self._damaged(reason(error)) from error
        known = range(len(self.class_names))
        check(set(self._labels.values()) <= set(known), f"{path} has labels outside 0 to {len(known) - 1}")

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
