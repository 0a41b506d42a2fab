"""`warm ema`: an average of another length, after training."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from warm_lightning.checkpoints import CHECKPOINTS, EMA, LAST, POSTHOC, RAW, SECTION, check_new, part, read, write
from warm_lightning.ema import SNAPSHOT, SUFFIX, PowerEMA, Profile, combination
from warm_lightning.errors import UserError, check

KIND = "post-hoc EMA"
Snapshots = list[tuple[Path, Profile]]


def ema(run: Path, dst: Path, sigma_rel: float, images: float | None = None) -> None:
    """A checkpoint whose averaged weights have the relative width that is asked for.

    Args:
        run: folder of a run with --posthoc_ema.sigma_rel.
        dst: the checkpoint to write, a new file, whose raw weights are the averaged ones too; in the run's folder of
            checkpoints, `warm export` finds what else there is to know of it.
        sigma_rel: standard deviation of the average in time, relative to the training so far, such as 0.08.
        images: end the average where training had seen so many images: one of the snapshots'. The last if not given.
    """
    check_new(dst)
    wanted = PowerEMA(sigma_rel)
    snapshots = find_snapshots(run / POSTHOC)
    times = sorted({int(profile.images) for _, profile in snapshots})
    end = times[-1] if images is None else images
    check(end in times, f"--images {end:.15g}: no snapshot was taken there, but at {', '.join(map(str, times))}")
    end = int(end)
    snapshots = [(path, profile) for path, profile in snapshots if profile.images <= end]
    shares, left = combination([profile for _, profile in snapshots], Profile(wanted.gamma, end))

    checkpoint = read(run / CHECKPOINTS / LAST)
    section = checkpoint[SECTION]
    check(section["config"] is not None, f"{run}: was made by a module without a configuration; nothing could load it")
    weights = part(checkpoint["state_dict"], EMA)
    weights |= weighted_sum(snapshots, shares, weights)
    source = {
        "kind": KIND,
        "sigma_rel": sigma_rel,
        "snapshots": len(snapshots),
        "distance_from_profile": left,
        "earlier": section["source"],
    }
    state_dict = {prefix + name: tensor for prefix in (RAW, EMA) for name, tensor in weights.items()}
    kept = {name: section[name] for name in ("config", "learned")}
    write(dst, state_dict, kept | {"images_seen": end, "source": source})
    print(f"{dst}: width {sigma_rel:g} at {end:,} images, its profile met to {left:.2%} by {len(snapshots)} snapshots")


def find_snapshots(folder: Path) -> Snapshots:
    """The snapshots in a folder and what each is an average of.

    Raises:
        UserError: if there is none, or one cannot be read.
    """
    found = []
    for path in sorted(folder.glob(f"images-*{SUFFIX}")):
        try:
            with safe_open(path, "pt") as file:
                said = json.loads(file.metadata()[SNAPSHOT])
            found.append((path, Profile(PowerEMA(float(said["sigma_rel"])).gamma, int(said["images_seen"]))))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: damaged or not a snapshot of post-hoc EMA; remove it") from error
    check(bool(found), f"{folder}: no snapshots; train with --posthoc_ema.sigma_rel=[0.05,0.1]")
    return found


def weighted_sum(snapshots: Snapshots, shares: list[float], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Σ share · snapshot, summed in float64, one file at a time; in the dtype of `like`.

    Raises:
        UserError: for a snapshot of another network.
    """
    total: dict[str, Tensor] = {}
    for (path, _), share in zip(tqdm(snapshots, unit=" snapshots", leave=False), shares, strict=True):
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
