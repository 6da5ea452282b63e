"""One process at a time in a folder: two that train into the same one would spoil each other's files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError, StoreError, missing_extra

LOCK_FILE = ".lock"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder within the block.

    The lock is the operating system's, on a file that is gone afterwards: a process that is killed leaves the file but
    not the lock, so nothing has to be cleared away by hand.

    Raises:
        InputError: another process holds it, or this one does already.
        StoreError: there is no such folder.
        MissingExtraError: filelock, a dependency of torch, is not installed.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise missing_extra("filelock", "real", "training") from error
    if not folder.is_dir():
        raise StoreError(f"there is no folder {folder}; make it first")
    path = folder / LOCK_FILE
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"another process is at work in {folder}; wait for it or stop it, or choose another folder"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # some systems keep an open file
            path.unlink(missing_ok=True)  # while it is held: afterwards it may be another's
        lock.release()
