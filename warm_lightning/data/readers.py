"""Where image files are stored, seen as a flat list of names."""

import io
import os
import pickle
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakValueDictionary

import numpy as np
from PIL import Image

from warm_lightning.errors import UserError, check

MAX_FILE = 256 * 2**20
"""Bytes of one file, unpacked, that are read at most: more is an accident or an attack, and no image."""


class Reader(ABC):
    """Files by name, from any thread; names are relative to `path`, with "/" between folders.

    Nothing is ever unpacked to disk. A reader may be used after a fork, and is pickled as its path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type["Reader"], tuple[Path]]:
        return type(self), (self.path,)

    @abstractmethod
    def names(self) -> list[str]:
        """All files, sorted: the same list for a folder and for a zip of it."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Content of a file. Raises `UserError` where it cannot be read or is larger than `MAX_FILE`."""

    def locate(self, name: str) -> str:
        """How to call a file in a message."""
        return f"{name} in {self.path}"

    def check_size(self, name: str, size: int) -> None:
        """Raise `UserError` for a file of more than `MAX_FILE` bytes."""
        megabytes = f"{size / 2**20:.0f} MB, more than the {MAX_FILE >> 20} MB"
        check(size <= MAX_FILE, f"{self.locate(name)} holds {megabytes} that a file may: remove it")


class FolderReader(Reader):
    """Files below a folder; links to folders are followed."""

    def names(self) -> list[str]:
        def unreadable(error: OSError) -> NoReturn:
            raise cannot_read(error.filename, error) from error

        names = []
        around: dict[str, frozenset[tuple[int, int]]] = {str(self.path): frozenset()}  # folders that a folder is in
        for folder, folders, files in os.walk(self.path, onerror=unreadable, followlinks=True):
            try:
                status = os.stat(folder)
            except OSError as error:
                unreadable(error)
            above, this = around.pop(folder), (status.st_dev, status.st_ino)
            check(this not in above, f"{folder} is a link to a folder that it is in: remove it")
            around |= {os.path.join(folder, name): above | {this} for name in folders}
            below = Path(folder).relative_to(self.path)
            names += [(below / file).as_posix() for file in files]
        return sorted(names)

    def read(self, name: str) -> bytes:
        try:
            with open(self.path / name, "rb", opener=_open_at_once) as file:
                regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
                check(regular, f"{self.locate(name)} is a pipe or device, no file: remove it")
                content = file.read(MAX_FILE + 1)
        except OSError as error:
            raise cannot_read(self.locate(name), error) from error
        self.check_size(name, len(content))
        return content

    def locate(self, name: str) -> str:
        return f"{self.path / name}"


class ZipReader(Reader):
    """Members of a zip, read in place.

    Raises:
        UserError: it is no zip, is damaged, or has a member that points out of it or is there twice.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # ZipFile counts its open members without a lock: two reads at once could close the file.
        self._lock = threading.Lock()
        self._archive, self._owner = _open_zip(path), os.getpid()
        known = set()
        for name in self._archive.namelist():
            check(name not in known, f"{path} has two members {name!r}: leave only the right one")
            known.add(name)
            parts = name.replace("\\", "/").split("/")
            if ".." in parts or parts[0] == "" or parts[0].endswith(":"):
                raise UserError(f"{path} has a member {name!r}, which points out of the zip: do not trust this file")

    def names(self) -> list[str]:
        return sorted(info.filename for info in self._archive.infolist() if not info.is_dir())

    def read(self, name: str) -> bytes:
        with self._lock:
            if self._owner != os.getpid():  # processes that forked share the position in an open file
                self._archive, self._owner = _open_zip(self.path), os.getpid()
            info = self._archive.getinfo(name)
            self.check_size(name, info.file_size)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"{self.locate(name)} is compressed by another method than deflate: pack the zip again")
            try:
                with self._archive.open(info) as member:
                    # Without a number, zipfile unpacks all there is, whatever the directory has declared.
                    return member.read(info.file_size + 1)
            except Exception as error:  # bad CRC, bad stream, encryption, unknown compression, failing disk, …
                message = f"{self.locate(name)} cannot be read ({reason(error)}): make or download the zip again"
                raise UserError(message) from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for a writer


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory makes zipfile raise nearly anything
        message = f"{path} is a truncated or corrupt zip ({reason(error)}): copy or download it again"
        raise UserError(message) from error


def cannot_read(where: str | Path, error: OSError) -> UserError:
    """The error for a file or folder that the operating system does not let us read."""
    return UserError(f"{where} cannot be read ({reason(error)}): check that it exists and its permissions")


def reason(error: Exception) -> str:
    """What an exception says, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


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


DATA_FILE = Path("data.mdb")
WALK = Path(__file__).with_name("lmdb_walk.py")


class LMDBReader(Reader):
    """Values of an LMDB, of which each is an image file, by their keys as Latin-1 text.

    The database is opened for reading alone, without its lock file, which need not be writable.

    Raises:
        UserError: the package lmdb is missing, or the database is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._names: list[str] | None = None
        self._database: _Database | None = None

    def names(self) -> list[str]:
        if self._names is None:
            self._names = [bytes.fromhex(key).decode("latin-1") for key in _walk(self.path)]
        return self._names

    def read(self, name: str) -> bytes:
        if self._database is None:
            self._database = _database(self.path)
        content = self._database.get(name.encode("latin-1"))
        check(content is not None, f"{self.locate(name)} is not there: it was removed meanwhile")
        self.check_size(name, len(content or b""))
        return content or b""


def _walk(path: Path) -> list[str]:
    """All keys in hexadecimal, read in another process, which a damaged database may kill."""
    _import_lmdb()
    # -P keeps the modules beside the program out of its way.
    command = [sys.executable, "-P", str(WALK), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        message = done.stderr.strip().splitlines()[-1:] if done.returncode > 0 else []
        raise _damaged(path, message[0] if message else "its pages do not fit together")
    return done.stdout.split()


class _Database:
    """An LMDB that is opened anew in each process that forks from this one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open()

    def open(self) -> None:
        lmdb = _import_lmdb()
        options: dict[str, Any] = {"readonly": True, "lock": False, "readahead": False, "meminit": False}
        try:
            self.environment = lmdb.open(str(self.path), subdir=self.path.is_dir(), **options)
        except lmdb.Error as error:
            raise _damaged(self.path, reason(error)) from error
        except OSError as error:
            raise cannot_read(self.path, error) from error
        self.owner = os.getpid()

    def get(self, key: bytes) -> bytes | None:
        if self.owner != os.getpid():
            self.environment.close()
            self.open()
        try:
            with self.environment.begin() as transaction:
                return transaction.get(key)
        except _import_lmdb().Error as error:
            raise _damaged(self.path, reason(error)) from error


_OPEN: WeakValueDictionary[Path, _Database] = WeakValueDictionary()


def _database(path: Path) -> _Database:
    """The database at a path, which a process can open only once."""
    path = path.resolve()
    database = _OPEN.get(path) or _Database(path)
    _OPEN[path] = database
    return database


def _import_lmdb() -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise UserError("reading an LMDB needs the package lmdb: pip install 'warm-lightning[lmdb]'") from error
    return lmdb


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not a readable LMDB ({why}): copy or download it again")
