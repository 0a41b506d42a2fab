"""CIFAR-10 from a zip, a folder and torchvision's archive."""

import json
import pickle
import tarfile
import zipfile
from hashlib import md5

import numpy as np
import pytest
import torch
from image_files import RNG, chw, encode, pixels, refused, store
from PIL import Image
from small import REPOSITORY, here
from torchvision import datasets

from warm_lightning.data import CIFAR10, ImageFolder
from warm_lightning.errors import UserError

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def test_cifar10_from_the_zip(cifar10_zip):
    test = CIFAR10(str(cifar10_zip)).load("held_out")
    assert test.images.shape == (10_000, 3, 32, 32)
    assert test.labels.tolist() == [label for label in range(10) for _ in range(1000)]
    assert list(test.class_names) == CIFAR10_CLASSES
    with zipfile.ZipFile(cifar10_zip) as archive, archive.open("test/horse/0123.jpg") as file:
        assert torch.equal(test.images[7123], chw(np.asarray(Image.open(file))))


@pytest.mark.parametrize(
    ("size", "channels", "splits", "mentions"),
    [
        (32, 3, ["train"], ["no test images"]),
        (16, 3, ["train", "test"], ["16×16", "32×32"]),
        (32, 1, ["train", "test"], ["grey"]),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_folders_that_are_not_cifar10(tmp_path, *, kind, size, channels, splits, mentions):
    files = {f"{split}/{c}/0.png": encode(pixels(size, channels)) for split in splits for c in CIFAR10_CLASSES}
    path = store(tmp_path, files, kind)
    refused(CIFAR10(path), path, *mentions)


@pytest.fixture
def archive(tmp_path, monkeypatch) -> dict[str, np.ndarray]:
    """Arrays of a small archive in CIFAR-10's layout, which lies where a download would, with no server."""
    root = tmp_path / "root"
    folder = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    folder.mkdir()
    arrays = {}
    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return md5((folder / name).read_bytes()).hexdigest()

    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        arrays[name] = RNG.integers(0, 256, (4, 3072), np.uint8)
        digest = write(name, {"data": arrays[name], "labels": [3, 1, 4, 9]})
        lists["test_list" if name == "test_batch" else "train_list"].append([name, digest])
    meta = {"filename": "batches.meta", "key": "label_names"}
    meta["md5"] = write("batches.meta", {"label_names": CIFAR10_CLASSES})
    packed = root / "cifar-10-python.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(folder, folder.name)
    digest = md5(packed.read_bytes()).hexdigest()
    values = lists | {"meta": meta, "url": (tmp_path / "no server").as_uri(), "tgz_md5": digest}
    for name, value in values.items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    return arrays


def test_cifar10_as_torchvision_downloads_it(archive, tmp_path):
    data = CIFAR10(root=str(tmp_path / "root"))
    data.prepare_data()
    data.setup("test")
    train, test = data.train_images(), data.held_out_images()
    # Rows of the archive hold the red, the green and the blue plane, each row by row.
    planes = np.concatenate([archive[f"data_batch_{i}"] for i in range(1, 6)]).reshape(20, 3, 32, 32)
    assert np.array_equal(train.images.numpy(), planes)
    assert np.array_equal(test.images.numpy(), archive["test_batch"].reshape(4, 3, 32, 32))
    assert train.labels.tolist() == [3, 1, 4, 9] * 5
    assert train.images.is_contiguous()
    assert list(train.class_names) == CIFAR10_CLASSES


def test_cifar10_that_is_not_downloaded_yet(archive, tmp_path):
    refused(CIFAR10(root=str(tmp_path / "root")), str(tmp_path / "root"), "prepare_data()")


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_cifar10_that_cannot_be_downloaded(archive, tmp_path, damage):
    packed = tmp_path / "root" / "cifar-10-python.tar.gz"
    if damage == "missing":
        packed.unlink()
    else:
        packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cannot be downloaded.* put cifar-10-python\.tar\.gz") as caught:
        CIFAR10(root=str(tmp_path / "root")).prepare_data()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("resize", ["area", "lanczos"])
def test_smaller_images_are_the_same_from_all_sources(archive, tmp_path, *, resize):
    """From torchvision's files and from files of one's own, in memory or not; "area" is the mean of four pixels."""
    options = {"resolution": 16, "resize": resize}
    data = CIFAR10(root=str(tmp_path / "root"), **options)
    data.prepare_data()
    small, large = data.train_images(), CIFAR10(root=str(tmp_path / "root")).train_images()
    assert small.shape == (3, 16, 16)
    assert data.resized.words == f"{resize} to 16×16"
    names = [
        f"{split}/{CIFAR10_CLASSES[k]}/{i:02}.png" for split in ("train", "test") for i, k in enumerate(large.labels)
    ]
    images = [encode(image.permute(1, 2, 0).numpy()) for image in large.images] * 2
    path = store(tmp_path, dict(zip(names, images, strict=True)), "zip")
    for cache in (True, False):
        own = CIFAR10(path, cache=cache, **options).train_images()
        order = torch.tensor(sorted(range(len(large)), key=lambda i: names[i]))
        assert torch.equal(own.as_tensor(), small.images[order])
    if resize == "area":
        mean = large.images.float().reshape(-1, 3, 16, 2, 16, 2).mean((3, 5))
        assert (small.images - mean).abs().max() <= 0.5


def test_the_recipe_of_small_photographs_trains_and_says_how_they_were_resized(archive, tmp_path):
    """With features of enlarged images, in a network of fewer channels."""
    features = "{class_path: Enlarged, init_args: {resolution: 32, extractor: Pixels}}"
    options = [
        f"--config={REPOSITORY / 'configs' / 'cifar10_16.yaml'}",
        f"--data.root={tmp_path / 'root'}",
        "--data.batch_size=4",
        "--model.network.model_channels=8",
        "--model.duration=16",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
        "--samples.every=0",
        "--samples.seeds=0-1",
        "--samples.trajectory=0",
        f"--scores.extractors=[{features}]",
        "--scores.every=0",
        "--scores.num_images=4",
    ]
    here("fit", *options)
    here("test", *options)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["fd4_pixel_at32"] > 0
    assert scores["protocol"]["resize"] == "area to 16×16"
    assert scores["protocol"]["extractors"][0]["extractor"]["interpolation"] == "bicubic"


def test_resizing_needs_a_size_and_squares(tmp_path):
    with pytest.raises(UserError, match="resize area needs a size"):
        ImageFolder(str(tmp_path), resize="area")
    path = store(tmp_path, {"a.png": encode(RNG.integers(0, 256, (20, 32, 3), np.uint8))}, "folder")
    refused(ImageFolder(path, resolution=16, resize="area"), path, "must be square")
