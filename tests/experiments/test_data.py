"""Data: batches without state, splits, tokenisers, and one clear message for each thing that can be wrong."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from riverval.errors import InputError, RivervalError  # noqa: E402
from riverval.experiments.config import resolve  # noqa: E402
from riverval.experiments.data import Batches, Images, load_images  # noqa: E402
from riverval.experiments.text import (  # noqa: E402
    SEPARATOR,
    TEXT_SOURCES,
    Text,
    bpe_tokenizer,
    bpe_tokens,
    byte_tokens,
    load_text,
    split,
)


def arrays(n=10, size=(8, 8), classes=3):
    rng = np.random.default_rng(0)
    out = {}
    for part, count in (("train", n), ("test", 4)):
        out[f"x_{part}"] = rng.integers(0, 255, (count, *size), dtype=np.uint8)
        out[f"y_{part}"] = np.arange(count) % classes
    return out


def images(n=10, batch=4, seed=0):
    return Images({k: v[..., None] if k[0] == "x" else v for k, v in arrays(n).items()}, batch=batch, seed=seed)


def numbered(data, step):
    """Which training images a batch holds, found by their content."""
    x = data.fixed("train")[0][0].flatten(1)
    return [int((x == row).all(1).nonzero()[0]) for row in data.batch(step)[0].flatten(1)]


def test_an_epoch_shows_every_image_once_the_last_batch_partial():
    data = images()
    assert data.steps_per_epoch == 3
    for epoch in range(3):
        seen = [numbered(data, 3 * epoch + k) for k in range(3)]
        assert [len(s) for s in seen] == [4, 4, 2]
        assert sorted(image for batch in seen for image in batch) == list(range(10))
    assert [numbered(data, k) for k in range(3)] != [numbered(data, 3 + k) for k in range(3)]


def test_the_paper_count_of_steps_per_epoch():
    x = np.zeros((50_000, 1, 1, 1), dtype=np.uint8)
    small = {"x_train": x, "y_train": np.zeros(50_000, int), "x_test": x[:1], "y_test": np.zeros(1, int)}
    assert Images(small, batch=128, seed=0).steps_per_epoch == 391


def test_batches_depend_on_seed_and_step_only():
    forward, backward = images(), images()
    steps = range(9)
    first = [forward.batch(t)[0] for t in steps]
    second = [backward.batch(t)[0] for t in reversed(steps)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(images(seed=1).batch(0)[0], first[0])


def test_images_are_normalised_by_the_training_part():
    data = images(n=200)
    x = torch.cat([x for x, _ in data.fixed("train")])
    assert x.dtype == torch.float32
    assert abs(float(x.mean())) < 1e-5
    assert float(x.std(correction=0)) == pytest.approx(1.0, abs=1e-5)


def test_each_channel_is_normalised_by_its_own_moments_to_the_last_bit():
    rng = np.random.default_rng(0)
    content = {
        f"x_{part}": rng.integers(0, 256, (n, 6, 4, 3), dtype=np.uint8) for part, n in (("train", 9), ("test", 5))
    }
    content["x_train"][..., 1] //= 3
    content["x_train"][..., 2] = 7  # constant: its deviation counts as 1
    data = Images({**content, "y_train": np.arange(9) % 2, "y_test": np.arange(5) % 2}, batch=4, seed=0)
    x = content["x_train"].astype(np.float64)
    mean, std = (getattr(x, moment)((0, 1, 2)).astype(np.float32) for moment in ("mean", "std"))
    std[2] = 1.0
    for part, name in (("train", "x_train"), ("val", "x_test")):
        found = torch.cat([x for x, _ in data.fixed(part, per_batch=4)])
        expected = (content[name].astype(np.float32) - mean) / std
        assert torch.equal(found, torch.from_numpy(expected).permute(0, 3, 1, 2))
    assert data.batch(0)[0].is_contiguous(memory_format=torch.channels_last)


def test_pixels_are_kept_as_bytes_and_batches_are_made_when_asked_for():
    data = images(n=10)
    x, y = data._parts["train"]
    assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)
    batches = data.fixed("train", None, per_batch=4)
    assert torch.equal(batches[0][0], batches[0][0])
    assert batches[0][0].data_ptr() != x.data_ptr()
    batches[1][0].zero_()  # of this one copy
    assert float(batches[1][0].abs().max()) > 0


@pytest.mark.parametrize("augment", [False, True])
def test_all_of_a_batch_is_made_on_the_device_of_the_data(augment):
    content = {k: v[..., None] if k[0] == "x" else v for k, v in arrays().items()}
    pictures, text = Images(content, batch=4, seed=0, augment=augment), stream()
    for data in (pictures, text):
        data.to(torch.device("meta"))  # a device without numbers
        for x, y in (data.batch(1), data.fixed("val")[0]):
            assert x.device.type == y.device.type == "meta"
    assert all(m.device.type == "meta" for m in pictures._moments)  # meta alone would take those of the CPU


def test_batches_are_a_sequence():
    batches = Batches(3, lambda k: (torch.tensor(k), torch.tensor(k)))
    assert len(batches) == 3
    assert [int(x) for x, _ in batches] == [int(x) for x, _ in batches[0:3]] == [0, 1, 2]
    assert int(batches[-1][0]) == 2
    assert [int(x) for x, _ in batches[1:]] == [1, 2]
    with pytest.raises(IndexError):
        batches[3]


def test_a_fixed_subset_is_spread_over_the_data_and_stays():
    data = images(n=10)
    (x, _), (again, _) = data.fixed("train", 5)[0], data.fixed("train", 5)[0]
    assert torch.equal(x, again)
    assert torch.equal(x, data.fixed("train")[0][0][::2])
    assert [len(b[0]) for b in data.fixed("train", None, per_batch=4)] == [4, 4, 2]


def test_digits_come_with_scikit_learn():
    pytest.importorskip("sklearn")
    data = load_images(resolve("cnn", {}))
    assert data.facts == {"train": 1438, "val": 359, "shape": [8, 8, 1], "classes": 10}
    assert len(data.sha256) == 64
    doubled = load_images(resolve("cnn", {"data": "digits16"}))
    assert doubled.facts == {**data.facts, "shape": [16, 16, 1]}
    (small, labels), (large, same) = data.fixed("val")[0], doubled.fixed("val")[0]
    assert torch.equal(labels, same)
    for corner in (large[..., a::2, b::2] for a in (0, 1) for b in (0, 1)):
        torch.testing.assert_close(corner, small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("y_test"), "lacks y_test"),
        (lambda a: a.update(x_train=a["x_train"].astype(float)), "x_train .* must be uint8"),
        (lambda a: a.update(x_train=a["x_train"][0]), "must be uint8 of shape"),
        (lambda a: a.update(y_train=a["y_train"][:-1]), "10 whole numbers, one per image"),
        (lambda a: a.update(y_train=a["y_train"] * 0.5), "whole numbers"),
        (lambda a: a.update(y_test=a["y_test"] + 7), "same in both parts, got 7"),
        (lambda a: a.update(y_train=a["y_train"] - 1), "got -1"),
        (lambda a: a.update(y_train=a["y_train"] + 1, y_test=a["y_test"] + 1), "without gaps .* got 1; .* renumbers"),
        (lambda a: a.update(y_train=a["y_train"] * 2), "without gaps .* got 2"),
        (lambda a: a.update(y_train=a["y_train"] * 2**40), "0..classes-1 .* got 1099511627776"),
        (lambda a: a.update(x_train=a["x_train"][:, :0]), r"holds no images, its shape is \(10, 0, 8, 1\)"),
        (lambda a: a.update(x_test=a["x_test"][:, :7]), "differ in shape"),
        (lambda a: a.update(x_train=np.zeros((10, 3, 8, 8), np.uint8)), r"save x_train.transpose\(0, 2, 3, 1\)"),
        (lambda a: a.update(y_train=a["y_train"] * 0, y_test=a["y_test"] * 0), "all of one class, 0; give two"),
        (lambda a: a.update(y_train=np.array([0, "1"] * 5, dtype=object)), "cannot be read .*allow_pickle"),
        (lambda a: a.update(y_train=np.full(10, np.nan)), "whole numbers, one per image, got float64"),
        (lambda a: a.update(x_test=a["x_test"][:0], y_test=a["y_test"][:0]), "holds no images"),
    ],
)
def test_a_wrong_npz_is_one_clear_message(tmp_path, change, message):
    content = arrays()
    change(content)
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(InputError, match=message):
        load_images(resolve("cnn", {"data": str(tmp_path / "a.npz"), "batch": 4}))


def test_more_images_per_update_than_there_are_is_refused():
    assert len(images(n=10, batch=10).batch(0)[0]) == 10
    with pytest.raises(InputError, match="at most the 10 training images, got 11"):
        images(n=10, batch=11)


def test_a_single_array_is_no_archive(tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match="cannot be read as"):
        load_images(resolve("cnn", {"data": str(tmp_path / "a.npz")}))


def test_a_cut_or_missing_npz_is_one_clear_message(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:300])
    for name, message in (
        (path, "cut short"),
        (tmp_path / "b.npz", "does not exist"),
        ("mnist", "digits, digits16, cifar10 or"),
    ):
        with pytest.raises(InputError, match=message):
            load_images(resolve("cnn", {"data": str(name)}))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_damage_to_an_npz_is_told_or_harmless(tmp_path, save):
    """A flipped bit may read as anything: another compression, a password, an absurd version."""
    path, rng = tmp_path / "a.npz", np.random.default_rng(0)
    save(path, **arrays())
    whole, sound = path.read_bytes(), load_images(resolve("cnn", {"data": str(path), "batch": 4})).sha256
    told = []
    # The directory at the end and the headers: there damage is strangest.
    places = [*rng.integers(0, len(whole), 100), *range(len(whole) - 330, len(whole), 3), *range(0, 130, 2)]
    for place in places:
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoilt)
        try:
            assert load_images(resolve("cnn", {"data": str(path), "batch": 4})).sha256 == sound
        except InputError as error:
            told.append(str(error))
    assert all(str(path) in message for message in told)
    assert len(told) > len(places) / 3


def test_a_failed_download_says_what_else_there_is(monkeypatch, tmp_path):
    torchvision = pytest.importorskip("torchvision")

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(RivervalError, match=r"no network.*--data digits"):
        load_images(resolve("cnn", {"data": "cifar10"}))


# --- text ------------------------------------------------------------------------------------------------------------
def text_config(path, **given):
    return resolve("lm", {"data": str(path), "seq": 8, "batch": 3, **given})


def stream(n=100, seed=0):
    tokens = np.arange(n, dtype=np.int32)
    return Text(tokens, tokens, seq=8, batch=3, seed=seed, vocab=n, sha256="")


def test_sequences_are_a_function_of_seed_and_step_and_targets_follow():
    x, y = stream().batch(5)
    assert x.shape == y.shape == (3, 8)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert torch.equal(stream().batch(5)[0], x)
    assert not torch.equal(stream().batch(6)[0], x)
    assert not torch.equal(stream(seed=1).batch(5)[0], x)
    starts = {int(t) for step in range(400) for t in stream().batch(step)[0][:, 0]}
    assert starts == set(range(92))  # every place that leaves a target for the last token


def test_fixed_sequences_lie_side_by_side():
    x = torch.cat([x for x, _ in stream().fixed("val")])
    assert torch.equal(x.flatten(), torch.arange(96))
    assert len(torch.cat([x for x, _ in stream().fixed("val", 5)])) == 5


def test_every_twentieth_document_is_held_out_or_the_end_of_a_single_one():
    documents = [f"doc {k}".encode() for k in range(45)]
    train, val = split(documents)
    assert val == [documents[19], documents[39]]
    assert len(train) == 43
    train, val = split([b"x" * 100])
    assert (len(train[0]), len(val[0])) == (95, 5)
    assert b"".join(d for part in split([b"ab" * 30, b"cd" * 20]) for d in part) == b"ab" * 30 + b"cd" * 20


def test_bytes_round_trip_with_a_separator():
    tokens = byte_tokens(["né".encode(), b"a"])
    assert tokens.tolist() == [110, 195, 169, 256, 97, 256]


def test_bpe_round_trips_and_is_cached_by_content(tmp_path):
    pytest.importorskip("tokenizers")
    train, val = [b"the cat sat on the mat, the end " * 20, "naïve 🙂\n\tindented".encode()], [b"the mat"]
    ids, held = bpe_tokens(train, val, vocab=280)
    tokenizer = bpe_tokenizer(train, vocab=280)
    assert tokenizer.get_vocab_size() == 280
    assert ids[-1] == held[-1] == tokenizer.token_to_id(SEPARATOR)
    assert tokenizer.decode(ids[ids != ids[-1]].tolist()) == b"".join(train).decode()
    assert len(ids) < len(b"".join(train)) / 2
    files = sorted(p.name for p in (tmp_path / "cache" / "bpe").iterdir())
    assert len(files) == 2
    again, _ = bpe_tokens(train, val, vocab=280)
    assert np.array_equal(ids, again)
    bpe_tokens(train, [b"other"], vocab=280)
    assert len(list((tmp_path / "cache" / "bpe").iterdir())) == 3  # the same tokeniser, other tokens
    for file in (tmp_path / "cache" / "bpe").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    again, _ = bpe_tokens(train, val, vocab=280)  # spoilt files are made anew
    assert np.array_equal(ids, again)
    assert bpe_tokenizer(train, vocab=280).get_vocab_size() == 280


def test_a_cache_that_cannot_be_made_is_told_before_any_training(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    (tmp_path / "file").touch()
    monkeypatch.setenv("RIVERVAL_CACHE", str(tmp_path / "file"))
    with pytest.raises(RivervalError, match="set RIVERVAL_CACHE"):
        bpe_tokenizer([b"text"], vocab=280)


def test_text_from_a_file_a_folder_and_this_python(tmp_path):
    (tmp_path / "a.txt").write_text(("word " * 50 + SEPARATOR) * 25)
    data = load_text(text_config(tmp_path / "a.txt"))
    assert data.facts == {"train": 24 * 251, "val": 251, "vocab": 257}
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "b.txt").write_text("b" * 400)
    (folder / "c.txt").write_text("c" * 400)
    (folder / ".git").mkdir()
    (folder / ".git" / "index").write_bytes(b"\xff\xfe")  # hidden, so not read
    assert load_text(text_config(folder)).facts == {"train": 762, "val": 41, "vocab": 257}


def test_the_library_sources_are_large_and_none_is_held_out_and_trained_on():
    documents = TEXT_SOURCES["stdlib"]()
    train, val = split(documents)
    assert sum(map(len, train)) > 5e6
    assert not set(train) & set(val)
    assert not any(d.startswith(b'""" Python Character Mapping Codec') for d in documents)  # near copies of each other


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"short", "too few for one sequence"),
        (b"x" * 100, "validation text has 6 tokens"),
        (b"\xff\xfe" * 99, "not UTF-8"),
        (b"   ", "holds no text"),
    ],
)
def test_unusable_text_is_one_clear_message(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_text(text_config(tmp_path / "a.txt"))
    for name in (tmp_path / "b.txt", ""):
        with pytest.raises(InputError, match="no such file or folder; choose stdlib"):
            load_text(text_config(name))
