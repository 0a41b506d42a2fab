"""Readers, which see a folder, a zip, CIFAR-10's archive for Python or an LMDB as a flat list of image files."""

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
from typing import Any, ClassVar, NoReturn
from weakref import WeakValueDictionary

import numpy as np
from PIL import Image

from warm_lightning.errors import UserError, check, error_text

# ---- errors


def cannot_read(where: str | Path, error: OSError) -> UserError:
    """The UserError for a file or folder that the operating system refuses to read."""
    return UserError(f"{where} cannot be read ({error_text(error)}): check that it exists and its permissions")


# ---- the interface

MAX_FILE = 256 * 2**20
"""The largest number of bytes that one file may have when unpacked; a larger one is an accident or an attack."""


class Reader(ABC):
    """A set of files that are read by name, from any thread.

    Names are relative to `path`, with "/" between folders. Nothing is ever unpacked to disk. A reader may be used
    after a fork, and is pickled as its path.

    Attributes:
        advice: what to do about an image that is not square or has another size than the others, which is `size`.
    """

    advice: ClassVar[str] = "make a data set of them with `warm dataset SRC DST.zip --resolution {size} --crop center`"

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type["Reader"], tuple[Any, ...]]:
        return type(self), (self.path,)

    @abstractmethod
    def names(self) -> list[str]:
        """The names of all files, sorted: the list of a folder and that of a zip of this folder are equal."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            UserError: the file cannot be read or is larger than `MAX_FILE`.
        """

    def locate(self, name: str) -> str:
        """The text that names a file in an error message."""
        return f"{name} in {self.path}"

    def read_file(self, path: Path, name: str) -> bytes:
        """The content of a file of the disk, which is called `name` here; raises as `read` does."""
        try:
            with open(path, "rb", opener=_open_without_waiting) as file:
                regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
                check(regular, f"{self.locate(name)} is a pipe or device, not a file: remove it")
                content = file.read(MAX_FILE + 1)
        except OSError as error:
            raise cannot_read(self.locate(name), error) from error
        self.check_size(name, len(content))
        return content

    def check_size(self, name: str, size: int) -> None:
        """Check that a file of `size` bytes is not larger than `MAX_FILE`.

        Raises:
            UserError: it is larger.
        """
        megabytes = f"{size / 2**20:.0f} MB, more than the {MAX_FILE >> 20} MB"
        check(size <= MAX_FILE, f"{self.locate(name)} holds {megabytes} that a file may have: remove it")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe would block until something writes to it


# ---- folder


class FolderReader(Reader):
    """The files below a folder; links to folders are followed."""

    def names(self) -> list[str]:
        def unreadable(error: OSError) -> NoReturn:
            raise cannot_read(error.filename, error) from error

        names = []
        # For each folder that `os.walk` still has to visit: device and inode of all folders that contain it.
        ancestors: dict[str, frozenset[tuple[int, int]]] = {str(self.path): frozenset()}
        for folder, folders, files in os.walk(self.path, onerror=unreadable, followlinks=True):
            try:
                status = os.stat(folder)
            except OSError as error:
                unreadable(error)
            above, this = ancestors.pop(folder), (status.st_dev, status.st_ino)
            check(this not in above, f"{folder} is a link to a folder that it is in: remove it")
            ancestors |= {os.path.join(folder, name): above | {this} for name in folders}
            relative = Path(folder).relative_to(self.path)
            names += [(relative / file).as_posix() for file in files]
        return sorted(names)

    def read(self, name: str) -> bytes:
        return self.read_file(self.path / name, name)

    def locate(self, name: str) -> str:
        return f"{self.path / name}"


# ---- zip


class ZipReader(Reader):
    """The members of a zip.

    Raises:
        UserError: the file is not a zip, is damaged, has two members of one name, or a member whose name leads to a
            place outside of the zip or has backslashes, as some programs write them between folders.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # ZipFile counts its open members without a lock: two simultaneous reads could close the file.
        self._lock = threading.Lock()
        self._archive, self._owner = _open_zip(path), os.getpid()
        known = set()
        for name in self._archive.namelist():
            check(name not in known, f"{path} has two members {name!r}: leave only the right one")
            known.add(name)
            parts = name.replace("\\", "/").split("/")
            if ".." in parts or parts[0] == "" or parts[0].endswith(":"):
                raise UserError(f"{path} has a member {name!r}, which points out of the zip: do not trust this file")
            check("\\" not in name, f"{path} has a member {name!r}, with \\ for /: pack the zip with another program")

    def names(self) -> list[str]:
        return sorted(info.filename for info in self._archive.infolist() if not info.is_dir())

    def read(self, name: str) -> bytes:
        with self._lock:
            if self._owner != os.getpid():  # forked processes share the position in an open file, so open it again
                self._archive, self._owner = _open_zip(self.path), os.getpid()
            info = self._archive.getinfo(name)
            self.check_size(name, info.file_size)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"{self.locate(name)} is compressed by another method than deflate: pack the zip again")
            try:
                with self._archive.open(info) as member:
                    # Without a number, zipfile unpacks everything, even more than the declared size.
                    return member.read(info.file_size + 1)
            except Exception as error:  # bad CRC, bad stream, encryption, unknown compression, failing disk, …
                message = f"{self.locate(name)} cannot be read ({error_text(error)}): make or download the zip again"
                raise UserError(message) from error


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises almost any exception on a damaged directory
        message = f"{path} is a truncated or corrupt zip ({error_text(error)}): copy or download it again"
        raise UserError(message) from error


# ---- CIFAR-10's archive for Python

CIFAR_FOLDER = "cifar-10-batches-py"
CIFAR_BATCHES = {f"data_batch_{i}": "train" for i in range(1, 6)} | {"test_batch": "test"}
CIFAR_META = "batches.meta"
MAX_CIFAR_MEMBER = 64 * 2**20  # bytes; the members of the published archive have 31 million


class _ByteType:
    """The pickled form of NumPy's data type u1."""

    def __init__(self, kind: object, *copying: object) -> None:
        if kind != "u1":
            raise pickle.UnpicklingError(f"it holds numbers of type {str(kind)[:20]!r} instead of bytes")

    def __setstate__(self, state: object) -> None:
        """Do nothing: the state gives the order of bytes in a number, and these numbers have only one byte."""


class _ByteArray:
    """The pickled form of a NumPy array of bytes; it is rebuilt here without calling NumPy's own code for that."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes | str]) -> None:
        _, shape, kind, by_columns, content = state
        if not isinstance(kind, _ByteType):
            raise pickle.UnpicklingError("it holds an array without a type")
        content = content.encode("latin1") if isinstance(content, str) else content  # written by Python 2
        self.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_columns else "C")


def _reconstruct(*empty: object) -> _ByteArray:
    return _ByteArray()


ALLOWED_GLOBALS = {  # the parts of a pickled array, by the names in old and new versions of NumPy
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): "ndarray",  # only an argument of `_reconstruct`: a text cannot be called
    ("numpy", "dtype"): _ByteType,
}


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that builds plain data and arrays of bytes only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not part of an array")
        return ALLOWED_GLOBALS[module, name]


class CIFARArchive(Reader):
    """The images of `cifar-10-python.tar.gz`, or of its folder, as BMP files train/00000.bmp …, test/00000.bmp …

    They are in the archive's order, and in memory: 184 MB.

    Args:
        path: the archive, the folder cifar-10-batches-py, or the folder that contains it.

    Attributes:
        class_names: the names of the classes.

    Raises:
        UserError: the archive is a different one, is damaged, or holds more than plain arrays.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._images: dict[str, np.ndarray] = {}
        self._labels: dict[str, int] = {}
        contents = {name: self._unpickle(name, content) for name, content in _cifar_members(path)}
        missing = ({CIFAR_META} | set(CIFAR_BATCHES)) - set(contents)
        check(not missing, f"{path} is not CIFAR-10's archive for Python: {min(missing, default='')} is not in it")
        counts = dict.fromkeys(CIFAR_BATCHES.values(), 0)
        try:
            self.class_names = tuple(contents[CIFAR_META]["label_names"])
            check(all(type(name) is str for name in self.class_names), f"{path} has a class whose name is not text")
            for batch, split in CIFAR_BATCHES.items():
                images = contents[batch]["data"].values.reshape(-1, 3, 32, 32)
                for image, label in zip(images, contents[batch]["labels"], strict=True):
                    known = type(label) is int and 0 <= label < len(self.class_names)
                    check(known, f"{batch} in {path} has labels outside 0 to {len(self.class_names) - 1}")
                    name = f"{split}/{counts[split]:05}.bmp"
                    self._images[name], self._labels[name] = image, label
                    counts[split] += 1
        except UserError:
            raise
        except Exception as error:  # hostile content raises almost any exception
            raise self._damaged(error_text(error)) from error

    def names(self) -> list[str]:
        return sorted(self._images)

    def labels(self) -> dict[str, int]:
        """The class of each image, by the name of the image."""
        return self._labels

    def read(self, name: str) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(self._images[name].transpose(1, 2, 0))).save(file, "BMP")
        return file.getvalue()

    def _unpickle(self, name: str, content: bytes) -> Any:
        try:
            return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        except Exception as error:  # damaged pickles raise almost any exception
            raise self._damaged(f"{name}: {error_text(error)}") from error

    def _damaged(self, reason: str) -> UserError:
        return UserError(f"{self.path} is not a readable archive of CIFAR-10 ({reason}): download it again")


def is_cifar_folder(path: Path) -> bool:
    """Whether a folder is the unpacked archive of CIFAR-10, or contains its folder."""
    return (path / "data_batch_1").is_file() or (path / CIFAR_FOLDER / "data_batch_1").is_file()


def _cifar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each batch, and of the file with the names of the classes."""
    wanted = {CIFAR_META, *CIFAR_BATCHES}
    try:
        if path.is_dir():
            folder = path if (path / "data_batch_1").is_file() else path / CIFAR_FOLDER
            for name in sorted(wanted):
                if (folder / name).is_file():
                    with (folder / name).open("rb") as file:
                        yield name, file.read(MAX_CIFAR_MEMBER)
            return
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if name in wanted and member.isfile():
                    check(member.size <= MAX_CIFAR_MEMBER, f"{member.name} in {path} is too large for CIFAR-10")
                    content = archive.extractfile(member)
                    yield name, content.read() if content else b""
    except (tarfile.TarError, EOFError, zlib.error) as error:
        text = error_text(error)
        raise UserError(f"{path} is a truncated or corrupt archive ({text}): download it again") from error
    except OSError as error:  # gzip raises it for damaged data, too
        raise cannot_read(path, error) from error


# ---- LMDB

LMDB_FILE = Path("data.mdb")
LMDB_WALK = Path(__file__).with_name("lmdb_walk.py")


class LMDBReader(Reader):
    """The values of an LMDB, each of which is an image file; the names are the keys as Latin-1 text.

    The database is opened read-only and without its lock file, so the folder need not be writable.

    Raises:
        UserError: the package lmdb is missing, or the database is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._names: list[str] | None = None
        self._database: _Database | None = None

    def names(self) -> list[str]:
        if self._names is None:
            self._names = [bytes.fromhex(key).decode("latin-1") for key in _list_keys(self.path)]
        return self._names

    def read(self, name: str) -> bytes:
        if self._database is None:
            self._database = _open_database(self.path)
        content = self._database.get(name.encode("latin-1"))
        check(
            content is not None,
            f"{self.locate(name)} does not exist any more: it was removed after the images were listed",
        )
        self.check_size(name, len(content or b""))
        return content or b""


def _list_keys(path: Path) -> list[str]:
    """All keys in hexadecimal, read in another process because a damaged database may kill the process."""
    _import_lmdb()
    # With -P the program does not import the modules of its own folder.
    command = [sys.executable, "-P", str(LMDB_WALK), str(path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        message = done.stderr.strip().splitlines()[-1:] if done.returncode > 0 else []
        raise _damaged_lmdb(path, message[0] if message else "its pages do not fit together")
    return done.stdout.split()


class _Database:
    """An LMDB that is opened again in each process that is forked from this one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open()

    def open(self) -> None:
        lmdb = _import_lmdb()
        options: dict[str, Any] = {"readonly": True, "lock": False, "readahead": False, "meminit": False}
        try:
            self.environment = lmdb.open(str(self.path), subdir=self.path.is_dir(), **options)
        except lmdb.Error as error:
            raise _damaged_lmdb(self.path, error_text(error)) from error
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
            raise _damaged_lmdb(self.path, error_text(error)) from error


_OPEN_DATABASES: WeakValueDictionary[Path, _Database] = WeakValueDictionary()


def _open_database(path: Path) -> _Database:
    """Open the database at a path, or return the open one: a process can open an LMDB only once."""
    path = path.resolve()
    database = _OPEN_DATABASES.get(path) or _Database(path)
    _OPEN_DATABASES[path] = database
    return database


def _import_lmdb() -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise UserError("reading an LMDB needs the package lmdb: pip install 'warm-lightning[lmdb]'") from error
    return lmdb


def _damaged_lmdb(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is not a readable LMDB ({reason}): copy or download it again")
