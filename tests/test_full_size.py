"""The paper's four configurations take training steps, at their full size, on data in their own format."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encode, photographs, store, store_edm, store_lmdb
from PIL import Image
from small import REPOSITORY, here

from warm_lightning.checkpoints import SECTION, read_checkpoint


def cifar10_data(folder: Path, cifar10_zip: Path) -> str:
    """A few members of the JPEG zip, as they are."""
    with zipfile.ZipFile(cifar10_zip) as archive:
        names = [name for name in archive.namelist() if name.endswith(("/0000.jpg", "/0001.jpg"))]
        return store(folder, {name: archive.read(name) for name in names}, "zip")


def ffhq_data(folder: Path, cifar10_zip: Path) -> str:
    images = [np.asarray(Image.fromarray(photo).resize((64, 64))) for photo in photographs(cifar10_zip, 4)]
    return store_edm(folder, images)


def church_data(folder: Path, cifar10_zip: Path) -> str:
    photos = (Image.fromarray(photo).resize((341, 256)) for photo in photographs(cifar10_zip, 4))
    return store_lmdb(folder / "church", {f"{i:040x}": encode(photo, "WEBP") for i, photo in enumerate(photos)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "make", "batch_size", "parameters", "steps"),
    [
        ("cifar10", cifar10_data, 2, 55_740_806, 2),
        ("cifar10_cond", cifar10_data, 2, 55_742_214, 1),
        ("ffhq64", ffhq_data, 1, 62_764_550, 1),
        ("lsun_church128", church_data, 1, 117_956_870, 1),
    ],
)
def test_steps(tmp_path, *, cifar10_zip, config, make, batch_size, parameters, steps):
    here(
        "fit",
        f"--config={REPOSITORY / 'configs' / config}.yaml",
        f"--data.path={make(tmp_path, cifar10_zip)}",
        f"--data.batch_size={batch_size}",
        "--data.num_workers=1",
        f"--trainer.max_steps={steps}",
        "--trainer.accelerator=cpu",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
        "--scores.extractors=[Pixels]",
        "--posthoc_ema.sigma_rel=[]",  # tested elsewhere; two more copies of the network
        # One picture when training ends, by one call of the network.
        "--samples.every=0",
        "--samples.seeds=0",
        "--samples.trajectory=0",
        "--model.sampler.grid.steps=1",
    )
    saved = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    weights = {n: w for n, w in saved["state_dict"].items() if n.startswith("network.")}
    moments = saved["optimizer_states"][0]["state"]
    assert saved["global_step"] == steps
    assert sum(m["exp_avg"].numel() for m in moments.values()) == parameters
    assert all(torch.isfinite(w).all() for w in weights.values())
    assert json.dumps(saved[SECTION]["config"])
    shutil.rmtree(tmp_path / "run")  # pytest would keep gigabytes
