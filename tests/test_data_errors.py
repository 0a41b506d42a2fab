"""Data that are broken are refused in one line that names the file."""

import os
import re
import struct
import tempfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import RNG, encode, pixels, refused, store
from PIL import Image

from warm_lightning.cli import main
from warm_lightning.data import ImageFolder
from warm_lightning.data.readers import MAX_FILE
from warm_lightning.errors import UserError


@pytest.fixture(params=["folder", "zip"])
def kind(request) -> str:
    return request.param


def test_paths_that_lead_nowhere(tmp_path):
    refused(ImageFolder(str(tmp_path / "none")), str(tmp_path / "none"), "no such")
    zipped = store(tmp_path, {"1.png": encode(pixels())}, "zip")
    refused(ImageFolder(f"{zipped}/train"), zipped, "no such")
    (tmp_path / "x.tar").write_bytes(b"not a zip" * 100)
    refused(ImageFolder(str(tmp_path / "x.tar")), str(tmp_path / "x.tar"), "neither a folder nor a zip")
    (tmp_path / "empty.zip").write_bytes(b"")
    refused(ImageFolder(str(tmp_path / "empty.zip")), "neither a folder nor a zip")


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_truncated_zips(tmp_path, fraction):
    path = Path(store(tmp_path, {f"{i}.png": encode(pixels()) for i in range(20)}, "zip"))
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    refused(ImageFolder(str(path)), str(path), "truncated or corrupt zip")


def test_corrupt_member_of_a_zip_is_named(tmp_path):
    files = {f"{i}.png": encode(pixels(32)) for i in range(9)}
    path = Path(store(tmp_path, files, "zip"))
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("5.png").header_offset
    content = bytearray(path.read_bytes())
    content[start + 200 : start + 240] = bytes(40)
    path.write_bytes(content)
    refused(ImageFolder(str(path)), str(path), "5.png")


def test_any_damage_to_a_zip_is_refused_or_harmless(tmp_path):
    path = Path(store(tmp_path, {f"{i}.png": encode(pixels(4)) for i in range(4)}, "zip"))
    content = path.read_bytes()
    whole = ImageFolder(str(path)).train_images().images
    messages = []
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            found = ImageFolder(str(path)).train_images().images
            # What is not refused hit metadata; a name that is no image's any more loses the image.
            assert all(any(torch.equal(image, one) for one in whole) for image in found)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert all("\n" not in message and str(path) in message for message in messages)


def test_encrypted_zip(tmp_path):
    path = Path(store(tmp_path, {"1.png": encode(pixels())}, "zip"))
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the encryption flag in the member's header …
    content[content.index(b"PK\x01\x02") + 8] |= 1  # … and in the directory
    path.write_bytes(content)
    refused(ImageFolder(str(path)), str(path), "1.png", "encrypted")


@pytest.mark.parametrize("name", ["../1.png", "a/../../1.png", "/etc/1.png", "..\\1.png", "C:/1.png"])
@pytest.mark.parametrize("cache", [True, False])
def test_members_that_point_out_of_a_zip(tmp_path, name, cache):
    path = store(tmp_path, {"0.png": encode(pixels()), name: encode(pixels())}, "zip")
    refused(ImageFolder(path, cache=cache), path, "points out of the zip")
    assert main(["dataset", path, str(tmp_path / "new.zip"), "--workers=0"]) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images.zip"]


@pytest.mark.parametrize("which", ["0.png", "1.png", "dataset.json"])
@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("cache", [True, False])
def test_zip_bombs_are_not_unpacked(tmp_path, which, honest, cache):
    others = {"0.png", "1.png"} - {which}
    path = Path(store(tmp_path, {name: encode(pixels()) for name in others}, "zip"))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(which, bytes(MAX_FILE + 1))
    if not honest:  # the directory says that it is small
        content = path.read_bytes()
        path.write_bytes(content.replace(struct.pack("<I", MAX_FILE + 1), struct.pack("<I", 1000)))
    tracemalloc.start()
    with pytest.raises(UserError, match=f"^{re.escape(which)} in {path}") as caught:
        ImageFolder(str(path), cache=cache).train_images().take(torch.arange(2))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24
    assert "\n" not in str(caught.value)
    assert ("256 MB" in str(caught.value)) == honest
    assert main(["dataset", str(path), str(tmp_path / "new.zip"), "--workers=0"]) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images.zip"]


def png(size: int, depth: int, colours: int, content: bytes) -> bytes:
    """A PNG as its specification says, with these bits a channel and type of colours."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", size, size, depth, colours, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(content))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(pixels(32)) for _ in range(2)]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:])


def broken_images() -> dict[str, bytes]:
    image = encode(pixels(32))
    damaged = bytearray(image)
    damaged[len(image) // 2] ^= 0xFF
    return {
        "truncated": image[: len(image) // 2],
        "header only": image[:20],
        "damaged": bytes(damaged),
        "truncated jpeg": encode(pixels(32), "JPEG")[:-300],
        "empty": b"",
        "text": b"<html>404 not found</html>",
        "gif": encode(pixels(32), "GIF"),
        "warned bomb": png(10_000, 8, 2, b""),
        "bomb": png(65_535, 8, 2, b""),
        "16 bits": encode(Image.fromarray(RNG.integers(0, 65536, (32, 32), np.uint16))),
        "16 bits RGB": png(32, 16, 2, RNG.bytes(32 * (1 + 32 * 6))),
        "16 bits RGBA": png(32, 16, 6, RNG.bytes(32 * (1 + 32 * 8))),
        "16 bits grey and alpha": png(32, 16, 4, RNG.bytes(32 * (1 + 32 * 4))),
        "animated png": animated("PNG"),
        "animated webp": animated("WEBP"),
    }


@pytest.mark.parametrize("which", list(broken_images()))
@pytest.mark.parametrize("place", ["cat/0.png", "cat/7.png"])
@pytest.mark.filterwarnings("error")
def test_broken_image_is_named(tmp_path, kind, which, place):
    files = {f"cat/{i}.png": encode(pixels(32)) for i in range(9)} | {"dog/0.png": encode(pixels(32))}
    path = store(tmp_path, files | {place: broken_images()[which]}, kind)
    message = refused(ImageFolder(path), path, place)
    with pytest.raises(UserError) as caught:
        ImageFolder(path, cache=False).train_images().as_tensor()
    assert str(caught.value) == message
    assert ("huge image" in message) == ("bomb" in which)
    assert ("8 bits" in message) == ("16 bits" in which)
    assert ("is animated" in message) == ("animated" in which)


def test_broken_image_is_named_when_threads_decode(tmp_path, kind):
    files = {f"{i:04}.png": encode(pixels(64)) for i in range(200)} | {"0150.png": encode(pixels(64))[:-99]}
    path = store(tmp_path, files, kind)
    refused(ImageFolder(path), path, "0150.png")


def test_wrong_sizes(tmp_path, kind):
    files = {"a.png": encode(pixels(8)), "b.png": encode(pixels(8)), "c.png": encode(pixels(16))}
    path = store(tmp_path, files, kind)
    refused(ImageFolder(path), path, "a.png", "8×8", "c.png", "16×16")
    refused(ImageFolder(path, resolution=16), path, "a.png", "8×8", "16×16")


def test_images_that_are_not_square(tmp_path, kind):
    path = store(tmp_path, {"a.png": encode(pixels()[:5])}, kind)
    refused(ImageFolder(path), path, "a.png is" if kind == "folder" else "a.png in", "8×5", "square")


def test_sources_without_images(tmp_path, kind):
    path = store(tmp_path, {"notes.txt": b"none", ".x.png": encode(pixels())}, kind)
    refused(ImageFolder(path), path, "holds no images")


@pytest.mark.parametrize(
    ("names", "mentions"),
    [
        (["train/a/1.png", "val/a/1.png", "test/a/1.png"], ["test, val", "splits or classes"]),
        (["cat/1.png", "dog/1.png", "grid.png"], ["grid.png", "beside class folders"]),
        (["train/cat/1.png", "train/dog/1.png", "test/cow/1.png"], ["test/cow/1.png", "class folder"]),
        (["train/cat/1.png", "train/dog/1.png", "test/1.png"], ["test/1.png", "class folder"]),
    ],
)
def test_ambiguous_folders(tmp_path, kind, names, mentions):
    path = store(tmp_path, {name: encode(pixels()) for name in names}, kind)
    refused(ImageFolder(path), path, *mentions)


def test_held_out_images_unlike_the_training_images(tmp_path, kind):
    files = {"train/1.png": encode(pixels(8, 1)), "test/1.png": encode(pixels(8))}
    refused(ImageFolder(store(tmp_path, files, kind)), "held-out", "(3, 8, 8)", "(1, 8, 8)")
    (tmp_path / "2").mkdir()
    files = {"train/1.png": encode(pixels(8)), "test/1.png": encode(pixels(16))}
    refused(ImageFolder(store(tmp_path / "2", files, kind)), "held-out", "(3, 16, 16)", "(3, 8, 8)")


@pytest.mark.parametrize("forbidden", ["images.zip", "images", "images/cat", "images/cat/1.png"])
def test_files_without_permission(forbidden):
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users anyway
        os.chmod(folder, 0o755)
        kind = "zip" if forbidden.endswith("zip") else "folder"
        path = store(Path(folder), {"cat/1.png": encode(pixels()), "dog/1.png": encode(pixels())}, kind)
        os.chmod(Path(folder) / forbidden, 0)
        try:
            if user == 0:  # who may read everything
                os.seteuid(65534)
            refused(ImageFolder(path), forbidden, "Permission denied")
        finally:
            os.seteuid(user)
            os.chmod(Path(folder) / forbidden, 0o755)
