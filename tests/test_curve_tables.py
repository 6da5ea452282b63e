"""TSV and JSONL: what CSV gives, from the same rows by the same checks."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from riverval.curve_files import read_curves
from riverval.curve_tables import kind_of, rows_of, stem_of
from riverval.curves import Curve
from riverval.errors import InputError

HEADER = ("step", "lr", "loss")
LOGGED = [  # rates and losses in rows of their own too, and a row without any number
    (0, 0.1, None), (10, 0.1, 3.0), (20, None, 2.5), (30, 0.05, None), (None, None, None), (40, 0.0, 1e-1),
]  # fmt: skip
OK = '{"step": 1, "lr": 0.1, "loss": 2}'


def text_in(kind, rows=LOGGED, header=HEADER):
    if kind == "jsonl":
        return "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)
    sign = {"csv": ",", "tsv": "\t"}[kind]
    lines = [header, *(["" if cell is None else repr(cell) for cell in row] for row in rows)]
    return "".join(sign.join(line) + "\n" for line in lines)


def facts_without_format(curve: Curve):
    return {key: value for key, value in curve.facts.items() if key != "format"}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_the_same_rows_give_the_same_curve(tmp_path, kind, packed):
    (tmp_path / "as.csv").write_text(text_in("csv"))
    (true,) = read_curves(tmp_path / "as.csv", repair=True)
    raw = text_in(kind).encode()
    file = tmp_path / (f"as.{kind}.gz" if packed else f"As.{kind.upper()}")
    file.write_bytes(gzip.compress(raw) if packed else raw)
    (curve,) = read_curves(file, repair=True)
    for name in ("lr", "steps", "loss"):
        assert np.array_equal(getattr(curve, name), getattr(true, name))
    assert curve.name.lower() == true.name == "as"
    assert facts_without_format(curve) == facts_without_format(true)
    assert (curve.facts["format"], true.facts["format"]) == (kind, "csv")
    assert len(true.notes) == 2


def test_objects_of_different_fields_are_rows_with_empty_cells(tmp_path):
    """As loggers write: settings first, then rates with the training loss and the validation loss by itself."""
    rows = [{"seed": 1}]
    for step in range(0, 50, 10):
        rows += [{"step": step, "lr": 0.1, "train": 9.0}, {"epoch": 0, "step": step + 10, "loss": 3.0 - step / 50}]
    (tmp_path / "apart.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (curve,) = read_curves(tmp_path / "apart.jsonl")
    assert curve.steps.tolist() == [10, 20, 30, 40, 50]
    assert curve.loss.tolist() == [3.0, 2.8, 2.6, 2.4, 2.2]
    assert curve.lr.tolist() == [0.1] * 50
    assert curve.notes[:2] == ["rows with a rate and no loss: 5", "rows with a loss and no rate: 5"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_every_option_of_plain_tables(tmp_path, kind):
    rows = [(2000, 0.1, 3.0), (2010, 0.1, 2.0), (2010, 0.1, 1.5), (2020, 0.1, float("nan"))]
    (tmp_path / f"a.{kind}").write_text(text_in(kind, rows, ("step", "lr", "val/loss")))
    options = {"columns": {"loss": "val/loss"}, "warmup": 100, "peak_lr": 0.2}
    with pytest.raises(InputError, match="loss is nan at step 2020"):
        read_curves(tmp_path / f"a.{kind}", **options)
    (curve,) = read_curves(tmp_path, repair=True, **options)  # in a folder too
    assert (curve.lr[0], curve.lr.max(), curve.facts["warmup"]) == (0.002, 0.2, 100)
    assert curve.loss.tolist() == [3.0, 1.5]
    with pytest.raises(InputError, match=rf"a\.{kind} has no column loss.*--column-loss"):
        read_curves(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_collection_takes_every_kind(tmp_path, kind):
    (tmp_path / "csv_25").mkdir()
    rows = [(2160 + 10 * k, 3e-4, 3.0 - k / 10) for k in range(5)]
    (tmp_path / "csv_25" / f"mine.{kind}").write_text(text_in(kind, rows))
    (curve,) = read_curves(tmp_path)
    assert (curve.name, curve.facts["format"], curve.total) == ("25M/mine", "multi-power-law", 2200)


def test_json_may_have_other_fields_texts_of_numbers_and_empty_lines(tmp_path):
    lines = [
        '{"lr": "0.1", "tag": "a\u2028b", "step": 1, "loss": 3, "deep": {"x": [1]}}', "", "  \r",
        '{"deep": null, "step": 2, "lr": 1e-1, "loss": 2.5, "tag": ""}\r',
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode())
    (curve,) = read_curves(tmp_path)
    assert (curve.lr.tolist(), curve.loss.tolist()) == ([0.1, 0.1], [3, 2.5])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no column step, lr, loss.*found: nothing"),
        ('{"step": 1, "lr": 0.1}\n', r"has no column loss.*found: step, lr\)"),
        (f'{OK}\n\n{{"step": 2, "lr": ', "line 3: not JSON .* at column [0-9]+.; every line must be an object such as"),
        ("step,lr,loss\n1,2,3\n", "line 1: not JSON"),
        ("{\n", "line 1: not JSON"),
        (f"[{OK}]\n", r"line 1: \[\{\"step\": 1.* is no object; every line must be one"),
        ("[" + ", ".join([OK] * 99) + "]", r"line 1: .{60}\.\.\. is no object"),
        (f"{OK}\n3\n", "line 2: 3 is no object"),
        ("[" * 100_000, "line 1: not JSON"),
        (f"{OK}\n{OK.replace('loss', 'Loss')}", "has 1 usable rows"),
        (OK.replace("loss", "Loss"), "no column loss; .*found: step, lr, Loss"),
        ('{"step": 1, "lr": 0.1}\n{"log": {"loss": 2}}', r"found: step, lr, log \(the numbers inside log need fields"),
        ('{"step": 1, "step": 2, "lr": 0.1, "loss": 2}', "line 1: the field step is there twice"),
        (f"{OK}\n{OK.replace('2}', '[2]}')}", r"line 2: column loss must hold numbers .*, got '\[2\]'"),
        (f"{OK}\n{OK.replace('0.1', '{}')}", r"line 2: column lr must hold numbers .*, got '\{\}'"),
        (OK.replace("0.1", "true"), "line 1: column lr must hold numbers .*, got 'true'"),
        ('{"step": 1, "train": {"lr": 0.1, "loss": 2}}', r"found: step, train \(the numbers inside train need fields"),
        (OK.replace("1, ", "null, ", 1), "line 1: no step"),
        (f"{OK}\n{OK}", "step 1 is there twice"),
    ],
)
def test_bad_lines_are_refused(tmp_path, text, told):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(InputError, match=rf"bad\.jsonl.*{told}"):
        read_curves(tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("step\tlr\n1\t.1\n", r"bad\.tsv has no column loss.*found: step, lr\)"),
        ("step\tlr\tloss\n1\t.1\n", r"bad\.tsv, line 2: 2 cells for 3 columns"),
        ("step\tlr\tloss\n1\t0,1\t2\n", r"bad\.tsv, line 2: column lr must hold numbers .*'0,1'"),
    ],
)
def test_bad_tsv_is_refused(tmp_path, text, told):
    (tmp_path / "bad.tsv").write_text(text)
    with pytest.raises(InputError, match=told):
        read_curves(tmp_path / "bad.tsv")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("step", [float("inf"), float("nan"), 10.5])
def test_steps_that_are_no_whole_numbers_are_refused_without_a_warning(tmp_path, kind, step):
    (tmp_path / f"a.{kind}").write_text(text_in(kind, [(0, 0.1, 4.0), (10, 0.1, 3.0), (step, 0.1, 2.0)]))
    with pytest.raises(InputError, match=f"steps must be whole numbers of updates, got {step:g}"):
        read_curves(tmp_path / f"a.{kind}")


def test_fields_that_are_not_needed_are_no_cells(tmp_path):
    lines = [{"step": k, "lr": 0.1, "loss": 3 - k, "\n\n": "odd", "": [k]} for k in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert rows_of(tmp_path / "a.jsonl", ("step", "loss"))[1] == {"": "2", "step": "1", "loss": "2"}
    assert read_curves(tmp_path)[0].loss.tolist() == [2, 1]


def test_a_tab_separates_tsv_whatever_else_the_header_has(tmp_path):
    text = "step\tlr\tloss\tmean, of, all, five, seeds\n1\t.1\t2\t0\n2\t.1\t1\t0\n"
    (tmp_path / "a.tsv").write_text(text)
    assert read_curves(tmp_path)[0].loss.tolist() == [2, 1]


def test_kinds_and_stems(tmp_path):
    named = {"a.csv": "csv", "a.b.TSV.GZ": "tsv", "x.jsonl": "jsonl", "x.json": None, "csv": None, "a.gz": None}
    assert {name: kind_of(tmp_path / name) for name in named} == named
    assert [stem_of(tmp_path / name) for name in named] == ["a", "a.b", "x", "x.json", "csv", "a"]
