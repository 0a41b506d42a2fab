"""Messages at the start of a training: what it will save and score, and how long it will take."""

import time
from typing import Any, cast

from lightning import Callback, Trainer
from tqdm import tqdm

from warm_lightning.data.datamodule import VALIDATION_IMAGES
from warm_lightning.module import DiffusionModule


class Expected(Callback):
    """A callback that says what it will do in a training."""

    def expectation(self, module: DiffusionModule) -> str:
        """A clause that says what the callback will do; empty for nothing."""
        return ""

    def samples_to_go(self, module: DiffusionModule) -> int:
        """The number of images that it will sample until the end of the training."""
        return 0


class Expectations(Callback):
    """Says at the start of a training what will be saved and scored, and soon after how long it will take."""

    AFTER = 20.0  # seconds of training after which its speed is known

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        self.began: tuple[float, int] | None = None
        self.announced = not trainer.is_global_zero or pl_module.ended
        if pl_module.ended and trainer.is_global_zero:
            seen = f"{pl_module.images_seen:,} images seen of {pl_module.last_image:,}"
            tqdm.write(f"Nothing to train: {seen}. For a longer training raise --model.duration.")
        if self.announced:
            return
        held_out = pl_module.data.held_out_images()
        few = f"no held-out images: validation uses {min(VALIDATION_IMAGES, len(pl_module.data.train_images())):,} "
        texts = [
            f"Training from {pl_module.images_seen:,} to {pl_module.last_image:,} images",
            *(text for callback in self.parts(trainer) if (text := callback.expectation(pl_module))),
            *([] if held_out is not None else [few + "training images"]),
        ]
        tqdm.write("; ".join(texts) + ".")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.announced or not pl_module.stepped:
            return
        if self.began is None:  # after the first step, which is slower
            self.began = time.monotonic(), pl_module.images_seen
        passed_time = time.monotonic() - self.began[0]
        if passed_time < self.AFTER:
            return
        self.announced = True
        rate = (pl_module.images_seen - self.began[1]) / passed_time
        rest = (pl_module.last_image - pl_module.images_seen) / rate
        texts = [f"About {rate:.3g} images/s: {duration_text(rest)} of training to go"]
        for callback in self.parts(trainer):
            if samples := callback.samples_to_go(pl_module):
                # A training image costs about three network calls, and a sample as many as its NFE.
                model = pl_module.model()
                seconds = samples * model.own_nfe / 3 / rate
                texts.append(f"about {duration_text(seconds)} for {samples:,} samples of {callback.__class__.__name__}")
        tqdm.write("; ".join(texts) + ".")

    def parts(self, trainer: Trainer) -> list[Expected]:
        """The callbacks that take time."""
        return [callback for callback in cast(Any, trainer).callbacks if isinstance(callback, Expected)]


def times_to_go(module: DiffusionModule, every: int) -> int:
    """How many multiples of `every` images the training has still to pass."""
    return 0 if every == 0 else max(0, module.last_image // every - module.images_seen // every)


def duration_text(seconds: float) -> str:
    """A duration in the unit that suits it: 40 s, 12 min, 3.5 h, 2.1 days."""
    for limit, unit, length in ((90, "s", 1), (90 * 60, "min", 60), (48 * 3600, "h", 3600)):
        if seconds < limit:
            return f"{seconds / length:.2g} {unit}" if length == 3600 else f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.3g} days"
