"""`warm convert-edm`: converts EDM's published weights to a checkpoint of this package."""

import math
from pathlib import Path
from typing import Any, cast

from warm_lightning.checkpoints import EMA_PREFIX, RAW_PREFIX, check_new, write_checkpoint
from warm_lightning.config import build_model
from warm_lightning.errors import UserError
from warm_lightning.interop.edm import FAMILIES, load_edm_state
from warm_lightning.interop.edm_snapshot import Snapshot, read_snapshot
from warm_lightning.model import DiffusionModel
from warm_lightning.networks.unet import UNet
from warm_lightning.records import file_hash


def convert_edm(src: Path, dst: Path) -> None:
    """Convert a snapshot of EDM (network-snapshot-*.pkl) to a hot model; nothing in the file is executed.

    The checkpoint can be sampled and scored, and training can start from it with --model.init_from. A snapshot has
    only averaged weights, so they are also stored as the raw weights.

    Args:
        src: the snapshot.
        dst: the checkpoint to write, such as edm.ckpt; the file must not exist.
    """
    check_new(dst)
    snapshot = read_snapshot(src)
    try:
        model, config = hot_model(snapshot)
    except UserError as error:
        raise UserError(f"{src}: {error}") from error
    weights = model.network.state_dict()
    state_dict = {prefix + name: tensor for prefix in (RAW_PREFIX, EMA_PREFIX) for name, tensor in weights.items()}
    source = {"kind": "EDM snapshot", "file": src.name, "sha256": file_hash(src), "images_seen": None}
    write_checkpoint(dst, state_dict, {"config": config, "images_seen": 0, "source": source})
    count = sum(p.numel() for p in model.network.parameters())
    print(f"{dst}: {type(model.network).__name__} with {count:,} parameters, {model.network.resolution} pixels")


def hot_model(snapshot: Snapshot) -> tuple[DiffusionModel, dict[str, Any]]:
    """Build the model of a snapshot; returns it with its configuration.

    Raises:
        UserError: the snapshot's settings make no network, or its tensors do not fit the network.
    """
    low, high = snapshot.sigma_range
    known = {"beta_min": low or None, "beta_max": None if high == math.inf else high}
    model, config = build_model(
        {
            "network": {"class_path": FAMILIES[snapshot.family].__name__, "init_args": dict(snapshot.network)},
            "process": {"class_path": "Hot", "init_args": known},
            "parameterization": "Denoiser",
            "preconditioning": {
                "class_path": "EDMPreconditioning",
                "init_args": {"sigma_data": snapshot.sigma_data},
            },
            "label_dropout": snapshot.label_dropout,
        }
    )
    load_edm_state(cast(UNet, model.network), snapshot.state)
    return model, config
