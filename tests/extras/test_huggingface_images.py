"""Images of the `datasets` library: the bits of a zip, from parquet, from disk and from the library's cache."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import encode, pixels, refused, store
from PIL import Image
from small import DIGITS, here, last, refusal
from test_data_errors import broken_images

from warm_lightning.commands.oracle import data_content, data_name
from warm_lightning.data import HuggingFaceImages, ImageDataModule, ImageFolder
from warm_lightning.data.stream import Loader, TrainingStream
from warm_lightning.types import Batch

CLASSES = ["cat", "dog", "fox"]


@pytest.fixture(autouse=True)
def library(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library's own cache, empty."""
    folder = tmp_path_factory.mktemp("library")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def photograph(i: int, size: int = 16) -> bytes:
    """An image file: PNG, JPEG, WebP, grey, with a palette, with transparency or turned by EXIF, by its number."""
    image = Image.fromarray(pixels(size))
    turned = Image.Exif()
    turned[274] = 6
    kinds: list[Callable[[], bytes]] = [
        lambda: encode(image),
        lambda: encode(image, "JPEG", quality=90, exif=turned),
        lambda: encode(image, "WEBP", lossless=True),
        lambda: encode(image.convert("L")),
        lambda: encode(image.quantize(16)),
        lambda: encode(pixels(size, 4)),
    ]
    return kinds[i % len(kinds)]()


FILES = [photograph(i) for i in range(40)]
LABELS = [i * len(CLASSES) // len(FILES) for i in range(len(FILES))]
"""Sorted, as the names of class folders are, so that a zip has the images in the order of the rows."""


def table(files: list[bytes], labels: list[int]) -> datasets.Dataset:
    """A data set as `push_to_hub` writes it."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    rows = {"image": [{"bytes": file, "path": None} for file in files], "label": labels}
    return datasets.Dataset.from_dict(rows, features=features)


def parquet(folder: Path) -> str:
    """A folder of parquet files as on the Hub: the training images in two files, ten test images in one."""
    folder.mkdir()
    for i, rows in enumerate((slice(0, 25), slice(25, 40))):
        table(FILES[rows], LABELS[rows]).to_parquet(folder / f"train-0000{i}-of-00002.parquet", batch_size=7)
    table(FILES[::4], LABELS[::4]).to_parquet(folder / "test-00000-of-00001.parquet")
    return str(folder)


def saved(folder: Path) -> str:
    whole = datasets.DatasetDict(train=table(FILES, LABELS), test=table(FILES[::4], LABELS[::4]))
    whole.save_to_disk(folder)
    return str(folder)


def on_hub(folder: Path) -> str:
    """A data set of the Hub in the library's cache alone, as a machine has it that was online once."""
    builder = datasets.load_dataset_builder(parquet(folder))
    builder.download_and_prepare()
    home = Path(datasets.config.HF_DATASETS_CACHE) / "team___animals" / "default" / "0.0.0" / ("a" * 40)
    shutil.copytree(builder.cache_dir, home)
    for file in home.glob("*.arrow"):
        file.rename(home / file.name.replace(folder.name, "animals"))
    info = json.loads((home / "dataset_info.json").read_text())
    (home / "dataset_info.json").write_text(json.dumps(info | {"dataset_name": "animals"}))
    return "team/animals"


def images_zip(folder: Path) -> str:
    """Write a zip of these files, with class folders for the training and the test images."""
    sets = {"train": (FILES, LABELS), "test": (FILES[::4], LABELS[::4])}
    suffixes = {b"\x89P": "png", b"\xff\xd8": "jpg", b"RI": "webp"}
    files = {
        f"{split}/{CLASSES[label]}/{i:03}.{suffixes[file[:2]]}": file
        for split, (contents, labels) in sets.items()
        for i, (file, label) in enumerate(zip(contents, labels, strict=True))
    }
    return store(folder, files, "zip")


def batches(data: ImageDataModule, workers: int = 0) -> list[Batch]:
    """Six batches of the training stream, over more than one pass, mirrored images included."""
    stream = TrainingStream(data.train_images(), seed=3, xflip=True)
    ranges = [range(16 * i, 16 * i + 16) for i in range(6)]
    return list(Loader(stream, sampler=ranges, num_workers=workers))


# ---------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("make", [parquet, saved, on_hub])
@pytest.mark.parametrize("cache", [True, False])
def test_training_takes_the_bits_of_a_zip(make: Callable[[Path], str], cache: bool, tmp_path: Path) -> None:
    theirs = ImageFolder(images_zip(tmp_path), resolution=8, resize="area", cache=False)
    settings: dict[str, Any] = {"held_out_split": "test", "label_column": "label", "resolution": 8, "resize": "area"}
    ours = HuggingFaceImages(make(tmp_path / "animals"), cache=cache, **settings)
    for data in (ours, theirs):
        data.setup("test")
    assert ours.identity() == theirs.identity()
    assert ours.resized == theirs.resized
    for mine, other in zip(batches(ours), batches(theirs), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
    held_out, expected = ours.held_out_images(), theirs.held_out_images()
    assert held_out
    assert expected
    assert torch.equal(held_out.as_tensor(), expected.as_tensor())
    assert torch.equal(held_out.labels, expected.labels)


def test_workers_take_the_bits_of_the_training_process(tmp_path: Path) -> None:
    data = HuggingFaceImages(parquet(tmp_path / "animals"), label_column="label")
    expected = batches(data)  # and so the files are open before the fork
    sent = pickle.dumps(data.train_images())  # as to a process that is not forked
    assert len(sent) < sum(map(len, FILES)) / 2  # the paths of files, not the images
    copy = HuggingFaceImages("copy")
    copy._sets["train"] = pickle.loads(sent)
    for mine, other, third in zip(batches(data, workers=2), expected, batches(copy), strict=True):
        assert all(torch.equal(a, b) and torch.equal(b, c) for a, b, c in zip(mine, other, third, strict=True))


def test_images_stay_on_the_disk_and_in_their_files(tmp_path: Path) -> None:
    """They are memory-mapped, and no decoder but the suite's own, with its guards, sees them."""
    data = HuggingFaceImages(parquet(tmp_path / "animals"))
    (rows,) = data.source.reader._rows.values()
    assert type(rows.data).__name__ == "MemoryMappedTable"
    assert [data.source.reader.read(name) for name in data.source.splits["train"].names] == FILES


# ---------------------------------------------------------------------- columns, splits and shapes


def plain(folder: Path, **columns: Any) -> str:
    """One parquet file that the library did not write."""
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "train.parquet")
    return str(folder / "train.parquet")


def test_bytes_of_other_writers_are_images_too(tmp_path: Path) -> None:
    struct = pa.array([{"bytes": file} for file in FILES])
    large = pa.array(FILES, pa.large_binary())
    for i, column in enumerate((pa.array(FILES), large, struct)):
        data = HuggingFaceImages(
            plain(tmp_path / str(i), picture=column, kind=[CLASSES[k] for k in LABELS]), label_column="kind"
        )
        images = data.train_images()
        assert [data.source.reader.read(name) for name in data.source.splits["train"].names] == FILES
        assert images.class_names == tuple(CLASSES)
        assert images.labels.tolist() == LABELS
    numbers = HuggingFaceImages(plain(tmp_path / "n", picture=FILES, y=[2 * k for k in LABELS]), label_column="y")
    assert numbers.train_images().class_names == ("0", "1", "2", "3", "4")
    assert numbers.train_images().labels.tolist() == [2 * k for k in LABELS]


def test_files_beside_the_rows_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(FILES[0])
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")]}).cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "embedded.parquet")
    pq.write_table(rows.data.table, tmp_path / "paths.parquet")
    for name in ("embedded", "paths"):
        data = HuggingFaceImages(str(tmp_path / f"{name}.parquet"))
        assert data.source.reader.read("train/0") == FILES[0]


def test_images_are_cropped_to_the_centre_where_asked(tmp_path: Path) -> None:
    wide = np.asarray(Image.fromarray(pixels(16)).resize((20, 16)))
    data = HuggingFaceImages(plain(tmp_path, image=[encode(wide)]), crop="center", resolution=8, resize="area")
    centre = torch.from_numpy(wide[:, 2:18].copy()).permute(2, 0, 1).double()
    means = centre.reshape(3, 8, 2, 8, 2).mean((2, 4))
    assert (data.train_images().as_tensor()[0] - means).abs().max() <= 0.5
    assert data.resized.words == "center crop, area to 8×8"


def test_slices_of_the_library_are_splits(tmp_path: Path) -> None:
    path = parquet(tmp_path / "animals")
    data = HuggingFaceImages(path, split="train[:30]", held_out_split="train[30:]", resolution=16)
    data.setup("test")
    assert len(data.train_images()) == 30
    whole = HuggingFaceImages(path).train_images().as_tensor()
    assert torch.equal(data.split("held_out").as_tensor(), whole[30:])


# ---------------------------------------------------------------------- one line for what is wrong


@pytest.mark.parametrize("which", list(broken_images()))
def test_a_broken_image_is_refused_as_in_a_zip_and_named_by_its_row(which: str, tmp_path: Path) -> None:
    files = [encode(pixels(32)), broken_images()[which]]
    path = plain(tmp_path, image=files)
    packed = store(tmp_path, {f"{i}.png": file for i, file in enumerate(files)}, "zip")
    ours, theirs = refused(HuggingFaceImages(path, cache=True)), refused(ImageFolder(packed))
    assert ours == theirs.replace(f"1.png in {packed}", f"image 1 of the split train of {path}")


@pytest.mark.parametrize(("width", "height"), [(20, 12), (20, 20)])
def test_other_shapes_and_sizes_are_named_with_what_to_do(width: int, height: int, tmp_path: Path) -> None:
    path = plain(tmp_path, image=[*FILES[:5], encode(np.zeros((height, width, 3), np.uint8))])
    advice = "--data.crop center --data.resolution 16 --data.resize area"
    refused(
        HuggingFaceImages(path, cache=True), "image 5 of the split train", path, f"{width}×{height}", "16×16", advice
    )
    data = HuggingFaceImages(path, crop="center", resolution=16, resize="area")
    assert data.train_images().as_tensor().shape == (6, 3, 16, 16)


def test_empty_rows_files_elsewhere_and_huge_files_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"bytes": FILES[0], "path": None}, {"bytes": None, "path": "zip://1.png::https://example.org/a.zip"}]
    path = plain(tmp_path, image=rows)
    refused(HuggingFaceImages(path, cache=True), "image 1 of the split train", "save_to_disk")
    for empty in (pa.array([None], pa.binary()), pa.array([None], pa.struct({"bytes": pa.binary()}))):
        refused(HuggingFaceImages(plain(tmp_path / str(empty.type)[:6], image=empty)), "image 0 of", "is empty")
    monkeypatch.setattr("warm_lightning.data.readers.MAX_FILE", 10)
    refused(HuggingFaceImages(path, cache=True), "image 0 of the split train", "that a file may have")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"split": "valid"}, ("valid", "train", "test")),
        ({"image_column": "label"}, ("no images in a column label", "image")),
        ({"label_column": "class"}, ("no column class", "image, label")),
        ({"label_column": "image"}, ("image of row 0", "--data.label_column")),
        ({"revision": "v1"}, ("revision v1", "leave it out")),
        ({"config_name": "big"}, ("big", "default")),
    ],
)
@pytest.mark.parametrize("make", [parquet, saved])
def test_wrong_names_are_refused_with_the_right_ones(
    make: Callable[[Path], str], settings: dict[str, str], words: tuple[str, ...], tmp_path: Path
) -> None:
    if make is saved and "config_name" in settings:
        words = ("config_name big", "leave it out")
    refused(HuggingFaceImages(make(tmp_path / "animals"), **settings), *words)  # type: ignore[arg-type]


def test_what_cannot_be_opened_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(HuggingFaceImages("team/absent"), "team/absent", "cannot be opened", "Hub")
    refused(HuggingFaceImages(str(tmp_path / "absent")), "absent", "cannot be opened")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1" + bytes(100))
    refused(HuggingFaceImages(str(tmp_path / "damaged.parquet")), "damaged.parquet", "cannot be opened")
    refused(HuggingFaceImages(plain(tmp_path, a=FILES, b=FILES)), "a, b", "--data.image_column")
    refused(HuggingFaceImages(plain(tmp_path, image=FILES, y=[-1] * 40), label_column="y"), "y of row 0 is -1")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(HuggingFaceImages("team/absent"), "pip install 'warm-lightning[datasets]'")


def test_the_cache_is_not_taken_for_another_revision(tmp_path: Path) -> None:
    name = on_hub(tmp_path / "animals")
    refused(HuggingFaceImages(name, revision="b" * 40), "b" * 40, "a" * 40, "go online")
    assert len(HuggingFaceImages(name, revision="a" * 40).train_images()) == 40


# ---------------------------------------------------------------------- a run


def test_a_run_trains_scores_and_knows_its_data_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = plain(tmp_path / "data", image=[encode(pixels(8, 1)) for _ in range(64)])
    options = [
        *(f"--config={DIGITS}", "--data=HuggingFaceImages", f"--data.dataset={path}", "--data.batch_size=32"),
        *("--model.network.model_channels=8", "--model.network.channel_mult=[1,2]", "--scores.extractors=[Pixels]"),
        *("--scores.num_images=16", "--scores.every=0", "--samples.every=0", "--samples.trajectory=0"),
        *("--trainer.limit_val_batches=1", f"--trainer.default_root_dir={tmp_path / 'run'}"),
    ]
    here("fit", *options, "--model.duration=64", "--data.num_workers=1")
    here("test", *options)
    here("export", str(last(tmp_path / "run")), str(tmp_path / "model"))
    assert "HuggingFaceImages" in (tmp_path / "model" / "README.md").read_text()
    again = ["--model.duration=128", "--ckpt_path=last"]
    shutil.move(tmp_path / "data", tmp_path / "moved")
    moved = [option.replace(path, str(tmp_path / "moved" / "train.parquet")) for option in options]
    here("fit", *moved, *again)  # wherever they are, it is the images that count
    plain(tmp_path / "moved", image=[encode(pixels(8, 1)) for _ in range(64)])
    assert "not those that this run is trained on" in refusal(capsys, "fit", *moved, *again)


def test_records_tell_data_sets_apart(tmp_path: Path) -> None:
    names = {
        data_name(HuggingFaceImages(name, split=s)) for name in ("a/digits", "b/digits") for s in ("train", "test")
    }
    assert len(names) == 4
    path = plain(tmp_path, image=FILES)
    before = data_content(HuggingFaceImages(path))
    plain(tmp_path, image=FILES[1:])
    assert before != data_content(HuggingFaceImages(path))
