"""`warm dataset`: the same pixels and bytes whoever writes them, all of it or nothing."""

import io
import json
import math
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import RNG, chw, encode, photographs, pixels, store, store_edm, store_lmdb
from PIL import Image
from small import here

from warm_lightning.cli import main
from warm_lightning.data import CIFAR10, FFHQ, ImageFolder, LSUNChurch

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def refusal(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """The one line with which the command is refused, having left nothing in the folder of the new data set."""
    capsys.readouterr()
    assert main(["dataset", *arguments, "--workers=0"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warm")]
    assert len(lines) == 1, lines
    assert not folder.exists() or not any(folder.iterdir())
    return lines[0]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_pixels_and_classes_of_folders_come_through(tmp_path, kind):
    images = {f"{c}/{i}.png": pixels() for c in ("dog", "cat") for i in range(3)}
    source = store(tmp_path, {name: encode(image) for name, image in images.items()}, kind)
    here("dataset", source, str(tmp_path / "new" / "set.zip"), "--workers=0")
    with zipfile.ZipFile(tmp_path / "new" / "set.zip") as archive:
        names = [f"00000/img{i:08d}.png" for i in range(6)]
        assert archive.namelist() == [*names, "dataset.json"]
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        labels = json.loads(archive.read("dataset.json"))["labels"]
        assert labels == [[name, i // 3] for i, name in enumerate(names)]
        for name, old in zip(names, sorted(images), strict=True):
            found = Image.open(io.BytesIO(archive.read(name)))
            assert found.format == "PNG"
            assert np.array_equal(np.asarray(found), images[old])
    found = ImageFolder(str(tmp_path / "new" / "set.zip")).train_images()
    assert torch.equal(found.images, ImageFolder(source).train_images().images)


def test_images_are_cropped_and_resampled_as_pillow_does(tmp_path, cifar10_zip):
    wide, tall = (
        np.asarray(Image.fromarray(p).resize(s))
        for p, s in zip(photographs(cifar10_zip, 2), [(151, 100), (90, 101)], strict=True)
    )
    source = store(tmp_path, {"a.png": encode(wide), "b.png": encode(tall)}, "folder")
    here("dataset", source, str(tmp_path / "set.zip"), "--resolution=64", "--crop=center", "--workers=0")
    found = FFHQ(str(tmp_path / "set.zip")).train_images()
    here("dataset", source, str(tmp_path / "all.zip"), "--resolution=64", "--crop=stretch", "--workers=0")
    stretched = FFHQ(str(tmp_path / "all.zip")).train_images()
    for images, parts in ((found, (wide[:, 25:125], tall[5:95])), (stretched, (wide, tall))):
        same = [Image.fromarray(np.ascontiguousarray(p)).resize((64, 64), Image.Resampling.LANCZOS) for p in parts]
        assert torch.equal(images.images, torch.stack([chw(np.asarray(image)) for image in same]))
        assert images.class_names == ()


def test_bytes_are_the_same_again_and_with_any_number_of_workers(tmp_path, cifar10_zip):
    images = {f"{i:03}.png": encode(pixels(12)) for i in range(100)}
    source = store(tmp_path, images, "zip")
    for workers in (0, 1, 2):
        here("dataset", source, str(tmp_path / f"{workers}.zip"), "--resolution=8", f"--workers={workers}")
    first, *others = ((tmp_path / f"{workers}.zip").read_bytes() for workers in (0, 1, 2))
    os.utime(source, (0, 0))
    here("dataset", source, str(tmp_path / "0.zip"), "--resolution=8", "--workers=0", "--overwrite=true")
    assert all(other == first for other in [*others, (tmp_path / "0.zip").read_bytes()])


@pytest.mark.parametrize(("split", "labels"), [("train", [0, 1]), ("held_out", [1, 1]), ("all", [0, 1, 1, 1])])
def test_splits(tmp_path, capsys, split, labels):
    names = ["train/a/1.png", "train/b/1.png", "test/b/1.png", "test/b/2.png"]
    source = store(tmp_path, {name: encode(pixels()) for name in names}, "zip")
    here("dataset", source, str(tmp_path / "set.zip"), f"--split={split}", "--workers=0")
    assert ImageFolder(str(tmp_path / "set.zip")).train_images().labels.tolist() == labels
    left_out = 4 - len(labels)
    assert (f"{left_out} others left out" in capsys.readouterr().out) == (left_out > 0)


def test_classes_of_a_data_set_in_edms_format_are_kept(tmp_path):
    source = store_edm(tmp_path, [pixels() for _ in range(3)], [4, 0, 2])
    here("dataset", source, str(tmp_path / "set.zip"), "--resolution=4", "--workers=0")
    assert ImageFolder(str(tmp_path / "set.zip")).train_images().labels.tolist() == [4, 0, 2]


@pytest.mark.parametrize("colour", [None, 2])
def test_images_are_grey_where_all_are(tmp_path, colour):
    files = {f"{i}.png": encode(pixels(channels=3 if i == colour else 1)) for i in range(4)}
    here("dataset", store(tmp_path, files, "folder"), str(tmp_path / "set.zip"), "--workers=0")
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        modes = {Image.open(io.BytesIO(archive.read(name))).mode for name in archive.namelist()[:-1]}
    assert modes == ({"L"} if colour is None else {"RGB"})


def test_an_lmdb_becomes_what_training_on_it_would_see(tmp_path, cifar10_zip):
    files = {
        f"key{i}": encode(Image.fromarray(image).resize((256 + 9 * i, 256)), "WEBP", quality=90)
        for i, image in enumerate(photographs(cifar10_zip, 3))
    }
    source = store_lmdb(tmp_path / "church_outdoor_train_lmdb", files)
    here("dataset", source, str(tmp_path / "church.zip"), "--resolution=128", "--crop=center", "--workers=1")
    kept = LSUNChurch(str(tmp_path / "church.zip"), cache=True).train_images()
    assert torch.equal(kept.images, LSUNChurch(source).train_images().as_tensor())


class Python2Pickler(pickle._Pickler):
    """Writes strings and bytes as Python 2 did, in which CIFAR-10's files were made."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, text: str | bytes) -> None:
        content = text if isinstance(text, bytes) else text.encode()
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    dispatch[str] = dispatch[bytes] = save_string


def python2(content: dict) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue()


def cifar_archive(folder: Path, kind: str, **changes: bytes) -> tuple[str, dict[str, np.ndarray]]:
    """CIFAR-10's archive for Python of 4 images a batch, as it is packed or unpacked."""
    batches = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    arrays = {name: RNG.integers(0, 256, (4, 3072), np.uint8) for name in batches}
    files = {name: python2({"data": a, "labels": [6, 9, 9, 4]}) for name, a in arrays.items()}
    files = files | {"batches.meta": python2({"label_names": CLASSES})} | changes
    (folder / "cifar-10-batches-py").mkdir()
    for name, content in files.items():
        (folder / "cifar-10-batches-py" / name).write_bytes(content)
    if kind == "unpacked":
        return str(folder / "cifar-10-batches-py"), arrays
    if kind == "around":
        return str(folder), arrays
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
    return str(folder / "cifar-10-python.tar.gz"), arrays


@pytest.mark.parametrize("kind", ["packed", "unpacked", "around"])
def test_cifar10s_archive_keeps_its_order_and_classes(tmp_path, kind):
    (tmp_path / "c").mkdir()
    source, arrays = cifar_archive(tmp_path / "c", kind)
    here("dataset", source, str(tmp_path / "set.zip"), "--split=all", "--workers=0")
    found = CIFAR10(str(tmp_path / "set.zip")).train_images()
    # Rows hold the red, the green and the blue plane, each row by row.
    assert np.array_equal(found.images.numpy(), np.concatenate(list(arrays.values())).reshape(24, 3, 32, 32))
    assert found.labels.tolist() == [6, 9, 9, 4] * 6
    straight = CIFAR10(source).held_out_images()
    assert np.array_equal(straight.images.numpy(), arrays["test_batch"].reshape(4, 3, 32, 32))
    assert straight.class_names == tuple(CLASSES)


WHITE = np.full((1, 3072), 255, np.uint8)


class Uninitialised:
    def __reduce__(self):
        return np.ndarray, ((3, 3072), np.dtype("u1"))


class Hostile:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps({"data": Hostile()}), "posix.system"),
        (b"no pickle", "data_batch_3"),
        (pickle.dumps({"data": [1, 2], "labels": [1]}), "not a readable archive"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}), "labels outside 0 to 9"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}), "not a readable archive"),
        (pickle.dumps({"data": np.zeros((1, 3072)), "labels": [1]}), "type 'f8' instead of bytes"),
        (pickle.dumps({"data": Uninitialised(), "labels": [1] * 3}), "not a readable archive"),
        *((pickle.dumps({"data": WHITE, "labels": [label]}), "labels outside") for label in (math.inf, 0.7, True, "1")),
    ],
    ids=range(11),
)
def test_nothing_in_an_archive_is_executed(tmp_path, capsys, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    source, _ = cifar_archive(tmp_path, "packed", data_batch_3=content)
    message = refusal(capsys, tmp_path / "new", source, str(tmp_path / "new" / "set.zip"))
    assert source in message
    assert words in message
    assert not (tmp_path / "executed").exists()


def test_names_of_classes_must_be_text(tmp_path, capsys):
    depth = 100_000  # lists in lists
    names = b"\x80\x02}X\x0b\x00\x00\x00label_names]" + b"]" * depth + b"a" * depth + b"s."
    source, _ = cifar_archive(tmp_path, "packed", **{"batches.meta": names})
    assert "not text" in refusal(capsys, tmp_path / "new", source, str(tmp_path / "new" / "set.zip"))


def test_other_archives_are_refused(tmp_path, capsys):
    source, _ = cifar_archive(tmp_path, "packed")
    content = Path(source).read_bytes()
    Path(source).write_bytes(content[: len(content) // 2])
    new = tmp_path / "new"
    assert "truncated or corrupt" in refusal(capsys, new, source, str(new / "set.zip"))
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as tar:
        tar.add(__file__, "test.py")
    assert "not CIFAR-10's archive" in refusal(capsys, new, str(tmp_path / "other.tar.gz"), str(new / "set.zip"))


def test_impossible_targets_are_refused_before_reading(tmp_path, capsys, monkeypatch):
    source = store(tmp_path, {f"{i}.png": encode(pixels(8 + i)[:8]) for i in range(3)}, "zip")
    new = tmp_path / "new"
    target = str(new / "set.zip")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for arguments, words in [
        ((str(tmp_path / "none"), target), "none: no such file"),
        ((source, str(new / "set.tar")), "must end in .zip"),
        ((source, source, "--overwrite=true"), "is the source itself"),
        ((source, target, "--resolution=0"), "--resolution 0"),
        ((source, target, "--resolution=30000"), "from 1 to 4096"),
        ((source, str(new / ("x" * 300 + ".zip"))), "File name too long"),
        ((source, "~no-such-user/set.zip"), "~no-such-user/set.zip"),
        (("~no-such-user/images", target), "~no-such-user/images"),
        ((str(tmp_path / "loop"), target), "loop cannot be read"),
        ((source, str(tmp_path / "loop" / "set.zip")), "loop"),
        ((source, target, "--split=held_out"), "no folder of held-out images"),
        ((source, target), "1.png in"),
        ((source, target, "--crop=center", "--resolution=many"), "resolution"),
        ((source, target, "--crop=left"), "crop"),
        ((source, target, "--crop=stretch"), "--resolution"),
        ((source,), "dst"),
    ]:
        assert words in refusal(capsys, new, *arguments), words
    (tmp_path / "old.zip").write_bytes(b"mine")
    assert "exists already" in refusal(capsys, new, source, str(tmp_path / "old.zip"))
    assert (tmp_path / "old.zip").read_bytes() == b"mine"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_and_nothing_is_left(tmp_path, capsys, workers):
    files = {f"{i:03}.png": encode(pixels(16)) for i in range(100)}
    files["077.png"] = files["077.png"][:-99]
    source = store(tmp_path, files, "zip")
    (tmp_path / "new").mkdir()
    assert main(["dataset", source, str(tmp_path / "new" / "set.zip"), f"--workers={workers}"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warm")]
    assert len(lines) == 1
    assert "077.png in" in lines[0]
    assert "Traceback" not in lines[0]
    assert not any((tmp_path / "new").iterdir())
