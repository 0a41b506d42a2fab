"""`warm ema`: makes averaged weights of another length after training."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from warm_lightning.checkpoints import CHECKPOINTS, EMA, LAST, POSTHOC, RAW, SECTION, check_new, part, read, write
from warm_lightning.distributed import progress
from warm_lightning.ema import SNAPSHOT, SUFFIX, PowerEMA, Profile, combination
from warm_lightning.errors import UserError, check

KIND = "post-hoc EMA"
Snapshots = list[tuple[Path, Profile]]


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
    snapshots = find_snapshots(run / POSTHOC)
    times = sorted({int(profile.images) for _, profile in snapshots})
    end = times[-1] if images is None else images
    check(end in times, f"--images {end:.15g}: no snapshot was taken there, but at {', '.join(map(str, times))}")
    end = int(end)
    snapshots = [(path, profile) for path, profile in snapshots if profile.images <= end]
    shares, distance = combination([profile for _, profile in snapshots], Profile(target.gamma, end))

    checkpoint = read(run / CHECKPOINTS / LAST)
    section = checkpoint[SECTION]
    check(section["config"] is not None, f"{run}: was made by a module without a configuration; nothing could load it")
    weights = part(checkpoint["state_dict"], EMA)
    weights |= weighted_sum(snapshots, shares, weights)
    source = {
        "kind": KIND,
        "sigma_rel": sigma_rel,
        "snapshots": len(snapshots),
        "distance_from_profile": distance,
        "earlier": section["source"],
    }
    state_dict = {prefix + name: tensor for prefix in (RAW, EMA) for name, tensor in weights.items()}
    kept = {name: section[name] for name in ("config", "learned")}
    write(dst, state_dict, kept | {"images_seen": end, "source": source})
    print(
        f"{dst}: width {sigma_rel:g} at {end:,} images, its profile met to {distance:.2%} by {len(snapshots)} snapshots"
    )


def find_snapshots(folder: Path) -> Snapshots:
    """Find the snapshots in a folder; returns their paths with the profiles of their averages.

    Raises:
        UserError: there is no snapshot, or one cannot be read.
    """
    snapshots = []
    for path in sorted(folder.glob(f"images-*{SUFFIX}")):
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()[SNAPSHOT])
            profile = Profile(PowerEMA(float(about["sigma_rel"])).gamma, int(about["images_seen"]))
            snapshots.append((path, profile))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: damaged or not a snapshot of post-hoc EMA; remove it") from error
    check(bool(snapshots), f"{folder}: no snapshots; train with --posthoc_ema.sigma_rel=[0.05,0.1]")
    return snapshots


def weighted_sum(snapshots: Snapshots, shares: list[float], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sum of share · snapshot, computed in float64 with one file in memory at a time.

    Args:
        snapshots: paths and profiles.
        shares: the weight of each snapshot.
        like: the tensors of the network, which give shapes and the dtype of the result.

    Raises:
        UserError: a snapshot is of another network.
    """
    total: dict[str, Tensor] = {}
    for (path, _), share in zip(progress(snapshots, "combining snapshots"), shares, strict=True):
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            check(
                names <= like.keys() and (not total or names == total.keys()),
                f"{path}: a snapshot of another network; remove it",
            )
            for name in names:
                tensor = file.get_tensor(name).to(torch.float64)
                check(tensor.shape == like[name].shape, f"{path}: a snapshot of another network ({name}); remove it")
                total[name] = torch.add(total[name], tensor, alpha=share) if name in total else share * tensor
    return {name: tensor.to(like[name].dtype) for name, tensor in total.items()}
