"""The measurements of `make gpu-check`, on a CPU: that they measure what they say. Their values are nobody's."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from small import DIGITS
from torch import Tensor, nn

from experiments.benchmarks import gpu_speed
from experiments.benchmarks.training_step import TrainingStep
from warm_lightning.augment import Augmentation, NonLeaky
from warm_lightning.data.stream import TrainingStream
from warm_lightning.errors import UserError
from warm_lightning.rng import Draws

TINY: Mapping[str, Any] = {
    "model.network.model_channels": 8,
    "model.network.channel_mult": [1, 2],
    "model.network.augment_dim": 9,
    "model.augment": {"class_path": "NonLeaky", "init_args": {"p": 0.12}},
    "data.batch_size": 4,
}
EAGER = {name: gpu_speed.MODES[name] for name in ("fp32", "tf32", "bf16", "bf16, channels-last")}


class Counted(Augmentation):
    """Counts the calls of an augmentation."""

    dim = 9

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        self.calls += 1
        assert images.dtype == torch.float32
        return NonLeaky(0.5)(images, draws)


def test_training() -> None:
    found = gpu_speed.measure_training([DIGITS], "cpu", 0, TINY, EAGER)
    assert json.loads(json.dumps(found)) == found
    assert list(found["modes"]) == list(EAGER)
    assert found["modes"]["fp32"]["speed_over_first"] == 1
    for name, speed in found["modes"].items():
        assert speed["images_per_second"] * speed["step_seconds"] == pytest.approx(4)
        assert speed["rounds"] == 3
        assert speed["peak_memory_bytes"] > 1e8  # torch alone takes that
        slowest = found["modes"]["fp32"]["step_seconds"]
        assert speed["speed_over_first"] * speed["step_seconds"] == pytest.approx(slowest)
        shares = found["shares"][name]
        assert set(shares) == {"data", "augmentation", "blur, noise and loss"}
        for part, share in shares.items():
            assert share * speed["step_seconds"] == pytest.approx(found["parts"][part])
    assert found["parts"]["data"] > 0
    assert found["parts"]["augmentation"] > 0


def test_a_step_is_that_of_training() -> None:
    """Augmentation is part of it, and the network's products are in the precision asked for, its loss is not."""
    for autocast in (None, torch.bfloat16):
        step = TrainingStep([DIGITS], TINY, "cpu", autocast)
        step.module.model("raw").augment = counted = Counted()
        seen = set()
        network = step.module.network
        network.get_submodule("enc.8x8_conv").register_forward_hook(lambda *a, seen=seen: seen.add(a[-1].dtype))
        step()
        assert seen == {autocast or torch.float32}
        assert counted.calls == 1
        assert all(p.grad.dtype == torch.float32 for p in network.parameters())
        step.forward_process()
        step.augment()
        assert counted.calls == 3


def test_modes_set_what_they_say_and_put_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []

    def record(network: nn.Module) -> None:
        compiled.append(network)

    monkeypatch.setattr(nn.Module, "compile", record)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert torch.get_float32_matmul_precision() == "highest"
    for name, mode in gpu_speed.MODES.items():
        with mode.active():
            assert torch.backends.cudnn.allow_tf32 == (name != "fp32")
            assert torch.get_float32_matmul_precision() == ("highest" if name == "fp32" else "high")
            step = TrainingStep([DIGITS], {**TINY, **(mode.overrides or {})}, "cpu", mode.autocast)
        assert compiled == ([step.module.network] if "compiled" in name else [])
        compiled.clear()
        assert (mode.autocast is torch.bfloat16) == ("bf16" in name)
        weight = step.module.network.get_parameter("enc.8x8_block0.conv0.weight")
        assert weight.is_contiguous(memory_format=torch.channels_last) == ("channels-last" in name)
    assert torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_images_are_loaded_in_training_order() -> None:
    images = gpu_speed.random_images(10, 1, 8)
    batches = gpu_speed.loaded(images, 4, "cpu")
    stream = TrainingStream(images, seed=0)
    for n in range(4):  # into the second pass over the images
        batch, expected = next(batches), stream[range(4 * n, 4 * n + 4)]
        assert torch.equal(batch.images, expected.images)
        assert batch.positions.tolist() == expected.positions.tolist()


def test_images_of_another_kind_are_refused() -> None:
    with pytest.raises(UserError, match=r"images are \(3, 8, 8\), but .*digits\.yaml is for 1 channels at 8"):
        gpu_speed.measure_parts([DIGITS], "cpu", 0, TINY, gpu_speed.random_images(8, 3, 8))


def test_sampling() -> None:
    found = gpu_speed.measure_sampling([DIGITS], "cpu", 0, TINY, batch_size=2)
    assert json.loads(json.dumps(found)) == found
    assert list(found["modes"]) == ["fp32", "bf16"]
    for speed in found["modes"].values():
        assert speed["nfe"] == 35
        assert speed["images_per_second"] > 0


def test_inception(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("WARM_INCEPTION_WEIGHTS", raising=False)
    found = gpu_speed.measure_inception("cpu", 0, batch_size=1)
    assert json.loads(json.dumps(found)) == found
    assert found["weights"] == "random"
    assert found["images_per_second"] > 0
    # With weights in place those are taken: the same layout, from another folder.
    path = gpu_speed.random_inception(tmp_path)
    monkeypatch.setenv("WARM_INCEPTION_WEIGHTS", str(path))
    assert gpu_speed.measure_inception("cpu", 0, batch_size=1)["weights"] == "other"  # not the published file
