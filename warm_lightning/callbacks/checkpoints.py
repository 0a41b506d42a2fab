"""Checkpoints of a training at intervals in images."""

from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint

from warm_lightning.callbacks.training import check_every, due
from warm_lightning.checkpoints import CHECKPOINTS, LAST
from warm_lightning.errors import check
from warm_lightning.module import DiffusionModule


class Checkpoints(Checkpoint):
    """Saves `last.ckpt`, and optionally checkpoints at intervals that are kept, and the best by a score.

    All are in `checkpoints/` of the run's folder. A file appears under its name only when it is whole.

    Args:
        every: images between two savings of `last.ckpt`, which is saved at the end of training too; 0 for only then.
        keep_every: images between two checkpoints that are kept as `images-*.ckpt`; 0 for none.
        monitor: name of a score, lower being better, of which `best-*.ckpt` keeps the best; null for none.
    """

    def __init__(self, every: float = 1e6, keep_every: float = 0, monitor: str | None = None) -> None:
        self.every = check_every(every)
        self.keep_every = check_every(keep_every)
        self.monitor = monitor
        self.best = float("inf")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        names = []
        if due(pl_module, self.every):
            names.append(LAST)
        if due(pl_module, self.keep_every):
            names.append(f"images-{pl_module.images_seen:09d}.ckpt")
        if self.improved(pl_module):
            names.append(f"best-{self.monitor}.ckpt")
        self.save(trainer, names)

    def on_train_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        self.save(trainer, [LAST])

    def improved(self, pl_module: DiffusionModule) -> bool:
        """Whether the step that has just ended was scored better than all before."""
        if not self.monitor or not pl_module.stepped:
            return False
        known = [name for name, (images, _) in pl_module.scored.items() if images == pl_module.images_seen]
        check(
            not known or self.monitor in known,
            f"checkpoints.monitor is {self.monitor}, but the scores are {', '.join(known)}: choose one of them",
        )
        seen, value = pl_module.scored.get(self.monitor, (-1, float("inf")))
        if seen != pl_module.images_seen or not value < self.best:
            return False
        self.best = value
        return True

    def save(self, trainer: Trainer, names: list[str]) -> None:
        """Write checkpoints of these names; all devices must call this."""
        folder = Path(trainer.default_root_dir) / CHECKPOINTS
        for name in names:
            trainer.save_checkpoint(folder / name, weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
