"""Models as denoisers of deepinv, against closed forms: a model with a network of output 0 knows a Gaussian law."""

from functools import partial

import deepinv
import pytest
import torch
from deepinv.optim import GD, L2, ScorePrior
from deepinv.sampling import DDRM, DPS, DiffPIR
from small import DIGITS, REPOSITORY, here, last
from torch import Tensor

from warm_lightning import load_checkpoint
from warm_lightning.data import DeadLeaves, Digits, ImageDataModule
from warm_lightning.data.image_set import dequantised_batches
from warm_lightning.errors import UserError
from warm_lightning.interop.deepinv import DeepinvDenoiser
from warm_lightning.model import DiffusionModel
from warm_lightning.networks import Network
from warm_lightning.oracles import GaussianOracle
from warm_lightning.parameterizations import DenoiseDeblur, Denoiser, LessBlurred, Parameterization, StraightVelocity
from warm_lightning.preconditioning import SpectralPreconditioning
from warm_lightning.processes import FlowMatching, Hot, PFGMpp, Process, VariancePreserving, Warm
from warm_lightning.processes.warm import ConstantBNR, RandomBNR
from warm_lightning.restoration import find_start
from warm_lightning.spectral import dct, idct

SIZE = 8
PLANE = Warm(RandomBNR())
DATA = {"digits": partial(Digits, batch_size=64), "leaves": partial(DeadLeaves, resolution=SIZE, batch_size=64)}


class Zero(Network):
    """A network whose output is 0, with classes that change that."""

    def __init__(self, branches: int, channels: int, label_dim: int = 0) -> None:
        super().__init__(branches, SIZE, channels, label_dim, augment_dim=0)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, c_noise, c_blur=None, class_labels=None, augment_labels=None):  # type: ignore[no-untyped-def]
        self.check_images(x)
        bias = 0 if class_labels is None else class_labels.sum(1).view(-1, 1, 1, 1, 1)
        return (self.weight * x[:, None] + bias).expand(-1, self.branches, -1, -1, -1)


def gaussian(
    images: Tensor, process: Process, parameterization: Parameterization | None = None, label_dim: int = 0
) -> DiffusionModel:
    """A model of images [N, C, H, W] in [-1, 1] as a Gaussian law with their second moment in each frequency."""
    model = DiffusionModel(
        lambda branches: Zero(branches, images.shape[1], label_dim),
        parameterization=parameterization or DenoiseDeblur(),
        preconditioning=SpectralPreconditioning(),
    )
    model.learn(lambda _: [images])
    return model.replaced(process=process)  # whatever its grid for sampling


@pytest.fixture(scope="module", params=DATA)
def images(request: pytest.FixtureRequest) -> Tensor:
    """Images [1516, C, 8, 8] in [-1, 1]; the last 16 are for tests."""
    data: ImageDataModule = DATA[request.param]()
    data.prepare_data()
    data.setup("fit")
    return torch.cat(list(dequantised_batches(data.train_images(), "")))[:1516].float()


def wiener(images: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] of the Gaussian law, for images in [0, 1]; its oracle in [-1, 1] is tested elsewhere."""
    spectrum = dct(images.double()).square().mean(0)
    truth = [
        GaussianOracle(spectrum, Hot())(dct(2 * one[None].double() - 1), Hot().level(2 * s[None].double())).clean
        for one, s in zip(x, sigma, strict=True)
    ]
    return (idct(torch.cat(truth)) + 1) / 2


# ---- the denoiser


@pytest.mark.parametrize(
    ("process", "parameterization"),
    [
        (Hot(), Denoiser()),
        (PLANE, DenoiseDeblur()),
        (VariancePreserving(), Denoiser()),
        (FlowMatching(), StraightVelocity()),
    ],
    ids=lambda part: type(part).__name__,
)
def test_it_is_the_posterior_mean(images: Tensor, process: Process, parameterization: Parameterization) -> None:
    """For noise of one level and of many, as number, tensor and [B, 1, 1, 1]; noise 0 leaves the image as it is."""
    denoise = DeepinvDenoiser(gaussian(images[:-16], process, parameterization))
    clean = (images[-16:] + 1) / 2
    sigma = torch.logspace(-2, 1, 16)
    x = clean + sigma.view(-1, 1, 1, 1) * torch.randn_like(clean)
    truth = wiener(images[:-16], x, sigma).float()
    for form in (sigma, sigma.view(-1, 1, 1, 1), sigma.double()):
        torch.testing.assert_close(denoise(x, form), truth, rtol=1e-4, atol=1e-4)
    for form in (sigma[5].item(), sigma[5], sigma[5:6]):
        torch.testing.assert_close(denoise(x[5:7], form)[:1], truth[5:6], rtol=1e-4, atol=1e-4)
    some = torch.where(torch.arange(16) % 2 == 0, 0, sigma)
    found = denoise(x, some)
    assert torch.equal(found[::2], x[::2])
    torch.testing.assert_close(found[1::2], truth[1::2], rtol=1e-4, atol=1e-4)


def test_gradients_flow_through_it(images: Tensor) -> None:
    """The gradient of the linear map V diag(w) Vᵀ, which is its own transpose; DPS differentiates it."""
    denoise = DeepinvDenoiser(gaussian(images[:-16], PLANE))
    x, direction = torch.randn(2, 4, *images.shape[1:], dtype=torch.float64)
    sigma = torch.full((4,), 0.3)
    (gradient,) = torch.autograd.grad((denoise(x.requires_grad_(), sigma) * direction).sum(), x)
    zero = torch.zeros_like(x)
    expected = wiener(images[:-16], direction, sigma) - wiener(images[:-16], zero, sigma)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


def test_classes_reach_the_network(images: Tensor) -> None:
    denoise = DeepinvDenoiser(gaussian(images[:-16], PLANE, label_dim=10))
    x = torch.rand(3, *images.shape[1:])
    without, labels = denoise(x, 0.3), torch.tensor([1, 5, 9])
    assert ((denoise(x, 0.3, class_labels=labels) - without).flatten(1).norm(dim=1) > 0.01).all()
    with pytest.raises(UserError, match="class"):
        denoise(x, 0.3, class_labels=torch.tensor([1, 5, 10]))


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (Warm(ConstantBNR(0.5)), "at noise 0.4 the model has a blur of 0.2 pixels. deepinv needs a model without blur"),
        (Warm(RandomBNR(low=0.1)), "deepinv needs a model without blur"),
        (Hot(beta_min=0.5), "deepinv needs a model without blur"),
        (PFGMpp(extra_dims=4), "the noise of PFGMpp is not normal"),
    ],
    ids=lambda part: type(part).__name__,
)
def test_models_without_the_level_are_refused(process: Process, message: str) -> None:
    model = gaussian(torch.rand(8, 1, SIZE, SIZE), process)
    with pytest.raises(UserError, match=message):
        DeepinvDenoiser(model)(torch.rand(2, 1, SIZE, SIZE), 0.2)


def test_other_refusals() -> None:
    model = gaussian(torch.rand(8, 1, SIZE, SIZE), Hot())
    with pytest.raises(UserError, match="one step ahead"):
        DeepinvDenoiser(model.replaced(parameterization=LessBlurred()))
    with pytest.raises(UserError, match="sigma is -1"):
        DeepinvDenoiser(model)(torch.rand(2, 1, SIZE, SIZE), -1.0)
    with pytest.raises(UserError, match="set its resolution"):
        DeepinvDenoiser(model)(torch.rand(2, 3, SIZE, SIZE), 0.1)


# ---- deepinv's algorithms


class Problem:
    """Inpainting of 16 images in [0, 1] of which 30 % of the pixels are missing.

    Attributes:
        x: the images.
        y: what is known of them, with 0 where nothing is.
        filled: y with the mean image of the data where nothing is known.
    """

    def __init__(self, images: Tensor, noise: float) -> None:
        self.data, self.noise = images[:-16], noise
        self.x = (images[-16:] + 1) / 2
        g = torch.Generator().manual_seed(0)
        self.mask = (torch.rand(SIZE, SIZE, generator=g) > 0.3).float().expand(images.shape[1:]).contiguous()
        self.physics = deepinv.physics.Inpainting(
            mask=self.mask, img_size=self.x.shape[1:], noise_model=deepinv.physics.GaussianNoise(noise)
        )
        torch.manual_seed(1)
        self.y = self.physics(self.x)
        self.filled = self.y + (1 - self.mask) * (self.data.mean(0) + 1) / 2
        self.denoise = DeepinvDenoiser(gaussian(self.data, PLANE))

    def posterior_mean(self, smoothing: float = 0.0) -> Tensor:
        """E[x | y] of the Gaussian law, to whose covariance smoothing² is added: linear algebra over pixels."""
        basis = idct(torch.eye(SIZE**2, dtype=torch.float64).view(-1, SIZE, SIZE)).flatten(1).T
        known = self.mask[0].flatten().bool()
        channels = []
        for c, spectrum in enumerate(dct(self.data.double()).square().mean(0)):
            law = (basis * spectrum.flatten()) @ basis.T / 4  # of images in [0, 1], a quarter of the power
            law = law + smoothing**2 * torch.eye(SIZE**2)
            noisy = law[known][:, known] + self.noise**2 * torch.eye(int(known.sum()))
            centred = self.y[:, c].double().flatten(1)[:, known] - 0.5
            channels.append(0.5 + (law[:, known] @ torch.linalg.solve(noisy, centred.T)).T.view(-1, SIZE, SIZE))
        return torch.stack(channels, 1).float()

    def psnr(self, images: Tensor) -> float:
        return deepinv.metric.PSNR()(images, self.x).mean().item()


def test_plug_and_play_finds_the_posterior_mean(images: Tensor) -> None:
    """Gradient descent on fidelity and prior: the mode, which is the mean, for a law smoothed by the denoiser's σ."""
    problem = Problem(images, noise=0.1)
    find = GD(
        data_fidelity=L2(sigma=0.1), prior=ScorePrior(problem.denoise), sigma_denoiser=0.1, stepsize=0.01, max_iter=500
    )
    found = find(problem.y, problem.physics)
    torch.testing.assert_close(found, problem.posterior_mean(smoothing=0.1), rtol=0, atol=1e-3)
    assert problem.psnr(found) > problem.psnr(problem.filled) + 0.3


@pytest.mark.parametrize("name", ["DPS", "DiffPIR", "DDRM"])
def test_samplers_inpaint_better_than_the_mean_image(images: Tensor, name: str) -> None:
    """The mean of 16 samples approaches the posterior mean, which has the least error of all."""
    problem, repeats = Problem(images, noise=0.02), 16
    make, error = {
        "DPS": (lambda: DPS(problem.denoise, num_steps=100, guidance="annealed"), 0.3),
        "DiffPIR": (lambda: DiffPIR(problem.denoise, L2(), max_iter=50), 1.0),  # its law is further from the posterior
        "DDRM": (lambda: DDRM(problem.denoise), 0.3),
    }[name]
    torch.manual_seed(2)
    samples = make()(problem.y.repeat(repeats, 1, 1, 1), problem.physics).float()
    mean, best = samples.detach().unflatten(0, (repeats, 16)).mean(0), problem.posterior_mean()
    assert problem.psnr(problem.filled) < problem.psnr(mean) < problem.psnr(best)
    assert (mean - best).square().mean() < error * (problem.filled - best).square().mean()


def test_a_trained_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its denoised image is that of `warm restore`'s mean, which goes another way."""
    run = tmp_path_factory.mktemp("run")
    plane = REPOSITORY / "configs" / "method" / "plane.yaml"
    network = ["--model.network.model_channels=8", "--model.network.channel_mult=[1,2]", "--model.duration=640"]
    quiet = ["--samples.every=0", "--samples.seeds=0-3", "--scores.every=0", "--trainer.limit_val_batches=0"]
    here("fit", f"--config={DIGITS}", f"--config={plane}", *network, *quiet, f"--trainer.default_root_dir={run}")
    trained = load_checkpoint(last(run))
    model, x = trained.model(), torch.rand(4, 1, SIZE, SIZE)
    start = find_start(model.process, trained.sampler.grid, x, alpha=0, beta=0.6)
    truth = (model.restore(trained.sampler, start, 2 * x - 1, [0] * 4, mean=True) + 1) / 2
    with torch.no_grad():
        torch.testing.assert_close(DeepinvDenoiser(model)(x, 0.3), truth.float(), rtol=1e-4, atol=1e-4)
