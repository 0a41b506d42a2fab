"""A program that reads all of an LMDB and prints its keys in hexadecimal, one per line.

It runs in a process of its own: if pages of the tree are damaged, LMDB's C library kills the process instead of
reporting an error. `LMDBReader` runs this file by its path, so that it imports nothing but the library.
"""

import os
import sys

import lmdb


def main(path: str) -> None:
    """Print the keys of the LMDB at `path`; exit with a message if the library reports damage."""
    folder = os.path.isdir(path)
    size = os.path.getsize(os.path.join(path, "data.mdb") if folder else path)
    try:
        with (
            lmdb.open(path, subdir=folder, readonly=True, lock=False) as environment,
            environment.begin(buffers=True) as transaction,
        ):
            needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            if size < needed:  # reading beyond the end of the file would kill the process (bus error)
                sys.exit(f"{size} bytes of {needed} are there")
            for key, value in transaction.cursor():
                if len(value) > size:
                    sys.exit("an entry is longer than the file")
                print(bytes(key).hex())
    except lmdb.Error as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1])
