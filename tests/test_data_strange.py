"""Sources that are valid but strange: links, pipes, formats that are not read, turned photographs."""

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import chw, encode, pixels, refused, store, store_edm, store_lmdb
from PIL import ExifTags, Image
from small import here

from warm_lightning.cli import LONGEST, main
from warm_lightning.data import FFHQ, ImageFolder, LSUNChurch, decode
from warm_lightning.data import listing as layout
from warm_lightning.data.readers import LMDBReader


@pytest.fixture(params=["folder", "zip"])
def kind(request) -> str:
    return request.param


def test_links_that_lead_round_in_a_circle(tmp_path):
    path = Path(store(tmp_path, {"cat/1.png": encode(pixels()), "dog/1.png": encode(pixels())}, "folder"))
    (path / "dog" / "again").symlink_to(path)
    refused(ImageFolder(str(path)), str(path / "dog" / "again"), "is a link to a folder that it is in")


def test_links_to_other_folders_are_followed(tmp_path):
    path = Path(store(tmp_path, {"cat/1.png": encode(pixels()), "dog/1.png": encode(pixels())}, "folder"))
    (tmp_path / "linked").mkdir()
    for name in ("a", "b"):
        (tmp_path / "linked" / name).symlink_to(path / "cat")
    images = ImageFolder(str(tmp_path / "linked")).train_images()
    assert (len(images), images.class_names) == (2, ("a", "b"))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["1.png", "dataset.json", "data.mdb"])
def test_pipes_are_not_waited_for(tmp_path, name):
    path = store(tmp_path, {"0.png": encode(pixels()), "2.png": encode(pixels())}, "folder")
    os.mkfifo(Path(path) / name)
    data = ImageFolder(path)
    if name == "data.mdb":  # then this is a folder of images
        assert len(data.train_images()) == 2
    else:
        refused(data, f"{path}/{name}", "is a pipe or device")
        refused(ImageFolder(f"{path}/{name}"), f"{path}/{name}", "neither a folder nor a zip")


def test_images_of_other_formats_are_not_left_out_silently(tmp_path, kind):
    files = {name: encode(pixels()) for name in ("a.png", "b.TIF", "c.heic", ".d.gif", "notes.txt")}
    path = store(tmp_path, files, kind)
    refused(ImageFolder(path), path, "b.TIF", "as are 1 more files")


def test_a_zip_with_two_members_of_one_name(tmp_path):
    path = store(tmp_path, {"1.png": encode(pixels())}, "zip")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("1.png", encode(pixels()))
    refused(ImageFolder(path), path, "two members '1.png'")


# What a viewer does to the stored pixels, by the numbers of the Exif standard (tag 0x0112).
UPRIGHT = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("number", UPRIGHT)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_photographs_are_turned_upright(tmp_path, number, form):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = number
    image = pixels(16)[:12]
    content = encode(image, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    stored = np.asarray(Image.open(io.BytesIO(content)))
    source = store(tmp_path, {f"1.{form.lower()}": content}, "zip")
    here("dataset", source, str(tmp_path / "set.zip"), "--crop=center", "--workers=0")
    expected = UPRIGHT[number](stored)
    height, width = expected.shape[:2]
    top, left = (height - 12) // 2, (width - 12) // 2
    found = ImageFolder(str(tmp_path / "set.zip")).train_images().images[0]
    assert torch.equal(found, chw(expected[top : top + 12, left : left + 12]))


def test_sizes_are_those_of_upright_images(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = store(tmp_path, {"1.jpg": encode(pixels(16)[:12], "JPEG", exif=exif)}, "zip")
    refused(ImageFolder(path), "1.jpg", "12×16")


def test_the_number_of_classes_is_that_of_training(tmp_path, capsys):
    source = store_edm(tmp_path, [pixels() for _ in range(3)], [4, 0, 4])
    here("dataset", source, str(tmp_path / "set.zip"), "--workers=0")
    assert "5 classes, 3 of them without images" in capsys.readouterr().out
    assert ImageFolder(str(tmp_path / "set.zip")).num_classes == 5


def test_sources_are_listed_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(LMDBReader, "names", lambda self: calls.append(self.path) or ["a", "b"])
    train = store_lmdb(tmp_path / "train", {name: encode(pixels(128)) for name in "ab"})
    held_out = store_lmdb(tmp_path / "held_out", {name: encode(pixels(128)) for name in "ab"})
    LSUNChurch(train, held_out).setup("test")
    assert calls == [Path(train), Path(held_out)]
    calls.clear()
    LSUNChurch(train).setup("test")
    assert calls == [Path(train)]


@pytest.mark.parametrize("data", [FFHQ, LSUNChurch, ImageFolder])
def test_paths_that_can_be_none(tmp_path, data):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (str(tmp_path / "loop"), "~no-such-user/x", str(tmp_path / ("x" * 300))):
        refused(data(path), path)


def test_lack_of_memory_in_a_worker_is_one_line(tmp_path, capsys, monkeypatch):
    def full(*arguments: object) -> None:
        raise MemoryError

    source = store(tmp_path, {"1.png": encode(pixels())}, "zip")
    monkeypatch.setattr(decode.CropResize, "__call__", full)
    for workers in (0, 1):
        assert main(["dataset", source, str(tmp_path / "set.zip"), f"--workers={workers}"]) == 2
        assert "the memory is full" in capsys.readouterr().err


def test_messages_are_one_line_of_text(tmp_path, capsys):
    labels = json.dumps({"labels": [["x" * 100_000, -1]]}).encode()
    for name, content in (("\x1b[2J\x9bevil\u202e.png", b""), ("dataset.json", labels), ("y" * 10_000, b"")):
        files = {"0.png": encode(pixels()), name: content}
        path = store(tmp_path, files | {"../1.png": b""} if name[0] == "y" else files, "zip")
        assert main(["dataset", path, str(tmp_path / "set.zip"), "--workers=0"]) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("warm"))
        assert line.isprintable()
        assert len(line) <= LONGEST
    capsys.readouterr()
    assert main(["x" * 10_000]) == 2
    assert len(capsys.readouterr().err) <= LONGEST + 1


def test_no_format_is_both_read_and_refused():
    assert not layout.SUFFIXES & layout.OTHER_SUFFIXES
