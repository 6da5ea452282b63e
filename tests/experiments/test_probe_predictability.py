"""The probe of predictability on models whose losses and gains are known in closed form."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from riverval.experiments.architecture_base import Architecture
from riverval.experiments.config import resolve
from riverval.experiments.data import Batches
from riverval.experiments.predictability import stations
from riverval.experiments.probe_predictability import predictability
from riverval.experiments.probes import Context, Skipped, load_probes
from riverval.experiments.snapshot_plan import SnapshotPlan
from riverval.experiments.text import Text
from riverval.schema import build

WINDOWS = {"stable": [0, 10, 15, 20, 30], "cooldown": [30, 40, 50]}


class Table(Architecture):
    """A bigram table: row k of the parameters holds the logits after token k."""

    data_kind: ClassVar[str] = "text"

    def logits(self, model, batch):
        return model(batch[0])

    def loss(self, model, batch):
        return self.elementwise(model, batch)[0].mean()


class Lines(Table):
    data_kind: ClassVar[str] = "images"


class Kept:
    """Snapshots in memory."""

    def __init__(self, tables, windows=WINDOWS):
        self.tables, self.plan = tables, SimpleNamespace(states={})
        self.states = {**windows, "predictability": list(stations(windows).states)} if windows else {}

    def load(self, state, model):
        return self.tables[state].reshape(-1)


def context(data, model, kept, kind, **changed):
    config = SimpleNamespace(
        **{"snapshots": 4, "token_examples": 500, "seq": 8, "tokenizer": "bpe", "architecture": kind()} | changed
    )
    return Context(config, model, data, kept, tell=lambda line: None)


# --- text ------------------------------------------------------------------------------------------------------------
# Tokens 0, 1 and 2 are certain (each begets the next), 3 begets any of 3..7, 4..7 beget 0 or 3.
LANGUAGE = np.zeros((8, 8))
LANGUAGE[[0, 1, 2], [1, 2, 3]] = 1.0
LANGUAGE[3, 3:] = 0.2
LANGUAGE[4:, [0, 3]] = 0.5
UNIFORM = np.full((8, 8), 1 / 8)


def spoken(length, seed):
    rng, out = np.random.default_rng(seed), [0]
    steps = LANGUAGE.cumsum(axis=1)
    for u in rng.random(length - 1):
        out.append(min(int(np.searchsorted(steps[out[-1]], u, side="right")), 7))
    return np.array(out, dtype=np.int32)


def logits(table):
    return torch.tensor(np.log(np.maximum(table, 1e-6)), dtype=torch.float32)


@pytest.fixture
def language():
    data = Text(spoken(20_000, 0), spoken(8 * 300 + 1, 1), seq=8, batch=2, seed=0, vocab=8, sha256="")
    certain = np.where(np.arange(8)[:, None] < 3, LANGUAGE, UNIFORM)
    tables = {0: UNIFORM, 10: UNIFORM, 15: UNIFORM, 20: certain, 30: certain, 40: LANGUAGE, 50: LANGUAGE}
    return data, nn.Embedding(8, 8), Kept({state: logits(table) for state, table in tables.items()})


def test_a_stable_phase_that_learns_what_is_certain_and_a_cooldown_that_learns_the_rest(language):
    """The claim of the paper, made true by hand: the gains of every bin are known."""
    seen = context(*language, Table)
    found = predictability(seen)
    ds = build(found, {}, "real").set_coords("probe_step")
    assert seen.notes == []
    assert found["bin_reference"] == "3-grams of the training text"
    bins = ds["predictability_bin"].size
    assert bins >= 2
    assert np.all(np.diff(found["bin_entropy"]) > 0)
    assert found["bin_share"].sum() == pytest.approx(1.0)
    certain = found["bin_entropy"] < 0.1
    assert certain.any()
    assert not certain.all()
    np.testing.assert_allclose(found["stable_gain"][certain], np.log(8), atol=1e-3)
    np.testing.assert_allclose(found["cooldown_gain"][certain], 0.0, atol=1e-3)
    np.testing.assert_allclose(found["stable_gain"][~certain], 0.0, atol=1e-6)
    # After 3 any of five, else one of two.
    rest = found["cooldown_gain"][~certain]
    assert np.all((rest > np.log(8 / 5) - 0.01) & (rest < np.log(8 / 2) + 0.01))
    for name, sign in (("stable", -1), ("cooldown", 1)):
        slope, error = found[f"{name}_gain_slope"], found[f"{name}_gain_slope_error"]
        assert sign * slope > 10 * error
        assert abs(slope - found[f"{name}_gain_slope_null"]) > 10 * found[f"{name}_gain_slope_null_std"]
        assert abs(found[f"{name}_gain"] - found[f"{name}_gain_null"]).max() > 10 * found[f"{name}_gain_null_std"].max()
    assert found["gain_contrast"] > 10 * found["gain_contrast_error"]
    # What the model knows in the end, the 3-grams know too.
    assert found["ngram_loss"] == pytest.approx(found["bin_loss"][-1] @ found["bin_share"], abs=0.01)
    assert abs(found["ngram_loss"] - found["ngram_entropy"]) < 4 * found["ngram_loss_error"]
    np.testing.assert_allclose(found["bin_ngram_loss"] @ found["bin_share"], found["ngram_loss"])
    np.testing.assert_allclose(found["bin_model_entropy"][-1] @ found["bin_share"], found["ngram_entropy"], atol=0.01)


def test_the_bins_hold_the_very_losses_of_the_model(language):
    data, model, kept = language
    found = predictability(context(data, model, kept, Table))
    assert found["probe_step"] == [0, 10, 15, 20, 30, 40, 50]
    names = ("stable", "settled", "cooldown")
    starts = [(found[f"{name}_gain_start"], found[f"{name}_gain_stop"]) for name in names]
    assert starts == [(0, 30), (15, 30), (30, 50)]
    inputs, targets = (torch.cat(part) for part in zip(*data.fixed("val", 500), strict=True))
    for k, state in enumerate(found["probe_step"]):
        model.weight.data = kept.tables[state]
        mean = Table().loss(model, (inputs, targets)).item()
        assert found["bin_loss"][k] @ found["bin_share"] == pytest.approx(mean, rel=1e-5)
    for name, (first, last) in {"stable": (0, 4), "settled": (2, 4), "cooldown": (4, 6)}.items():
        np.testing.assert_allclose(
            found[f"{name}_gain"], found["bin_loss"][first] - found["bin_loss"][last], rtol=1e-9, atol=1e-12
        )


def test_the_bins_of_text_do_not_know_the_model(language):
    data, model, kept = language
    first = predictability(context(data, model, kept, Table))
    other = Kept({state: table + torch.randn(8, 8) for state, table in kept.tables.items()})
    second = predictability(context(data, model, other, Table))
    for name in ("bin_entropy", "bin_share", "ngram_loss", "bin_ngram_loss"):
        np.testing.assert_array_equal(first[name], second[name])


def test_the_reference_is_counted_on_the_training_text(language):
    data, model, kept = language
    assert data.tokens("train", 5).tolist() == spoken(5, 0).tolist()
    assert data.tokens("val").tolist() == spoken(8 * 300 + 1, 1).tolist()
    other = Text(7 - spoken(20_000, 0), data.tokens("val"), seq=8, batch=2, seed=0, vocab=8, sha256="")
    first, second = (predictability(context(d, model, kept, Table))["ngram_loss"] for d in (data, other))
    assert second > first + 1.0


def test_the_models_own_bins_come_from_states_that_end_no_gain(language):
    data, model, kept = language
    found = predictability(context(data, model, kept, Table))
    # At 10 uniform, at 20 certain of three contexts: the mean entropy is half of ln 8 there and ln 8 elsewhere.
    lower, upper = found["model_bin_entropy"][[0, -1]]
    assert lower == pytest.approx(np.log(8) / 2, abs=1e-3)
    assert upper == pytest.approx(np.log(8), abs=1e-3)
    for state in (0, 15, 30, 40, 50):
        kept.tables[state] = torch.randn(8, 8)
    again = predictability(context(data, model, kept, Table))
    np.testing.assert_array_equal(found["model_bin_entropy"], again["model_bin_entropy"])
    assert not np.array_equal(found["model_stable_gain"], again["model_stable_gain"])


def test_the_models_parameters_stay_as_they_were(language):
    data, model, kept = language
    before = model.weight.detach().clone()
    predictability(context(data, model, kept, Table))
    assert torch.equal(model.weight, before)


def test_small_passes_give_the_same(language, monkeypatch):
    seen = context(*language, Table)
    whole = predictability(seen)
    monkeypatch.setattr("riverval.experiments.probe_predictability.LOGITS", 8 * 8 * 7)
    pieces = predictability(seen)
    for name, value in whole.items():
        if name != "bin_reference":
            np.testing.assert_allclose(pieces[name], value, rtol=1e-6, atol=1e-9)


# --- images ----------------------------------------------------------------------------------------------------------
class Images:
    """Four classes of one-hot images, so that a linear model is a table too."""

    def __init__(self, count=400):
        rng = np.random.default_rng(0)
        self.kinds = torch.tensor(rng.integers(0, 40, count))
        self.labels = self.kinds % 4

    def fixed(self, part, examples, per_batch=64):
        assert part == "val"
        count = min(examples, len(self.kinds))
        index = [torch.arange(a, min(a + per_batch, count)) for a in range(0, count, per_batch)]
        return Batches(len(index), lambda k: (self.kinds[index[k]], self.labels[index[k]]))


@pytest.fixture
def images():
    torch.manual_seed(0)
    return Images(), nn.Embedding(40, 4), Kept({state: torch.randn(40, 4) for state in range(0, 60, 5)})


def test_images_in_bins_and_classes(images):
    data, model, kept = images
    found = predictability(context(data, model, kept, Lines))
    build(found, {}, "real")
    assert "ngram_loss" not in found
    assert "model_bin" not in found
    assert found["bin_reference"] == "model at states 10, 20"
    assert found["class"].tolist() == [0, 1, 2, 3]
    kinds, labels = data.kinds.numpy(), data.labels.numpy()
    np.testing.assert_allclose(found["class_share"], np.bincount(labels) / 400)
    p = {state: np.exp(t := table.numpy().astype(float)) / np.exp(t).sum(1, keepdims=True) for state, table in
         kept.tables.items()}  # fmt: skip
    entropy = {state: -(q * np.log(q)).sum(1)[kinds] for state, q in p.items()}
    loss = {state: -np.log(q[kinds, labels]) for state, q in p.items()}
    reference = (entropy[10] + entropy[20]) / 2
    for k in range(4):
        own = labels == k
        assert found["class_entropy"][k] == pytest.approx(reference[own].mean(), rel=1e-5)
        for row, state in enumerate(found["probe_step"]):
            assert found["class_loss"][row, k] == pytest.approx(loss[state][own].mean(), rel=1e-5)
            assert found["class_model_entropy"][row, k] == pytest.approx(entropy[state][own].mean(), rel=1e-5)
            spread = loss[state][own].std(ddof=1) / np.sqrt(own.sum())
            assert found["class_loss_error"][row, k] == pytest.approx(spread, rel=1e-5)
        gain = (loss[0] - loss[30])[own]
        assert found["class_stable_gain"][k] == pytest.approx(gain.mean(), rel=1e-4)
        assert found["class_stable_gain_error"][k] == pytest.approx(gain.std(ddof=1) / np.sqrt(own.sum()), rel=1e-4)
        assert found["class_cooldown_gain"][k] == pytest.approx((loss[30] - loss[50])[own].mean(), rel=1e-4)
        assert found["class_stable_gain_null"][k] == pytest.approx((loss[0] - loss[30]).mean(), rel=1e-4)
    order = np.argsort(reference, kind="stable")
    assert found["bin_entropy"][0] == pytest.approx(reference[order[: round(400 * found["bin_share"][0])]].mean(), 1e-5)


def test_a_class_without_an_image_is_left_out(images):
    data, model, kept = images
    data.labels = torch.where(data.labels == 2, 1, data.labels)
    found = predictability(context(data, model, kept, Lines))
    assert found["class"].tolist() == [0, 1, 3]
    assert np.isfinite(found["class_loss"]).all()


# --- what is missing -------------------------------------------------------------------------------------------------
def test_without_a_state_within_a_phase_text_still_has_its_ngrams(language):
    data, model, kept = language
    seen = context(data, model, Kept(kept.tables, {"stable": [0, 30], "cooldown": [30, 50]}), Table)
    found = predictability(seen)
    assert "bin_loss" in found
    assert "model_bin" not in found
    assert "more snapshots" in seen.notes[0]


def test_without_a_cooldown_there_is_its_gain_missing(language):
    data, model, kept = language
    seen = context(data, model, Kept(kept.tables, {"stable": WINDOWS["stable"]}), Table)
    found = predictability(seen)
    assert "stable_gain" in found
    assert not [name for name in found if "cooldown" in name or "contrast" in name]
    assert seen.notes == ["predictability: no cooldown window to look at"]


def test_states_that_are_only_sketched_are_not_looked_at(language):
    data, model, kept = language
    for window, states in WINDOWS.items():
        kept.states[window] = sorted({*states, *range(states[0] + 1, states[0] + 9)})
    assert predictability(context(data, model, kept, Table))["probe_step"] == [0, 10, 15, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("windows", "changed", "message"),
    [
        ({}, {}, "no snapshots were kept"),
        ({"descent": [0, 1]}, {}, "no window with snapshots"),
        (WINDOWS, {"token_examples": 30}, "two bins need at least 40 tokens or images, got 30; raise token_examples"),
        ({"stable": [0, 30], "cooldown": [30, 50]}, {}, "no state within the stable phase"),
    ],
)
def test_what_cannot_be_measured_is_skipped_with_the_reason(images, windows, changed, message):
    data, model, kept = images
    with pytest.raises(Skipped, match=message):
        predictability(context(data, model, Kept(kept.tables, windows), Lines, **changed))


def test_a_loss_that_is_not_finite_is_skipped(images):
    data, model, kept = images
    kept.tables[40] = torch.full((40, 4), float("nan"))
    with pytest.raises(Skipped, match="not finite"):
        predictability(context(data, model, kept, Lines))


@pytest.mark.parametrize("keep", ["float32", "bfloat16", "sketch"])
def test_a_run_keeps_the_parameters_at_the_states_that_are_looked_at(keep):
    config = resolve("lm", {"steps": 1000, "keep": keep}, options={"warmup": 100}).planned(steps_per_epoch=None)
    plan = SnapshotPlan.of(config)
    found = stations(plan.states)
    assert found.gains["stable"] == (100, 800)
    assert found.gains["cooldown"] == (800, 1000)
    assert len(found.reference) == 2
    assert set(found.states) == set(plan.states["predictability"]) <= plan.full


def test_the_probe_is_in_the_registry():
    assert load_probes()["predictability"] is predictability
