"""Grids, laws and processes that do not fit together are refused; comments of overlays about grids are true."""

import re
import shlex
from typing import Any

import pytest
import torch
from small import DIGITS, REPOSITORY, reference_batch

from warm_lightning import load_config
from warm_lightning.callbacks.samples import trajectory
from warm_lightning.errors import UserError
from warm_lightning.model import check_grid
from warm_lightning.module import DiffusionModule
from warm_lightning.parameterizations import Epsilon, LessBlurred
from warm_lightning.processes import IHDM, CosineSchedule, LinearSchedule, LogRate, SoftDiffusion, VariancePreserving
from warm_lightning.processes.variance_preserving import GaussianKernel
from warm_lightning.samplers import EvenGrid

METHODS = REPOSITORY / "configs" / "method"


def overlaid(method: str, **changes: Any) -> DiffusionModule:
    settings = {name.replace("__", "."): value for name, value in changes.items()}
    return load_config([DIGITS, METHODS / f"{method}.yaml"], settings)[0]


@pytest.mark.parametrize(
    ("method", "changes", "named"),
    [
        ("ddpm", {"model__process__schedule__steps": 2000}, "model.sampler.grid"),
        ("ddpm", {"model__sampler__grid__first": 500, "model__sampler__grid__steps": 500}, "model.sampler.grid"),
        ("ddpm", {"model__sampler__grid": "PowerGrid"}, "model.sampler.grid"),
        ("ddpm", {"model__clock_law__steps": 500}, "model.clock_law"),
        ("hot", {"model__process": "VariancePreserving"}, "model.sampler.grid"),
        ("cold", {"model__process__steps": 100}, "model.sampler.grid"),
        ("ihdm", {"model__process__steps": 400}, "model.sampler.grid"),
        ("ihdm", {"model__sampler__grid__steps": 100}, "whole chain"),
    ],
)
def test_chains_that_do_not_fit_together_are_refused(method: str, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        overlaid(method, **changes)


def test_a_schedule_that_leaves_something_of_the_image_is_refused() -> None:
    with pytest.raises(UserError, match="raise its variances"):
        VariancePreserving(LinearSchedule(100))
    VariancePreserving(LinearSchedule(100, last=0.2))


def test_steps_may_be_as_long_as_the_estimate_reaches() -> None:
    check_grid(IHDM(), LessBlurred(), EvenGrid(200, 200))
    check_grid(VariancePreserving(), Epsilon(), EvenGrid(10, 1000))
    with pytest.raises(UserError, match="200, the whole chain"):
        check_grid(IHDM(), LessBlurred(), EvenGrid(199, 200))


def test_what_the_comments_of_overlays_recommend_does_what_they_say() -> None:
    ends = {"ddpm": 0, "progressive_deblurring": 0}
    for name in ends:
        comments = " ".join(line.strip("# \n") for line in (METHODS / f"{name}.yaml").open() if line.startswith("#"))
        for option, value in re.findall(r"--(model[\w.]+) ([\w.]+)", comments):
            chosen = shlex.split(value.rstrip("."))[0]
            kernel = {"model__process__kernel": "GaussianKernel"} if name == "progressive_deblurring" else {}
            module = overlaid(name, **kernel | {option.replace(".", "__"): chosen})
            process, end = module.model().process, torch.tensor([1000.0], dtype=torch.float64)
            if value.startswith("LogRate"):
                expected = 0.4 * LogRate()(1000).sum().sqrt()
                torch.testing.assert_close(process.level(end).alpha, expected[None], rtol=1e-6, atol=0)
            elif option.endswith("kernel"):
                assert isinstance(process.kernel, GaussianKernel)
            elif option.endswith("last"):
                assert process.level(end).alpha.item() == 0
            else:
                assert value.startswith("CosineSchedule")
                expected = VariancePreserving(CosineSchedule()).level(end).beta
                torch.testing.assert_close(process.level(end).beta, expected)
            ends[name] += 1
    assert ends == {"ddpm": 1, "progressive_deblurring": 3}


def test_only_learned_tensors_are_kept_of_images() -> None:
    learned = SoftDiffusion(blur_max=24.0).learn([torch.randn(50, 3, 32, 32)])["low_frequencies"]
    assert learned.untyped_storage().nbytes() == learned.numel() * 4


def test_a_trajectory_asks_at_the_levels_that_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    module = overlaid("ddim")
    model, asked = module.model(), 0
    estimate = type(model).estimate

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        asked += 1
        return estimate(*args, **kwargs)

    monkeypatch.setattr(type(model), "estimate", counted)
    picture = trajectory(model, module.model().sampler, range(2), columns=6)
    assert asked == 100 + 5  # the last level is shown as it is
    assert picture.shape[2] > 5 * 48


def test_targets_need_images_in_memory(cifar10_zip) -> None:
    from warm_lightning.data import ImageFolder

    data = ImageFolder(str(cifar10_zip), cache=False)
    with pytest.raises(UserError, match=r"data\.cache"):
        reference_batch(data, 0, 8)
