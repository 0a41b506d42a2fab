"""Parts of the networks: embeddings of levels, resampling, dropout."""

import math

import pytest
import torch
from scipy.spatial.distance import pdist

from warm_lightning.networks.layers import (
    DownConv2d,
    FourierEmbedding,
    PositionalEmbedding,
    UpConv2d,
    dropout,
    embed_levels,
)
from warm_lightning.preconditioning import log_levels
from warm_lightning.types import Level


def levels() -> Level:
    """A grid over the blur-noise plane: rays (BNR 0, the hot axis, to 10), lines of constant α, β = 0."""
    f64 = {"dtype": torch.float64}
    beta = torch.logspace(math.log10(0.002), math.log10(80), 60, **f64)
    bnr = torch.tensor([0, 0.001, 0.01, 0.1, 0.25, 0.5, 1, 2, 5, 10], **f64)
    alpha = torch.tensor([0.0101, 0.0303, 0.101, 0.303, 1.01, 3.03, 7.07, 20.2, 31.3], **f64)
    cold = torch.cat([torch.zeros(1, **f64), torch.logspace(-3, 2, 40, **f64)])
    rays, lines = torch.cartesian_prod(beta, bnr), torch.cartesian_prod(beta, alpha)
    alpha = torch.cat([rays.prod(1), lines[:, 1], cold])
    beta = torch.cat([rays[:, 0], lines[:, 0], torch.zeros_like(cold)])
    return Level(alpha, beta, clock=beta)


@pytest.mark.parametrize("embedding", [PositionalEmbedding, FourierEmbedding])
@pytest.mark.parametrize("channels", [16, 128])
def test_levels_embed_injectively(embedding, channels):
    """Two levels are at least as far apart in the embedding as their signals are (or 1, if that is less).

    The signals' own smallest distance on this grid is 7e-5 (a blur of 0.001 pixels at β = 0.002 and more),
    hundreds of times the rounding of float32, in which no two levels may meet either.
    """
    torch.manual_seed(0)
    embed = embedding(channels).double()
    c_noise, c_blur = log_levels(levels())
    signals = torch.from_numpy(pdist(torch.stack([c_noise, c_blur], dim=1)))
    assert signals.min() > 5e-5
    vectors = embed_levels(embed, c_noise, c_blur)
    distances = torch.from_numpy(pdist(vectors))
    assert (distances > 0.9 * signals.clamp(max=1)).all()
    single = embed_levels(embed.float(), c_noise.float(), c_blur.float())
    assert single.dtype == torch.float32
    assert pdist(single).min() > 5e-5


def test_fourier_frequencies():
    torch.manual_seed(0)
    freqs = FourierEmbedding(4096).freqs
    assert freqs.shape == (2048,)
    assert not freqs.requires_grad
    assert abs(freqs.std() / 16 - 1) < 0.08  # 5 standard errors, 1/√(2n) each


def test_box_filter_equals_its_fast_forms():
    """Mean and nearest neighbour are the filter [1, 1] as a depthwise convolution."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    for layer in (DownConv2d(4, 5, 3, taps=[1, 1]), UpConv2d(4, 5, 3, taps=[1, 1])):
        fast = layer(x)
        layer.box = False
        torch.testing.assert_close(fast, layer(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_drops_with_its_probability(layout, dtype):
    """Elements are zero with probability p, else x/(1 - p), the same elements in the gradient."""
    p = 0.13
    torch.manual_seed(3)
    x = torch.full((20, 50, 10, 11), 1.5, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    out = dropout(x, p, training=True)
    out.sum().backward()
    zeros = out == 0
    error = math.sqrt(p * (1 - p))  # of one draw; 5 standard errors below
    n = zeros.numel()
    assert abs(zeros.double().mean() - p) < 5 * error / math.sqrt(n)
    for dim in range(4):  # no position is favoured, and neighbours are independent
        rates = zeros.double().mean(dim=[d for d in range(4) if d != dim])
        assert (rates - p).abs().max() < 5 * error / math.sqrt(n / len(rates))
        a, b = zeros.narrow(dim, 0, zeros.shape[dim] - 1), zeros.narrow(dim, 1, zeros.shape[dim] - 1)
        assert abs((a & b).double().mean() - p**2) < 5 * p / math.sqrt(a.numel())
    eps = torch.finfo(dtype).eps
    kept = torch.full_like(x, 1.5 / (1 - p)).detach()
    torch.testing.assert_close(out, kept.masked_fill(zeros, 0), rtol=2**-16 + 2 * eps, atol=0)
    torch.testing.assert_close(x.grad, out.detach() / 1.5, rtol=2 * eps, atol=0)


@pytest.mark.parametrize("p", [0.0, 1e-7, 1 - 1e-7])
def test_dropout_at_its_ends_is_finite(p):
    out = dropout(torch.ones(3, 5), p, training=True)
    assert out.isfinite().all()
    assert (out == (0 if p > 0.5 else 1)).all()
