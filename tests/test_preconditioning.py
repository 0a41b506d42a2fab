"""EDM's preconditioning: the principles it was derived from, and the blur signal at its edges."""

import math

import pytest
import torch

from warm_lightning.errors import UserError
from warm_lightning.preconditioning import EDMPreconditioning
from warm_lightning.types import Level

BETA = torch.logspace(-3, 2, 41, dtype=torch.float64)


def hot(beta: torch.Tensor) -> Level:
    return Level(torch.zeros_like(beta), beta, beta)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_principles_of_edm_appendix_b6(sigma_data):
    """Unit-variance input, unit-variance target, and the c_skip that amplifies the network's errors least.

    A second route to Table 1: the requirements, not the formulas. Float64, so 1e-12 is rounding.
    """
    c = EDMPreconditioning(sigma_data)(hot(BETA))
    skip, out, scale = c.skip.flatten(), c.out.flatten(), c.input.flatten()

    def target_variance(skip):  # of x0 - skip·(x0 + βε)
        return (1 - skip) ** 2 * sigma_data**2 + skip**2 * BETA**2

    ones = torch.ones_like(BETA)
    torch.testing.assert_close(scale**2 * (sigma_data**2 + BETA**2), ones, rtol=1e-12, atol=0)
    torch.testing.assert_close(target_variance(skip) / out**2, ones, rtol=1e-12, atol=0)
    assert (target_variance(skip * 1.01) > out**2).all()
    assert (target_variance(skip * 0.99) > out**2).all()
    weight = (BETA**2 + sigma_data**2) / (BETA * sigma_data) ** 2  # λ(β), EDM's Table 1
    torch.testing.assert_close(out**-2, weight, rtol=1e-12, atol=0)


def test_noise_signal():
    c = EDMPreconditioning()(hot(torch.tensor([math.exp(-4), 1.0, math.exp(2)])))
    torch.testing.assert_close(c.noise, torch.tensor([-1.0, 0.0, 0.5]))


def test_blur_signal():
    """ln(1 + α/β), exactly 0 without blur, ln(1 + α) without noise, and no cancellation for tiny blurs."""
    alpha = torch.tensor([0.0, 1.0, math.e - 1, 1e-10])
    beta = torch.tensor([0.3, 1.0, 0.0, 1e-2])
    c = EDMPreconditioning()(Level(alpha, beta, beta))
    assert c.blur[0] == 0
    # log1p in float32: 1e-8 would come out as 0 from log(1 + x)
    torch.testing.assert_close(c.blur[1:], torch.tensor([math.log(2), 1.0, 1e-8]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_no_noise_is_finite_with_finite_gradients(alpha):
    """A NaN in the branch of a `where` that is not taken would still reach the gradient."""
    beta = torch.tensor([0.0], requires_grad=True)
    level = Level(torch.tensor([alpha], requires_grad=True), beta, beta)
    c = EDMPreconditioning()(level)
    fields = (c.skip, c.out, c.input, c.noise, c.blur)
    assert all(value.isfinite().all() for value in fields)
    sum(value.sum() for value in fields).backward()
    assert level.alpha.grad.isfinite().all()
    assert level.beta.grad.isfinite().all()
    assert c.skip.item() == 1
    assert c.out.item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtype(dtype):
    """A level may be one number for the batch; coefficients keep its dtype (the sampler's float64)."""
    c = EDMPreconditioning()(Level(torch.ones(1, dtype=dtype), torch.ones(5, dtype=dtype), torch.ones(5, dtype=dtype)))
    assert all(value.shape == (5, 1, 1, 1) for value in (c.skip, c.out, c.input))
    assert c.noise.shape == c.blur.shape == (5,)
    assert {value.dtype for value in (c.skip, c.out, c.input, c.noise, c.blur)} == {dtype}


@pytest.mark.parametrize("sigma_data", [0, -0.5, math.nan])
def test_sigma_data_must_be_positive(sigma_data):
    with pytest.raises(UserError, match="sigma_data"):
        EDMPreconditioning(sigma_data)
