"""Images for people: grids, trajectories, PNG files."""

import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from warm_lightning.errors import UserError
from warm_lightning.images import quantise
from warm_lightning.model import DiffusionModel
from warm_lightning.samplers import Sampler, clean_view
from warm_lightning.spectral import idct
from warm_lightning.types import Level

SMALLEST = 48  # pixels a side below which an image in a grid is enlarged


def grid(images: Tensor, columns: int) -> Tensor:
    """uint8 [N, C, H, W] → one picture, uint8 [3, height, width]; small images are enlarged without blurring."""
    factor = max(1, SMALLEST // images.shape[-1])
    enlarged = images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return make_grid(enlarged, nrow=columns, padding=2, pad_value=255)


def write_png(path: Path, image: Tensor) -> None:
    """uint8 [C, H, W] → a PNG file, which appears under its name only when it is whole.

    Raises:
        UserError: if the file cannot be written.
    """
    pixels = image.permute(1, 2, 0).numpy()
    content = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(content, format="PNG")
    write_file(path, content.getvalue())


def write_file(path: Path, content: bytes) -> None:
    """Write a file in one go, making its folder; a reader sees all of it or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose a folder that can") from error


def read_png(path: Path) -> Tensor:
    """A PNG file → uint8 [C, H, W]."""
    pixels = torch.from_numpy(np.array(Image.open(path)))
    return pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1)


def writable_folder(path: str | Path) -> Path:
    """The folder, made if need be.

    Raises:
        UserError: if files cannot be written there.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another folder") from error
    return folder


def trajectory(model: DiffusionModel, sampler: Sampler, seeds: Sequence[int], columns: int = 10) -> Tensor:
    """From noise to image: for each seed a row of states, scaled to unit noise, over a row of views of the image.

    The views are x̂0 = D + R, from one network call of their own at each level shown.

    Returns:
        One picture, uint8 [3, height, width].
    """
    shown = torch.linspace(0, len(sampler.grid.clocks()) - 1, columns).round().unique().long().tolist()
    states: list[Tensor] = []
    views: list[Tensor] = []
    met = 0

    def watch(u: Tensor, level: Level) -> None:
        nonlocal met
        met += 1
        if met - 1 not in shown:
            return
        spread = model.process.scale(level) * (1 + level.beta.square()).sqrt()
        states.append(idct(u) / spread.to(u))
        if model.process.ends(level):
            views.append(idct(u))
        else:
            estimate = model.estimate(u, level)
            views.append(idct(clean_view(u, estimate, model.process.gains(level, u))))

    model.sample(sampler, seeds, watch=watch)
    rows = [torch.stack(frames, dim=1) for frames in (states, views)]  # [B, columns, C, H, W]
    return grid(quantise(torch.stack(rows, dim=1).flatten(0, 2)).cpu(), columns=len(shown))
