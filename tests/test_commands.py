"""The command line as a user types it: what it prints, what it writes, and one clear message for each bad input."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

from riverval import cli, demo, store
from riverval.schedules import COOLDOWN_OF, SCHEDULES, make_schedule
from riverval.shapes import SHAPES

from .made import WSD, valley

TOY = ("simulate", "bigram", "check", "study")

Capture = pytest.CaptureFixture[str]


def run(words: str | list[str]) -> int:
    """Run the command line in this process; the exit code."""
    try:
        cli.main(words.split() if isinstance(words, str) else words)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return store.save(valley(WSD, slope=0.3, hill=2.0), tmp_path / "valley.nc")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", ["", *cli.COMMANDS, *(f"toy {name}" for name in TOY), "real run", "schedule show"])
def test_every_command_has_help(command: str, capsys: Capture) -> None:
    assert run([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage" in shown
    assert "--help" in shown


def test_help_of_a_schedule_lists_every_registered_name(capsys: Capture) -> None:
    run("schedule show --help")
    words = capsys.readouterr().out.replace("│", " ").replace(",", " ").replace(".", " ").split()
    assert {*SCHEDULES, *SHAPES, *COOLDOWN_OF} <= set(words)


def test_version(capsys: Capture) -> None:
    from riverval import __version__

    assert run("--version") == 0
    assert capsys.readouterr().out == f"riverval {__version__}\n"


def test_show_tells_the_notes_and_what_was_never_measured(dataset: Path, capsys: Capture) -> None:
    ds = store.load(dataset)
    ds["loss"] = ds["loss"] * float("nan")
    store.save(ds.assign_attrs(notes="sharpness at state 3: no memory\nfile: full"), "noted.nc")
    assert run("show noted.nc") == 0
    shown = capsys.readouterr().out
    assert "note: sharpness at state 3: no memory\nnote: file: full\n" in shown
    (row,) = (line for line in shown.splitlines() if line.startswith("│ loss "))
    assert row.split("│")[3].strip() == "none"


def test_show_tells_by_what_code_a_run_was_made_and_measured_again(dataset: Path, capsys: Capture) -> None:
    ds = store.load(dataset)
    again = {**ds.attrs, "created": "2030-01-01", "command": "riverval real probe x", "git_commit": "f" * 40}
    of = {"riverval_version": "9.9", "git_commit": "", "command": ""}
    store.save(ds.assign_attrs(of, measured_by=json.dumps({**again, "git_dirty": "true"})), "again.nc")
    assert run("show again.nc") == 0
    shown = capsys.readouterr().out
    assert "by\n  Python code  (riverval 9.9, not from a git checkout)\nmeasured again 2030-01-01 by\n" in shown
    assert (
        f"  riverval real probe x  (riverval {ds.attrs['riverval_version']}, git {'f' * 12} with uncommitted changes)\n"
        in shown
    )


def test_schedule_show_prints_and_exports(tmp_path: Path, capsys: Capture) -> None:
    assert run("schedule show --decay wsd-s --steps 300 --lr 0.1 --csv a.csv --plot a.png") == 0
    shown = capsys.readouterr().out
    assert "whole run" in shown
    assert "wrote a.csv" in shown
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    plan = make_schedule("wsd-s", peak_lr=0.1, steps=300)
    assert [float(r["lr"]) for r in rows] == plan.values().tolist()
    assert [r["phase"] for r in rows] == [plan.phase(t) for t in range(300)]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_show_summarises(dataset: Path, capsys: Capture) -> None:
    assert run(["show", str(dataset)]) == 0
    shown = capsys.readouterr().out
    for text in ("a made valley", "eval_step", "gain of the last cooldown", "no error bar", "river alone"):
        assert text in shown


def test_compare_writes_one_page(dataset: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(["compare", str(dataset), str(dataset), "--out", "page.html"]) == 0
    assert "wrote page.html" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "valley #2" in page  # two datasets of one name stay apart


def test_demo_without_torch_runs_the_toy_and_says_so(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "has_torch", lambda: False)
    assert run("demo --out d") == 0
    shown = capsys.readouterr().out
    assert "$ riverval toy simulate" in shown
    assert "python -m pip install 'riverval[real]'" in shown
    assert (tmp_path / "d" / "index.html").exists()
    assert xr.open_dataset(tmp_path / "d" / "toy" / "run.nc")["source"].item() == "toy"
    assert run("demo --out d") == 2
    assert "--overwrite" in capsys.readouterr().err


def _made(tmp_path: Path) -> None:
    """What the bad inputs below stumble over."""
    (tmp_path / "text.nc").write_text("not a dataset")
    whole = store.save(valley(WSD, slope=0.3, hill=2.0), tmp_path / "whole.nc").read_bytes()
    (tmp_path / "cut.nc").write_bytes(whole[: len(whole) // 2])
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(tmp_path / "foreign.nc")
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "run.nc").write_text("precious")
    (tmp_path / "file").write_text("")


# command -> (exit code, what the message must say)
BAD = {
    "schedule show --decay wsds": (2, "unknown schedule 'wsds'; choose one of: constant, wsd, wsd-s"),
    "schedule show --shape lineal": (2, "Did you mean 'linear'?"),
    "schedule show --cooldown 1.5": (2, "must be a finite number in (0, 1], got 1.5"),
    "schedule show --cooldown nan": (2, "must be a finite number in (0, 1], got nan"),
    "schedule show --steps 10 --cooldown 0.01": (2, "shorter than one update"),
    "schedule show --steps 0": (2, "must be a whole number of at least 1, got 0"),
    "schedule show --steps many": (2, "valid int"),
    "schedule show --warmup 900 --cooldown 0.5": (2, "together exceed the run of 1000 updates"),
    "schedule show --lr -1": (2, "peak_lr (peak learning rate, --lr) must be a finite number in (0, inf), got -1"),
    "schedule show --decay cosine --cooldown 0.2": (2, "takes no option 'cooldown'; it takes: warmup, floor"),
    "schedule show --decay wsd-s --budgets 100,50": (2, "budgets must increase, got 100, 50"),
    "schedule show --decay wsd-s --budgets 1e3": (2, "--budgets must be whole numbers separated by commas"),
    "schedule show --shape inverse --floor 0": (2, "in (0, 1], got 0"),
    "schedule show --plot a.pgn": (2, "Did you mean 'png'?"),
    "schedule show --plot nowhere/a.png": (2, "the folder nowhere does not exist"),
    "schedule show --csv file": (2, "file exists; choose another path, or replace it with --overwrite"),
    "schedul show": (2, "No such command 'schedul'"),
    "show nothing.nc": (1, "nothing.nc does not exist; give a dataset file or the folder of a run"),
    "show text.nc": (1, "text.nc cannot be read as netCDF"),
    "show cut.nc": (1, "cut.nc cannot be read as netCDF"),
    "show foreign.nc": (1, "not a riverval dataset: attribute 'title' is missing"),
    "show empty": (1, "empty holds no run.nc"),
    "compare whole.nc text.nc": (1, "text.nc cannot be read as netCDF"),
    "compare whole.nc --out file": (2, "file exists"),
    "compare whole.nc --out whole.nc --overwrite": (2, "--out names the page to write, which ends in .html"),
    "compare empty": (1, "empty holds no run.nc"),
    "schedule show --csv a.csv --plot new.pgn": (2, "unknown picture format"),
    "schedule show --csv a.png --plot a.png": (2, "both name a.png"),
    "schedule show --csv empty": (2, "empty is a folder"),
    "schedule show --steps 99999999999999999999": (2, "must be a whole number from 1 to 1000000000"),
    "schedule show --decay wsd --cooldown 0.1 --steps 10": (2, "which would still have the full rate"),
    "toy simulate --sigma 1e200": (2, "must be a finite number in [0, 1e+100], got 1e+200"),
    "toy simulate --replicates 100000000": (2, "GiB"),
    f"show {'x' * 300}": (1, "File name too long"),
    "demo --seed -1": (2, "seed must be a whole number of at least 0, got -1"),
    "toy simulate --decay wsd --lr 0": (
        2,
        "peak_lr (peak learning rate, --lr) must be a finite number in (0, inf), got 0",
    ),
    "toy simulate --replicates 0": (2, "replicates must be a whole number of at least"),
    "toy simulate --curvature 1,x": (2, "--curvature must be numbers separated by commas"),
    "toy simulate --curvature 1,-2": (2, "got -2"),
    "toy simulate --name mine": (2, "exists; choose another --name, or replace it with --overwrite"),
    "toy simulate --name ../mine": (2, "must be a plain folder name"),
    "toy simulate --out file/runs": (1, "cannot make the run folder"),
    "real run --arch rnn": (2, "unknown architecture 'rnn'; choose one of: cnn, cnn-b, cnn-c"),
    "real run --arch cnn --data nothing.npz": (2, "nothing.npz does not exist"),
    "real run --arch cnn --batch 0": (2, "got 0"),
}


@pytest.mark.parametrize("command", BAD)
def test_bad_input_is_one_clear_message(command: str, tmp_path: Path, capsys: Capture) -> None:
    if command.startswith("real"):
        pytest.importorskip("torch")
    _made(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code, message = BAD[command]
    assert run(command) == code
    shown = capsys.readouterr()
    assert message in " ".join(shown.err.split())
    assert "Traceback" not in shown.err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before  # nothing is touched or left


def test_missing_extra_says_the_install_command(tmp_path: Path) -> None:
    """Training where torch cannot be imported, in a process of its own."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from riverval.cli import main\nmain(['real', 'run', '--arch', 'cnn'])\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "python -m pip install 'riverval[real]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits are POSIX")
def test_full_disk_is_one_message_and_keeps_what_exists(dataset: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands in for a full disk: the page outgrows it, the old page stays."""
    (tmp_path / "page.html").write_text("old")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        f"from riverval.cli import main\nmain(['compare', {str(dataset)!r}, '--out', 'page.html', '--overwrite'])\n"
    )
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert done.stderr.startswith("riverval: cannot write page.html: File too large")
    assert (tmp_path / "page.html").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "valley.nc"]
