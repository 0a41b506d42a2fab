"""`warm convert-edm`: EDM's snapshots become checkpoints, against EDM's own numbers."""

import hashlib
import inspect
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from small import REPOSITORY, here
from snapshots import Persistent, blocks, reference_state, tree, write

from warm_lightning import load_checkpoint
from warm_lightning.checkpoints import SECTION, read_checkpoint
from warm_lightning.commands.convert_edm import convert_edm
from warm_lightning.errors import UserError
from warm_lightning.interop.edm import FAMILIES
from warm_lightning.interop.edm_snapshot import architecture, read_snapshot
from warm_lightning.module import DiffusionModule
from warm_lightning.parameterizations import Denoiser
from warm_lightning.processes import Hot
from warm_lightning.samplers import EvenGrid, Sampler
from warm_lightning.types import Level


def convert(source: Path, folder: Path) -> Path:
    here("convert-edm", str(source), str(folder / "edm.ckpt"))
    return folder / "edm.ckpt"


def denoised(module: DiffusionModule, arrays: Any, weights: str = "ema") -> torch.Tensor:
    x, sigma = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["sigma"])
    labels = torch.from_numpy(arrays["labels"]) if "labels" in arrays else None
    with torch.no_grad():
        return module.model(weights).outputs(x, Level(0 * sigma, sigma, sigma), labels)[:, 0]


def test_the_published_layout_gives_the_published_numbers(reference_dir: Path, tmp_path: Path) -> None:
    source = reference_dir / "edm_snapshot.pkl"
    path = convert(source, tmp_path)
    module = load_checkpoint(path)
    arrays = np.load(reference_dir / "edm_snapshot_expected.npz")
    for weights in ("ema", "raw"):
        # float32 of two implementations (reference/README.md).
        close = {"rtol": 0, "atol": 1e-5}
        torch.testing.assert_close(denoised(module, arrays, weights), torch.from_numpy(arrays["denoised"]), **close)
    assert isinstance(module.model().process, Hot)
    assert isinstance(module.model().parameterization, Denoiser)
    said = read_checkpoint(path)[SECTION]["source"]
    assert said["file"] == source.name
    assert said["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert said["images_seen"] is None


@pytest.mark.parametrize(
    ("name", "protocol"),
    [("edm_ncsnpp_uncond", 3), ("edm_ddpmpp_heads", 4), ("edm_ddpmpp_cond", 5)],
)
def test_both_families_heads_and_every_protocol(name: str, protocol: int, reference_dir: Path, tmp_path: Path) -> None:
    arrays = np.load(reference_dir / f"{name}.npz")
    per_head = json.loads(str(arrays["config"])).get("channels_per_head")
    source = write(tmp_path / "s.pkl", tree(reference_state(reference_dir / f"{name}.npz"), per_head), protocol)
    module = load_checkpoint(convert(source, tmp_path))
    torch.testing.assert_close(denoised(module, arrays), torch.from_numpy(arrays["denoised"]), rtol=0, atol=1e-5)
    assert module.model().network.dropout == 0.13
    assert module.model().network.channels_per_head == per_head


@pytest.mark.parametrize(
    "name", ["cifar10-32x32-uncond", "cifar10-32x32-cond", "ffhq-64x64-uncond", "lsun-church-128x128-uncond"]
)
def test_every_tensor_of_the_full_size_networks_is_mapped(name: str, reference_dir: Path) -> None:
    """From the names and shapes alone follows a network that has these, all of them and no others."""
    facts = json.loads((reference_dir / "edm_parameters.json").read_text())[name]
    shapes = facts["parameters"] | facts["buffers"]
    state = {tensor: torch.empty(shape, device="meta") for tensor, shape in shapes.items()}
    with torch.device("meta"):
        network = FAMILIES[facts["network"]](1, **architecture(state))
    assert {"model." + n: list(t.shape) for n, t in network.state_dict().items()} == shapes
    assert sum(p.numel() for p in network.parameters()) == facts["trainable_parameters"]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("cifar10-32x32-uncond", "cifar10"),
        ("cifar10-32x32-cond", "cifar10_cond"),
        ("ffhq-64x64-uncond", "ffhq64"),
    ],
)
def test_the_papers_configurations_can_start_from_published_weights(
    name: str, config: str, reference_dir: Path
) -> None:
    """`checkpoints.check_start` compares these settings one by one: they must be written alike."""
    facts = json.loads((reference_dir / "edm_parameters.json").read_text())[name]
    shapes = facts["parameters"] | facts["buffers"]
    found = architecture({tensor: torch.empty(shape, device="meta") for tensor, shape in shapes.items()})
    model = yaml.safe_load((REPOSITORY / "configs" / f"{config}.yaml").read_text())["model"]
    network = FAMILIES[facts["network"]]
    assert model["network"]["class_path"] == network.__name__
    defaults = {p.name: p.default for p in inspect.signature(network).parameters.values()}
    stated = defaults | model["network"]["init_args"]
    assert {n: list(v) if isinstance(v, tuple) else v for n, v in stated.items() if n in found} == found
    assert stated["channels_per_head"] is None
    assert "preconditioning" not in model  # σ_d is 0.5, as EDM's


def edm_samples(ckpt: Path, low: float, high: float, steps: int) -> torch.Tensor:
    """EDM's deterministic sampler (Karras et al. 2022, Algorithm 1) between two noise levels, of seeds 0 to 3."""
    model = load_checkpoint(ckpt).model()
    i = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    sigmas = [*((high ** (1 / 7) + i * (low ** (1 / 7) - high ** (1 / 7))) ** 7).tolist(), 0.0]
    latents = [torch.randn(model.image_shape, generator=torch.Generator().manual_seed(s)) for s in range(4)]
    x = sigmas[0] * torch.stack(latents).double()

    def slope(x: torch.Tensor, sigma: float) -> torch.Tensor:
        level = torch.tensor([sigma], dtype=torch.float64)
        return (x - model.outputs(x, Level(0 * level, level, level))[:, 0]) / sigma

    with torch.no_grad():
        for t, s in itertools.pairwise(sigmas):
            d = slope(x, t)
            ahead = x + (s - t) * d
            x = ahead if s == 0 else x + (s - t) * (d + slope(ahead, s)) / 2
    return x


@pytest.mark.parametrize(
    ("known", "low", "high"),
    [
        ({}, 0.002, 80),
        ({"sigma_min": 0.05, "sigma_max": 20.0}, 0.05, 20),
        ({"sigma_min": 1e-4, "sigma_max": 1e3}, 0.002, 80),
    ],
)
def test_a_snapshot_is_sampled_within_its_noise_levels(
    known: dict[str, float], low: float, high: float, reference_dir: Path, tmp_path: Path
) -> None:
    state = reference_state(reference_dir / "edm_ncsnpp_uncond.npz")
    path = convert(write(tmp_path / "s.pkl", tree(state, **known)), tmp_path)
    trained = load_checkpoint(path)
    model = trained.model()
    expected = edm_samples(path, low, high, 18)
    for sampler in (model.sampler, Sampler()):  # its own, and one that is made in Python
        # A float32 network in another order of rounding: as in reference/README.md.
        torch.testing.assert_close(model.sample(sampler, range(4)), expected, rtol=0, atol=1e-4)
    narrow = (low, high) != (0.002, 80)
    assert ((expected - edm_samples(path, 0.002, 80, 18)).abs().max() > 0.01) == narrow
    # What is exported knows it, too; and grids that cannot be narrowed are refused.
    here("export", str(path), str(tmp_path / "exported"))
    assert load_checkpoint(tmp_path / "exported").sampler.grid.clocks().tolist() == model.sampler.grid.clocks().tolist()
    if narrow:
        with pytest.raises(UserError, match=r"EvenGrid goes from 80 to 4 .* knows 0.05 to 20"):
            model.sample(Sampler(EvenGrid(20, 80)), [0])
        with pytest.raises(UserError, match="change beta_min or beta_max"):
            load_checkpoint(path, {"sampler.grid.beta_max": 0.04})


def vast(ema: Persistent) -> None:
    """Convolutions that claim a million channels, none of which are in the file: 36 TB if they were built."""
    conv = ema.state["_modules"]["model"].state["_modules"]["enc"].state["_modules"]["16x16_conv"]
    conv.state["_parameters"]["weight"] = torch.empty(10**6, 3, 0, 0)
    for block in blocks(ema):
        block.state["_modules"]["conv0"].state["_parameters"]["weight"] = torch.empty(10**6, 10**6, 0, 0)


def bottomless(depth: int) -> dict[str, Persistent]:
    """Modules that contain themselves, or many times the same ones."""
    modules: dict[str, Persistent] = {}
    if depth == 1:
        modules["model"] = modules["a"] = Persistent("SongUNet", _modules=modules)
        return modules
    for _ in range(depth):
        modules = {str(i): Persistent("SongUNet", _modules=modules) for i in range(10)}
    return modules


def ema_of(reference_dir: Path) -> Persistent:
    return tree(reference_state(reference_dir / "edm_ddpmpp_cond.npz"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: setattr(e, "class_name", "VPPrecond"), ["VPPrecond"]),
        (lambda e: setattr(e.state["_modules"]["model"], "class_name", "DhariwalUNet"), ["DhariwalUNet"]),
        (lambda e: blocks(e)[1].state.update(skip_scale=1.0), ["skip_scale", "1"]),
        (lambda e: blocks(e)[0].state.update(adaptive_scale=True), ["adaptive_scale"]),
        (lambda e: blocks(e)[0].state.update(dropout=0.5), ["dropout", "0.5"]),
        (lambda e: blocks(e)[0].state["_modules"].pop("norm1"), ["norm1.weight", "absent"]),
        (vast, ["none of those built here"]),
        (lambda e: [setattr(b, "class_name", "Block") for b in blocks(e)], ["no blocks called UNetBlock"]),
        (lambda e: e.state.pop("sigma_data"), ["sigma_data"]),
        (lambda e: e.state["_modules"].pop("model"), ["model"]),
        (lambda e: e.state["_modules"]["model"].state["_modules"].pop("enc"), ["encoder"]),
        (lambda e: e.state.update(_modules=bottomless(1)), ["model.model"]),
        (lambda e: e.state.update(_modules=bottomless(5)), ["too many"]),
    ],
)
def test_other_networks_are_refused_by_name(change: Any, words: list[str], reference_dir: Path, tmp_path: Path) -> None:
    ema = ema_of(reference_dir)
    change(ema)
    with pytest.raises(UserError) as raised:
        read_snapshot(write(tmp_path / "odd.pkl", ema))
    assert "\n" not in str(raised.value)
    for word in ["odd.pkl", *words]:
        assert word in str(raised.value)


def wrong_filter(ema: Persistent) -> None:
    network = ema.state["_modules"]["model"].state["_modules"]
    network["enc"].state["_modules"]["8x8_down"].state["_modules"]["conv0"].state["_buffers"]["resample_filter"] *= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (wrong_filter, "8x8_down.conv0.resample_filter"),
        (lambda e: e.state.update(sigma_data=-1.0), "sigma_data"),
        (lambda e: e.state.update(sigma_min=9.0, sigma_max=3.0), "noise from 9 to 3"),
        (lambda e: e.state.update(sigma_max=float("nan")), "noise from 0 to nan"),
    ],
)
def test_settings_that_make_no_model_are_refused_with_the_files_name(
    change: Any, words: str, reference_dir: Path, tmp_path: Path
) -> None:
    ema = ema_of(reference_dir)
    change(ema)
    with pytest.raises(UserError, match=rf"odd\.pkl: .*{words}"):
        convert_edm(write(tmp_path / "odd.pkl", ema), tmp_path / "out.ckpt")


def test_what_is_there_is_left_alone(reference_dir: Path, tmp_path: Path) -> None:
    """The snapshot itself above all; and a folder, which must not be left with a file beside it."""
    source, folder = tmp_path / "snapshot.pkl", tmp_path / "folder.ckpt"
    source.write_bytes((reference_dir / "edm_snapshot.pkl").read_bytes())
    folder.mkdir()
    for target in (source, folder):
        with pytest.raises(UserError, match=rf"{target.name}: already exists"):
            convert_edm(source, target)
    assert source.read_bytes() == (reference_dir / "edm_snapshot.pkl").read_bytes()
    assert sorted(tmp_path.iterdir()) == [folder, source]
