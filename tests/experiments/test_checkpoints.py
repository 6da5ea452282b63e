"""Checkpoints: what is kept, what a manifest vouches for, what a failed write leaves."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from riverval.errors import InputError, StoreError  # noqa: E402
from riverval.experiments import checkpoints  # noqa: E402
from riverval.experiments.checkpoints import Checkpoints, FullState, rates_digest, read_manifest, read_state  # noqa: E402
from riverval.experiments.config import resolve  # noqa: E402
from riverval.experiments.run import prepare  # noqa: E402


@pytest.fixture(scope="module")
def config():
    return prepare(resolve("cnn", {"steps": 30, "widths": (2, 2, 2, 2, 4)})).config


def full(state):
    """A state with all kinds of things in it."""
    tensor = torch.full((3, 2), float(state)).t()  # strides of its own
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "momentum_buffer": None}}, "param_groups": [{"lr": 0.1}]}
    records = {"step": {"train_loss": torch.tensor([0.1, float("nan")], dtype=torch.float64)}}
    return FullState(state, {"w": tensor}, optimizer, {"cpu": torch.get_rng_state()}, records, {"training": 1.5})


def made(folder, config, states, **options):
    found = Checkpoints(folder, config, tell=lambda line: None, **options)
    for state in states:
        found.save(full(state), pinned=state in (4, 20))
    return found


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def both(*states):
    return sorted(f"step_{state:07d}.{kind}" for state in states for kind in ("json", "pt"))


def test_a_state_comes_back_as_it_was(tmp_path, config):
    found = made(tmp_path, config, [7]).newest()
    wanted = full(7)
    assert (found.state, found.seconds) == (7, {"training": 1.5})
    assert torch.equal(found.model["w"], wanted.model["w"])
    assert found.model["w"].stride() == wanted.model["w"].stride()
    assert found.optimizer == wanted.optimizer
    np.testing.assert_array_equal(found.records["step"]["train_loss"], [0.1, np.nan])


def test_the_newest_two_and_the_pinned_are_kept(tmp_path, config):
    made(tmp_path, config, [2, 4, 6, 8, 10])
    assert names(tmp_path) == both(4, 8, 10)
    made(tmp_path, config, [12], keep=1)
    assert names(tmp_path) == both(4, 12)
    found = made(tmp_path, config, [20])
    assert names(tmp_path) == both(4, 12, 20)
    found.prune(0)
    assert names(tmp_path) == both(4, 20)
    found.clear()
    assert names(tmp_path) == []


def test_the_last_state_at_or_before_another(tmp_path, config):
    found = made(tmp_path, config, [4, 8, 10])
    assert [getattr(found.at_or_before(state), "state", None) for state in (3, 4, 7, 8, 9, 10, 30)] == [
        None, 4, 4, 8, 8, 10, 10
    ]  # fmt: skip
    found.forget_after(8)
    assert names(tmp_path) == both(4, 8)


def test_states_that_a_run_will_repeat_are_not_newer_than_those_it_makes(tmp_path, config):
    found = made(tmp_path, config, [2, 6, 8])
    found.path(8).write_bytes(b"")
    assert found.newest().state == 6
    found.forget_after(6)
    found.save(full(7))
    assert names(tmp_path) == both(6, 7)


@pytest.mark.parametrize("failing", ["file", "manifest"])
def test_a_write_that_fails_leaves_the_one_before(tmp_path, config, monkeypatch, failing):
    found = made(tmp_path, config, [2, 6])
    real = checkpoints.write_aside

    def fail(path, write):
        if (path.suffix == ".json") == (failing == "manifest"):
            raise StoreError("no space")
        return real(path, write)

    monkeypatch.setattr(checkpoints, "write_aside", fail)
    with pytest.raises(StoreError, match="no space"):
        found.save(full(8))
    monkeypatch.undo()
    assert found.newest().state == 6
    # A file that no manifest vouches for goes with the next one; likewise where a state is written a second time.
    found.save(full(9))
    assert names(tmp_path) == both(6, 9)
    monkeypatch.setattr(checkpoints, "write_aside", fail)
    with pytest.raises(StoreError):
        found.save(full(9))
    assert found.newest().state == 6


def test_a_folder_that_cannot_be_made_is_told(tmp_path, config):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot make the folder .*file.checkpoints: "):
        made(tmp_path / "file" / "checkpoints", config, [1])


def test_without_states_there_is_none(tmp_path, config):
    assert Checkpoints(tmp_path / "nowhere", config, tell=print).newest() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"state": 7}', "\0"])
def test_a_manifest_that_is_none_is_told_and_deleted_with_its_file(tmp_path, config, text):
    told = []
    made(tmp_path, config, [4, 7])
    (tmp_path / "step_0000007.json").write_text(text)
    found = Checkpoints(tmp_path, config, tell=told.append)
    assert found.newest().state == 4
    (line,) = told
    assert line.startswith("checkpoint step_0000007.json ")
    assert line.endswith("; the one before it is used")
    found.save(full(9))
    assert names(tmp_path) == both(4, 9)


def test_a_file_that_changed_is_found_out_even_at_the_same_length(tmp_path, config):
    found = made(tmp_path, config, [7])
    manifest = read_manifest(tmp_path / "step_0000007.json")
    assert read_state(found.path(7), manifest).state == 7
    content = bytearray(found.path(7).read_bytes())
    content[-1] ^= 1
    found.path(7).write_bytes(content)
    with pytest.raises(StoreError, match=r"step_0000007\.pt was changed: its SHA-256"):
        read_state(found.path(7), manifest)
    found.path(7).write_bytes(content[:-1])
    with pytest.raises(StoreError, match=rf"is cut short: {len(content) - 1} of {len(content)} bytes"):
        read_state(found.path(7), manifest)


def test_a_state_beyond_the_end_of_the_run_is_of_another_run(tmp_path, config):
    longer = dataclasses.replace(config, schedule=config.plan.join(config.plan).to_dict(), steps=60)
    made(tmp_path, longer, [31])
    with pytest.raises(InputError, match="other learning rates"):
        Checkpoints(tmp_path, config, tell=print).newest()


def test_the_manifest_says_what_the_state_belongs_to(tmp_path, config):
    made(tmp_path, config, [4])
    manifest = json.loads((tmp_path / "step_0000004.json").read_text())
    assert manifest["identity"] == config.identity
    assert manifest["training"]["seed"] == 0
    assert manifest["training"]["device"] == config.facts["device"]
    assert manifest["pinned"] is True
    assert manifest["torch"] == torch.__version__


def test_the_digest_covers_the_rates_before_the_state_and_no_others():
    rates = np.array([0.1, 0.2, 0.3, 0.4])
    changed = np.array([0.1, 0.2, 0.3, 0.5])
    assert rates_digest(rates, 3) == rates_digest(changed, 3) != rates_digest(rates, 4) != rates_digest(changed, 4)
    assert rates_digest(rates, 0) == rates_digest(changed[1:], 0)
    assert rates_digest(np.nextafter(rates, 1.0), 1) != rates_digest(rates, 1)


def test_a_state_of_another_torch_is_used_with_a_warning(tmp_path, config):
    told = []
    made(tmp_path, config, [4, 7])
    path = tmp_path / "step_0000007.json"
    path.write_text(path.read_text().replace(torch.__version__, "1.0.0"))
    assert Checkpoints(tmp_path, config, tell=told.append).newest().state == 7
    (line,) = told
    assert "step_0000007.pt was written with torch 1.0.0 and this is torch" in line
