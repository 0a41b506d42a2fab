"""Image sets in folders, zips and LMDBs give the pixels and classes that were written."""

import io

import numpy as np
import pytest
import torch
from image_files import chw, encode, pixels, store
from jsonargparse import ArgumentParser
from PIL import Image
from sklearn.datasets import load_digits

from warm_lightning.data import Digits, ImageDataModule, ImageFolder, ImageSet
from warm_lightning.errors import UserError


@pytest.fixture(params=["folder", "zip"])
def kind(request) -> str:
    return request.param


def test_digits_are_scikit_learns():
    data = Digits()
    data.setup("test")
    digits = load_digits()
    images = data.train_images()
    expected = np.array([round(v * 255 / 16) for v in range(17)])[digits.images.astype(int)]
    assert images.images.dtype == torch.uint8
    assert np.array_equal(images.images[:, 0].numpy(), expected)
    assert np.array_equal(images.labels.numpy(), digits.target)
    assert images.labels.dtype == torch.int64
    assert (data.resolution, data.image_channels, data.num_classes) == (8, 1, 10)
    assert data.held_out_images() is None


def test_held_out_digits_and_training_digits_make_up_the_data():
    data, whole = Digits(held_out=297), Digits().train_images()
    train, held_out = data.train_images(), data.held_out_images()
    assert (len(train), len(held_out)) == (1500, 297)
    both = torch.cat([train.images, held_out.images]).flatten(1)
    assert torch.equal(both.unique(dim=0), whole.images.flatten(1).unique(dim=0))
    assert torch.equal(torch.cat([train.labels, held_out.labels]).bincount(), whole.labels.bincount())
    # The first digits are 0, 1, 2, … in turn: a split by position would show here.
    assert len(held_out.labels.unique()) == 10
    assert torch.equal(held_out.images, Digits(held_out=297).held_out_images().images)


@pytest.mark.parametrize("held_out", [-1, 1797, 5000])
def test_holding_out_too_many_digits_is_refused(held_out):
    with pytest.raises(UserError, match=f"^held_out must be from 0 to 1796, not {held_out}$"):
        Digits(held_out=held_out)


def test_labels_splits_and_order_come_from_the_names(tmp_path, kind):
    names = [
        "train/dog/b.png",
        "train/dog/a/z.PNG",
        "train/cat/10.png",
        "train/cat/9.png",
        "test/dog/1.png",
        "test/cat/1.png",
    ]
    content = {name: pixels() for name in names}
    files = {name: encode(image) for name, image in content.items()}
    extras = {"README.md": b"text", "train/cat/.hidden.png": b"", "__MACOSX/train/cat/._9.png": b"\0"}
    data = ImageFolder(store(tmp_path, files | extras, kind))
    data.setup("test")

    train, held_out = data.train_images(), data.held_out_images()
    order = ["train/cat/10.png", "train/cat/9.png", "train/dog/a/z.PNG", "train/dog/b.png"]
    assert torch.equal(train.images, torch.stack([chw(content[name]) for name in order]))
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(held_out.images, torch.stack([chw(content[f"test/{c}/1.png"]) for c in ("cat", "dog")]))
    assert held_out.labels.tolist() == [0, 1]
    assert train.class_names == held_out.class_names == ("cat", "dog")
    assert (data.resolution, data.image_channels, data.num_classes) == (8, 3, 2)


@pytest.mark.parametrize(
    ("names", "classes", "train", "held_out"),
    [
        (["a.png", "b.png"], (), [0, 0], None),
        (["b/1.png", "a/1.png", "a/x/y/2.png"], ("a", "b"), [0, 0, 1], None),
        (["set/a/1.png", "set/b/1.png"], ("a", "b"), [0, 1], None),
        (["home/set/1.png", "home/set/2.png"], (), [0, 0], None),
        (["set/train/a/1.png", "set/train/b/1.png", "set/val/b/1.png"], ("a", "b"), [0, 1], [1]),
        (["train/1.png", "held_out/1.png", "held_out/2.png"], (), [0], [0, 0]),
        (["train/1.png", "train/2.png"], (), [0, 0], None),
        (["bus/1.png", "car/1.png", "train/1.png"], ("bus", "car", "train"), [0, 1, 2], None),
    ],
)
def test_layouts(tmp_path, *, kind, names, classes, train, held_out):
    data = ImageFolder(store(tmp_path, {name: encode(pixels()) for name in names}, kind))
    data.setup("test")
    assert data.train_images().labels.tolist() == train
    assert data.train_images().class_names == classes
    assert data.num_classes == len(classes)
    found = data.held_out_images()
    assert (found and found.labels.tolist()) == held_out


def test_a_second_source_of_held_out_images_takes_the_classes_of_the_first(tmp_path, kind):
    train = store(tmp_path, {f"{c}/1.png": encode(pixels()) for c in "abc"}, kind)
    (tmp_path / "more").mkdir()
    grey = pixels(channels=1)
    other = store(tmp_path / "more", {"a/1.png": encode(grey), "c/1.png": encode(grey)}, kind)
    data = ImageFolder(train, held_out_path=other)
    data.setup("test")
    assert data.held_out_images().labels.tolist() == [0, 2]
    # Grey images that go with RGB ones have three equal channels.
    assert torch.equal(data.held_out_images().images[1], chw(grey).expand(3, 8, 8))


def test_many_images_decoded_by_threads_keep_their_order(tmp_path, kind):
    images = [pixels(64, 1) for _ in range(150)] + [pixels(64)]
    path = store(tmp_path, {f"{i:04}.png": encode(image) for i, image in enumerate(images)}, kind)
    found = ImageFolder(path, resolution=64).train_images().images
    # One hash for the same pixels in memory and in files; another for another order.
    in_memory, in_files = (ImageFolder(path, resolution=64, cache=c).train_images() for c in (True, False))
    assert in_memory.pixels_hash() == in_files.pixels_hash()
    assert ImageSet.without_classes(found.flip(0)).pixels_hash() != in_memory.pixels_hash()
    # All grey but the last: three channels from the first on.
    assert torch.equal(found, torch.stack([chw(image).expand(3, 64, 64) for image in images]))


def test_file_formats(tmp_path, kind):
    image = pixels(16)
    files = {
        "a.bmp": encode(image, "BMP"),
        "b.JPEG": encode(image, "JPEG", quality=95),
        "c.jpg": encode(image, "JPEG", quality=95),
        "d.png": encode(image),
        "e.webp": encode(image, "WEBP", lossless=True),
    }
    found = ImageFolder(store(tmp_path, files, kind)).train_images().images
    for i in (0, 3, 4):
        assert torch.equal(found[i], chw(image))
    for i, name in ((1, "b.JPEG"), (2, "c.jpg")):
        assert torch.equal(found[i], chw(np.asarray(Image.open(io.BytesIO(files[name])))))


def rgb(*colours: tuple[int, int, int]) -> torch.Tensor:
    """A 2×2 image [3, 2, 2] of four colours."""
    return torch.tensor(colours, dtype=torch.uint8).reshape(2, 2, 3).permute(2, 0, 1)


COLOURS = (255, 0, 0), (0, 255, 0), (0, 0, 255), (10, 20, 30)


def palette_image(**info) -> bytes:
    image = Image.new("P", (2, 2))
    image.putpalette([value for colour in COLOURS for value in colour])
    image.putdata([0, 1, 2, 3])
    return encode(image, **info)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (palette_image(), rgb(*COLOURS)),
        (palette_image(transparency=b"\x00\x80\xff\xff"), rgb(*COLOURS)),
        (
            encode(np.uint8([[[*COLOURS[0], 0], [*COLOURS[1], 9]], [[*COLOURS[2], 99], [*COLOURS[3], 255]]])),
            rgb(*COLOURS),
        ),
        (encode(Image.new("CMYK", (2, 2), (0, 0, 0, 0)), "JPEG"), rgb(*[(255, 255, 255)] * 4)),
        (encode(np.uint8([[0, 1], [2, 255]])), torch.tensor([[[0, 1], [2, 255]]])),
        (
            encode(Image.fromarray(np.uint8([[[0, 7], [1, 0]], [[2, 9], [255, 9]]]), "LA")),
            torch.tensor([[[0, 1], [2, 255]]]),
        ),
        (
            encode(Image.fromarray(np.array([[True, False], [False, True]]))),
            torch.tensor([[[255, 0], [0, 255]]]),
        ),
    ],
    ids=["palette", "transparent palette", "RGBA", "CMYK", "grey", "grey with alpha", "bits"],
)
@pytest.mark.filterwarnings("error")
def test_pixel_modes_become_grey_or_rgb(tmp_path, content, expected):
    kind = "JPEG" if content[:2] == b"\xff\xd8" else "png"
    images = ImageFolder(store(tmp_path, {f"1.{kind}": content}, "folder")).train_images().images
    assert torch.equal(images[0], expected)


def test_small_sets_are_read_without_a_progress_bar(tmp_path, capfd):
    ImageFolder(store(tmp_path, {"1.png": encode(pixels())}, "folder")).setup("test")
    assert capfd.readouterr() == ("", "")


def test_data_sets_go_by_their_short_names():
    parser = ArgumentParser()
    parser.add_subclass_arguments(ImageDataModule, "data")
    options = {"class_path": "Digits", "init_args": {"batch_size": 64, "held_out": 9}}
    found = parser.parse_object({"data": options}).data
    assert found.class_path == "warm_lightning.data.Digits"
    assert (found.init_args.batch_size, found.init_args.held_out, found.init_args.xflip) == (64, 9, False)
