"""Landscapes and spectra as datasets in the schema: what `riverval.save` writes and `riverval.plots_instruments` draws.

The null of each number is stored beside it: of a line the quadratic with the same ends, of each test the words of its
null hypothesis, of a section the quadratic at its middle, of a point near a plane the loss of its projection. A
spectral density has no null, and stands beside a reference, that of a random matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ._checks import check_int, check_number
from ._typing import ArrayLike, FloatArray
from .errors import InputError
from .landscape import NearPlane, PathLosses, PlaneLosses
from .provenance import provenance
from .schema import build
from .sections import CrossSection
from .traces import SpectralDensity
from .valley import ValleyTest, quadratic_line


def path_dataset(
    path: PathLosses,
    *,
    tests: Sequence[ValleyTest] = (),
    curvature: float | None = None,
    title: str = "loss along a path",
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    source: str = "real",
) -> xr.Dataset:
    """A path with its tests.

    Args:
        path: from `path_losses`.
        tests: what the tests of `riverval.valley` found on it, each name once; their common level goes into `config`.
        curvature: d'Hd of the displacement between the ends of a straight line: gives the quadratic null `line_null`.
        title, config, seed: kept with the dataset (see `riverval.provenance`).
        source: theory, toy or real.

    Raises:
        InputError: tests that repeat or differ in level; a curvature with a path that bends, or without both its ends.
    """
    config = dict(config or {})
    values: dict[str, Any] = {
        "alpha": path.alpha, "line_distance": path.distance, "line_loss": path.loss, "line_loss_error": path.error,
        **_batches(path.weights), "line_batch_loss": path.batch_losses,
        "point": np.arange(len(path.knots)), "line_knot": path.knots,
    }  # fmt: skip
    if curvature is not None:
        values["line_null"] = _null(path, check_number("curvature", curvature, what="d'Hd"))
        config["curvature"] = float(curvature)
    if tests:
        names, levels = [test.name for test in tests], {test.level for test in tests}
        if len(set(names)) < len(names) or len(levels) > 1:
            raise InputError(f"tests must be different ones at one level, got {names} at {sorted(levels)}")
        values["test"], config["level"] = names, levels.pop()
        for name in ("estimate", "error", "low", "high", "alpha", "verdict", "null"):
            values[f"line_test_{name}"] = [getattr(test, name) for test in tests]
        values["line_test_p"] = [test.p_value for test in tests]
    return _dataset(values, title, config, seed, source)


def plane_dataset(
    grid: PlaneLosses,
    *,
    near: NearPlane | None = None,
    states: ArrayLike | None = None,
    title: str = "loss on a plane",
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    source: str = "real",
) -> xr.Dataset:
    """A plane, with the points near it if there are any.

    Args:
        grid: from `plane_losses`.
        near: from `near_plane`, of the same plane.
        states: updates made before each of these points, if they are iterates; shape (n,).
        title, config, seed, source: as in `path_dataset`.

    Raises:
        InputError: states without points, or not one for each.
    """
    unit_x, unit_y = grid.plane.units
    values: dict[str, Any] = {
        "plane_x": grid.x, "plane_y": grid.y, "plane_loss": grid.loss, "plane_loss_error": grid.error,
        "plane_unit_x": unit_x, "plane_unit_y": unit_y, "plane_cosine": grid.plane.cosine, **_batches(grid.weights),
    }  # fmt: skip
    if states is not None and (near is None or np.shape(states) != near.x.shape):
        raise InputError("states are one number for each point near the plane; give near, and as many states")
    if near is not None:
        gap, error = near.gap
        values |= {
            "point": np.arange(len(near.x)), "plane_point_x": near.x, "plane_point_y": near.y,
            "plane_point_off": near.off, "plane_point_loss": near.loss, "plane_point_projected": near.projected_loss,
            "plane_point_gap": gap, "plane_point_gap_error": error,
        }  # fmt: skip
    if states is not None:
        values["plane_point_state"] = states
    return _dataset(values, title, config, seed, source)


def section_dataset(
    section: CrossSection,
    *,
    title: str = "cross-section of the valley",
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    source: str = "real",
) -> xr.Dataset:
    """A cross-section from `cross_section`. Arguments as in `path_dataset`."""
    values = {
        "direction": section.names, "offset": section.offset, "section_distance": section.distance,
        "section_loss": section.loss, "section_rise_error": section.rise[1], "section_predicted": section.predicted,
        "section_curvature": section.curvature, "section_slope": section.slope, **_batches(section.weights),
    }  # fmt: skip
    return _dataset(values, title, config, seed, source)


def density_dataset(
    found: SpectralDensity,
    *,
    points: int = 400,
    width: float | None = None,
    title: str = "spectral density",
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    source: str = "real",
) -> xr.Dataset:
    """A spectral density on an even grid, beside Wigner's semicircle with the same mean and variance.

    The semicircle (`density_null`) is a reference and no null hypothesis: the spectrum of a large symmetric matrix of
    independent entries with the same trace and Frobenius norm, which no Hessian is. It says how wide the spectrum would
    be if its norm were spread over all directions: how far beyond it the outliers lie, and how much of the mass is
    nearer to 0, is meaningful; that a Hessian leaves it is not, all do. Both are smoothed by a Gaussian of one width.

    Args:
        found: from `riverval.traces.spectral_density`.
        points: of the grid, which spans all nodes and the semicircle with three widths on either side.
        width: of the Gaussian, in units of the eigenvalues; a fiftieth of the spread of the nodes if None.
        title, config, seed, source: as in `path_dataset`.

    Raises:
        InputError: fewer than 2 points, a width that is not positive, or (width None) a spectrum without spread.
    """
    nodes = found.nodes[np.isfinite(found.nodes)]
    spread = float(np.ptp(nodes))
    if width is None and spread <= 1e-9 * float(np.abs(nodes).max()):  # rounding, of the mean that is taken off below
        raise InputError("all eigenvalues are the same: give the width to smooth the density by")
    by = check_number("width", spread / 50 if width is None else width, low=0.0, open_low=True)
    mean, radius = found.moment(1)[0], 2 * np.sqrt(max(found.moment(2)[0] - found.moment(1)[0] ** 2, 0.0))
    low, high = min(nodes.min(), mean - radius) - 3 * by, max(nodes.max(), mean + radius) + 3 * by
    grid = np.linspace(low, high, check_int("points", points, low=2))
    density, error = found.density(grid, by)
    values = {
        "eigenvalue": grid, "density": density, "density_error": error, "density_width": by,
        "density_null": _semicircle(grid, mean, float(radius), by),
    }  # fmt: skip
    return _dataset(values, title, config, seed, source)


def _semicircle(grid: FloatArray, mean: float, radius: float, width: float) -> FloatArray:
    """2 sqrt(r^2 - x^2) / (pi r^2), smoothed: a Gaussian at each of many nodes of its own Gauss quadrature."""
    angle = np.pi * np.arange(1, 401) / 401  # Chebyshev nodes of the second kind, weights sin^2
    nodes, weights = mean + radius * np.cos(angle), 2 * np.sin(angle) ** 2 / 401
    shape = np.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    smoothed: FloatArray = shape @ weights
    return smoothed


def _batches(weights: ArrayLike) -> dict[str, Any]:
    return {"batch": np.arange(np.size(weights)), "batch_weight": weights}


def _null(path: PathLosses, curvature: float) -> Any:
    ends = [np.flatnonzero(path.alpha == a) for a in (0.0, 1.0)]
    if len(path.knots) > 2 or not all(len(end) for end in ends):
        raise InputError("the quadratic null is that of a straight line with both its ends among the places")
    first, last = (float(path.loss[end[0]]) for end in ends)
    return quadratic_line(path.alpha, first, last, curvature)


def _dataset(
    values: Mapping[str, Any], title: str, config: Mapping[str, Any] | None, seed: int, source: str
) -> xr.Dataset:
    ds: xr.Dataset = build(values, {}, source).assign_attrs(provenance(title, config=dict(config or {}), seed=seed))
    return ds
