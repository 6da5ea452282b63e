"""Records of a run under way: kept in memory and mirrored to a file that survives a kill.

Records are buffered and written to a netCDF4 file with unlimited dimensions in one go, at most every `interval` seconds,
with a sync after each: between syncs the file is not touched, so it is readable whenever the process dies, and at most
`interval` seconds of records are missing from it.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

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
        self._file: Any = None
        if path is not None:
            self._open(path, attrs)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def append(self, axis: str, **values: float) -> None:
        """Add one record; `values` names the coordinate `axis` itself and what belongs to it."""
        self.records.setdefault(axis, []).append(values)
        if self._file is not None and time.monotonic() - self._last_write >= self._interval:
            self.flush()

    def dataset(self) -> xr.Dataset:
        """All records so far, as a Dataset without attributes."""
        columns: dict[str, Any] = {}
        for rows in self.records.values():
            columns.update({name: [row[name] for row in rows] for name in rows[0]})
        return build(columns, {}, self.source)

    def flush(self) -> None:
        """Write what is buffered to the mirror and sync it."""
        if self._file is None:
            return
        try:
            for axis, rows in self.records.items():
                self._write(axis, rows)
            self._file.sync()
        except (OSError, RuntimeError) as error:
            raise StoreError(f"cannot write {self._path}: {error}") from error
        self._last_write = time.monotonic()

    def close(self) -> None:
        """Flush and close the mirror; the records stay in memory."""
        if self._file is None:
            return
        file = self._file
        try:
            self.flush()
        finally:
            self._file = None
            try:
                file.close()
            except (OSError, RuntimeError) as error:
                raise StoreError(f"cannot write {self._path}: {error}") from error

    def remove(self) -> None:
        """Close and delete the mirror, once its records stand in a finished file."""
        self.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _open(self, path: Path, attrs: dict[str, str]) -> None:
        import netCDF4

        try:
            self._file = netCDF4.Dataset(path, "w", format="NETCDF4")
            self._file.setncatts(attrs)
            self._variable("source", (), str)[...] = np.array(self.source, dtype=object)
            self._file.sync()
        except (OSError, RuntimeError) as error:
            raise StoreError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error

    def _variable(self, name: str, axes: tuple[str, ...], dtype: Any) -> Any:
        variable = self._file.createVariable(name, dtype, axes)
        variable.setncatts(attrs_of(name))
        return variable

    def _write(self, axis: str, rows: list[dict[str, Any]]) -> None:
        done = self._written.get(axis, 0)
        if axis not in self._file.dimensions:
            self._file.createDimension(axis, None)
            for name in rows[0]:
                spec = COORDS.get(name) or VARIABLES[name]
                self._variable(name, (axis,), spec.dtype)
            beside = [name for name in rows[0] if name in COORDS and name != axis]
            if beside:  # CF: xarray reads these as coordinates
                for name in set(rows[0]) - set(COORDS):
                    self._file.variables[name].setncattr("coordinates", " ".join([*beside, "source"]))
        for name in rows[0]:
            self._file.variables[name][done:] = np.array([row[name] for row in rows[done:]])
        self._written[axis] = len(rows)
