"""Records of a run under way: kept in memory and mirrored to a file that survives a kill.

Records are buffered and appended to a netCDF4 file with unlimited dimensions in one go, at most every `interval`
seconds. Between writes the file is closed, so any program can read it at any time and whatever becomes of this process;
at most `interval` seconds of records are missing from it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import xarray as xr

from ._typing import NDArray
from .errors import StoreError
from .schema import COORDS, Variable, attrs_of, build, spec_of


class Series:
    """Records of one axis by column: `len` of them, each name with one value (or array) per record."""

    def __init__(self, names: Sequence[str]) -> None:
        self.columns: dict[str, list[Any]] = {name: [] for name in names}

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def extend(self, columns: Mapping[str, Sequence[Any]]) -> None:
        for name, values in columns.items():
            self.columns[name].extend(values)

    def array(self, name: str, start: int = 0) -> NDArray[Any]:
        """The values of a name from record `start` on."""
        return np.array(self.columns[name][start:])


class Recorder:
    """Append-only series over the axes `step`, `eval_step` and `probe_step`.

    A record's value is a number, or an array where the schema has further dimensions, e.g. (probe_step, rank): those
    have a fixed length and their coordinates are given beforehand.

    Args:
        path: where to mirror the records; None keeps them in memory only. The file must not be in use.
        attrs: attributes of the mirrored dataset (see `riverval.provenance`); its status should be "running".
        source: theory, toy or real.
        interval: seconds between two writes of the mirror.
        coords: values of the coordinates of further dimensions.
        own: meaning of names that are not in the schema; `attrs` must declare them (see `riverval.schema.declare`).

    Attributes:
        records: what was appended, by axis.

    Raises:
        StoreError: the mirror cannot be written, at once for a folder that is not writable; or coordinates that neither
            the schema nor `own` knows.
    """

    def __init__(
        self,
        path: Path | None,
        attrs: dict[str, str],
        source: str,
        interval: float = 0.25,
        *,
        coords: Mapping[str, Sequence[Any]] | None = None,
        own: Mapping[str, Variable] | None = None,
    ) -> None:
        self.source = source
        self.records: dict[str, Series] = {}
        self._coords, self._own = dict(coords or {}), dict(own or {})
        self._dims: dict[str, tuple[str, ...]] = {}  # of every recorded name
        self._path, self._interval = path, interval
        self._written: dict[str, int] = {}
        self._attrs: dict[str, str] = {}  # changed since the last write
        self._last_write = 0.0
        self._closed = False
        self.dataset()  # refuses coordinates that do not fit the schema before anything is written
        if path is not None:
            self._start(path, attrs)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, axis: str, **values: Any) -> None:
        """Add one record; `values` names the coordinate `axis` itself and what belongs to it.

        Raises:
            StoreError: names that the schema does not have on this axis, or others than the axis's first record had; an
                array of another shape than its coordinates have.
        """
        self.extend(axis, **{name: [value] for name, value in values.items()})

    def extend(self, axis: str, **columns: Sequence[Any]) -> None:
        """Add several records at once; `columns` as in `append`, with one entry per record.

        Raises:
            StoreError: as `append`, or columns of different length.
        """
        series = self.records.get(axis)
        if series is not None and columns.keys() != series.columns.keys():
            raise StoreError(f"records of {axis!r} hold {_told(series.columns)}, got one with {_told(columns)}")
        lengths = {len(column) for column in columns.values()}
        if len(lengths) > 1:
            raise StoreError(f"records of {axis!r} need columns of one length, got {sorted(lengths)}")
        if lengths == {0}:
            return
        dims = self._dims if series is not None else self._found_dims(axis, columns)
        for name, column in columns.items():
            wanted = tuple(len(self._coords[d]) for d in dims[name][1:])
            if wanted or np.ndim(column[0]):
                _check_shapes(name, column, dims[name], wanted)
        if series is None:
            series = self.records[axis] = Series(list(columns))
            self._dims.update(dims)
        series.extend(columns)
        if self._path is not None and time.monotonic() - self._last_write >= self._interval:
            self.flush()

    def restore(self, records: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
        """Take up the records of an earlier process and write them to the mirror at once.

        Args:
            records: columns by axis, as in `extend`.

        Raises:
            StoreError: as `extend`, or something was recorded already.
        """
        if self.records:
            raise StoreError(f"only a recorder without records can be restored, this one has {_told(self.records)}")
        for axis, columns in records.items():
            self.extend(axis, **columns)
        self.flush()

    def describe(self, **attrs: str) -> None:
        """Change attributes of the mirror, e.g. its notes, with the next write."""
        self._attrs.update(attrs)

    def dataset(self) -> xr.Dataset:
        """All records so far, as a Dataset without attributes."""
        columns: dict[str, Any] = {name: list(values) for name, values in self._coords.items()}
        for series in self.records.values():
            columns.update({name: series.array(name) for name in series.columns})
        return build(columns, self._dims, self.source, self._own)

    def _found_dims(self, axis: str, columns: Mapping[str, Sequence[Any]]) -> dict[str, tuple[str, ...]]:
        """The dimensions of every name: those of its schema that start with `axis` and have coordinates."""
        if axis not in columns:
            raise StoreError(f"a record of {axis!r} must hold {axis!r} itself, got {_told(columns)}")
        found = {}
        for name, column in columns.items():
            spec = spec_of(name, self._own)
            fit = [d for d in spec.dims if d[:1] == (axis,) and {*d[1:]} <= {*self._coords}] if spec is not None else []
            if not fit:
                raise StoreError(f"{name!r} is not in the schema with dimension {axis!r}")
            found[name] = next((d for d in fit if len(d) == 1 + np.ndim(column[0])), fit[0])
        return found

    def _start(self, path: Path, attrs: dict[str, str]) -> None:
        """Make the mirror, without records; where that fails nothing is left."""
        try:
            with _open(path, "w") as file:
                file.setncatts(attrs)
                # xarray reads the names in this attribute as coordinates, whatever variables there are.
                file.setncattr("coordinates", "source")
                self._variable(file, "source", ())[...] = np.array(self.source, dtype=object)
                for name, values in self._coords.items():
                    file.createDimension(name, len(values))
                    stored = self._variable(file, name, (name,))
                    stored[:] = np.array(values, dtype=object if stored.dtype is str else None)
        except StoreError:
            with suppress(OSError):  # there may be nothing, or something that is no file
                path.unlink()
            raise

    def flush(self) -> None:
        """Write what is buffered to the mirror."""
        if self._path is None or self._closed:
            return
        with _open(self._path, "a") as file:
            for axis, series in self.records.items():
                if len(series) > self._written.get(axis, 0):
                    self._write(file, axis, series)
            if self._attrs:
                file.setncatts(self._attrs)
        self._attrs = {}
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

    def _write(self, file: Any, axis: str, series: Series) -> None:
        if axis not in file.dimensions:
            file.createDimension(axis, None)
            for name in series.columns:
                self._variable(file, name, self._dims[name])
            beside = [name for name in series.columns if name in COORDS and name != axis]
            if beside:  # CF: xarray reads these as coordinates
                for name in set(series.columns) - set(COORDS):
                    file.variables[name].setncattr("coordinates", " ".join([*beside, "source"]))
        done = self._written.get(axis, 0)
        for name in series.columns:
            file.variables[name][done:] = series.array(name, done)
        self._written[axis] = len(series)

    def _variable(self, file: Any, name: str, axes: tuple[str, ...]) -> Any:
        spec = spec_of(name, self._own)
        assert spec is not None  # every name was looked up when it was first given
        variable = file.createVariable(name, str if spec.dtype == "str" else spec.dtype, axes)
        variable.setncatts(attrs_of(name, self._own))
        return variable


@contextmanager
def _open(path: Path, mode: Literal["w", "a"]) -> Iterator[Any]:
    """The mirror, open for as long as it is written: HDF5 locks an open file, and reading it here may crash."""
    import netCDF4

    try:
        with netCDF4.Dataset(path, mode, format="NETCDF4") as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise StoreError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def _check_shapes(name: str, column: Sequence[Any], dims: tuple[str, ...], wanted: tuple[int, ...]) -> None:
    for value in column:
        if np.shape(value) != wanted:
            raise StoreError(f"a record of {name!r} must have shape {wanted} {dims[1:]}, got {np.shape(value)}")


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(values)
