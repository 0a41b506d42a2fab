"""Non-leaky augmentation: EDM's pixels and labels, geometry against closed forms, labels one by one, laws of draws."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from warm_lightning.augment import SYM6, NonLeaky, Transforms, resample
from warm_lightning.errors import UserError
from warm_lightning.rng import BatchDraws, Draws, SeedStreams

NONE = {"x_coin": 0.9, "y_coin": 0.9, "turn": 0.5, "axis": 0.5, "axis_coin": 0.9}
"""Uniform draws with which nothing happens whatever p is, if the normal ones are 0."""


class Fixed(Draws):
    """Equal draws for each image of a batch: those of `NONE`, except for the given ones."""

    def __init__(self, size: int = 1, normals: tuple[float, ...] = (0, 0, 0, 0), **changes: float) -> None:
        assert set(changes) <= set(NONE)
        self.size = size
        self.uniforms = (*(NONE | changes).values(), 0.0, 0.0, 0.0, 0.0, 0.0)  # every chance is taken
        self.normals = normals

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.rows(self.normals, shape, dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.rows(self.uniforms, shape, dtype)

    def chi_square(self, degrees: float) -> Tensor:
        raise AssertionError("augmentation has no use for it")

    def rows(self, values: tuple[float, ...], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        assert shape == (len(values),)
        return torch.tensor(values).to(dtype).expand(self.size, -1)


def noise(size: int, batch: int = 1, dtype: torch.dtype = torch.float64, channels: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.rand(batch, channels, size, size, generator=g, dtype=dtype) * 2 - 1


def smooth(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A function on the plane without any symmetry, of wavelengths above 20 pixels, x and y from the centre."""
    return (np.sin(0.23 * x + 0.5) + np.cos(0.19 * y - 0.08 * x + 1) + np.sin(0.12 * x + 0.2 * y - 0.3)) / 3


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels from the centre."""
    axis = np.arange(size) - (size - 1) / 2
    x, y = np.meshgrid(axis, axis)
    return x, y


# ------------------------------------------------------------------ EDM's own images


@pytest.mark.parametrize("case", ["x_flip", "y_flip", "scale", "rotate", "aniso_axis0", "aniso", "translate", "all"])
def test_pixels_and_labels_are_edms(case, reference_dir):
    """A network trained by EDM's code, or its published weights, must see what its label says here too."""
    arrays = np.load(reference_dir / "edm_augment.npz")
    images = torch.from_numpy(arrays["images"]) / 127.5 - 1
    parameters = ("x_flip", "y_flip", "w_scale", "theta_turns", "w_aniso", "r", "w_tx", "w_ty")
    given = [arrays[f"{case}/{name}"] if f"{case}/{name}" in arrays else np.zeros(16) for name in parameters]
    transforms = Transforms(*(torch.from_numpy(values).float() for values in given))
    # Two implementations in float32; measured 5e-6 on pixels and 0 on labels.
    expected = torch.from_numpy(arrays[f"{case}/augmented"])
    torch.testing.assert_close(transforms.apply(images), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(transforms.labels(), torch.from_numpy(arrays[f"{case}/labels"]), rtol=0, atol=1e-6)
    assert (expected - images).abs().max() > 0.5


# ------------------------------------------------------------------ what the labels say is what happened

PIVOT = -(sum(n * h for n, h in enumerate(SYM6)) / sum(SYM6) - 5) / 2
"""The point that stays in place, in pixels right of and below the image's centre, since the filter's centre of mass is
at 5.098 and EDM takes 5."""


def described(label: list[float], sign: float, size: int) -> np.ndarray:
    """The 3×3 matrix, in homogeneous pixels from the centre, of what a label says; y down, positive turns up.

    The label of a stretch does not say the sign of w: (w, r) and (-w, r + π) share it.
    """

    def linear(*rows: tuple[float, float]) -> np.ndarray:
        return np.block([[np.array(rows), np.zeros((2, 1))], [np.zeros((1, 2)), 1]])

    x_flip, y_flip, scale, cos, sin, along, across, shift_x, shift_y = label
    flips = linear((1 - 2 * x_flip, 0), (0, 1 - 2 * y_flip))
    scaling = linear((2 ** (0.2 * scale), 0), (0, 2 ** (0.2 * scale)))
    rotation = linear((cos + 1, sin), (-sin, cos + 1))
    # A stretch by e^g along the unit vector v and e^-g across it is exp(g(2 vvᵀ - 1)); its trace is 0.
    w = math.copysign(math.hypot(along, across), sign)
    v = np.array([along, -across]) / (w or 1)
    g = 0.2 * math.log(2) * w
    stretch = np.cosh(g) * np.eye(2) + np.sinh(g) * (2 * np.outer(v, v) - np.eye(2))
    translation = np.eye(3)
    translation[:2, 2] = 0.125 * size * shift_x, 0.125 * size * shift_y
    pivot = np.eye(3)
    pivot[:2, 2] = PIVOT
    return translation @ pivot @ linear(*stretch) @ rotation @ scaling @ np.linalg.inv(pivot) @ flips


C30, S30 = math.cos(math.pi / 6), 0.5
CASES = {
    "nothing": ({}, (0, 0, 0, 0), [0, 0, 0, 0, 0, 0, 0, 0, 0]),
    "x-flip": ({"x_coin": 0.4}, (0, 0, 0, 0), [1, 0, 0, 0, 0, 0, 0, 0, 0]),
    "y-flip": ({"y_coin": 0.4}, (0, 0, 0, 0), [0, 1, 0, 0, 0, 0, 0, 0, 0]),
    "larger": ({}, (1.5, 0, 0, 0), [0, 0, 1.5, 0, 0, 0, 0, 0, 0]),
    "smaller": ({}, (-1, 0, 0, 0), [0, 0, -1, 0, 0, 0, 0, 0, 0]),
    "turned": ({"turn": 7 / 12}, (0, 0, 0, 0), [0, 0, 0, C30 - 1, S30, 0, 0, 0, 0]),
    "turned far": ({"turn": 1 / 12}, (0, 0, 0, 0), [0, 0, 0, -C30 - 1, -S30, 0, 0, 0, 0]),
    "wider": ({}, (0, 2, 0, 0), [0, 0, 0, 0, 0, 2, 0, 0, 0]),
    "higher": ({}, (0, -2, 0, 0), [0, 0, 0, 0, 0, -2, 0, 0, 0]),
    "stretched": ({"axis_coin": 0.4, "axis": 7 / 12}, (0, 2, 0, 0), [0, 0, 0, 0, 0, 2 * C30, 2 * S30, 0, 0]),
    "right": ({}, (0, 0, 0.6, 0), [0, 0, 0, 0, 0, 0, 0, 0.6, 0]),
    "down": ({}, (0, 0, 0, 0.7), [0, 0, 0, 0, 0, 0, 0, 0, 0.7]),
    "all": (
        {"x_coin": 0.1, "y_coin": 0.2, "turn": 5 / 6, "axis_coin": 0.3, "axis": 7 / 12},
        (-0.5, 1.2, -0.4, 0.3),
        [1, 1, -0.5, -1.5, C30, 1.2 * C30, 0.6, -0.4, 0.3],
    ),
    "all but a flip": (
        {"x_coin": 0.1, "turn": 1 / 3, "axis_coin": 0.3, "axis": 1 / 12},
        (0.5, 0.8, 0.4, 0.3),
        [1, 0, 0.5, -0.5, -C30, -0.8 * C30, -0.4, 0.4, 0.3],
    ),
}


@pytest.mark.parametrize(("changes", "normals", "label"), CASES.values(), ids=CASES)
def test_images_move_as_their_labels_say(changes, normals, label):
    size = 64
    x, y = grid(size)
    image = torch.from_numpy(smooth(x, y))[None, None]
    out, labels = NonLeaky(1)(image, Fixed(normals=normals, **changes))
    # The draws are float32 numbers, a turn of 2π times that.
    torch.testing.assert_close(labels, torch.tensor([label], dtype=torch.float64), rtol=0, atol=1e-6)
    back = np.linalg.inv(described(label, normals[1], size))
    from_x, from_y, _ = np.einsum("ij,jhw->ihw", back, np.stack([x, y, np.ones_like(x)]))
    inside = np.maximum(abs(from_x), abs(from_y)) < size / 2 - 8  # 6 taps from the edge, and turns of a square
    error = abs(out[0, 0].numpy() - smooth(from_x, from_y))[inside]
    assert inside.mean() > 0.25
    # Linear interpolation half a pixel wide errs by 0.5²/8 of the second derivatives, here 0.03 each way.
    assert error.max() < 2e-3
    if any(label):  # the picture is one that shows it
        assert abs(out - image).max() > 0.1


# ------------------------------------------------------------------ geometry in closed form


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flips_keep_every_bit(dtype):
    images = noise(9, batch=2, dtype=dtype)
    for x_flip, y_flip in itertools.product([0, 1], [0, 1]):
        expected = images.flip(3) if x_flip else images
        expected = expected.flip(2) if y_flip else expected
        out, _ = NonLeaky(1)(images, Fixed(2, x_coin=0.9 - 0.5 * x_flip, y_coin=0.9 - 0.5 * y_flip))
        assert torch.equal(out, expected), (x_flip, y_flip)


def test_p_0_only_mirrors():
    images = noise(8, batch=64, dtype=torch.float32)
    out, labels = NonLeaky(0)(images, SeedStreams(range(64)))
    mirrored = labels[:, 0] == 1
    assert 16 < mirrored.sum() < 48
    assert not labels[:, 1:].any()
    assert torch.equal(out, torch.where(mirrored[:, None, None, None], images.flip(3), images))


@pytest.mark.parametrize("size", [2, 8, 31])
@pytest.mark.parametrize("shift", [(1, 0), (0, -3), (-2, 1), (5, 70)])
def test_whole_pixels_shift_exactly_and_edges_are_mirrors(size, shift):
    images = noise(size)
    moved = resample(images, torch.eye(2).double()[None], torch.tensor([shift]).double() / size)
    right, down = shift
    # NumPy's reflection may be longer than the image.
    wide = np.pad(images[0].numpy(), ((0, 0), (80, 80), (80, 80)), mode="reflect")
    expected = wide[:, 80 - down : 80 - down + size, 80 - right : 80 - right + size]
    np.testing.assert_allclose(moved[0].numpy(), expected, rtol=0, atol=1e-11)  # the taps have 12 digits


def test_identity_is_exact_to_rounding():
    """Full-band noise: down- undoes upsampling, whatever frequencies the image has."""
    for dtype, atol in ((torch.float32, 2e-5), (torch.float64, 1e-11)):  # positions to 6e-8 of 61; taps of 12 digits
        images = noise(16, dtype=dtype)
        torch.testing.assert_close(
            resample(images, torch.eye(2, dtype=dtype)[None], torch.zeros(1, 2, dtype=dtype)), images, rtol=0, atol=atol
        )


@pytest.mark.parametrize(
    ("there", "back"),
    [
        ({"turn": 0.5 + 0.11}, {"turn": 0.5 - 0.11}),
        ({"turn": 0.5 + 0.4}, {"turn": 0.5 - 0.4}),
        ({"normals": (0, 0, 0.31, -0.17)}, {"normals": (0, 0, -0.31, 0.17)}),
        ({"normals": (0.7, 0, 0, 0)}, {"normals": (-0.7, 0, 0, 0)}),
        (
            {"normals": (0, 1, 0, 0), "axis": 0.7, "axis_coin": 0},
            {"normals": (0, -1, 0, 0), "axis": 0.7, "axis_coin": 0},
        ),
    ],
)
def test_there_and_back(there, back):
    """A band-limited image comes back; the error is the interpolation's, so a longer wave has a smaller one."""
    x, y = grid(64)
    centre = slice(20, 44)  # what no edge has reached
    errors = []
    for stretch in (1, 0.5):
        image = torch.from_numpy(smooth(stretch * x, stretch * y))[None, None]
        returned, _ = NonLeaky(1)(NonLeaky(1)(image, Fixed(**there))[0], Fixed(**back))
        errors.append((returned - image)[..., centre, centre].abs().max().item())
    assert errors[0] < 4e-3  # twice the error of one way, see above
    assert errors[1] < 0.35 * errors[0]  # of second order: a quarter


def test_a_plain_image_stays_plain():
    """No darkening at the edges, however far an image moves, and no gain."""
    plain = torch.full((200, 2, 12, 12), 0.7)
    out, labels = NonLeaky(1)(plain, SeedStreams(range(200)))
    assert labels[:, 7:].abs().max() > 2  # a quarter of the width
    torch.testing.assert_close(out, plain, rtol=0, atol=2e-6)


def test_filter_is_sym6():
    """Daubechies' factorisation: of all orthogonal filters of 12 taps with 6 vanishing moments the least asymmetric."""
    h = np.array(SYM6)
    for m in range(6):
        assert abs(h[2 * m :] @ h[: 12 - 2 * m] - (m == 0)) < 1e-12  # orthonormal to its shifts by two
    assert abs(h.sum() - 2**0.5) < 1e-12
    n = np.arange(12) - 5 + 2 * PIVOT  # from the centre of mass
    for power in range(6):  # of the high-pass (-1)ⁿ h; moments are of order 6⁵ and the taps have 16 digits
        assert abs(((-1.0) ** n.round() * n**power) @ h) < 1e-8
    # Roots y of Σ C(5+k, k) yᵏ: each gives z or 1/z, z + 1/z = 2 - 4y, complex ones in pairs.
    y = np.roots([math.comb(5 + k, k) for k in reversed(range(6))])
    choices = [np.roots([1, 4 * root - 2, 1]) for root in y if root.imag > -1e-9]
    least = []
    for zs in itertools.product(*choices):
        roots = [root for z in zs for root in ([z] if abs(z.imag) < 1e-9 else [z, z.conj()])]
        taps = np.poly([-1] * 6 + roots).real
        taps *= 2**0.5 / taps.sum()
        least.append((abs(taps - taps[::-1]).max(), tuple(taps)))
    found = np.array(min(least)[1])
    assert min(abs(found - h).max(), abs(found[::-1] - h).max()) < 1e-6  # a sixfold root has few digits


# ------------------------------------------------------------------ laws, independence, types


def test_laws_of_the_draws():
    n, p = 40_000, 0.12
    t = NonLeaky(p).draw(BatchDraws(0, 0, n, torch.arange(n)), torch.float64)
    happened = {name: getattr(t, name) != 0 for name in ("x_flip", "y_flip", "scale", "turn", "stretch", "shift_x")}
    rates = {"x_flip": 0.5, "y_flip": p / 2}
    for name, found in happened.items():
        rate = rates.get(name, p)
        assert abs(found.double().mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / n), name
    for a, b in itertools.combinations(happened, 2):  # none has to do with another
        assert torch.corrcoef(torch.stack([happened[a], happened[b]]).double())[0, 1].abs() < 5 / math.sqrt(n), (a, b)
    assert torch.equal(happened["shift_x"], t.shift_y != 0)
    for name in ("scale", "stretch", "shift_x", "shift_y"):
        w = getattr(t, name)[getattr(t, name) != 0]
        assert abs(w.mean()) < 5 / math.sqrt(n * p), name
        assert abs(w.std() - 1) < 5 / math.sqrt(2 * n * p), name
    for name, angle in (("turn", t.turn[happened["turn"]]), ("axis", t.axis[t.axis != 0] / (2 * math.pi))):
        assert -0.5 <= angle.min() < -0.49, name
        assert 0.49 < angle.max() < 0.5, name
        assert abs(angle.std() - 1 / math.sqrt(12)) < 5 / math.sqrt(12 * n * p), name
    assert abs((t.axis != 0).double().mean() - 0.5) < 5 * 0.5 / math.sqrt(n)
    assert abs(torch.corrcoef(torch.stack([t.shift_x, t.shift_y]))[0, 1]) < 5 / math.sqrt(n * p)


def test_an_image_gets_the_same_whatever_the_others_and_p():
    images = noise(16, batch=24, dtype=torch.float32)
    everyone = torch.arange(24)
    out, labels = NonLeaky(0.6)(images, BatchDraws(3, 48, 24, everyone))
    for rows in (torch.tensor([5]), torch.tensor([20, 2, 7])):
        alone, its_labels = NonLeaky(0.6)(images[rows], BatchDraws(3, 48, 24, rows))
        assert torch.equal(its_labels, labels[rows])
        torch.testing.assert_close(alone, out[rows], rtol=0, atol=1e-5)  # matrix products of another size
    _, all_labels = NonLeaky(1)(images, BatchDraws(3, 48, 24, everyone))
    chosen = labels != 0
    assert 0.2 < chosen.double().mean() < 0.8
    assert torch.equal(labels[chosen], all_labels[chosen])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_precision_and_layout(channels, layout):
    """Mixed precision leaves the images alone, and float32 agrees with float64."""
    images = noise(16, batch=8, dtype=torch.float32, channels=channels).contiguous(memory_format=layout)
    out, labels = NonLeaky(1)(images, SeedStreams(range(8)))
    assert out.dtype == labels.dtype == torch.float32
    assert out.shape == images.shape
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = NonLeaky(1)(images, SeedStreams(range(8)))
    assert torch.equal(mixed, out)
    double, its_labels = NonLeaky(1)(images.double(), SeedStreams(range(8)))
    assert double.dtype == its_labels.dtype == torch.float64
    # Positions are good to 1e-5 pixels, and pixels differ by 2 at most.
    torch.testing.assert_close(out.double(), double, rtol=0, atol=5e-5)
    torch.testing.assert_close(labels.double(), its_labels, rtol=0, atol=1e-6)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_p_is_a_probability(p):
    with pytest.raises(UserError, match=r"p is .* between 0 and 1"):
        NonLeaky(p)


def test_images_must_be_square():
    with pytest.raises(UserError, match="square, not 4×6"):
        NonLeaky(0.5)(torch.zeros(1, 3, 4, 6), Fixed())
