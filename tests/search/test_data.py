"""Data in every form come out as the same samples; what does not fit is refused in words."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hasten.errors import DataError, OptionError
from hasten.runtime.manifest import TensorInfo
from hasten.search import data_files
from hasten.search.blocks import together
from hasten.search.data import Samples, batches, load_runs, load_samples, split
from hasten.search.metrics import evaluate, metric_named
from hasten.search.samples import shuffled, some

X = TensorInfo("x", "float32", ("batch", 3))
IDS = TensorInfo("input_ids", "int64", ("batch", "sequence"))
MASK = TensorInfo("attention_mask", "int64", ("batch", "sequence"))

COUNT = 12
ROWS = np.arange(COUNT * 3, dtype=np.float32).reshape(COUNT, 3)
LABELS = np.arange(COUNT) % 3


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


def check(samples: Samples, labelled: bool = True) -> None:
    assert len(samples) == COUNT
    for row, feeds in zip(ROWS, samples.feeds, strict=True):
        assert feeds["x"].shape == (1, 3)
        assert feeds["x"].dtype == np.float32
        np.testing.assert_array_equal(feeds["x"][0], row)
    if labelled:
        assert samples.labels is not None
        assert samples.labels.dtype == np.int64
        np.testing.assert_array_equal(samples.labels, LABELS)
    else:
        assert samples.labels is None


class Loader:
    """What a DataLoader looks like: batches of tensors, the last one of a single sample."""

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        for i in (0, 4, 8, 11):
            stop = {0: 4, 4: 8, 8: 11, 11: 12}[i]
            yield [torch.tensor(ROWS[i:stop], requires_grad=True), torch.tensor(LABELS[i:stop])]


@pytest.mark.parametrize(
    "data",
    [
        [({"x": row}, label) for row, label in zip(ROWS, LABELS, strict=True)],
        [({"x": row[None]}, int(label)) for row, label in zip(ROWS, LABELS, strict=True)],
        [{"x": row.tolist(), "label": int(label)} for row, label in zip(ROWS, LABELS, strict=True)],
        (pair for pair in zip(ROWS, LABELS, strict=True)),
        {"x": ROWS, "labels": LABELS},
        [({"x": ROWS[:5]}, LABELS[:5]), ({"x": ROWS[5:]}, LABELS[5:])],
        Loader(),
        torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.tensor(ROWS), torch.tensor(LABELS)), batch_size=5
        ),
    ],
    ids=["pairs", "batch of one", "rows", "arrays", "columns", "batches", "tensors", "DataLoader"],
)
def test_iterables(data: object) -> None:
    check(load_samples(data, [X]))


def parquet(path: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"x": ROWS.tolist(), "label": LABELS.tolist(), "id": list(range(COUNT))})
    pyarrow.parquet.write_table(table, path / "data.parquet")
    return path / "data.parquet"


def lines(path: Path) -> Path:
    rows = [{"x": row.tolist(), "label": int(label)} for row, label in zip(ROWS, LABELS, strict=True)]
    (path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path / "data.jsonl"


def npz(path: Path) -> Path:
    np.savez(path / "data.npz", x=ROWS, labels=LABELS)
    return path / "data.npz"


def compressed(path: Path) -> Path:
    np.savez_compressed(path / "data.npz", x=np.asfortranarray(ROWS), labels=LABELS)
    return path / "data.npz"


def folder(path: Path) -> Path:
    for number, i in enumerate(range(0, COUNT, 4)):
        np.savez(path / f"{number}.npz", x=ROWS[i : i + 4], labels=LABELS[i : i + 4])
    return path


@pytest.mark.parametrize("write", [parquet, lines, npz, compressed, folder])
def test_files(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    check(load_samples(write(tmp_path), [X]))
    check(load_samples(str(write(tmp_path)), [X]))


def test_stored_arrays_are_mapped_and_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "_LEAST_MAPPED", 1)
    samples = load_samples(npz(tmp_path), [X], most_bytes=1)
    check(samples)
    assert isinstance(samples.feeds[3]["x"], np.memmap)
    with pytest.raises(DataError, match="mapped and not read"):
        load_samples(compressed(tmp_path), [X], most_bytes=100)


@pytest.mark.parametrize(("least", "descriptors"), [(1 << 20, 0), (1, 1)])
def test_many_arrays_in_files_take_few_descriptors(
    least: int, descriptors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_files, "_LEAST_MAPPED", least)
    rng = np.random.default_rng(0)
    wanted = {
        "x": np.asfortranarray(rng.standard_normal((5, 4))), "y": rng.integers(0, 9, (3, 2)),
        "none": np.empty((0, 3)), "one": np.array(2.5), "words": np.array(["a", "bcd"]),
    }  # fmt: skip
    for number in range(20):
        np.savez(tmp_path / f"{number}.npz", **wanted)
    before = open_files()
    files = list(data_files.items_of(tmp_path))
    assert open_files() <= before + descriptors * len(files)
    for found in files:
        assert isinstance(found, dict)
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
            assert isinstance(found[name], np.memmap) == bool(descriptors and array.size)


def test_what_is_made_of_mapped_arrays_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cast of a mapped array is in memory, and refused before it is made."""
    size = ROWS.nbytes
    np.savez(tmp_path / "wide.npz", x=ROWS.astype(np.float64), labels=LABELS)
    check(load_samples(tmp_path / "wide.npz", [X], most_bytes=size))
    np.save(tmp_path / "x.npy", ROWS)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    check(load_samples({"x": mapped, "labels": LABELS}, [X], most_bytes=1))
    monkeypatch.setattr(np, "isnan", lambda _: pytest.fail("was cast, and looked at"))
    for data in (tmp_path / "wide.npz", {"x": np.load(tmp_path / "x.npy", mmap_mode="r").astype(np.float64)}):
        with pytest.raises(DataError, match="GB of memory"):
            load_samples(data, [X], most_bytes=size - 1)
    monkeypatch.undo()
    with pytest.raises(DataError, match="GB of memory"):
        load_samples({"x": mapped + 0}, [X], most_bytes=size - 1)


def test_an_endless_iterable_ends() -> None:
    def endless() -> Iterator[np.ndarray]:
        while True:
            yield ROWS[0]

    with pytest.raises(DataError, match="GB of memory"):
        load_samples(endless(), [X], most_bytes=1000)


def test_several_inputs_by_place_and_of_several_lengths() -> None:
    items = [(list(range(n)), [1] * n) for n in (3, 3, 5)]
    by_place = load_samples([tuple(map(np.array, item)) for item in items], [IDS, MASK])
    assert [f["input_ids"].shape for f in by_place.feeds] == [(1, 3), (1, 3), (1, 5)]
    joined = list(batches(by_place, 8))
    assert [(feeds["attention_mask"].shape, place) for feeds, place in joined] == [
        ((2, 3), slice(0, 2)),
        ((1, 5), slice(2, 3)),
    ]


def test_batches_are_in_order_and_no_larger_than_asked() -> None:
    samples = load_samples({"x": ROWS}, [X])
    parts = list(batches(samples, 5))
    assert [place for _, place in parts] == [slice(0, 5), slice(5, 10), slice(10, 12)]
    np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds, _ in parts]), ROWS)


def test_casts_are_said() -> None:
    samples = load_samples([{"x": ROWS[0].astype(np.float64), "extra": 1}], [X])
    assert samples.notes == (
        "not used, since the model has no such input: extra",
        "input 'x': float64 rounded to float32",
    )
    ids = load_samples([{"input_ids": np.array([1, 2], np.int32), "attention_mask": [1, 1]}], [IDS, MASK])
    assert ids.feeds[0]["input_ids"].dtype == np.int64
    assert ids.notes == ("input 'input_ids': int32 widened to int64",)


NAN = ROWS.copy()
NAN[7, 1] = np.nan


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "the data are empty"),
        ({"x": ROWS[:0]}, "the data are empty"),
        ([{"y": ROWS[0]}], r"no x \(it has y\); the model takes x: float32\[batch, 3\]"),
        ([{"x": ROWS[0, :2]}], r"shape \[1, 2\]; the model takes"),
        ([{"x": np.zeros((1, 1, 3), np.float32)}], r"shape \[1, 1, 3\]"),
        ([{"x": np.arange(3)}], "int64; the model takes"),
        ([{"x": np.array(["a", "b", "c"])}], "the model takes"),
        ([{"x": [[1.0, 2.0, 3.0], [1.0]]}], "cannot be made an array"),
        ({"x": NAN}, r"NaN at \[7, 1\]"),
        ({"x": ROWS, "labels": NAN[:, 1]}, "the label of sample 7 is NaN"),
        ({"x": ROWS, "labels": NAN[:, 1:2]}, "the label of sample 7 is NaN"),
        ([(ROWS[0], [1.0, 2.0]), (ROWS[1], [np.nan])], "the label of sample 1 is NaN"),
        ([({"x": ROWS[0]}, 1), {"x": ROWS[1]}], "sample 1 has no label, and 1 others have"),
        ([({"x": ROWS[0]}, "positive")], "give the class's number"),
        ({"x": ROWS, "labels": LABELS[:5]}, r"12 samples from 0 on have labels of shape \[5\]"),
        ([(ROWS[0], 1, 2, 3)], "4 parts"),
        (["a raw text"], "does not come with a tokenizer"),
        ([Path("cat.png")], "does not come with a image processor"),
        (17, "data is int"),
        ("nowhere.npz", "there is no nowhere.npz"),
    ],
)
def test_what_does_not_fit(data: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_samples(data, [X])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("data.npz", b"no zip", "damaged"),
        ("data.parquet", b"no parquet", "damaged"),
        ("data.jsonl", b'{"x": [1, 2, 3]}\n{"x"', "line 2"),
        ("data.jsonl", b"[1]", "not an object"),
        ("data.jsonl", b'{"x": [1, 2, 3]}\n{"t\xe9xt": 1}', "line 2: not UTF-8"),
        ("data.jsonl", b"[" * 100_000, "line 1: no JSON"),
        ("data.csv", b"x\n1", "unknown form"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_samples(tmp_path / name, [X])


def test_npz_of_objects_and_of_a_broken_member(tmp_path: Path) -> None:
    np.savez(tmp_path / "o.npz", x=np.array([None, "a"], object))
    with pytest.raises(DataError, match="objects"):
        data_files.load_npz(tmp_path / "o.npz")
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00v\x00{'descr'")
    with pytest.raises(DataError, match="damaged"):
        data_files.load_npz(tmp_path / "m.npz")


def test_every_damaged_byte_of_an_npz_is_found_or_harmless(tmp_path: Path) -> None:
    whole = compressed(tmp_path).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in range(0, len(whole), 3):
        content = bytearray(whole)
        content[position] ^= int(rng.integers(1, 256))
        (tmp_path / "damaged.npz").write_bytes(content)
        try:
            list(data_files.items_of(tmp_path / "damaged.npz"))
        except DataError as error:
            refused += 1
            assert "damaged.npz" in str(error)
    assert refused > len(whole) / 6


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = lines(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    check(load_samples(path, [X]))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("preprocessor_config.json",), "image processor"),
        (("vocab.txt",), "tokenizer"),
        (("preprocessor_config.json", "vocab.txt"), "image processor"),
        ((), "image processor"),
    ],
)
def test_strings_are_what_the_model_comes_with_a_reader_of(
    tmp_path: Path, files: tuple[str, ...], said: str
) -> None:
    """A picture and its label is no pair of texts, and a text may end like a picture's name."""
    for name in files:
        (tmp_path / name).write_text("{}")
    for item in (("dog.jpg", "dog"), "see dog.jpg"):
        with pytest.raises(DataError, match=f"the {said} in"):
            load_samples([item], [IDS, MASK], folder=tmp_path)


def test_damaged_pictures(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}})
    )
    pixels = TensorInfo("pixels", "float32", ("batch", 3, 8, 8))
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3)).astype(np.uint8)).save(path)
    whole = path.read_bytes()
    for position in range(8, 120, 7):
        content = bytearray(whole)
        content[position] ^= 0x55
        path.write_bytes(content)
        try:
            load_samples([path], [pixels], folder=model)
        except DataError as error:
            assert "a.png" in str(error)


def test_a_model_of_fixed_batches_is_refused() -> None:
    with pytest.raises(DataError, match="batches of exactly 8"):
        load_samples([], [TensorInfo("x", "float32", (8, 3))])


def test_samples_are_joined_to_batches_of_a_fixed_size() -> None:
    x = np.arange(33, dtype=np.float32).reshape(11, 3)
    fixed = TensorInfo("x", "float32", (4, 3))
    for data in (list(x), [x[:4], x[4:8], x[8:]], {"x": x}):
        runs, said = load_runs(data, [fixed])
        found = np.stack([run["x"] for run in runs])
        np.testing.assert_array_equal(found.reshape(12, 3), x[[*range(11), 10]])
        assert said == ("the model takes batches of 4: 11 samples are 3; 1 places repeat a sample",)
    assert load_runs(x, [X])[1] == ()
    scalar = TensorInfo("s", "float32", ())
    rows = [{"x": row, "s": np.float32(n // 6)} for n, row in enumerate(x)]
    runs, _ = load_runs(rows, [fixed, scalar])
    assert [(run["x"][0, 0], float(run["s"])) for run in runs] == [(0, 0), (12, 0), (18, 1), (30, 1)]
    with pytest.raises(DataError, match="batches of exactly 4"):
        load_runs(x, [fixed, TensorInfo("y", "float32", (8, 3))])


def test_split_is_seeded_stratified_and_complete() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    samples = load_samples({"x": np.arange(3000, dtype=np.float32).reshape(1000, 3), "labels": labels}, [X])
    calibration, held_out = split(samples, 3, 100)
    assert calibration.labels is not None
    assert np.bincount(calibration.labels).tolist() == [60, 30, 10]
    both = [int(f["x"][0, 0]) // 3 for f in (*calibration.feeds, *held_out.feeds)]
    assert sorted(both) == list(range(1000))
    assert both != list(range(1000))
    again, other = split(samples, 3, 100)[0], split(samples, 4, 100)[0]
    assert [f["x"][0, 0] for f in again.feeds] == [f["x"][0, 0] for f in calibration.feeds]
    assert [f["x"][0, 0] for f in other.feeds] != [f["x"][0, 0] for f in calibration.feeds]
    assert held_out.labels is not None
    assert all(
        labels[int(f["x"][0, 0]) // 3] == label
        for f, label in zip(held_out.feeds, held_out.labels, strict=True)
    )
    assert held_out.notes == ()


def test_some_of_sorted_data_are_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    samples = load_samples({"x": np.arange(3000, dtype=np.float32).reshape(1000, 3), "labels": labels}, [X])
    chosen, again, other = some(samples, 100, 3), some(samples, 100, 3), some(samples, 100, 4)
    assert chosen.labels is not None
    assert np.bincount(chosen.labels).tolist() == [60, 30, 10]
    rows = [int(f["x"][0, 0]) // 3 for f in chosen.feeds]
    assert labels[rows].tolist() == chosen.labels.tolist()
    assert rows == [int(f["x"][0, 0]) // 3 for f in again.feeds]
    assert set(rows) != {int(f["x"][0, 0]) // 3 for f in other.feeds}
    unlabelled = some(Samples(samples.feeds), 100, 3)
    assert len(unlabelled) == 100
    assert max(int(f["x"][0, 0]) // 3 for f in unlabelled.feeds) >= 600
    assert some(samples, 1000, 3) is samples
    whole = shuffled(samples, 3)
    assert whole.labels is not None
    assert np.bincount(whole.labels[:100], minlength=3).min() > 0
    rows = [int(f["x"][0, 0]) // 3 for f in whole.feeds]
    assert labels[rows].tolist() == whole.labels.tolist()
    assert sorted(rows) == list(range(1000))


def test_split_says_what_too_few_samples_cost() -> None:
    samples = load_samples({"x": ROWS}, [X])
    calibration, held_out = split(samples, 0)
    assert (len(calibration), len(held_out)) == (3, 9)
    assert "no drop below 28 points" in held_out.notes[0]
    with pytest.raises(DataError, match="1 sample"):
        split(Samples(samples.feeds[:1]), 0)
    with pytest.raises(OptionError, match="from 1 to 11"):
        split(samples, 0, 12)


def tokenizer(folder: Path) -> Path:
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "good", "bad", "film"])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=4
    )
    fast.save_pretrained(folder)
    return folder


def test_texts_and_pairs_through_the_tokenizer(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path)
    samples = load_samples([("good film", 1), ({"text": "bad"}, 0)], [IDS, MASK], folder=folder)
    assert [f["input_ids"].tolist() for f in samples.feeds] == [[[2, 4]], [[3]]]
    assert samples.labels is not None
    assert samples.labels.tolist() == [1, 0]
    assert "raw texts through the tokenizer" in samples.notes[0]
    pairs = load_samples([("good", "bad"), ("good good good", "bad film film")], [IDS], folder=folder)
    assert [f["input_ids"].tolist() for f in pairs.feeds] == [[[2, 3]], [[2, 2, 3, 4]]]
    fixed = load_samples(["good"], [TensorInfo("input_ids", "int64", ("batch", 3))], folder=folder)
    assert fixed.feeds[0]["input_ids"].tolist() == [[2, 0, 0]]


@pytest.mark.parametrize(
    ("item", "ids", "unused"),
    [
        ({"question": "good", "sentence": "bad", "idx": 3}, [2, 3], "idx"),
        ({"title": "x", "question": "good", "context": "film", "answers": {}}, [2, 4], "title, answers"),
        ({"question": "good", "passage": "bad", "answer": True}, [2, 3], "answer"),
        ({"question": "good", "answer": "film"}, [2, 4], None),
        ({"question1": "good", "question2": "film"}, [2, 4], None),
        ({"sentence2": "bad", "sentence1": "film"}, [4, 3], None),
        ({"premise": "bad", "hypothesis": "film", "sentence": "good"}, [3, 4], "sentence"),
        ({"text": "good", "text_pair": None}, [2], None),
        ({"text": "good", "answer": "bad"}, [2], "answer"),
    ],
)
def test_a_second_text_is_read_and_other_columns_are_said(
    tmp_path: Path, item: dict[str, object], ids: list[int], unused: str | None
) -> None:
    samples = load_samples([{**item, "label": 1}], [IDS, MASK], folder=tokenizer(tmp_path))
    assert samples.feeds[0]["input_ids"].tolist() == [ids]
    said = () if unused is None else (f"not used, since the model has no such input: {unused}",)
    assert samples.notes[1:] == said


class Texts:
    """What a data set of texts looks like: a mapping, or a pair, for each."""

    texts = ("good film", "bad", "film", "bad film", "good")

    def __init__(self, pairs: bool) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> object:
        text, label = self.texts[index], index % 3
        return (text, label) if self._pairs else {"text": text, "label": label}


def loader(pairs: bool, size: int) -> object:
    dataset: Any = Texts(pairs)
    return torch.utils.data.DataLoader(dataset, batch_size=size)


@pytest.mark.parametrize(
    "data",
    [
        {"text": list(Texts.texts), "label": [0, 1, 2, 0, 1], "idx": list(range(5))},
        {"text": np.array(Texts.texts), "labels": np.array([0, 1, 2, 0, 1])},
        [({"text": Texts.texts[:3]}, np.arange(3)), ({"text": Texts.texts[3:]}, [0, 1])],
        loader(False, 2),
        loader(False, 5),
        loader(True, 2),
        loader(True, 3),
    ],
    ids=["slice", "arrays", "pairs", "DataLoader", "one batch", "batches of 2 pairs", "batches of 3 pairs"],
)
def test_columns_of_texts(tmp_path: Path, data: object) -> None:
    samples = load_samples(data, [IDS, MASK], folder=tokenizer(tmp_path))
    assert [f["input_ids"].tolist() for f in samples.feeds] == [[[2, 4]], [[3]], [[4]], [[3, 4]], [[2]]]
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2, 0, 1]


def test_columns_of_pairs_of_texts_and_what_is_missing_in_them(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path)
    pairs = {"premise": ["good", "bad"], "hypothesis": ["film", "good"]}
    samples = load_samples({**pairs, "label": None}, [IDS, MASK], folder=folder)
    assert [f["input_ids"].tolist() for f in samples.feeds] == [[[2, 4]], [[3, 2]]]
    assert samples.labels is None
    for data, said in (
        ({**pairs, "label": torch.tensor([1])}, "different lengths: premise 2, hypothesis 2, label 1"),
        ({**pairs, "hypothesis": "film"}, "different lengths: premise 2, hypothesis str"),
        ({"text": ["good", None]}, "the text of sample 1 is missing"),
        ([{"text": "good"}, {"text": None, "label": 1}], "the text of sample 1 is missing"),
        ([("good", "bad"), {"text": "good", "text_pair": 3}], "the second text of sample 1 is of type int"),
        ({"text": []}, "the data are empty"),
    ):
        with pytest.raises(DataError, match=said):
            load_samples(data, [IDS, MASK], folder=folder)


def test_pictures_through_the_image_processor(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}})
    )
    for label, shade in ((0, 0), (7, 255)):
        (tmp_path / "pictures" / str(label)).mkdir(parents=True)
        Image.new("L", (20, 10), shade).save(tmp_path / "pictures" / str(label) / "a.png")
    pixels = TensorInfo("pixels", "float32", ("batch", 3, 8, 8))
    samples = load_samples(tmp_path / "pictures", [pixels], folder=model)
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 7]
    dark, light = (f["pixels"] for f in samples.feeds)
    np.testing.assert_allclose(dark, -1, atol=1e-6)
    np.testing.assert_allclose(light, 1, atol=1e-6)
    columns = {"image": [Image.new("L", (20, 10), 0)] * 2, "text": ["none", None], "label": [3, 4]}
    captioned = load_samples(columns, [pixels], folder=model)
    assert captioned.labels is not None
    assert captioned.labels.tolist() == [3, 4]
    assert captioned.notes[-1] == "not used, since the model has no such input: text"
    np.testing.assert_array_equal(captioned.feeds[1]["pixels"], dark)
    paths = [str(tmp_path / "pictures" / label / "a.png") for label in "07"]
    batch = load_samples([(paths, torch.tensor([0, 7]))], [pixels], folder=model)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 7]
    np.testing.assert_array_equal(batch.feeds[1]["pixels"], light)
    named = TensorInfo("image", "float32", ("batch", 3, 8, 8))
    (model / "config.json").write_text(json.dumps({"id2label": {"0": "cat", "1": "dog"}}))
    arrays = load_samples([({"image": dark}, "dog")], [named], folder=model)
    np.testing.assert_array_equal(arrays.feeds[0]["image"], dark)


@pytest.mark.parametrize(
    ("shapes", "data", "rows", "labels"),
    [
        ([("n", 2)], [["oslo", "red"], ["bergen", "blue"]], [[["oslo", "red"]], [["bergen", "blue"]]], None),
        ([("n", 2)], [(["oslo", "red"], 1)], [[["oslo", "red"]]], [1]),
        ([("n",)], ["oslo", "cat.png"], [["oslo"], ["cat.png"]], None),
        ([("n",)], [("oslo", 1), ("bergen", 0)], [["oslo"], ["bergen"]], [1, 0]),
        ([("n",)], [[("oslo", "bergen"), torch.tensor([1, 0])]], [["oslo"], ["bergen"]], [1, 0]),
        ([("n",), ("n",)], [(["oslo"], ["red"])], [["oslo"]], None),
        ([("n",), ("n",)], [("oslo", "red")], [["oslo"]], None),
    ],
)
def test_texts_that_the_model_takes_itself(
    tmp_path: Path, shapes: list[Any], data: object, rows: list[object], labels: list[int] | None
) -> None:
    """They are arrays, whatever else the model's folder can read."""
    inputs = [TensorInfo(name, "object", shape) for name, shape in zip("ab", shapes, strict=False)]
    for folder in (None, tokenizer(tmp_path)):
        samples = load_samples(data, inputs, folder=folder)
        assert [feeds["a"].tolist() for feeds in samples.feeds] == rows
        assert [feeds["b"].tolist() for feeds in samples.feeds if "b" in feeds] == [["red"]] * (
            len(rows) * (len(shapes) - 1)
        )
        assert (None if samples.labels is None else samples.labels.tolist()) == labels


def test_of_several_positions_some_labels_may_be_nan() -> None:
    """For mse those do not count, whether all samples have as many or not."""
    free = TensorInfo("x", "float32", ("batch", "positions"))
    labels: list[list[float]] = [[1, np.nan, 3], [np.nan, 1, 1]]
    for second in (3, 2):
        data = [(ROWS[0], labels[0]), (ROWS[1, :second], labels[1][:second])]
        samples = load_samples(data, [free])
        assert samples.labels is not None
        answers = together([np.zeros(3, np.float32), np.zeros(second, np.float32)])
        assert evaluate(metric_named("mse"), {"y": answers}, samples.labels, {"y": answers}) == 3


def test_labels_may_be_the_names_of_classes(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path)
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "bad", "1": "good"}}))
    items = [("good film", "good"), {"text": "bad", "label": "bad"}, ({"text": "film"}, "good")]
    samples = load_samples(items, [IDS, MASK], folder=folder)
    assert samples.labels is not None
    assert samples.labels.tolist() == [1, 0, 1]
    assert samples.labels.dtype == np.int64
    assert load_samples([("good", "film")], [IDS, MASK], folder=folder).labels is None  # a pair of texts
    with pytest.raises(DataError, match="'fine': the model's classes are bad, good"):
        load_samples([({"text": "film"}, "fine")], [IDS, MASK], folder=folder)
    with pytest.raises(DataError, match=r"whose config\.json names its classes"):
        load_samples([({"x": np.zeros((1, 3), np.float32)}, "good")], [X])
