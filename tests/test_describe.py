"""`warm describe` against the paper's numbers and closed forms."""

import json
import math
from pathlib import Path

import pytest
import torch
from small import DIGITS, REPOSITORY, here
from torch.nn import Conv2d, Linear
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from warm_lightning import load_config
from warm_lightning.analysis import figures
from warm_lightning.analysis.description import describe_trained, forward_flops, parameter_count
from warm_lightning.cli import main
from warm_lightning.commands.describe import summary, table
from warm_lightning.data.image_set import dequantised_batches
from warm_lightning.networks.layers import AttentionBlock
from warm_lightning.processes import RandomBNR, Warm
from warm_lightning.rng import BatchDraws
from warm_lightning.spectral import second_moment

CONFIGS = REPOSITORY / "configs"
FULL = [path.stem for path in sorted(CONFIGS.glob("*.yaml"))]
OVERLAYS = [path.stem for path in sorted((CONFIGS / "method").glob("*.yaml"))]
# Making the network takes most of the time.
LITTLE = ["--model.network.model_channels=8", "--model.network.num_blocks=1"]
SMALL = [f"--config={DIGITS}", *LITTLE]


def describe(folder: Path, *options: str) -> dict:
    here("describe", *options, f"--outdir={folder}")
    assert (folder / "paths.png").stat().st_size > 10_000
    return json.loads((folder / "describe.json").read_text())


def digits(folder: Path, overlay: str, *options: str) -> dict:
    return describe(folder, *SMALL, f"--config={CONFIGS / 'method' / overlay}.yaml", *options)


# Duration, ramp and half-life are the same for all; the rest of Table 6, and NFE as in Tables 1 and 2.
TABLE_6 = {
    "cifar10": {"nfe": 35, "batch_size": 512, "lr": 1e-3, "dropout": 0.13, "channel_mult": [2, 2, 2], "p": 0.12},
    "ffhq64": {"nfe": 79, "batch_size": 256, "lr": 2e-4, "dropout": 0.05, "channel_mult": [1, 2, 2, 2], "p": 0.15},
    "lsun_church128": {"nfe": 511, "batch_size": 256, "lr": 1e-4, "dropout": 0.1, "channel_mult": [1, 2, 4, 6, 8]},
}


@pytest.mark.parametrize(
    ("config", "parameters", "millions", "size"),
    [
        ("cifar10", 55_740_806, 55.741, (128, 4, [16])),
        pytest.param("ffhq64", 62_764_550, 62.765, (128, 4, [16]), marks=pytest.mark.slow),
        pytest.param("lsun_church128", 117_956_870, 117.957, (64, 3, [32, 16, 8]), marks=pytest.mark.slow),
    ],
)
def test_the_paper_s_model_sizes(
    tmp_path: Path, config: str, parameters: int, millions: float, size: tuple[int, int, list[int]]
) -> None:
    found = describe(tmp_path, f"--config={CONFIGS / config}.yaml")
    recipe = found["hyperparameters"]
    assert (found["parameters"], found["parameters_millions"]) == (parameters, millions)
    assert found["network"] == ("NCSNpp" if config == "ffhq64" else "DDPMpp")
    assert tuple(recipe[name] for name in ("model_channels", "num_blocks", "attn_resolutions")) == size


def summarised(*paths: Path) -> dict:
    """The description without its picture, which takes most of the time, of a small network."""
    little = {"model.network.model_channels": 8, "model.network.num_blocks": 1, "model.network.attn_resolutions": []}
    return summary(*load_config(paths, little))


@pytest.mark.parametrize("config", FULL)
def test_every_configuration(config: str) -> None:
    found = summarised(CONFIGS / f"{config}.yaml")
    assert f"{found['parameters']:,} parameters" in table(found)
    # The paper's path, a ray with BNR 0.5.
    for levels in (found["sampling"], found["path"], found["trained"]):
        known = [bnr for bnr in levels["bnr"] if math.isfinite(bnr)]
        assert known == pytest.approx([0.5] * len(known))
        assert len(known) >= len(levels["bnr"]) - 1  # all but the last level, where neither is left
        assert levels["scale"] == [1] * len(levels["clock"])
    if config in TABLE_6:
        recipe, paper = found["hyperparameters"], dict(TABLE_6[config])
        assert (recipe["duration"], recipe["lr_ramp"], recipe["ema_half_life"]) == (200e6, 10e6, 0.5e6)
        assert (recipe["augment"] or {"init_args": {"p": None}})["init_args"]["p"] == paper.pop("p", None)
        assert found["flops_per_image"] == found["nfe"] * found["flops_per_call"]
        assert found["nfe"] == paper.pop("nfe")
        assert {name: recipe[name] for name in paper} == paper


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_method(overlay: str) -> None:
    found = summarised(DIGITS, CONFIGS / "method" / f"{overlay}.yaml")
    assert f"NFE {found['nfe']}" in table(found)
    sampling, path, trained = found["sampling"], found["path"], found["trained"]
    assert len({len(values) for values in path.values()}) == 1
    assert sampling["clock"][-1] == path["clock"][0] == 0
    assert path["clock"] == sorted(path["clock"])
    assert path["clock"][-1] == max(*trained["clock"], *sampling["clock"])
    assert all(low <= high for low, high in zip(path["alpha_low"], path["alpha_high"], strict=True))


def test_blurring_schedule(tmp_path: Path) -> None:
    # Eqs. 18 to 20: β = tan(πt/2), BNR = 10 sin(πt).
    path = digits(tmp_path, "blurring_schedule")["path"]
    for beta, bnr in zip(path["beta"][1:], path["bnr"][1:], strict=True):
        assert bnr == pytest.approx(10 * math.sin(2 * math.atan(beta)), rel=1e-9)


def test_heat_dissipation(tmp_path: Path) -> None:
    found = digits(tmp_path, "ihdm")
    assert set(found["path"]["beta"]) == {0.02}
    blur = found["sampling"]["alpha"][::-1]
    assert blur[0] == 0
    assert blur[1:] == pytest.approx([0.5 * 48 ** (k / 199) for k in range(200)])
    assert found["nfe"] == 200


def test_ddpm_in_units_of_the_image(tmp_path: Path) -> None:
    found = digits(tmp_path, "ddpm")
    left = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    # ᾱ of a thousand factors in another order: some units in the last place of the first, where 1 - ᾱ is 1e-4.
    assert found["sampling"]["beta"][-2::-1] == pytest.approx(((1 - left) / left).sqrt().tolist(), rel=1e-9)
    assert found["sampling"]["scale"][-2::-1] == pytest.approx(left.sqrt().tolist(), rel=1e-9)
    assert math.copysign(1, found["sampling"]["beta"][-1]) == 1


def test_cold_has_no_ratio(tmp_path: Path) -> None:
    assert set(digits(tmp_path, "cold")["path"]["bnr"]) == {None}


def test_plane_is_a_band(tmp_path: Path) -> None:
    found = digits(tmp_path, "plane")
    trained = found["trained"]
    assert trained["quantile"] == [0.001, 0.5, 0.999]
    # ln β ~ N(-1.2, 1.2²), whose 99.9 % are at 3.0902 standard deviations.
    assert trained["beta"] == pytest.approx([math.exp(-1.2 + 1.2 * x) for x in (-3.0902, 0, 3.0902)], rel=1e-4)
    assert trained["alpha_low"] == [0, 0, 0]
    assert trained["alpha_high"] == pytest.approx([2 * beta for beta in trained["beta"]])


def test_the_band_is_what_training_draws() -> None:
    process, clocks = Warm(RandomBNR(0.3, 1.5, 0.4)), torch.tensor([0.1, 3.0], dtype=torch.float64)
    told = describe_trained(process, clocks)
    for k, clock in enumerate(clocks):
        drawn = process.draw_level(clock.expand(5000), BatchDraws(0, 0, 5000, torch.arange(5000))).alpha
        low, high = told["alpha_low"][k], told["alpha_high"][k]
        assert low <= drawn.min()
        assert drawn.max() <= high
        # The extremes of 5,000 even draws are within 0.2 % of the ends, but for a chance of 1e-4.
        assert drawn.aminmax() == pytest.approx((low, high), abs=0.002 * (high - low))


def test_flops() -> None:
    module, _ = load_config(CONFIGS / "digits.yaml", {"model.network.label_dim": 10, "model.network.augment_dim": 9})
    network, counted = module.network.eval(), [0]
    for layer in network.modules():
        if isinstance(layer, Conv2d | Linear):
            layer.register_forward_hook(lambda m, _, out: counted.append(2 * out.numel() * m.weight[0].numel()))
        if isinstance(layer, AttentionBlock):
            layer.register_forward_hook(lambda m, _, out: counted.append(4 * out.numel() * out[0, 0].numel()))
    flops = forward_flops(network)
    by_hand = sum(counted)
    assert flops == pytest.approx(by_hand, rel=0.03)  # resampling filters are no layers
    # With numbers; the cost of fused attention on a CPU is not known to every version of PyTorch.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1), torch.zeros(1, 10), torch.zeros(1, 9))
    assert flops == counter.get_total_flops()
    assert all(p.device.type == "cpu" for p in network.parameters())  # counting has left it alone


def test_without_a_folder_it_only_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    here("describe", *SMALL)
    assert "NFE 35" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert main(["describe", *SMALL, "--outdir=out"]) == 2
    assert "pip install 'warm-lightning[plots]'" in capsys.readouterr().err
    assert main(["describe"]) == 2
    assert "--config is missing" in capsys.readouterr().err


def test_snr_of_frequencies_is_that_of_the_gains(tmp_path: Path) -> None:
    """EqualSNR's are equal; those of EDM are S/β² of the training images, at the levels of its grid."""
    found = digits(tmp_path / "equal", "equal_snr", "--snr=true")["snr"]
    for values in zip(*found["db"], strict=True):
        assert max(values) - min(values) < 1e-6
    snr = digits(tmp_path / "hot", "hot", "--snr=true")["snr"]
    _, data = load_config([DIGITS])
    power = second_moment(dequantised_batches(data.train_images(), ""))[0]
    columns = [round(frequency * 8 / math.pi) for frequency in snr["frequency"]]
    assert columns == [1, 2, 3, 5, 6, 7]
    for k, column in enumerate(columns):
        mean = (power[0, column].log10() + power[column, 0].log10()) / 2
        assert snr["db"][k][0] == pytest.approx(10 * (mean.item() - 2 * math.log10(80)))
        assert snr["db"][k][-1] == pytest.approx(10 * (mean.item() - 2 * math.log10(0.002)))
    assert snr["share"][0] == 1
    assert snr["share"][-1] == pytest.approx(1 / 18)


@pytest.mark.parametrize("name", ["cifar10_1gpu", "ffhq64_1gpu"])
def test_the_expected_hours_on_one_gpu_are_counted(name: str) -> None:
    """The table of docs/how-to/train.md: three forward passes an image, at 30 % of the peak in the column's head."""
    page = (REPOSITORY / "docs" / "how-to" / "train.md").read_text(encoding="utf-8").splitlines()
    head = next(line for line in page if line.startswith("| | parameters (M)"))
    row = next(line for line in page if line.startswith(f"| `{name}`"))
    peaks = [float(cell.split(",")[1].split()[0]) for cell in head.split("|")[5:-1]]
    parameters, gflops, images, *hours = (float(cell) for cell in row.split("|")[2:-1])
    module, _ = load_config(CONFIGS / f"{name}.yaml")
    flops = forward_flops(module.network)
    assert parameter_count(module.network) / 1e6 == pytest.approx(parameters, abs=0.005)
    assert (flops / 1e9, module.duration / 1e6) == (pytest.approx(gflops, abs=0.005), images)
    expected = [3 * flops * module.duration / (0.3 * peak * 1e12) / 3600 for peak in peaks]
    assert hours == pytest.approx(expected, abs=0.06)
