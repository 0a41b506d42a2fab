"""LMDB databases such as LSUN's: reading, several processes, and damaged files."""

import os
import random
import shutil
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from image_files import RNG, chw, encode, photographs, pixels, refused, store_lmdb
from PIL import Image
from processes import forkserver

from warm_lightning.data import FFHQ, ImageFolder, LSUNChurch
from warm_lightning.data.readers import LMDBReader
from warm_lightning.data.stream import InOrder, Loader
from warm_lightning.errors import UserError


@pytest.fixture
def church(tmp_path, cifar10_zip) -> tuple[str, list[np.ndarray]]:
    """An LMDB in LSUN's manner, of photographs of which the shorter side has 256 pixels, and their pixels."""
    sizes = [(256, 341), (341, 256), (256, 256), (384, 256), (256, 257)]
    shapes = [np.asarray(Image.fromarray(p).resize(s)) for p, s in zip(photographs(cifar10_zip, 5), sizes, strict=True)]
    keys = [f"{i:040x}" for i in range(5)]
    files = {key: encode(image, "WEBP", lossless=True) for key, image in zip(keys, shapes, strict=True)}
    return store_lmdb(tmp_path / "church_outdoor_train_lmdb", files), shapes


@pytest.mark.parametrize("cache", [True, False])
def test_churches_are_cropped_to_the_centre_and_resampled_as_pillow_does(church, cache):
    path, images = church
    data = LSUNChurch(path, cache=cache)
    data.setup("test")
    assert (data.resolution, data.image_channels, data.num_classes) == (128, 3, 0)
    for image, found in zip(images, data.train_images().take(torch.arange(5)), strict=True):
        height, width = image.shape[:2]
        top, left = (height - 256) // 2, (width - 256) // 2
        centre = Image.fromarray(image[top : top + 256, left : left + 256])
        assert torch.equal(found, chw(np.asarray(centre.resize((128, 128), Image.Resampling.LANCZOS))))


def test_churches_may_be_resized_otherwise_and_say_so(church):
    path, images = church
    assert LSUNChurch(path).resized.words == "center crop, lanczos to 128×128"
    data = LSUNChurch(path, resize="area")
    assert data.resized.words == "center crop, area to 128×128"
    square = chw(images[2]).float()  # of 256×256: each new pixel is the mean of four
    mean = square.reshape(3, 128, 2, 128, 2).mean((2, 4))
    assert (data.train_images().take(torch.tensor([2]))[0] - mean).abs().max() <= 0.5


def test_reading_writes_nothing_beside_the_database(church):
    path, _ = church
    os.remove(Path(path) / "lock.mdb")
    os.chmod(path, 0o555)
    os.chmod(Path(path) / "data.mdb", 0o444)
    before = (Path(path) / "data.mdb").read_bytes()
    LSUNChurch(path).train_images().take(torch.tensor([0]))
    assert os.listdir(path) == ["data.mdb"]
    assert (Path(path) / "data.mdb").read_bytes() == before


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_database_that_is_open_is_opened_anew_in_other_processes(church, method):
    forkserver()  # gets the data set as a spawned process does, pickled
    images = LSUNChurch(church[0]).train_images()
    expected = images.take(torch.arange(5))
    batches = [range(0, 2), range(2, 4), range(4, 5)]
    loader = Loader(InOrder(images), sampler=batches, num_workers=1, multiprocessing_context=method)
    assert torch.equal(torch.cat([batch.images for batch in loader]), expected)
    assert torch.equal(images.take(torch.arange(5)), expected)


def test_two_readers_of_one_database_get_along(tmp_path):
    path = Path(store_lmdb(tmp_path / "db", {"a": b"1", "b": b"2"}))
    one, two = LMDBReader(path), LMDBReader(path)
    assert (one.read("a"), two.read("b"), one.read("b")) == (b"1", b"2", b"2")
    del one
    assert two.read("a") == b"1"


def test_keys_may_be_any_bytes(tmp_path):
    path = tmp_path / "db"
    with lmdb.open(str(path), map_size=2**24) as database, database.begin(write=True) as transaction:
        for i, key in enumerate([b"\xff\x00", b"\x01", b"cat\n"]):
            transaction.put(key, b"%d" % i)
    reader = LMDBReader(path)
    assert [reader.read(name) for name in reader.names()] == [b"1", b"2", b"0"]


def test_without_the_package_the_message_says_how_to_install_it(church, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    refused(LSUNChurch(church[0]), "pip install 'warm-lightning[lmdb]'")


def test_a_database_that_is_packed_in_a_zip_is_to_be_unpacked(church, tmp_path):
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", church[0])
    refused(LSUNChurch(packed), packed, "unpack the LMDB")


def test_images_of_an_lmdb_are_not_resampled_unless_they_are_churches(church):
    refused(ImageFolder(church[0]), church[0], f"{0:040x}", "256×341", "square")


@pytest.mark.parametrize("cache", [True, False])
def test_a_broken_image_is_named(tmp_path, cache):
    files = {f"key{i}": encode(pixels(256)) for i in range(3)}
    path = store_lmdb(tmp_path / "db", files | {"key1": b"no image"})
    with pytest.raises(UserError, match=r"^key1 in .*db is not a readable image"):
        LSUNChurch(path, cache=cache).train_images().take(torch.arange(3))


def test_paths_that_lead_nowhere(tmp_path):
    for data, advice in ((LSUNChurch, "church_outdoor_train_lmdb.zip"), (FFHQ, "images1024x1024")):
        with pytest.raises(UserError, match=advice):  # before training starts
            data(str(tmp_path / "none")).prepare_data()
    refused(LSUNChurch(str(tmp_path / "none")), str(tmp_path / "none"), "church_outdoor_train_lmdb")
    empty = store_lmdb(tmp_path / "empty", {})
    refused(LSUNChurch(empty), empty, "empty LMDB")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "data.mdb").write_bytes(b"no database" * 1000)
    refused(LSUNChurch(str(tmp_path / "text")), str(tmp_path / "text"), "not a readable LMDB")


def damages(content: bytes) -> dict[str, bytes]:
    """A database that is damaged in many ways, of which LMDB's library takes several with an abort or bus error."""
    chance, page = random.Random(0), 4096
    found = {f"cut {k}": content[: len(content) * k // 8] for k in range(8)}
    pages = len(content) // page
    for i in range(2, min(pages, 40), 2):
        found[f"page {i} of zeros"] = content[: i * page] + bytes(page) + content[(i + 1) * page :]
        found[f"page {i} of noise"] = content[: i * page] + chance.randbytes(page) + content[(i + 1) * page :]
    return found


def test_any_damage_to_a_database_is_refused_or_harmless(tmp_path):
    files = {f"{i:040x}": encode(RNG.integers(0, 256, (12, 12, 3), np.uint8)) for i in range(100)}
    path = Path(store_lmdb(tmp_path / "db", files))
    whole = ImageFolder(str(path)).train_images().as_tensor()
    content = (path / "data.mdb").read_bytes()
    messages = []
    for i, damaged in enumerate(damages(content).values()):
        other = tmp_path / str(i)
        other.mkdir()
        (other / "data.mdb").write_bytes(damaged)
        try:
            found = ImageFolder(str(other)).train_images().as_tensor()
            assert all(any(torch.equal(image, one) for one in whole) for image in found)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all("\n" not in message and "copy or download it again" in message for message in messages)
