"""Averages that are kept during training, with snapshots from which post-hoc EMA rebuilds others."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from warm_lightning.callbacks.training import check_every, due
from warm_lightning.ema import SNAPSHOTS, PowerEMA, Snapshot
from warm_lightning.errors import check
from warm_lightning.module import DiffusionModule
from warm_lightning.strategies import gathered


class PostHocEMA(Callback):
    """Tracks averages of given relative widths, from which `warm ema` rebuilds others after training.

    Each is one more copy of the network on the device and in checkpoints. Snapshots go to `posthoc/` in the run's
    folder as float32: 220 MB for each width and time with CIFAR-10's network. With 50
    snapshots each of widths 0.05 and 0.1, profiles of width 0.05 to 0.15 are matched to 0.1 %; with 8, to 3 %.

    Args:
        sigma_rel: relative widths, see `PowerEMA`; 0.05 and 0.1 are the paper's. Empty for none.
        every: images between snapshots; there is one at the end of training too.
    """

    def __init__(self, sigma_rel: Sequence[float] = (), every: float = 4e6) -> None:
        check(
            len(set(sigma_rel)) == len(sigma_rel),
            f"posthoc_ema.sigma_rel is {list(sigma_rel)}: name each width once",
        )
        self.profiles = [PowerEMA(width) for width in sigma_rel]
        self.every = check_every(every)
        self.averages: list[nn.Module] = []
        self.restored: dict[str, Any] | None = None

    @property
    def widths(self) -> list[float]:
        """The relative widths that are tracked."""
        return [profile.sigma_rel for profile in self.profiles]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: DiffusionModule, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint["callbacks"].get(self.state_key, {}).get("sigma_rel", [])
        check(
            trainer.state.fn != TrainerFn.FITTING or kept == self.widths,
            f"posthoc_ema.sigma_rel is {self.widths}, but this run has tracked {kept} from its start: set it so",
        )

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        if trainer.is_global_zero:
            self.set_aside(Path(trainer.default_root_dir) / SNAPSHOTS, pl_module.images_seen)
        self.averages = [copy.deepcopy(pl_module.ema_network) for _ in self.profiles]
        if self.restored:
            for average, state in zip(self.averages, self.restored["averages"], strict=True):
                average.load_state_dict(state)
        self.restored = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.profiles or not pl_module.stepped:
            return
        with gathered(pl_module.network):
            for profile, average in zip(self.profiles, self.averages, strict=True):
                profile.update(average, pl_module.network, pl_module.images_seen, pl_module.batch_size)
        if due(pl_module, self.every):
            self.write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        self.write(trainer, pl_module)

    def set_aside(self, folder: Path, images_seen: int) -> None:
        """Rename snapshots that are later than the start of this training: they belong to an abandoned one."""
        for snapshot in Snapshot.all_in(folder):
            if snapshot.images_seen > images_seen:
                snapshot.path.replace(snapshot.path.with_suffix(".abandoned"))

    def write(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Write a snapshot of each average."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / SNAPSHOTS
        for sigma_rel, average in zip(self.widths, self.averages, strict=True):
            Snapshot.write(folder, average, sigma_rel, pl_module.images_seen)

    def state_dict(self) -> dict[str, Any]:
        return {"sigma_rel": self.widths, "averages": [dict(a.state_dict()) for a in self.averages]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = state_dict
