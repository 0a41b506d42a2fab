"""Analyses of trained models on a GPU; see test_gpu.py."""

import json
from pathlib import Path

import pytest
import torch
from small import DIGITS, here
from test_gpu import DEVICE

pytestmark = pytest.mark.gpu

SETTINGS = [f"--config={DIGITS}", "--model.network.model_channels=8", "--model.network.channel_mult=[1,2]"]
NAMES = {"cpu": "cpu", "cuda": "gpu"}


@pytest.mark.parametrize(
    ("command", "options", "values"),
    [
        ("drift", ["--num_images=8", "--bands=1"], ["drift", "power_drift", "residual_drift"]),
        ("bits", ["--num_images=4", "--steps=4", "--split=train"], ["bpd", "standard_error"]),
    ],
)
def test_analyses_equal_those_of_the_cpu(
    command: str, options: list[str], values: list[str], learned_ckpt: Path, tmp_path: Path
) -> None:
    """Draws are the same on every device, and states are float64: what differs is the network's rounding."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.fail("there is no CUDA device: leave these tests out by -m 'not gpu', or set WARM_TEST_DEVICE=cpu")
    found = []
    for device in ("cpu", DEVICE):
        folder = tmp_path / device
        here(
            command,
            *SETTINGS,
            *("--data.held_out=40", f"--ckpt_path={learned_ckpt}", f"--outdir={folder}", *options),
            f"--accelerator={NAMES[device]}",
        )
        content = json.loads((folder / f"{command}.json").read_text())
        assert content["protocol"]["device"].startswith(device)
        found.append([content[name] for name in values])
    assert found[1] == pytest.approx(found[0], rel=1e-2, abs=1e-4)
