"""The inputs that `warm restore` accepts, and the errors of one line for others, before anything is written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import REPOSITORY, SMALL, here

from warm_lightning.cli import main
from warm_lightning.commands.degraded_images import open_input_images
from warm_lightning.commands.restore import check_output_paths
from warm_lightning.data import Digits
from warm_lightning.errors import UserError


@pytest.mark.parametrize(
    ("place", "axes", "channels"),
    [
        ("N×H×W×C", (0, 2, 3, 1), 3),
        ("N×C×H×W", (0, 1, 2, 3), 3),
        ("N×H×W×1", (0, 2, 3, 1), 1),
        ("N×1×H×W", (0, 1, 2, 3), 1),
        ("N×H×W", None, 1),
    ],
)
def test_arrays_in_every_layout(place, axes, channels, tmp_path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, channels, 8, 8), np.uint8)
    stored = images.transpose(axes) if axes else images[:, 0]
    np.save(tmp_path / "uint8.npy", stored)
    np.save(tmp_path / "half.npy", (stored / 127.5 - 1).astype(">f2"))
    for name, tolerance in (("uint8.npy", 1e-15), ("half.npy", 1e-3)):  # half precision rounds to 2⁻¹² in [-1, 1]
        for model in {channels, 3}:
            found = open_input_images(str(tmp_path / name), (model, 8, 8), 0.0).take([1, 0])
            expected = images[::-1].repeat(model // channels, axis=1) / 127.5 - 1
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_an_array_that_is_one_image_or_three_is_refused(tmp_path) -> None:
    np.save(tmp_path / "one.npy", np.zeros((3, 8, 8)))
    with pytest.raises(UserError, match="one image or 3 grey ones"):
        open_input_images(str(tmp_path / "one.npy"), (3, 8, 8), 0.0)


BAD = [
    ("good", ["--lpips=alex"], "--clean"),
    ("good", ["--degrade", "--lpips=alex"], "32×32"),
    ("nowhere", [], "nowhere"),
    ("nowhere.npy", [], "nowhere.npy"),
    ("nowhere.png", [], "nowhere.png"),
    ("large.png", [], "16"),
    ("", [], "empty"),
    ("three.npy", [], "1 × 8 × 8"),
    ("int.npy", [], "int64"),
    ("grey.npy", [], "255"),
    ("nan.npy", [], "not finite"),
    ("broken.npz", [], "broken.npz"),
    ("two.npz", [], "2 arrays"),
    ("good", ["--blur=-1"], "blur"),
    ("good", ["--blur=0.7"], "noise 1"),
    ("good", ["--noise=x"], "noise"),
    ("good", ["--degrade", "--clean=good"], "--clean"),
    ("good", ["--clean=few"], "1 images"),
    ("good", ["--clean=other"], "no ['b']"),
    ("good", ["--clean=nowhere"], "nowhere"),
    ("good", ["--seeds=0-4"], "5 seeds for 2 images"),
    ("good", ["--seeds=a"], "seeds"),
    ("good", ["--limit=0"], "--limit"),
    ("good", ["--batch_size=0"], "--batch_size"),
    ("good", ["--labels=3"], "labels"),
    ("good", ["--clean="], "empty"),
    ("good", ["--steps=0", "--mean=no"], "steps"),
    ("good", ["--steps=9"], "--mean with --steps"),
    ("good", ["--rho=9", "--eta=0"], "--mean with --rho --eta"),
    ("good", ["--override+=sampler.rule=Euler"], "--mean with --override sampler.rule=Euler"),
    ("good", ["--mean=no", "--eta=1", "--override+=sampler.rule=Multistep"], "eta"),
    ("good", ["--split=held_out"], "--split held_out"),
    ("good", ["--split=test"], "split"),
    ("plain.npy", ["--split=train"], "--split train"),
    ("good", ["--outdir=good"], "--outdir good is where the images of good are"),
    ("good", ["--clean=same", "--outdir=same"], "--outdir same is where the images of same are"),
    ("good/a.png", ["--grid=good/a.png"], "--grid good/a.png is where the images of good/a.png are"),
    ("good", ["--grid=OUT/b.png"], "b.png is where a result goes"),
    ("good", ["--outdir=/proc/nowhere"], "/proc/nowhere"),
    ("good", ["--grid=good"], "good"),
    ("good", ["--ckpt_path=nowhere.ckpt"], "nowhere.ckpt"),
    ("good", ["--mean=no", "--override+=sampler.grid.stops=3"], "stops"),
    ("good", ["--accelerator=banana"], "banana"),
    ("twice", [], "twice"),
]


def fitted(folder: Path, *options: str) -> Path:
    """The checkpoint of a step of training."""
    here("fit", *SMALL, *options, "--model.duration=32", f"--trainer.default_root_dir={folder}")
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bad")
    folders = {"good": "ab", "same": "ab", "other": "ac", "few": "a"}
    names = [f"{folder}/{name}.png" for folder, these in folders.items() for name in these]
    for name in [*names, "twice/a.png", "twice/a.bmp"]:
        path = root / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(Digits().train_images().as_tensor()[0, 0].numpy()).save(path)
    (root / "link").symlink_to("good")
    Image.new("L", (16, 16)).save(root / "large.png")
    np.save(root / "three.npy", np.zeros((2, 3, 8, 8)))
    np.save(root / "int.npy", np.zeros((2, 1, 8, 8), np.int64))
    np.save(root / "plain.npy", np.zeros((2, 8, 8)))
    np.save(root / "grey.npy", np.full((2, 1, 8, 8), 255.0))
    np.save(root / "nan.npy", np.full((2, 1, 8, 8), np.nan))
    (root / "broken.npz").write_bytes(b"PK\3\4 and no more")
    np.savez(root / "two.npz", a=np.zeros((2, 1, 8, 8)), b=np.zeros((2, 1, 8, 8)))
    return root


@pytest.mark.parametrize(("images", "options", "word"), BAD)
def test_restore_refuses(images, options, word, fresh, bad, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(bad)
    out = tmp_path / "out"
    level = ["--blur=0.25", "--noise=0.5", f"--ckpt_path={fresh}", f"--outdir={out}", "--mean"]
    before = contents(bad)
    assert main(["restore", images, *level, *(option.replace("OUT", str(out)) for option in options)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warm")]
    assert len(lines) == 1
    assert word in lines[0]
    assert not out.exists() or not list(out.iterdir())
    assert contents(bad) == before


PLACES = [
    (["good"], "good/results/here", None, "--outdir good/results/here is where the images of good are"),
    (["good"], "few/../good", None, "--outdir few/../good"),
    (["good"], ".", None, "--outdir . is where the images of good are"),
    (["good"], "link", None, "--outdir link"),
    (["link"], "good/results", None, "--outdir good/results is where the images of link are"),
    (["good"], "", None, "--outdir is empty"),
    (["plain.npy", "same"], "same/results", None, "--outdir same/results is where the images of same are"),
    (["good/a.png"], "good", None, "--outdir good"),
    (["few/a.png", "good/a.png"], "good", None, "--outdir good is where the images of good/a.png are"),
    (["good"], "out", "good/new.png", "--grid good/new.png"),
    (["good"], "out", "good/a.png", "--grid good/a.png"),
    (["good", "same"], "out", "same/a.png", "--grid same/a.png is where the images of same are"),
    (["plain.npy"], "out", "plain.npy", "--grid plain.npy"),
    (["good"], "out", "out/b.png/grid.png", "is where a result goes"),
    (["good"], "out", "out/restored.json", "is where a result goes"),
]


@pytest.mark.parametrize(("sources", "outdir", "grid", "words"), PLACES)
def test_nothing_is_written_among_the_images_or_over_results(sources, outdir, grid, words, bad, monkeypatch) -> None:
    monkeypatch.chdir(bad)
    with pytest.raises(UserError) as error:
        check_output_paths(sources, outdir, grid, ["a", "b"])
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("sources", "outdir", "grid"),
    [
        (["plain.npy", "two.npz"], ".", "grid.png"),
        (["good", "same"], "good-restored", "good-restored/grid.png"),
        (["good/a.png"], "good/results", "good/results/c.png"),
        (["good/a.png"], "out", "good/grid.png"),
    ],
)
def test_results_may_lie_beside_what_they_cannot_hurt(sources, outdir, grid, bad, monkeypatch) -> None:
    monkeypatch.chdir(bad)
    check_output_paths(sources, outdir, grid, ["a", "b"])


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def test_the_mean_of_what_a_network_says_of_the_next_step_is_refused(tmp_path, bad, capsys) -> None:
    settings = ["--model.process.init_args.steps=8", "--model.process.init_args.blur_max=6.0"]
    settings += ["--model.clock_law.init_args.steps=8", "--model.sampler.grid.init_args={steps: 8, first: 8}"]
    ihdm = fitted(tmp_path, f"--config={REPOSITORY / 'configs' / 'method' / 'ihdm.yaml'}", *settings)
    out, grid = tmp_path / "out", tmp_path / "grid.png"
    where = ["--blur=6", "--noise=0.02", f"--ckpt_path={ihdm}", f"--outdir={out}", f"--grid={grid}"]
    assert main(["restore", str(bad / "good"), *where, "--mean"]) == 2
    assert "LessBlurred" in capsys.readouterr().err
    assert not grid.exists()
    assert not list(out.iterdir())
    here("restore", str(bad / "good"), *where)
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png", "restored.json"]


def test_a_model_with_classes_must_be_told_them(tmp_path, bad, capsys) -> None:
    checkpoint = fitted(tmp_path, "--model.network.label_dim=10")
    level = ["--blur=0.25", "--noise=0.5", f"--ckpt_path={checkpoint}", f"--outdir={tmp_path / 'a'}", "--mean"]
    assert main(["restore", str(bad / "good"), *level]) == 2
    assert "--labels" in capsys.readouterr().err
    here("restore", str(bad / "good"), *level, "--labels=3")
    assert (tmp_path / "a" / "b.png").is_file()
