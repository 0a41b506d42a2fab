"""LMDB databases of image files, as LSUN comes (Yu et al. 2015)."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from warm_lightning.data.readers import Reader, cannot_read, reason
from warm_lightning.errors import UserError, check

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
