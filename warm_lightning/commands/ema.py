"""`warm ema`: makes averaged weights of another length after training."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from warm_lightning.checkpoints import (
    EMA_PREFIX,
    RAW_PREFIX,
    SECTION,
    check_new,
    read_checkpoint,
    without_prefix,
    write_checkpoint,
)
from warm_lightning.distributed import progress
from warm_lightning.ema import SNAPSHOTS, PowerEMA, Profile, Snapshot, combination
from warm_lightning.errors import check

KIND = "post-hoc EMA"


def ema(run: Path, dst: Path, sigma_rel: float, images: float | None = None) -> None:
    """Make a checkpoint whose averaged weights have the relative width sigma_rel.

    Args:
        run: folder of a run with --posthoc_ema.sigma_rel.
        dst: the checkpoint to write; the file must not exist. Its raw weights are the averaged ones, too. If it is in
            the run's folder of checkpoints, `warm export` finds the data and scores of the run.
        sigma_rel: standard deviation of the average in time, relative to the training so far, such as 0.08.
        images: number of images seen by training at the end of the average, at which there must be a snapshot; the
            last snapshot if not given.
    """
    check_new(dst)
    target = PowerEMA(sigma_rel)
    folder = run / SNAPSHOTS
    snapshots = Snapshot.all_in(folder)
    check(bool(snapshots), f"{folder}: no snapshots; train with --posthoc_ema.sigma_rel=[0.05,0.1]")
    times = sorted({snapshot.images_seen for snapshot in snapshots})
    end = times[-1] if images is None else images
    check(
        end in times, f"--images {end:.15g}: there is no snapshot at this number, but at {', '.join(map(str, times))}"
    )
    end = int(end)
    snapshots = [snapshot for snapshot in snapshots if snapshot.images_seen <= end]
    shares, distance = combination([snapshot.profile for snapshot in snapshots], Profile(target.gamma, end))

    checkpoint = read_checkpoint(run)
    section = checkpoint[SECTION]
    check(section["config"] is not None, f"{run}: was made by a module without a configuration; nothing could load it")
    weights = without_prefix(checkpoint["state_dict"], EMA_PREFIX)
    weights |= weighted_sum(snapshots, shares, weights)
    source = {
        "kind": KIND,
        "sigma_rel": sigma_rel,
        "snapshots": len(snapshots),
        "distance_from_profile": distance,
        "earlier": section["source"],
    }
    state_dict = {prefix + name: tensor for prefix in (RAW_PREFIX, EMA_PREFIX) for name, tensor in weights.items()}
    kept = {name: section[name] for name in ("config", "learned")}
    write_checkpoint(dst, state_dict, kept | {"images_seen": end, "source": source})
    profile = f"its profile matched to {distance:.2%} by {len(snapshots)} snapshots"
    print(f"{dst}: width {sigma_rel:g} at {end:,} images, {profile}")


def weighted_sum(snapshots: Sequence[Snapshot], shares: list[float], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sum of share · snapshot, computed in float64 with one file in memory at a time.

    Args:
        snapshots: the averages.
        shares: the weight of each snapshot.
        like: the tensors of the network, which give shapes and the dtype of the result.

    Raises:
        UserError: a snapshot is of another network.
    """
    total: dict[str, Tensor] = {}
    for snapshot, share in zip(progress(snapshots, "combining snapshots"), shares, strict=True):
        with safe_open(snapshot.path, "pt") as file:
            names = set(file.keys())
            check(
                names <= like.keys() and (not total or names == total.keys()),
                f"{snapshot.path}: a snapshot of another network; remove it",
            )
            for name in names:
                tensor = file.get_tensor(name).to(torch.float64)
                check(
                    tensor.shape == like[name].shape,
                    f"{snapshot.path}: a snapshot of another network ({name}); remove it",
                )
                total[name] = torch.add(total[name], tensor, alpha=share) if name in total else share * tensor
    return {name: tensor.to(like[name].dtype) for name, tensor in total.items()}
