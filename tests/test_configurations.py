"""Every configuration of configs/ builds a model, alone and with every overlay."""

import inspect
from pathlib import Path

import pytest
import torch
import yaml
from small import REPOSITORY

from warm_lightning import load_config

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
OVERLAYS = sorted((REPOSITORY / "configs" / "method").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_builds(config: Path) -> None:
    module, data = load_config(config)
    assert module.network.branches == len(module.model().parameterization.names)
    # What the file sets has arrived: no key of it was dropped on the way.
    stated = yaml.safe_load(config.read_text())
    assert data.batch_size == stated["data"]["init_args"]["batch_size"]
    assert module.duration == int(float(stated["model"].get("duration", 200e6)))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_combines(overlay: Path) -> None:
    module, _ = load_config([REPOSITORY / "configs" / "digits.yaml", overlay])
    stated = yaml.safe_load(overlay.read_text())["model"]
    for name in ("process", "parameterization", "preconditioning", "loss"):
        if name in stated:
            part = stated[name]
            kind = type(getattr(module.model(), "cost" if name == "loss" else name))
            assert kind.__name__ == (part if isinstance(part, str) else part["class_path"])
    assert module.network.branches == len(module.model().parameterization.names)


@pytest.mark.parametrize("config", ["digits", "leaves16", "cifar10"])
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_no_overlay_takes_over_what_was_meant_for_another_class(overlay: Path, config: str) -> None:
    """A class that replaces another one gets its arguments where they have the same names, such as a path of blur."""
    small = {"model.network.model_channels": 8, "model.network.num_blocks": 1, "model.network.attn_resolutions": []}
    module, _ = load_config([REPOSITORY / "configs" / f"{config}.yaml", overlay], small)
    stated, resolved = yaml.safe_load(overlay.read_text())["model"], module.config or {}
    for name in ("process", "parameterization", "preconditioning", "loss"):
        if name in stated:
            given = stated[name].get("init_args", {}) if isinstance(stated[name], dict) else {}
            kind = type(getattr(module.model(), "cost" if name == "loss" else name))
            for argument, parameter in inspect.signature(kind).parameters.items():
                found = resolved[name].get("init_args", {}).get(argument)
                if argument not in given and isinstance(parameter.default, str | int | float | bool | None):
                    assert found == parameter.default, (name, argument)
    rule = stated.get("sampler", {}).get("rule")
    if isinstance(rule, str):
        kind = type(module.model().sampler.rule)
        for argument, parameter in inspect.signature(kind).parameters.items():
            assert resolved["sampler"]["rule"].get("init_args", {}).get(argument) == parameter.default


@pytest.mark.parametrize("config", ["cifar10_cond", "ffhq64"])
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_combines_at_full_size(overlay: Path, config: str) -> None:
    # The network's size is no matter here, and takes seconds to make.
    small = {"model.network.model_channels": 8, "model.network.num_blocks": 1, "model.network.attn_resolutions": []}
    module, _ = load_config([REPOSITORY / "configs" / f"{config}.yaml", overlay], small)
    model = module.model()
    level = model.process.level(model.clock_law.quantile(torch.tensor([0.0, 0.5, 1 - 1e-6])))
    for part in (*model.process.learners, *model.preconditioning.learners):
        if part.needs == ("second_moment",):  # priors are no matter here
            part.learned = part.learn([torch.rand(4, *model.image_shape)])
    gains = model.process.gains(level, torch.zeros(3, *model.image_shape))
    c = model.preconditioning(level, gains, model.parameterization)
    told = c.noise * (module.network.time_scale if model.preconditioning.time else 1)
    # What the network is told suits its embedding: ln β/4, or a time of up to 1,000, a thousandth for Fourier features.
    assert told[2] == pytest.approx(1000 * module.network.time_scale, rel=0.01) or told.abs()[1:].max() < 2


def test_no_configuration_repeats_a_default() -> None:
    """Overlays hold only differences: none of the data sets' settings."""
    for overlay in OVERLAYS:
        assert set(yaml.safe_load(overlay.read_text())) == {"model"}
