"""The DCT and blur against definitions, torch-dct and scipy."""

import math

import pytest
import scipy.fft
import torch
import torch_dct

from warm_lightning.spectral import dct, frequencies, idct, log_blur_mask, power_spectrum


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 2, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_dct_is_scipys_and_torch_dcts(x: torch.Tensor) -> None:
    expected = scipy.fft.dctn(x.numpy(), type=2, norm="ortho", axes=(2, 3))
    torch.testing.assert_close(dct(x), torch.from_numpy(expected), rtol=0, atol=1e-13)
    torch.testing.assert_close(dct(x), torch_dct.dct_2d(x, norm="ortho"), rtol=0, atol=1e-13)


def test_dct_is_orthonormal(x: torch.Tensor) -> None:
    torch.testing.assert_close(idct(dct(x)), x, rtol=0, atol=1e-13)
    torch.testing.assert_close(dct(x).square().sum(), x.square().sum())


def test_float32_basis_is_the_rounded_exact_one(x: torch.Tensor) -> None:
    # 32-bit products of values of order 1 over 12 terms: a few units in the last place.
    torch.testing.assert_close(dct(x.float()).double(), dct(x), rtol=0, atol=3e-6)


def test_mixed_precision_leaves_the_dct_alone(x: torch.Tensor) -> None:
    outside = dct(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dct(x.float()), outside)
        torch.testing.assert_close(idct(outside), x.float(), rtol=0, atol=3e-6)


def test_frequencies_are_the_eigenvalues_of_the_heat_equation() -> None:
    # A cosine of frequency λ decays by exp(-λα²/2) under a Gaussian of standard deviation α; check by
    # convolving a long cosine that reflects at the image's edges (period 2H).
    size, mode, alpha = 16, 3, 1.5
    position = torch.arange(-400, 401, dtype=torch.float64)
    kernel = torch.exp(-(position**2) / (2 * alpha**2))
    kernel /= kernel.sum()
    grid = torch.arange(size, dtype=torch.float64)

    def wave(p: torch.Tensor) -> torch.Tensor:
        return torch.cos(math.pi * mode * (p + 0.5) / size)

    blurred = torch.stack([(kernel * wave(p - position)).sum() for p in grid])
    mask = log_blur_mask(torch.tensor([alpha], dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)).exp()
    torch.testing.assert_close(blurred, mask[0, 0, mode, 0] * wave(grid), rtol=0, atol=1e-12)


def test_frequencies_count_each_side_in_its_own_size() -> None:
    like = torch.zeros(8, 12, dtype=torch.float64)
    assert frequencies(like)[0, 0] == 0
    assert frequencies(like)[2, 3].item() == pytest.approx(math.pi**2 * (4 / 64 + 9 / 144))


def test_power_spectrum_is_the_variance_of_each_coefficient() -> None:
    images = torch.randn(2300, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.1 + 0.9
    expected = dct(images.double()).var(dim=0, correction=0)
    torch.testing.assert_close(power_spectrum(images), expected, rtol=1e-12, atol=0)


def test_what_a_validation_has_cached_serves_training() -> None:
    """Lightning validates in inference mode, whose tensors autograd refuses."""
    shape = (1, 1, 19, 23)  # a size that nothing else has cached
    with torch.inference_mode():
        dct(torch.ones(shape))
        log_blur_mask(torch.ones(1), torch.ones(shape))
    x, alpha = torch.ones(shape, requires_grad=True), torch.ones(1, requires_grad=True)
    (dct(x) * log_blur_mask(alpha, x)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
