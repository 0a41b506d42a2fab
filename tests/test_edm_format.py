"""Data sets in EDM's format: classes come from dataset.json only."""

import json
from collections.abc import Callable

import pytest
import torch
from image_files import chw, encode, pixels, refused, store, store_edm, store_lmdb

from warm_lightning.cli import main
from warm_lightning.data import CIFAR10, FFHQ, ImageFolder
from warm_lightning.data.sources import Source


@pytest.fixture(params=["folder", "zip"])
def kind(request) -> str:
    return request.param


def test_classes_come_from_the_file_and_images_in_the_order_of_their_names(tmp_path, kind):
    images = [pixels() for _ in range(1002)]  # the last two in another folder, which is no class
    labels = [i * 7 % 5 for i in range(1002)]
    found = ImageFolder(store_edm(tmp_path, images, labels, kind)).train_images()
    assert torch.equal(found.images, torch.stack([chw(image) for image in images]))
    assert found.labels.tolist() == labels
    assert found.labels.dtype == torch.int64
    assert found.class_names == tuple("01234")


def test_without_classes(tmp_path, kind):
    data = ImageFolder(store_edm(tmp_path, [pixels() for _ in range(1001)], None, kind))
    data.setup("test")
    assert (data.num_classes, data.train_images().labels.tolist()) == (0, [0] * 1001)
    assert data.held_out_images() is None


def test_folders_called_train_and_test_are_no_splits_here(tmp_path, kind):
    files = {f"{split}/{i}.png": encode(pixels()) for split in ("train", "test") for i in range(2)}
    labels = [[name, i] for i, name in enumerate(sorted(files, reverse=True))]
    content = json.dumps({"labels": labels, "more": 1}).encode()
    found = ImageFolder(store(tmp_path, files | {"dataset.json": content}, kind))
    assert found.train_images().labels.tolist() == [3, 2, 1, 0]
    assert found.held_out_images() is None


def test_held_out_images_of_a_second_source_have_the_same_classes(tmp_path, kind):
    for name in ("held", "null", "more"):
        (tmp_path / name).mkdir()
    train = store_edm(tmp_path, [pixels() for _ in range(3)], [0, 2, 1], kind)
    held_out = store_edm(tmp_path / "held", [pixels() for _ in range(2)], [1, 0], kind)
    data = ImageFolder(train, held_out_path=held_out)
    data.setup("test")
    assert data.held_out_images().labels.tolist() == [1, 0]
    assert data.held_out_images().class_names == ("0", "1", "2")
    null = store_edm(tmp_path / "null", [pixels()], None, kind)
    refused(ImageFolder(train, held_out_path=null), null, "no classes")
    more = store_edm(tmp_path / "more", [pixels()], [3], kind)
    refused(ImageFolder(train, held_out_path=more), more, "class 3", "only 3")


def test_cifar10_in_edms_format(tmp_path, kind):
    (tmp_path / "test").mkdir()
    train, test = [pixels(32) for _ in range(3)], [pixels(32) for _ in range(2)]
    path = store_edm(tmp_path, train, [6, 9, 0], kind)
    assert CIFAR10(path).train_images().labels.tolist() == [6, 9, 0]
    assert CIFAR10(path).held_out_images() is None
    data = CIFAR10(path, held_out_path=store_edm(tmp_path / "test", test, [3, 8], kind))
    assert torch.equal(data.held_out_images().images, torch.stack([chw(image) for image in test]))
    assert data.held_out_images().labels.tolist() == [3, 8]


def test_images_that_are_not_ffhq_are_refused(tmp_path, kind):
    for name in ("small", "grey"):
        (tmp_path / name).mkdir()
    small = store_edm(tmp_path / "small", [pixels(32)], None, kind)
    refused(FFHQ(small), small, "32×32", "64×64", "warm dataset")
    grey = store_edm(tmp_path / "grey", [pixels(64, 1)], None, kind)
    refused(FFHQ(grey), grey, "RGB", "grey")
    refused(FFHQ(str(tmp_path / "none.zip")), "none.zip", "warm dataset")


FIRST = "00000/img00000000.png"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda labels: b"{labels", "not JSON"),
        (lambda labels: b"[" * 100_000, "not JSON"),
        (lambda labels: b"[]", "no entry `labels`"),
        (lambda labels: b"{}", "no entry `labels`"),
        (lambda labels: json.dumps({"labels": 3}).encode(), "a list of [file name, class]"),
        (lambda labels: json.dumps({"labels": labels[1:]}).encode(), f"no class for {FIRST}"),
        (lambda labels: json.dumps({"labels": [[FIRST, -1], *labels[1:]]}).encode(), f"class -1 of {FIRST}"),
        (lambda labels: json.dumps({"labels": [[FIRST, 10**12], *labels[1:]]}).encode(), "class 1000000000000"),
        (lambda labels: json.dumps({"labels": [[FIRST, 0.5], *labels[1:]]}).encode(), '["00000/img00000000.png", 0.5]'),
        (lambda labels: json.dumps({"labels": [[FIRST, True], *labels[1:]]}).encode(), "true"),
        (lambda labels: json.dumps({"labels": [[FIRST, [0, 1]], *labels[1:]]}).encode(), "not of the form"),
        (lambda labels: json.dumps({"labels": [FIRST, *labels[1:]]}).encode(), "not of the form"),
        (lambda labels: json.dumps({"labels": [*labels, [FIRST, 1]]}).encode(), f"{FIRST} two classes, 0 and 1"),
        (lambda labels: json.dumps({"labels": [*labels, ["gone.png", 1]]}).encode(), "not there, 1 of them, gone.png"),
    ],
)
def test_files_that_are_not_edms(tmp_path, *, kind, content: Callable[[list], bytes], words: str):
    names = [FIRST, "00000/img00000001.png"]
    files = {name: encode(pixels()) for name in names}
    path = store(tmp_path, files | {"dataset.json": content([[name, 0] for name in names])}, kind)
    refused(ImageFolder(path), path, "dataset.json", words)


def test_a_folder_called_as_the_file_is_refused(tmp_path, kind):
    path = store(tmp_path, {FIRST: encode(pixels()), "dataset.json/1.png": encode(pixels())}, kind)
    refused(ImageFolder(path), path, "dataset.json", "is a folder")


# ---------------------------------------------------------------------- dataset.json below the root


def edm(labels: list[int] | None, folder: str = "") -> dict[str, bytes]:
    """The files of a data set in EDM's format in a folder; images of class 1 are in 00000, too."""
    names = [f"00000/img{i:08d}.png" for i in range(len(labels or [0, 0]))]
    pairs = None if labels is None else [list(pair) for pair in zip(names, labels, strict=True)]
    files = {folder + name: encode(pixels(32)) for name in names}
    return files | {f"{folder}dataset.json": json.dumps({"labels": pairs}).encode()}


@pytest.mark.parametrize("folder", ["mydata/", "a/b/mydata/"])
def test_an_outer_folder_keeps_the_classes(tmp_path, kind, folder):
    files = edm([2, 0, 1], folder)
    hidden = {"__MACOSX/mydata/dataset.json": b"", f"{folder}.cache/dataset.json": b"", "read.me": b""}
    path = store(tmp_path, files | hidden, kind)
    found = CIFAR10(path)
    assert found.train_images().labels.tolist() == [2, 0, 1]
    assert found.train_images().class_names == ("0", "1", "2")
    assert found.held_out_images() is None
    assert torch.equal(found.train_images().images, ImageFolder(path).train_images().images)
    assert main(["dataset", path, str(tmp_path / "set.zip"), "--workers=0"]) == 0
    assert Source.open(tmp_path / "set.zip").read("train").labels.tolist() == [2, 0, 1]
    # As held-out images of another source, they have its classes.
    (tmp_path / "train").mkdir()
    data = ImageFolder(store(tmp_path / "train", edm([3, 1]), kind), held_out_path=path)
    assert data.held_out_images().labels.tolist() == [2, 0, 1]
    assert data.held_out_images().class_names == tuple("0123")


@pytest.mark.parametrize("folder", ["", "mydata/"])
def test_each_split_may_have_its_own_file(tmp_path, kind, folder):
    path = store(tmp_path, edm([2, 0, 1], f"{folder}train/") | edm([1, 2], f"{folder}test/"), kind)
    data = ImageFolder(path)
    assert data.train_images().labels.tolist() == [2, 0, 1]
    assert data.held_out_images().labels.tolist() == [1, 2]
    assert data.held_out_images().class_names == ("0", "1", "2")


IMAGE = encode(pixels(32))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (edm([0, 1], "a/") | {"b/1.png": IMAGE}, ["a/dataset.json", "is not above b/1.png"]),
        (edm([0, 1], "train/") | {"test/cat/1.png": IMAGE}, ["train/dataset.json", "is not above test/cat/1.png"]),
        (edm([0, 1], "00000/") | {"1.png": IMAGE}, ["00000/dataset.json", "is not above 1.png"]),
        (edm([0, 1], "cats/") | edm([0, 1], "dogs/"), ["cats/dataset.json", "one of 2 files"]),
        (edm([0, 1]) | {"00000/dataset.json": b"{}"}, ["dataset.json", "one of 2 files"]),
        (edm([0, 1], "train/") | edm([0, 1], "test/") | {"dataset.json": b"{}"}, ["dataset.json", "one of 3 files"]),
        (edm([0, 1], "train/") | edm([0, 2], "test/"), ["test", "class 2", "only 2"]),
        (edm([0, 1], "train/") | edm(None, "test/"), ["test", "no classes"]),
        (edm([0, 1], "mydata/") | {"mydata/more.png": IMAGE}, ["mydata/dataset.json", "no class for more.png"]),
        ({"mydata/dataset.json": b'{"labels": [["mydata/1.png", 0]]}', "mydata/1.png": IMAGE}, ["no class for 1.png"]),
        ({"mydata/Dataset.JSON": b"{}", "mydata/cat/1.png": IMAGE}, ["mydata/Dataset.JSON", "small letters"]),
        ({"mydata/dataset.json/1.png": IMAGE}, ["mydata/dataset.json", "is a folder"]),
    ],
)
def test_a_file_that_does_not_hold_for_all_images_is_refused(tmp_path, kind, files, words):
    path = store(tmp_path, files, kind)
    refused(ImageFolder(path), path, *words)


def test_backslashes_between_folders_of_a_zip_are_refused(tmp_path):
    path = store(tmp_path, {name.replace("/", "\\"): content for name, content in edm([0, 1], "my/").items()}, "zip")
    refused(ImageFolder(path), path, "pack the zip with another program")


def test_an_lmdb_has_no_such_file(tmp_path):
    inside = store_lmdb(tmp_path / "inside", {"1": IMAGE, "dataset.json": b"{}"})
    refused(ImageFolder(inside), inside, "has a key dataset.json")
    beside = store_lmdb(tmp_path / "beside", {"1": IMAGE})
    (tmp_path / "beside" / "dataset.json").write_bytes(b"{}")
    for path in (beside, f"{beside}/data.mdb"):
        refused(ImageFolder(path), f"{beside}/dataset.json", "beside an LMDB")
