"""Result files: the only module that makes run folders and writes or reads datasets.

A run is a folder ``<root>/<name>/`` with ``run.nc`` and pictures. Files are written aside and renamed, so a reader
never sees half a file and a failed write leaves what was there. While a run is under way its records stand in
``run.partial.nc`` (see `riverval.recorder`), a valid dataset with the status "running"."""

from __future__ import annotations

import contextlib
import csv
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from .errors import InputError, StoreError
from .schema import validate

RUN_FILE = "run.nc"
PARTIAL_FILE = "run.partial.nc"
STUDY_FILE = "study.nc"  # of several runs, whose own folders lie beside it


def new_run(root: str | Path, name: str | None, *, default: str, source: str, overwrite: bool = False) -> Path:
    """Make the folder of a new run and return it.

    Args:
        root: folder of all runs; made if missing.
        name: name of the run; None takes `default`, with -2, -3, ... appended until it is free.
        source: toy or real; a run of another kind is never overwritten, its other files would stay beside the new ones.
        overwrite: allow a `name` that exists; its files are replaced one by one when their successors are whole.

    Raises:
        InputError: the named run exists (or is of another kind), or the name is not a plain folder name.
        StoreError: the folder cannot be made.
    """
    if name is not None and (name in ("", ".", "..") or "\0" in name or Path(name).name != name):
        raise InputError(f"the name of a run must be a plain folder name, got {name!r}; choose the place with --out")
    root = Path(root)
    number = 1
    while True:
        folder = root / (name or (default if number == 1 else f"{default}-{number}"))
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            if name is None and root.is_dir():
                number += 1
                continue
            if not folder.is_dir():
                raise StoreError(f"cannot make the run folder {folder}: a file of that name is in the way") from error
            if overwrite or not any(folder.iterdir()):
                _refuse_other_kind(folder, source)
                return folder
            raise InputError(f"{folder} exists; choose another --name, or replace it with --overwrite") from error
        except OSError as error:
            raise StoreError(f"cannot make the run folder {folder}: {error.strerror or error}") from error
        return folder


def _refuse_other_kind(folder: Path, source: str) -> None:
    try:
        found = str(load(folder)["source"].item())
    except StoreError:  # no dataset that can be read, so none to protect
        return
    if found != source:
        raise InputError(f"{folder} holds a {found} run, which a {source} run does not replace; choose another --name")


def discard_if_empty(folder: Path) -> None:
    """Remove a run's folder if nothing was written to it: what fails early should leave no trace."""
    with contextlib.suppress(OSError):  # not empty, or gone already
        folder.rmdir()


def save(ds: xr.Dataset, path: str | Path, *, overwrite: bool = False) -> Path:
    """Validate `ds` and write it to `path` as netCDF4, all or nothing.

    Raises:
        InputError: the file exists and `overwrite` is False.
        StoreError: not in the schema, or writing failed (the message says why; an existing file is untouched).
    """
    path = Path(path)
    validate(ds)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another path, or allow overwriting")
    encoding = {str(n): {"zlib": True, "complevel": 4} for n, v in ds.variables.items() if v.size > 1000}

    def write(part: Path) -> None:
        ds.to_netcdf(part, engine="netcdf4", format="NETCDF4", encoding=encoding)

    return write_aside(path, write)


def write_csv(path: str | Path, columns: Mapping[str, Iterable[Any]]) -> Path:
    """Write columns of equal length under their names, all or nothing.

    Raises:
        StoreError: the file cannot be written.
    """

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    return write_aside(Path(path), write)


def write_aside(path: Path, write: Callable[[Path], object]) -> Path:
    """Call ``write(part)`` with a path beside `path`, then move the finished file over it.

    Raises:
        StoreError: the folder is not writable, the disk is full, or the library failed while writing.
    """
    try:
        handle, part_name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    part = Path(part_name)
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # netCDF4 reports a full disk as RuntimeError
        raise StoreError(f"cannot write {path}: {_why(error)}") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _why(error: Exception) -> str:
    """The reason in words; HDF5 has no others than its own for a disk that is full or a file that may not grow."""
    told = str(getattr(error, "strerror", None) or error)
    return f"{told}; is the disk full?" if "HDF error" in told else told


def resolve(path: str | Path) -> Path:
    """The dataset file meant by a file, a run folder or the folder of a study of real runs.

    A folder may hold the finished file of an earlier run beside the partial one of a run that replaces it and is under
    way or was killed: the one written last is meant.

    Raises:
        StoreError: nothing is there, or the folder holds no dataset.
    """
    path = Path(path)
    if path.is_dir():
        if found := _files(path):
            return max(found, key=lambda file: file.stat().st_mtime_ns)
        if (study := path / STUDY_FILE).exists():
            return study
        raise StoreError(f"{path} holds no {RUN_FILE}; give a dataset file or the folder of a run")
    if not path.exists():
        raise StoreError(f"{path} does not exist; give a dataset file or the folder of a run")
    return path


def holds_run(folder: Path) -> bool:
    """Whether a folder is that of a run, finished or not."""
    return bool(_files(folder))


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in (RUN_FILE, PARTIAL_FILE) if (folder / name).exists()]


def load(path: str | Path) -> xr.Dataset:
    """Read a dataset file, or the dataset of a run folder, into memory and validate it.

    Raises:
        StoreError: missing, unreadable, or not in the schema.
    """
    path = resolve(path)
    try:
        with xr.open_dataset(path, engine="netcdf4") as ds:
            loaded = ds.load()
    except (OSError, ValueError, RuntimeError) as error:
        raise StoreError(f"{path} cannot be read as netCDF; it may be cut short or not a dataset ({error})") from error
    try:
        return validate(loaded)
    except StoreError as error:
        raise StoreError(f"{path} is {error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
