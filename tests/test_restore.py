"""`warm restore` with a small trained model."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import warm_on_two
from small import here
from torch import Tensor

from warm_lightning.checkpoints import EMA_PREFIX, read_checkpoint, without_prefix
from warm_lightning.data import Digits
from warm_lightning.images import dequantise, quantise, read_png, write_png
from warm_lightning.metrics.fidelity import Fidelity
from warm_lightning.records import tensors_hash
from warm_lightning.restoration import observe
from warm_lightning.rng import SeedStreams, key
from warm_lightning.samplers import PowerGrid


@pytest.fixture(scope="module")
def held_out() -> Tensor:
    """uint8 [12, 1, 8, 8]."""
    images = Digits(held_out=40).held_out_images()
    assert images is not None
    return images.as_tensor()[:12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, held_out: Tensor) -> Path:
    """The held-out images as PNG files."""
    root = tmp_path_factory.mktemp("clean")
    for k, image in enumerate(held_out):
        write_png(root / ("even" if k % 2 == 0 else "odd") / f"digit {k}.png", image)
    return root


@pytest.fixture
def run(learned_ckpt: Path, tmp_path: Path) -> Callable[..., dict]:
    def restore(images: object, out: str, *options: str, level: tuple[float, float] = (0.25, 0.5)) -> dict:
        where = [f"--ckpt_path={learned_ckpt}", f"--outdir={tmp_path / out}", "--accelerator=cpu"]
        here("restore", str(images), f"--blur={level[0]}", f"--noise={level[1]}", *where, *options)
        return json.loads((tmp_path / out / "restored.json").read_text())

    return restore


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.png")}


@pytest.mark.parametrize("level", [(0.1, 0.2), (0.25, 0.5), (0.5, 1.0)])
def test_the_mean_is_nearer_to_the_truth_than_the_input(run, folder, level, capsys) -> None:
    record = run(folder, "out", "--degrade", "--mean", level=level)
    assert record["psnr_after"]["mean"] > record["psnr_before"]["mean"] + 1
    assert record["ssim_after"]["mean"] > record["ssim_before"]["mean"]
    assert (record["protocol"]["nfe"], record["protocol"]["num_images"]) == (1, 12)
    assert record["protocol"]["level"] == pytest.approx({"alpha": level[0], "beta": level[1], "clock": level[1]})
    assert "PSNR" in capsys.readouterr().out


def test_files_scores_and_pictures(run, folder, tmp_path, held_out, capsys) -> None:
    record = run(folder, "out", "--degrade", "--steps=6", f"--grid={tmp_path / 'grid.png'}")
    made = files(tmp_path / "out")
    assert made.keys() == files(folder).keys()
    clocks = PowerGrid(6).clocks()
    assert record["protocol"]["nfe"] == 2 * int((clocks < 0.5).sum()) - 1
    assert f"NFE {record['protocol']['nfe']}" in capsys.readouterr().out
    found = torch.stack([read_png(tmp_path / "out" / name) for name in sorted(made)])
    truth = torch.stack([read_png(folder / name) for name in sorted(made)])
    # The image of the i-th file, in the order of names, has seed i.
    streams = SeedStreams([key(i, "degrade") for i in range(12)])
    before = quantise(observe(dequantise(truth, torch.float64), 0.25, 0.5, streams))
    for when, images in (("before", before), ("after", found)):
        for name, values in Fidelity(8)(images, truth).items():
            assert record[f"{name}_{when}"]["mean"] == pytest.approx(values.mean().item())
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    for column, image in enumerate((before[0], found[0], truth[0])):  # six pixels for one, two around each image
        shown = picture[2:50:6, 2 + 50 * column : 50 + 50 * column : 6, 0]
        np.testing.assert_array_equal(shown, image[0])


def test_results_depend_on_image_and_seed_alone(run, folder, learned_ckpt, tmp_path) -> None:
    # In float64, so that what a batch does to rounding stays below a grey level.
    random = ["--degrade", "--precision=64-true", "--add_noise", "--eta=1", "--steps=6"]
    level = (0.25, 0.4)  # where noise is added, too
    run(folder, "all", *random, level=level)
    everything = files(tmp_path / "all")
    for out, options in (("single", ["--batch_size=1"]), ("first", ["--limit=3"])):
        run(folder, out, *random, *options, level=level)
        some = files(tmp_path / out)
        assert len(some) == (3 if out == "first" else 12)
        assert some.items() <= everything.items()
    run(folder, "seeds", *random, "--limit=3", "--seeds=0,1,9", level=level)
    other = files(tmp_path / "seeds")
    assert [other[name] == everything[name] for name in sorted(other)] == [True, True, False]
    for out, seeds in (("mean", "0-2"), ("means", "0,1,9")):  # in which nothing but the degradation is random
        run(folder, out, "--degrade", "--mean", "--limit=3", f"--seeds={seeds}")
    means = [files(tmp_path / out) for out in ("mean", "means")]
    assert [means[0][name] == means[1][name] for name in sorted(other)] == [True, True, False]
    where = [
        str(folder),
        "--blur=0.25",
        "--noise=0.4",
        f"--ckpt_path={learned_ckpt}",
    ]
    warm_on_two(tmp_path, "restore", *where, *random, f"--outdir={tmp_path / 'two'}")
    assert files(tmp_path / "two") == everything
    records = [json.loads((tmp_path / out / "restored.json").read_text()) for out in ("all", "two")]
    assert records[0] == records[1]


def test_images_degraded_elsewhere_with_their_truth(run, folder, tmp_path, held_out) -> None:
    truth = torch.stack([read_png(file) for file in sorted(folder.rglob("*.png"))])
    streams = SeedStreams([key(i, "degrade") for i in range(12)])
    y = observe(dequantise(truth, torch.float64), 0.25, 0.5, streams)
    np.save(tmp_path / "y.npy", y.numpy())
    np.savez_compressed(tmp_path / "last.npz", y.permute(0, 2, 3, 1).numpy())
    here_degraded = run(folder, "a", "--degrade", "--steps=6")
    for source, out in (("y.npy", "b"), ("last.npz", "c")):
        record = run(tmp_path / source, out, f"--clean={folder}", "--steps=6")
        assert {n: v for n, v in record.items() if n != "protocol"} == {
            n: v for n, v in here_degraded.items() if n != "protocol"
        }
        assert sorted(files(tmp_path / out)) == [f"{i:06d}.png" for i in range(12)]
    assert sorted(files(tmp_path / "a").values()) == sorted(files(tmp_path / "b").values())
    # As PNG files the same images are clipped, which changes them; the truth is found by name, not by order.
    for file, image in zip(sorted(folder.rglob("*.png")), quantise(y), strict=True):
        write_png(tmp_path / "clipped" / file.relative_to(folder).with_suffix(".png"), image)
    clipped = run(tmp_path / "clipped", "d", f"--clean={folder}", "--mean")
    assert clipped["psnr_before"] == here_degraded["psnr_before"]
    alone = run(tmp_path / "clipped" / "odd" / "digit 3.png", "e", "--mean=yes")
    assert "psnr_after" not in alone
    assert files(tmp_path / "e")["digit 3.png"] == files(tmp_path / "d")["odd/digit 3.png"]


def test_the_truth_is_found_by_name(run, tmp_path, held_out) -> None:
    # "a.b.png" comes before "a.png", and after "a.PNG".
    for name, image in (("in/a.png", 0), ("in/a.b.png", 1), ("clean/a.PNG", 0), ("clean/a.b.png", 1)):
        write_png(tmp_path / name, held_out[image])
    record = run(tmp_path / "in", "out", f"--clean={tmp_path / 'clean'}", "--mean")
    assert record["ssim_before"]["mean"] == pytest.approx(1)
    assert record["psnr_before"]["mean"] is None  # infinite


def test_one_image_with_its_truth(run, folder, tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*degrees of freedom.*")
        record = run(folder, "out", "--degrade", "--mean", "--limit", "1")
    assert record["psnr_after"].keys() == {"mean"}
    assert record["protocol"]["nfe"] == 1


def test_the_record_names_the_weights_as_scores_do(run, folder, learned_ckpt) -> None:
    record = run(folder, "out", "--degrade", "--mean", "--limit=1")
    assert record["protocol"]["weights_sha256"] == tensors_hash(
        without_prefix(read_checkpoint(learned_ckpt)["state_dict"], EMA_PREFIX).items()
    )


@pytest.mark.parametrize("zipped", [False, True])
def test_of_a_source_with_splits_the_held_out_images_are_restored(run, tmp_path, held_out, zipped, capsys) -> None:
    for name, image in (("train/a/1.png", 0), ("train/b/2.png", 1), ("test/a/1.png", 2)):
        write_png(tmp_path / "in" / name, held_out[image])
    source = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "in") if zipped else tmp_path / "in"
    record = run(source, "out", "--degrade", "--mean")
    assert "split held_out" in capsys.readouterr().out
    assert files(tmp_path / "out").keys() == {"test/a/1.png"}
    assert record["protocol"]["split"] == "held_out"
    record = run(source, "known", "--degrade", "--mean", "--split=train")
    assert files(tmp_path / "known").keys() == {"train/a/1.png", "train/b/2.png"}
    assert record["protocol"]["split"] == "train"
    # The truth has splits, the images have none.
    np.save(tmp_path / "y.npy", held_out[2:3].numpy())
    assert run(tmp_path / "y.npy", "truth", f"--clean={source}", "--mean")["ssim_before"]["mean"] == pytest.approx(1)
