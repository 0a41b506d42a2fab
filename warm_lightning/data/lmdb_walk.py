"""Walks through an LMDB and prints its keys in hexadecimal; a program of its own, which LMDB may kill.

Where pages of the tree are damaged, LMDB's C library ends the process instead of reporting an error.
`LMDBReader` runs this file by its path, so that it imports nothing but the library.
"""

import os
import sys

import lmdb


def main(path: str) -> None:
    """Print a key a line; exit with a message where the tree is damaged in a way that LMDB notices."""
    folder = os.path.isdir(path)
    size = os.path.getsize(os.path.join(path, "data.mdb") if folder else path)
    try:
        with (
            lmdb.open(path, subdir=folder, readonly=True, lock=False) as environment,
            environment.begin(buffers=True) as transaction,
        ):
            needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            if size < needed:  # reading beyond the end of the file would be a bus error
                sys.exit(f"{size} bytes of {needed} are there")
            for key, value in transaction.cursor():
                if len(value) > size:
                    sys.exit("an entry is longer than the file")
                print(bytes(key).hex())
    except lmdb.Error as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1])
