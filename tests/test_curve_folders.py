"""Folders of curves as they lie on disks: links that go round, files of others, hidden folders."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from riverval.curve_files import read_collection, read_curves
from riverval.errors import InputError

from .test_curve_files import write_csv


def test_links_that_go_round_give_no_run_twice(tmp_path):
    write_csv(tmp_path / "deep" / "er" / "a.csv", [1, 2], [1, 1], [2, 1])
    (tmp_path / "self").symlink_to(tmp_path)
    (tmp_path / "deep" / "er" / "up").symlink_to("..")
    (tmp_path / "ring").symlink_to("ring")
    (tmp_path / "gone.csv").symlink_to("nowhere.csv")
    found = read_collection(tmp_path)
    assert ([curve.name for curve in found.curves], found.left_out) == (["a"], [])


def refuse(monkeypatch, method, name):
    """As another user's file refuses, which it does not to root."""
    kept = getattr(Path, method)

    def guarded(path, *args, **kwargs):
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return kept(path, *args, **kwargs)

    monkeypatch.setattr(Path, method, guarded)


@pytest.mark.parametrize(("method", "name"), [("read_bytes", "b.csv"), ("is_dir", "b.csv"), ("iterdir", "sub")])
def test_what_may_not_be_read_leaves_the_others(tmp_path, monkeypatch, method, name):
    for file in ("a.csv", "b.csv", "sub/c.csv"):
        write_csv(tmp_path / file, [1, 2], [1, 1], [2, 1])
    refuse(monkeypatch, method, name)
    found = read_collection(tmp_path)
    assert len(found.curves) == 2
    (left,) = found.left_out
    assert left.reason == f"{tmp_path / name} cannot be read (Permission denied); allow it, or take it away"


def test_a_path_that_cannot_even_be_looked_up_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read \(File name too long\)"):
        read_curves(tmp_path / ("a" * 300))


def test_options_of_a_table_that_is_no_table_do_not_hide_why(tmp_path):
    (tmp_path / "cut.jsonl").write_text('{"step": 1, "lr"')
    with pytest.raises(InputError, match=r"can be read: cut: .*cut\.jsonl, line 1: not JSON"):
        read_collection(tmp_path, warmup=10)


def test_hidden_folders_are_not_spoken_of(tmp_path):
    (tmp_path / ".kept").mkdir()
    (tmp_path / ".kept" / "cut.jsonl").write_text("{")
    (tmp_path / ".kept" / "other.csv").write_text("a,b\n")
    (tmp_path / "mine.csv").write_text("c,d\n")
    with pytest.raises(InputError, match=r"no curves in .* runs of riverval \(mine\.csv has c, d: name"):
        read_collection(tmp_path)
