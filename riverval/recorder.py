"""Records of a run under way: kept in memory and mirrored to a file that survives a kill.

Records are buffered and appended to a netCDF4 file with unlimited dimensions in one go, at most every `interval`
seconds. Between writes the file is closed, so any program can read it at any time and whatever becomes of this process;
at most `interval` seconds of records are missing from it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import xarray as xr

from .errors import StoreError
from .schema import COORDS, VARIABLES, attrs_of, build


class Recorder:
    """Append-only series over the axes `step`, `eval_step` and `probe_step`.

    Args:
        path: where to mirror the records; None keeps them in memory only. The file must not be in use.
        attrs: attributes of the mirrored dataset (see `riverval.provenance`); its status should be "running".
        source: theory, toy or real.
        interval: seconds between two writes of the mirror.

    Raises:
        StoreError: the mirror cannot be written, at once for a folder that is not writable.
    """

    def __init__(self, path: Path | None, attrs: dict[str, str], source: str, interval: float = 0.25) -> None:
        self.source = source
        self.records: dict[str, list[dict[str, Any]]] = {}
        self._path, self._interval = path, interval
        self._written: dict[str, int] = {}
        self._last_write = 0.0
        self._closed = False
        if path is not None:
            self._start(path, attrs)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, axis: str, **values: float) -> None:
        """Add one record; `values` names the coordinate `axis` itself and what belongs to it.

        Raises:
            StoreError: names that the schema does not have on this axis, or others than the axis's first record had.
        """
        rows = self.records.get(axis)
        if rows is None:
            _check_names(axis, values)
            rows = self.records[axis] = []
        elif values.keys() != rows[0].keys():
            raise StoreError(f"records of {axis!r} hold {_told(rows[0])}, got one with {_told(values)}")
        rows.append(values)
        if self._path is not None and time.monotonic() - self._last_write >= self._interval:
            self.flush()

    def dataset(self) -> xr.Dataset:
        """All records so far, as a Dataset without attributes."""
        columns: dict[str, Any] = {}
        for rows in self.records.values():
            columns.update({name: [row[name] for row in rows] for name in rows[0]})
        return build(columns, {}, self.source)

    def _start(self, path: Path, attrs: dict[str, str]) -> None:
        """Make the mirror, without records; where that fails nothing is left."""
        try:
            with _open(path, "w") as file:
                file.setncatts(attrs)
                # xarray reads the names in this attribute as coordinates, whatever variables there are.
                file.setncattr("coordinates", "source")
                _variable(file, "source", (), str)[...] = np.array(self.source, dtype=object)
        except StoreError:
            with suppress(OSError):  # there may be nothing, or something that is no file
                path.unlink()
            raise

    def flush(self) -> None:
        """Write what is buffered to the mirror."""
        if self._path is None or self._closed:
            return
        with _open(self._path, "a") as file:
            for axis, rows in self.records.items():
                if len(rows) > self._written.get(axis, 0):
                    self._write(file, axis, rows)
        self._last_write = time.monotonic()

    def close(self) -> None:
        """Flush the mirror and leave it; the records stay in memory."""
        try:
            self.flush()
        finally:
            self._closed = True

    def remove(self) -> None:
        """Close and delete the mirror, once its records stand in a finished file."""
        self.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _write(self, file: Any, axis: str, rows: list[dict[str, Any]]) -> None:
        if axis not in file.dimensions:
            file.createDimension(axis, None)
            for name in rows[0]:
                _variable(file, name, (axis,), (COORDS.get(name) or VARIABLES[name]).dtype)
            beside = [name for name in rows[0] if name in COORDS and name != axis]
            if beside:  # CF: xarray reads these as coordinates
                for name in set(rows[0]) - set(COORDS):
                    file.variables[name].setncattr("coordinates", " ".join([*beside, "source"]))
        done = self._written.get(axis, 0)
        for name in rows[0]:
            file.variables[name][done:] = np.array([row[name] for row in rows[done:]])
        self._written[axis] = len(rows)


@contextmanager
def _open(path: Path, mode: Literal["w", "a"]) -> Iterator[Any]:
    """The mirror, open for as long as it is written: HDF5 locks an open file, and reading it here may crash."""
    import netCDF4

    try:
        with netCDF4.Dataset(path, mode, format="NETCDF4") as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise StoreError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def _variable(file: Any, name: str, axes: tuple[str, ...], dtype: Any) -> Any:
    variable = file.createVariable(name, dtype, axes)
    variable.setncatts(attrs_of(name))
    return variable


def _check_names(axis: str, values: Mapping[str, float]) -> None:
    if axis not in values:
        raise StoreError(f"a record of {axis!r} must hold {axis!r} itself, got {_told(values)}")
    for name in values:
        spec = COORDS.get(name) or VARIABLES.get(name)
        if spec is None or (axis,) not in spec.dims:
            raise StoreError(f"{name!r} is not in the schema with dimension {axis!r}")


def _told(values: Mapping[str, float]) -> str:
    return ", ".join(values)
