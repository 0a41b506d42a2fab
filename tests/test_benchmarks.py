"""The benchmarks: their measurements are right, and they run without a GPU."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encode, store
from PIL import Image
from small import REPOSITORY

from experiments.benchmarks import bench, gpu_check
from experiments.benchmarks import timing as machine
from experiments.benchmarks.training_step import TrainingStep
from experiments.studies.solvers import distances
from warm_lightning import load_config
from warm_lightning.networks.layers import AttentionBlock
from warm_lightning.samplers import Heun, PowerGrid, Sampler

CIFAR10 = REPOSITORY / "configs" / "cifar10.yaml"
CIFAR10_SMALL = REPOSITORY / "configs" / "cifar10_small.yaml"
NO_INCEPTION = {"scores.extractors": "[Pixels]"}  # its weights need not be here


def algorithm_2(bnr: float, steps: int, variance: float, frequency: float) -> tuple[float, float]:
    """Algorithm 2 of the paper for one coefficient of Gaussian data, from x = 80: where it and the exact ODE end."""

    def blur(beta: float) -> float:
        return math.exp(-frequency * (bnr * beta) ** 2 / 2)

    def predictions(x: float, beta: float) -> tuple[float, float]:
        clean = blur(beta) * variance / (blur(beta) ** 2 * variance + beta**2) * x
        return clean, (x - blur(beta) * clean) / beta

    def schedule(i: int) -> float:
        low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
        return (high + (steps - i) / (steps - 1) * (low - high)) ** 7 if i else 0.0

    x = 80.0
    for i in range(steps, 0, -1):
        t, s = schedule(i), schedule(i - 1)
        clean, noise = predictions(x, t)
        moved = x + (blur(s) - blur(t)) * clean + (s - t) * noise
        if i != 1:
            clean_2, noise_2 = predictions(moved, s)
            moved = x + (blur(s) - blur(t)) * (clean + clean_2) / 2 + (s - t) * (noise + noise_2) / 2
        x = moved
    return x, 80 * math.sqrt(variance / (blur(80) ** 2 * variance + 80**2))


def expected_row(spectrum: np.ndarray, bnr: float, nfe: int) -> dict[str, float]:
    """The expected row, computed for one coefficient of S [C, H, W] at a time."""
    row = {"frechet": 0.0, "frechet_ode": 0.0}
    for (_, i, j), variance in np.ndenumerate(spectrum):
        frequency = math.pi**2 * ((i / spectrum.shape[1]) ** 2 + (j / spectrum.shape[2]) ** 2)
        end, exact = algorithm_2(bnr, (nfe + 1) // 2, variance, frequency)
        row["frechet"] += (abs(end) - math.sqrt(variance)) ** 2
        row["frechet_ode"] += (abs(end) - exact) ** 2
    return row


@pytest.mark.parametrize("bnr", [0, 0.5, 10])
@pytest.mark.parametrize("nfe", [19, 35])
def test_gaussian_oracle_is_algorithm_2_a_coefficient_at_a_time(bnr: float, nfe: int) -> None:
    spectrum = np.random.default_rng(0).uniform(0.001, 30, (2, 4, 6)) / np.arange(1, 7) ** 2
    row = distances(torch.from_numpy(spectrum), bnr, Sampler(PowerGrid((nfe + 1) // 2), Heun()))
    # Float64; the difference of √v and √S loses a few digits.
    assert row == pytest.approx(expected_row(spectrum, bnr, nfe), rel=1e-9)


def test_rounds_and_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []
    monkeypatch.setattr(machine, "timer", lambda: clock[0])

    def call(name: str, *durations: float):
        left = list(durations)

        def run() -> None:
            order.append(name)
            clock[0] += left.pop(0)

        return run

    # The first round compiles; in the third the machine is slow for both.
    times = machine.rounds({"a": call("a", 9, 2, 20, 2), "b": call("b", 9, 1, 10, 4)}, "", limit=0)
    assert order == ["a", "b"] * 4
    assert times == {"a": [2, 20, 2], "b": [1, 10, 4]}
    assert machine.ratio(times, "a", "b") == 2
    assert machine.ratios(times, "a", "b") == [1.25, 2, 2]


def test_counted_flops() -> None:
    # A second count, by hooks: a convolution's and a matrix product's forward, and backward twice that.
    step = TrainingStep([CIFAR10_SMALL], {**NO_INCEPTION, "data.batch_size": 2}, "cpu")
    counted = [0]

    def products(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weights = next(layer.parameters())
        counted[0] += 2 * output.numel() * weights[0].numel()

    def attention(block: AttentionBlock, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        batch, channels, height, width = output.shape
        counted[0] += 2 * 2 * batch * channels * (height * width) ** 2

    for layer in step.module.network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(products)
        if isinstance(layer, AttentionBlock):
            layer.register_forward_hook(attention)
    flops = step.flops()
    # The input needs no gradient.
    assert flops == pytest.approx(3 * counted[0], rel=0.03)


def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out, memory_of_each = tmp_path / "bench.json", bench.memory_of_each

    def memory_of_one(networks: dict[str, dict], device: str) -> dict[str, int]:
        """That of the first network for all, since each takes a process that imports everything."""
        first = next(iter(networks))
        return dict.fromkeys(networks, memory_of_each({first: networks[first]}, device)[first])

    monkeypatch.setattr(bench, "memory_of_each", memory_of_one)
    assert bench.main(["--quick", "--device", "cpu", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    others = {
        "machine",
        "matmul",
        "warm_over_hot",
        "updates",
        "sampling",
        "reading",
        "help_seconds",
        "notes",
        "seconds",
    }
    assert set(found) == {"training", *others}
    assert set(found["training"]) == {"cifar10_small", "32 channels, 2-2-2"}
    for name, training in found["training"].items():
        for mode in ("eager", "compiled"):
            speed = training[mode]
            assert speed["images_per_second"] * speed["step_seconds"] == pytest.approx(training["batch_size"])
            assert speed["fraction_of_peak"] > 0
        for share in ("product_share", "forward_process_share", "update_share"):
            assert 0 < training[share] < 1
        assert training["peak_memory_bytes"] > 1e8  # torch alone takes that
        assert any(note.startswith(f"{name}: ") for note in found["notes"])
    cost = found["warm_over_hot"]
    assert cost["quartiles"][0] <= cost["median"] <= cost["quartiles"][1]
    assert 0 < cost["flops"] < 0.1
    updates = found["updates"]
    assert len(updates["seconds"]) == 4
    assert min(updates["seconds"].values()) > 0
    assert updates["changed"]["average of warm fit"] == 0
    assert 0 <= updates["changed"]["Adam of warm fit"] < 0.2  # of the order of a unit in the last place
    assert found["sampling"]["nfe"] == 35
    rates = {name: rate for rates in found["reading"].values() for name, rate in rates.items()}
    assert len(rates) == 5
    assert min(rates.values()) > 0
    shown = capsys.readouterr().out
    assert all(note in shown for note in found["notes"])


def test_gpu_check_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    data = store(tmp_path, {f"{k:02}.png": encode(image) for k, image in enumerate(images)}, "zip")
    config = tmp_path / "tiny.yaml"
    config.write_text(
        """
        model:
          network:
            class_path: DDPMpp
            init_args: {resolution: 8, model_channels: 8, channel_mult: [1], num_blocks: 1}
          sampler: {class_path: Sampler, init_args: {grid: {class_path: PowerGrid, init_args: {steps: 3}}}}
        data: {class_path: ImageFolder, init_args: {path: nowhere, batch_size: 4}}
        scores: {extractors: [InceptionFeatures]}
        """
    )
    options = ["--device=cpu", f"--config={config}", f"--data={data}", "--minutes=0.05", f"--out={tmp_path / 'out'}"]
    assert gpu_check.main([*options, "--parts", "tests", "training"]) == 0
    assert gpu_check.main([*options, "--parts", "speed", "--seconds=0.1"]) == 0  # beside what is there
    shown = capsys.readouterr().out
    assert "tiny, training, fp32:" in shown
    assert "tiny, sampling at NFE 5, fp32:" in shown
    found = json.loads((tmp_path / "out" / "gpu-check-cpu.json").read_text())
    assert found["tests"]["passed"] > 10
    assert found["tests"]["failed"] == {}
    training = found["training"]
    assert training["images_per_second"] > 0
    assert training["peak_memory_bytes"] > 1e8
    steps = [images for images, _ in training["loss_curve"]]
    assert steps == [40 * (k + 1) for k in range(len(steps))]
    assert 0 <= training["images_seen"] - steps[-1] < 40
    assert all(math.isfinite(loss) for _, loss in training["loss_curve"])
    assert found["speed"]["tiny"]["training"]["parameters"] > 1000
    assert found["speed"]["inception"]["images_per_second"] > 0
    with Image.open(tmp_path / "out" / "gpu-check-cpu.png") as picture:
        assert picture.size == (402, 402)  # 8 × 8 images, enlarged to 48 pixels and 2 apart


def test_gpu_check_reports_failed_tests(tmp_path: Path) -> None:
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'not the same'\n"
        "def test_left_out(): pytest.skip('no reason')\n"
        "def test_broken(missing): pass\n"
    )
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", str(tests)]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    found = gpu_check.read_report(report)
    assert found["passed"] == 1
    assert set(found["failed"]) == {"test_bad", "test_left_out", "test_broken"}
    assert "not the same" in found["failed"]["test_bad"]


def test_gpu_check_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpu_check: no GPU")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_gpu_check_takes_torchvisions_folder(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert gpu_check.data_options(str(tmp_path)) == [f"--data.root={tmp_path}"]
    assert gpu_check.data_options("images.zip") == ["--data.path=images.zip"]
    assert gpu_check.data_options(None) == []


def test_cifar10_is_table_6() -> None:
    module, data = load_config(CIFAR10, NO_INCEPTION)
    assert sum(p.numel() for p in module.network.parameters()) == 55_740_806  # "55.741 M"
    assert (module.duration, module.lr, module.lr_ramp) == (200e6, 1e-3, 10e6)
    assert (module.ema.half_life, module.network.dropout, data.batch_size) == (0.5e6, 0.13, 512)
    assert (module.betas, module.eps, module.model().process.path.bnr) == ((0.9, 0.999), 1e-8, 0.5)


def test_cifar10_small_is_small() -> None:
    module, data = load_config(CIFAR10_SMALL, NO_INCEPTION)
    assert 2.5e6 < sum(p.numel() for p in module.network.parameters()) < 3.5e6
    assert module.ema.half_life < module.duration / 10
    assert data.batch_size <= 128
