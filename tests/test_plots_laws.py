"""Pictures of laws show the numbers they are given, and are drawn for the odd cases too."""

from __future__ import annotations

import numpy as np
import pytest

from riverval import plots, plots_laws
from riverval.curves import Curve
from riverval.errors import InputError
from riverval.law_plan import plan_cooldown
from riverval.law_scores import Score
from riverval.laws import FittedLaw, fit_law
from riverval.schedules import WSD

from .made_laws import known, made_curves

PLAN = WSD(peak_lr=3e-4, steps=3000, warmup=200, cooldown=0.3)


@pytest.fixture(scope="module")
def fitted() -> FittedLaw:
    return fit_law("noise-floor", made_curves("noise-floor", noise=1e-3), interval="residuals")


def lines(axis):
    return [np.asarray(line.get_ydata(), dtype=float) for line in axis.lines]


def holds(axis, values):
    return any(drawn.shape == np.shape(values) and np.allclose(drawn, values) for drawn in lines(axis))


def words(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_a_fit_shows_measured_and_fitted_losses_and_what_is_left(fitted, tmp_path):
    curves = made_curves("noise-floor", noise=1e-3)
    figure = plots_laws.fit(fitted, curves)
    upper, lower = figure.axes
    assert len(fitted.points_of(curves)[0].loss) < len(curves[0].loss)  # the fit leaves out the very first points
    for curve in fitted.points_of(curves):
        value = fitted.predict(curve.lr, curve.steps).loss
        assert holds(upper, curve.loss)
        assert holds(upper, value)
        assert holds(lower, 1000 * np.log(curve.loss / value))
    assert words(upper) == [c.name for c in curves]
    assert upper.get_ylim()[1] < max(c.loss.max() for c in curves)  # the fall at the start is cut
    assert plots.write(figure, tmp_path / "fit.png").stat().st_size > 10_000


def test_many_curves_have_no_names(fitted):
    curves = made_curves("noise-floor") * 3
    assert plots_laws.fit(fitted, curves).axes[0].get_legend() is None


def test_a_curve_of_early_points_only_is_drawn():
    steps = np.arange(200, 400, 20)
    early = Curve("early", PLAN.values(), steps, known("noise-floor").predict(PLAN, steps).loss)
    low, high = plots_laws.fit(fit_law("noise-floor", [early]), [early]).axes[0].get_ylim()
    assert low < early.loss.min() < early.loss.max() < high


def test_curves_that_were_not_fitted_are_refused(fitted):
    with pytest.raises(InputError, match="fitted to none of these curves"):
        plots_laws.fit(fitted, [Curve("other", PLAN.values(), [50, 100], [5.0, 4.5])])


def test_a_prediction_shows_its_interval_and_the_rate(fitted):
    predicted = fitted.predict(PLAN)
    upper, lower = plots_laws.prediction(fitted, PLAN, predicted).axes
    assert holds(upper, predicted.loss)
    band = upper.collections[0].get_paths()[0].vertices[:, 1]
    assert {predicted.low.min(), predicted.high.max()} <= set(band)
    assert lines(lower)[0].max() == pytest.approx(3e-4)


def test_a_prediction_without_an_interval_is_drawn(fitted, tmp_path):
    law = known("noise-floor")
    figure = plots_laws.prediction(law, PLAN, law.predict(PLAN))
    assert plots.write(figure, tmp_path / "p.png").stat().st_size > 10_000


def test_a_plan_marks_the_best_and_what_is_not_told_from_it(fitted):
    plan = plan_cooldown(fitted, 3000)
    (axis,) = plots_laws.plan(plan).axes
    for shape in ("linear", "1-sqrt", "cosine"):
        of = sorted((c for c in plan.candidates if c.decay == shape), key=lambda c: c.fraction)
        assert holds(axis, [c.loss for c in of])
    assert holds(axis, [plan.best.loss])
    filled = [line for line in axis.lines if line.get_marker() == "o" and line.get_markerfacecolor() != "white"]
    assert sum(len(line.get_xdata()) for line in filled) == len(plan.alike)
    low, high = axis.get_ylim()
    assert low < plan.best.loss < high < plan.candidates[-1].loss


def test_a_plan_over_rates_has_a_panel_of_them(fitted, tmp_path):
    plan = plan_cooldown(fitted, 3000, peak_lrs=[1e-4, 3e-4, 9e-4], shapes=["linear"], fractions=[0.2, 0.4])
    figure = plots_laws.plan(plan)
    by_rate = sorted(plan.best_of_each, key=lambda c: c.peak_lr)
    assert holds(figure.axes[1], [c.loss for c in by_rate])
    low, high = figure.axes[1].get_ylim()
    assert low < by_rate[0].loss < high  # a far rate is in sight
    assert plots.write(figure, tmp_path / "plan.png").stat().st_size > 10_000


def test_a_plan_without_intervals_claims_none():
    figure = plots_laws.plan(plan_cooldown(known("noise-floor"), 3000, peak_lrs=[3e-4]))
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert not any("95 %" in text or "not told" in text for text in told)


def score(law, protocol, data, mae, group="all"):
    return Score(protocol=protocol, data=data, law=law, mae=mae, group=group)


def test_scores_are_rows_of_laws_the_best_on_top_and_panels_of_protocols(tmp_path):
    laws, data = {"bad": 0.01, "good": 0.002}, {"25M": 1.0, "100M": 3.0}
    of = [score(law, p, d, laws[law] * data[d]) for law in laws for p in "MA" for d in data]
    of += [score("good", "M", "25M", 9.0, group="curve"), score("failed", "M", "25M", float("nan"))]
    figure = plots_laws.scores(of)
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["bad", "good"]
    assert [axis.get_title() for axis in (left, right)] == ["protocol M", "protocol A"]
    dots = {(float(x), float(y)) for line in left.lines for x, y in zip(*line.get_data(), strict=True)}
    np.testing.assert_allclose(sorted(dots), [(0.002, 1), (0.004, 1), (0.006, 1), (0.01, 0), (0.02, 0), (0.03, 0)])
    assert plots.write(figure, tmp_path / "scores.png").stat().st_size > 10_000


def test_many_data_sets_have_no_names_and_no_scores_no_picture():
    many = [score("good", "C", f"pair {k}", 0.01 + 0.001 * k) for k in range(9)]
    assert words(plots_laws.scores(many).axes[0]) == ["9 pairs of data"]
    assert plots_laws.scores([]) is None


def test_scores_close_together_have_ticks_that_can_be_read():
    """Values of one decade, for which matplotlib would fall back to many ticks on top of each other."""
    figure = plots_laws.scores([score("good", "M", "25M", 0.0022), score("bad", "M", "25M", 0.0044)])
    axis = figure.axes[0]
    low, high = axis.get_xlim()
    ticks = [tick for tick in axis.get_xticks() if low * 0.999 <= tick <= high * 1.001]
    np.testing.assert_allclose(ticks, [0.002, 0.005])
