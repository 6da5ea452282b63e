"""Pictures of landscapes, spectra and watched runs: drawn from the file alone, and what is drawn is what is stored."""

from __future__ import annotations

import numpy as np
import pytest

from riverval import plots, plots_instruments, plots_observer, store
from riverval.directions import plane_along, plane_through
from riverval.errors import InputError
from riverval.landscape import near_plane, path_losses, plane_losses
from riverval.landscape_data import density_dataset, path_dataset, plane_dataset, section_dataset
from riverval.provenance import provenance
from riverval.schema import build
from riverval.sections import cross_section
from riverval.traces import spectral_density
from riverval.valley import TESTS

H = np.diag([3.0, 1.0, 0.3, 0.1])
LOSSES = [lambda w, c=c: float((w - c) @ H @ (w - c) / 2) for c in np.random.default_rng(0).standard_normal((4, 4))]
Q = np.linalg.qr(np.random.default_rng(2).standard_normal((70, 70)))[0]
POINTS = list(np.random.default_rng(1).standard_normal((6, 4)))


def made_line(*, losses=LOSSES, tests=True, curvature=True, points=POINTS[:2]):
    path, d = path_losses(losses, points, 7), points[1] - points[0]
    found = [test(path) for test in TESTS.values()] if tests else []
    return path_dataset(path, tests=found, curvature=float(d @ H @ d) if curvature else None, title="a line")


def made_plane(*, near=True, losses=LOSSES, oblique=False):
    plane = plane_along(POINTS[0], 2 * POINTS[1], POINTS[2]) if oblique else plane_through(*POINTS[:3])
    grid = plane_losses(losses, plane, np.linspace(-1, 3, 6), np.linspace(-2, 2, 5))
    return plane_dataset(grid, near=near_plane(losses, plane, POINTS) if near else None, title="a plane")


def made_section(*, directions=4, losses=LOSSES, known=True):
    values = {"curvatures": np.diag(H)[:directions], "gradient": np.ones(4)} if known else {}
    return section_dataset(cross_section(losses, np.zeros(4), np.eye(4)[:, :directions], reach=1.0, places=5, **values))


def made_density():
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((60, 60)))[0]
    matrix = q @ np.diag([*np.linspace(0, 0.1, 58), 2.0, 3.0]) @ q.T
    return density_dataset(spectral_density(matrix, rng=np.random.default_rng(0), probes=4, steps=20))


def holed(w):
    return np.nan if w[0] > 0.5 else float(w @ w)


def cliff(w):
    return np.inf if w[0] < POINTS[0][0] + 0.01 else float(w @ w)


def rounded(w):
    return 1.0 + 2.3e-16 * (w[0] > 0)


PICTURES = {
    "line with a hole at its start": (
        plots_instruments.line,
        lambda: made_line(losses=[cliff] * 2, tests=False, curvature=False),
    ),
    "plane with a hole at its points": (plots_instruments.plane, lambda: made_plane(losses=[cliff] * 2)),
    "plane of one loss up to rounding": (plots_instruments.plane, lambda: made_plane(losses=rounded)),
    "line": (plots_instruments.line, made_line),
    "path": (plots_instruments.line, lambda: made_line(tests=False, curvature=False, points=POINTS[:4])),
    "line of one batch": (plots_instruments.line, lambda: made_line(losses=LOSSES[0])),
    "line with a hole": (plots_instruments.line, lambda: made_line(losses=[holed] * 2, tests=False, curvature=False)),
    "plane": (plots_instruments.plane, made_plane),
    "plane alone": (plots_instruments.plane, lambda: made_plane(near=False)),
    "oblique plane": (plots_instruments.plane, lambda: made_plane(oblique=True)),
    "plane with a hole": (plots_instruments.plane, lambda: made_plane(losses=[holed] * 2)),
    "plane of one loss": (plots_instruments.plane, lambda: made_plane(losses=lambda w: 1.0)),
    "section": (plots_instruments.section, made_section),
    "section, nothing known": (plots_instruments.section, lambda: made_section(known=False, directions=1)),
    "section with a hole": (plots_instruments.section, lambda: made_section(losses=[lambda w: holed(3 * w)] * 2)),
    "density": (plots_instruments.density, made_density),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_drawn_from_the_file_alone(name, tmp_path):
    draw, make = PICTURES[name]
    store.save(make(), tmp_path / "run.nc")
    figure = draw(store.load(tmp_path))
    assert plots.write(figure, tmp_path / "picture.png").stat().st_size > 10_000
    drawn = [axis for axis in figure.axes if axis.axison]
    assert all(axis.get_ylabel() or axis.get_title() for axis in drawn)
    if "hole" in name:
        assert any("the loss is inf or nan" in text.get_text() for axis in drawn for text in axis.texts)


def lines_of(figure):
    return [np.asarray(line.get_ydata(), dtype=float) for axis in figure.axes for line in axis.lines]


def holds(drawn, values):
    return any(y.shape == np.shape(values) and np.allclose(y, values, equal_nan=True) for y in drawn)


def test_the_numbers_drawn_are_the_stored_ones():
    ds = made_line()
    drawn = lines_of(plots_instruments.line(ds))
    assert holds(drawn, ds["line_loss"])
    assert holds(drawn, ds["line_null"])
    assert holds(drawn, ds["line_batch_loss"][2] - ds["line_batch_loss"][2, 0])
    ds = made_plane()
    drawn = lines_of(plots_instruments.plane(ds))
    assert holds(drawn, ds["plane_point_loss"])
    assert holds(drawn, ds["plane_point_projected"])
    ds = made_section()
    drawn = lines_of(plots_instruments.section(ds))
    for k in range(4):
        assert holds(drawn, ds["section_loss"][k] - ds["section_loss"][k, 2])
        assert holds(drawn, ds["section_predicted"][k] - ds["section_loss"][k, 2])


def test_points_on_a_plane_have_the_colour_of_their_own_loss():
    ds = made_plane()
    figure = plots_instruments.plane(ds)
    scatter = next(
        c for c in figure.axes[0].collections if c.get_offsets().shape == (6, 2) and c.get_array() is not None
    )
    np.testing.assert_array_equal(scatter.get_array(), ds["plane_point_loss"])
    np.testing.assert_array_equal(scatter.get_offsets(), np.stack([ds["plane_point_x"], ds["plane_point_y"]], axis=1))


def test_a_density_stands_beside_wigners_semicircle():
    """Of a random symmetric matrix the density is that reference itself."""
    draw = np.random.default_rng(2).standard_normal((400, 400))
    matrix = 5 * np.eye(400) + (draw + draw.T) / np.sqrt(2 * 400)
    found = spectral_density(matrix, rng=np.random.default_rng(0), probes=20, steps=40)
    ds = density_dataset(found, width=0.2)
    x, null = ds["eigenvalue"].to_numpy(), ds["density_null"].to_numpy()
    assert np.trapezoid(null, x) == pytest.approx(1, abs=0.01)
    assert np.abs(ds["density"] - null).max() < 0.03
    middle = np.sqrt(np.clip(4 - (x - 5) ** 2, 0, None)) / (2 * np.pi)
    sharp = density_dataset(found, width=0.02)["density_null"]
    assert float(sharp[len(sharp) // 2]) == pytest.approx(1 / np.pi, rel=0.03)
    assert np.abs(null - middle).max() < 0.08  # smoothing at the ends


BAD = {
    "line of a plane": (lambda: plots_instruments.line(made_plane()), "needs line_loss.*path_dataset stores"),
    "plane of a line": (lambda: plots_instruments.plane(made_line()), "needs plane_loss.*plane_dataset stores"),
    "section": (lambda: plots_instruments.section(made_line()), "needs section_loss"),
    "density": (lambda: plots_instruments.density(made_line()), "needs density"),
    "nothing finite": (lambda: plots_instruments.plane(made_plane(losses=lambda w: np.nan)), "no loss in this plane"),
    "a row of a plane": (
        lambda: plots_instruments.plane(
            plane_dataset(plane_losses(LOSSES, plane_through(*POINTS[:3]), np.linspace(-1, 3, 6), [0.0]))
        ),
        "at least 2 x 2 places, got 6 x 1",
    ),
    "not a run": (lambda: plots_observer.observed(made_line()), "nothing here can be drawn"),
    "panel": (lambda: plots_observer.panel(watched(), "sharpnes"), "Did you mean 'sharpness'"),
    "unmeasured": (lambda: plots_observer.panel(watched(), "trace"), "draws hessian_trace, and this dataset has no"),
    "no spread": (
        lambda: density_dataset(spectral_density(np.eye(5), rng=np.random.default_rng(0))), "give the width"
    ),
    "spread of rounding": (
        lambda: density_dataset(spectral_density(0.1 * Q @ Q.T, rng=np.random.default_rng(1), probes=30)),
        "give the width",
    ),
    "points": (lambda: density_dataset(spectral_density(H, rng=np.random.default_rng(0)), points=1), "points must be"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_what_a_dataset_lacks_is_said(call, message):
    with pytest.raises(InputError, match=message):
        call()


# --- a watched run ---------------------------------------------------------------------------------------------------
STEPS, PROBES = 200, np.arange(0, 201, 20)


def watched(**more):
    """A dataset as of a watched run; the trace was asked for and never measured."""
    rng = np.random.default_rng(0)
    lr = 0.1 * np.minimum(1, (STEPS - np.arange(STEPS)) / 40)
    n = len(PROBES)
    sometimes = np.where(np.arange(n) % 2, np.nan, 1.0)
    values = {
        "step": np.arange(STEPS), "lr": lr, "phase": np.where(lr < 0.1, 2, 1), "train_loss": 1 + rng.random(STEPS),
        "update_norm": lr, "param_norm": np.ones(STEPS), "update_cosine": rng.random(STEPS),
        "update_cosine_null": np.full(STEPS, 0.3), "probe_step": PROBES, "probe_loss": rng.random(n),
        "probe_loss_error": np.full(n, 0.1), "hessian_top": 5 * sometimes, "hessian_top_bound": 0.1 * sometimes,
        "hessian_threshold": np.linspace(20, 1e6, n), "hessian_mean": np.full(n, 0.2), "preconditioned_top": sometimes,
        "preconditioned_threshold": np.full(n, 1e4), "critical_sharpness": 3 * sometimes,
        "critical_threshold": np.linspace(2, 8, n), "gradient_cosine": rng.random(n),
        "gradient_cosine_null": np.zeros(n), "gradient_cosine_null_std": np.full(n, 0.1),
        "hessian_trace": np.full(n, np.nan), "quasi_convexity": 2 + rng.random(n),
        "quasi_convexity_error": np.full(n, 0.1), "quasi_convexity_null_std": np.full(n, 0.5),
        "rank": np.arange(3), "hessian_eigenvalue": 5 * sometimes[:, None] / np.arange(1, 4),
        "window": ["stable", "cooldown"], "component": np.arange(5), "pca_share": 0.5 ** np.tile(np.arange(5), (2, 1)),
        "pca_null": 0.4 ** np.tile(np.arange(5), (2, 1)), "drift_share": [0.2, 0.5], "drift_null": [0.1, 0.1],
        "diagnostic": ["pca", "sharpness"], "diagnostic_share": [0.001, 0.02], "phase_cosine": 0.1,
        "phase_cosine_null": 0.03,
    }  # fmt: skip
    ds = build({**values, **more}, {}, "real")
    return ds.assign_attrs(provenance("a watched run", config={}, seed=0))


def test_a_watched_run_is_drawn_from_its_file(tmp_path):
    store.save(watched(), tmp_path / "run.nc")
    ds = store.load(tmp_path)
    figure = plots_observer.observed(ds)
    assert plots.write(figure, tmp_path / "picture.png").stat().st_size > 50_000
    unmeasured = {"trace", "interpolation"}
    assert len(figure.axes) == len(plots_observer.PANELS) - len(unmeasured)
    drawn = lines_of(figure)
    for name in ("train_loss", "update_cosine", "update_cosine_null", "hessian_mean", "quasi_convexity"):
        assert holds(drawn, ds[name]), name
    kept = ds["hessian_top"].to_numpy()[::2]
    assert holds(drawn, kept)  # states that were not measured are left out


@pytest.mark.parametrize("name", plots_observer.PANELS)
def test_each_panel_stands_by_itself(name):
    more = {
        "hessian_trace": np.ones(len(PROBES)), "pair": ["stable", "cooldown"], "alpha": [0.0, 0.5, 1.0],
        "interpolation_loss": np.ones((2, 3)), "interpolation_start": [0, 1], "interpolation_stop": [1, 2],
        "hessian_batch_mean": np.ones(len(PROBES)), "group": [0, 1], "group_lr": np.ones((STEPS, 2)),
    }  # fmt: skip
    (axis,) = plots_observer.panel(watched(**more), name).axes
    assert axis.get_title()
    assert axis.lines or axis.patches


def test_a_threshold_far_above_is_told_and_does_not_flatten_the_rest():
    near, far = (plots_observer.panel(watched(), name).axes[0] for name in ("sharpness", "preconditioned sharpness"))
    assert near.get_ylim()[1] < 100  # its threshold goes to 1e6 as the rate goes to 0
    assert far.get_ylim()[1] < 10
    assert any("typically 1e+04, far above" in t for t in far.get_legend_handles_labels()[1])


def test_a_run_without_most_things_is_drawn_too():
    ds = watched()
    small = ds[["train_loss"]]
    assert len(plots_observer.observed(small.drop_dims("probe_step", errors="ignore")).axes) == 2
