"""Checkpoints of a training at intervals in images and in time."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from warm_lightning.callbacks.expectations import Expected
from warm_lightning.callbacks.training import check_every, due
from warm_lightning.errors import check
from warm_lightning.module import DiffusionModule
from warm_lightning.paths import CHECKPOINTS, LAST


class Checkpoints(Checkpoint, Expected):
    """Saves `last.ckpt`, and optionally checkpoints at intervals that are kept, and the best by a score.

    All are in `checkpoints/` of the run's folder. A file appears under its name only when it is whole.

    Args:
        every: images between two savings of `last.ckpt`; 0 for none. It is saved at the end of training, too.
        every_minutes: minutes after which `last.ckpt` is saved again; 0 for none. With either, it is also saved before
            work that takes long: scores and the last validation.
        keep_every: images between two checkpoints that are kept as `images-*.ckpt`; 0 for none.
        monitor: name of a score, of which `best-*.ckpt` keeps the best; "first" for the first score
            of the first extractor, null for none.
    """

    def __init__(
        self, every: float = 1e6, every_minutes: float = 10, keep_every: float = 0, monitor: str | None = "first"
    ) -> None:
        self.every = check_every(every)
        check(every_minutes >= 0, f"every_minutes is {every_minutes}: it must be 0 (never) or more")
        self.every_minutes = every_minutes
        self.keep_every = check_every(keep_every)
        self.monitor = monitor
        self.best: dict[str, float] = {}  # by the name of the score, since a training may go on with another one
        self.saved = (-1, 0.0)  # images seen and time of the last saving

    def expectation(self, module: DiffusionModule) -> str:
        moments = [f"{self.every:,} images"] if self.every else []
        moments += [f"{self.every_minutes:g} minutes"] if self.every_minutes else []
        return f"{LAST} every {' or '.join(moments)}" if moments else f"{LAST} at the end only"

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        self.saved = (pl_module.images_seen, time.monotonic())
        if self.improved(pl_module):  # by scores that a killed training had not finished
            self.save(trainer, [f"best-{self.monitor}.ckpt"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        names = []
        if (due(pl_module, self.every) or self.late(trainer, pl_module)) and not pl_module.lost:
            names.append(LAST)
        if due(pl_module, self.keep_every):
            names.append(f"images-{pl_module.images_seen:09d}.ckpt")
        if self.improved(pl_module):
            names.append(f"best-{self.monitor}.ckpt")
        self.save(trainer, names)

    def on_validation_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.save_before_long_work(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        self.save(trainer, [LAST])

    def late(self, trainer: Trainer, pl_module: DiffusionModule) -> bool:
        """Whether the step that has just ended came `every_minutes` after the last saving, on any device."""
        if not self.every_minutes or not pl_module.stepped:
            return False
        passed = time.monotonic() - self.saved[1] > 60 * self.every_minutes
        return trainer.strategy.reduce_boolean_decision(passed, all=False)

    def save_before_long_work(self, trainer: Trainer) -> None:
        """Save `last.ckpt` if steps have been made since it was saved; all devices must call this."""
        module = cast(DiffusionModule, trainer.lightning_module)
        if (self.every or self.every_minutes) and module.images_seen != self.saved[0] and not module.lost:
            self.save(trainer, [LAST])

    def improved(self, pl_module: DiffusionModule) -> bool:
        """Whether the last step was scored better than all before."""
        if not self.monitor:
            return False
        known = {n: value for n, (images, value) in pl_module.scored.items() if images == pl_module.images_seen}
        if not known:
            return False
        if self.monitor == "first":
            self.monitor = next(iter(known))
        self.check_monitor(list(known))
        better, value = pl_module.better[self.monitor], known[self.monitor]
        value = {"lower": value, "higher": -value, "near 1": abs(value - 1)}[better]
        if not value < self.best.get(self.monitor, float("inf")):
            return False
        self.best[self.monitor] = value
        return True

    def check_monitor(self, names: Sequence[str]) -> None:
        """Check that the score that is monitored is one of those that are computed.

        Raises:
            UserError: it is not.
        """
        check(
            self.monitor in names,
            f"checkpoints.monitor is {self.monitor}, but the scores are {', '.join(names)}: choose one of them",
        )

    def save(self, trainer: Trainer, names: list[str]) -> None:
        """Write checkpoints of these names; all devices must call this."""
        folder = Path(trainer.default_root_dir) / CHECKPOINTS
        module = cast(DiffusionModule, trainer.lightning_module)
        for name in names:
            trainer.save_checkpoint(folder / name, weights_only=False)
            if name == LAST:
                self.saved = (module.images_seen, time.monotonic())

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best"]
        self.best = best if isinstance(best, dict) else {}  # earlier versions did not write the name of the score
