"""Crops of photographs: that they are the photographs' pixels, from all places alike, with their power spectrum."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch.nn.functional import avg_pool2d

from warm_lightning.analysis.power_law import fit
from warm_lightning.analysis.spectrum import measure_spectrum
from warm_lightning.data import Crops
from warm_lightning.errors import UserError

SIZES = {"a.png": (9, 7), "b.png": (6, 12)}  # height and width


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two images whose pixels say where they are: their row, their column and their number, times 10."""
    for number, (name, (height, width)) in enumerate(SIZES.items()):
        rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        pixels = 10 * np.stack([rows, columns, np.full_like(rows, number)], axis=-1)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name)
    return tmp_path


def test_crops_are_pixels_of_a_photograph_from_all_places_alike(photographs):
    side = 5
    images = Crops(str(photographs), resolution=side, shrink=1, num_images=3000).train_images().as_tensor() // 10
    top, left, number = images[:, :, 0, 0].unbind(1)
    steps = torch.arange(side)
    assert torch.equal(images[:, 0], (top[:, None] + steps)[:, :, None].expand(-1, -1, side).to(torch.uint8))
    assert torch.equal(images[:, 1], (left[:, None] + steps)[:, None].expand(-1, side, -1).to(torch.uint8))
    assert torch.equal(images[:, 2], number[:, None, None].expand(-1, side, side))
    places = [(n, y, x) for n, (h, w) in enumerate(SIZES.values()) for y in range(h - 4) for x in range(w - 4)]
    seen = [tuple(place) for place in torch.stack([number, top, left], 1).tolist()]
    assert stats.chisquare([seen.count(place) for place in places]).pvalue > 0.001
    assert len(seen) == sum(map(seen.count, places))


def test_a_crop_is_a_function_of_its_index_and_the_seed(photographs):
    def crops(count: int, seed: int) -> torch.Tensor:
        return (
            Crops(str(photographs), resolution=3, num_images=count, shrink=2, crops_seed=seed)
            .train_images()
            .as_tensor()
        )

    assert torch.equal(crops(40, 0)[:7], crops(7, 0))
    assert not torch.equal(crops(7, 1), crops(7, 0))


def test_a_pixel_is_the_mean_of_a_block_rounded_once(photographs):
    """The only place of a crop as large as the photograph."""
    (photographs / "b.png").unlink()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(photographs / "a.png")
    image = Crops(str(photographs), resolution=2, shrink=4, num_images=1).train_images().as_tensor()[0]
    means = avg_pool2d(torch.from_numpy(pixels).permute(2, 0, 1).double(), 4)
    assert torch.equal(image, torch.floor(means + 0.5).to(torch.uint8))


def test_scikit_learns_photographs_have_the_law_of_photographs():
    data = Crops(num_images=4000)
    law = fit(measure_spectrum(data.train_images()).mean_power, below=2)
    assert 0.9 < law.s < 1.3
    assert data.held_out_images() is None
    assert data.num_classes == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 4, "shrink": 2}, "a.png is 7×9, and a crop takes 8×8"),
        ({"resolution": 0}, "resolution must be at least 1"),
        ({"shrink": 0}, "shrink must be at least 1"),
        ({"num_images": 0}, "num_images must be at least 1"),
        ({"crops_seed": -1}, "crops_seed must be from 0"),
    ],
)
def test_what_cannot_be_cropped_is_refused(photographs, arguments, message):
    with pytest.raises(UserError, match=message):
        Crops(str(photographs), **arguments).train_images()
