"""DDPM's network: its published size, and the same outputs as a second implementation."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from warm_lightning import load_config
from warm_lightning.networks import DDPM

REPOSITORY = Path(__file__).resolve().parent.parent
NETWORKS = sorted((REPOSITORY / "configs" / "network").glob("*.yaml"))
OVERLAYS = [path for path in NETWORKS if not path.stem.startswith("diffusers_")]
"""The others are for tests/extras, where diffusers is."""
PUBLISHED = 35_746_307
"""Trainable parameters on CIFAR-10, unconditional (Ho et al. 2020: 35.7 million)."""


def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    """Parameters of a convolution."""
    return inputs * outputs * kernel**2 + outputs


def residual(inputs: int, outputs: int) -> int:
    """Two norms and convolutions, the embedding's projection, and a 1×1 shortcut where the width changes."""
    shortcut = conv(inputs, outputs, 1) if inputs != outputs else 0
    return 2 * inputs + conv(inputs, outputs) + conv(512, outputs, 1) + 2 * outputs + conv(outputs, outputs) + shortcut


def attention(width: int) -> int:
    """A norm, queries, keys, values, output."""
    return 2 * width + 4 * conv(width, width, 1)


def test_published_size():
    """Counted part by part."""
    embedding = conv(128, 512, 1) + conv(512, 512, 1)
    down = conv(3, 128) + 2 * residual(128, 128) + conv(128, 128)
    down += residual(128, 256) + residual(256, 256) + 2 * attention(256) + conv(256, 256)
    down += 2 * residual(256, 256) + conv(256, 256) + 2 * residual(256, 256)
    middle = 2 * residual(256, 256) + attention(256)
    up = 3 * residual(512, 256) + conv(256, 256)  # each takes up a feature map of the way down, here 256 wide
    up += 3 * residual(512, 256) + conv(256, 256)
    up += 2 * residual(512, 256) + residual(384, 256) + 3 * attention(256) + conv(256, 256)
    up += residual(384, 128) + 2 * residual(256, 128)
    original = embedding + down + middle + up + 2 * 128 + conv(128, 3)
    assert original == PUBLISHED
    for branches, label_dim, augment_dim in [(1, 0, 0), (2, 0, 0), (1, 10, 0), (2, 0, 9)]:
        with torch.device("meta"):
            network = DDPM(branches, resolution=32, label_dim=label_dim, augment_dim=augment_dim)
        more = (branches - 1) * conv(128, 3) + (conv(label_dim, 128, 1) if label_dim else 0) + augment_dim * 128
        assert sum(p.numel() for p in network.parameters()) == original + more


class Published:
    """DDPM as its paper describes it, with the weights of ours: none of our layers, and the loops written out."""

    def __init__(self, state: dict[str, Tensor], levels: int, attends: int) -> None:
        self.state, self.levels, self.attends = state, levels, attends

    def conv(self, name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **options)

    def dense(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        grouped = x.unflatten(1, (-1, 4))  # 4 channels a group, below 128
        mean, variance = grouped.mean((2, 3, 4), keepdim=True), grouped.var((2, 3, 4), keepdim=True, correction=0)
        x = ((grouped - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
        return x * self.state[f"{name}.weight"][:, None, None] + self.state[f"{name}.bias"][:, None, None]

    def residual(self, name: str, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv(f"{name}.conv0", F.silu(self.norm(f"{name}.norm0", x)), padding=1)
        h = h + self.dense(f"{name}.affine", F.silu(emb))[:, :, None, None]
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", h)), padding=1)
        return h + (self.conv(f"{name}.skip", x) if f"{name}.skip.weight" in self.state else x)

    def attention(self, name: str, x: Tensor) -> Tensor:
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x)).flatten(2)
        q, k, v = qkv[:, 0::3], qkv[:, 1::3], qkv[:, 2::3]
        weights = torch.einsum("bcp,bcq->bpq", q, k).div(math.sqrt(q.shape[1])).softmax(2)
        return x + self.conv(f"{name}.proj", torch.einsum("bpq,bcq->bcp", weights, v).reshape(x.shape))

    def block(self, name: str, x: Tensor, emb: Tensor) -> Tensor:
        x = self.residual(name, x, emb)
        return self.attention(name, x) if x.shape[-1] == self.attends else x

    def __call__(self, x: Tensor, c_noise: Tensor) -> Tensor:
        half = self.state["map_layer0.weight"].shape[1] // 2
        phase = c_noise[:, None] * torch.exp(-math.log(10000) * torch.arange(half).to(x) / (half - 1))
        emb = F.silu(self.dense("map_layer0", torch.cat([phase.sin(), phase.cos()], 1)))
        emb = self.dense("map_layer1", emb)
        sizes = [x.shape[-1] >> level for level in range(self.levels)]
        x = self.conv(f"enc.{sizes[0]}x{sizes[0]}_conv", x, padding=1)
        kept = [x]
        for r in sizes:
            if r != sizes[0]:
                # "SAME" padding of an even size at stride 2 is on one side only.
                x = self.conv(f"enc.{r}x{r}_down", F.pad(x, (0, 1, 0, 1)), stride=2)
                kept.append(x)
            for i in range(2):
                x = self.block(f"enc.{r}x{r}_block{i}", x, emb)
                kept.append(x)
        middle = f"dec.{sizes[-1]}x{sizes[-1]}_in"
        x = self.attention(f"{middle}0", self.residual(f"{middle}0", x, emb))
        x = self.residual(f"{middle}1", x, emb)
        for r in reversed(sizes):
            if r != sizes[-1]:
                x = self.conv(f"dec.{r}x{r}_up", x.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
            for i in range(3):
                x = self.block(f"dec.{r}x{r}_block{i}", torch.cat([x, kept.pop()], 1), emb)
        assert not kept
        last = f"dec.{sizes[0]}x{sizes[0]}_aux"
        return self.conv(f"{last}_conv", F.silu(self.norm(f"{last}_norm", x)), padding=1)


def test_outputs_are_the_published_networks():
    settings = {"model_channels": 8, "channel_mult": (1, 2, 2), "attn_resolutions": (8,), "augment_dim": 0}
    torch.manual_seed(0)
    network = DDPM(2, resolution=16, **settings).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2 if parameter.dim() > 1 else 0.5)
    x, c_noise = torch.randn(3, 3, 16, 16).double(), torch.tensor([-1.4, 0.1, 300.0]).double()
    expected = Published(network.state_dict(), levels=3, attends=8)(x, c_noise).unflatten(1, (2, 3))
    assert expected.std() > 0.1
    torch.testing.assert_close(network(x, c_noise), expected, rtol=1e-9, atol=1e-9)


def test_initialisation():
    """Xavier-uniform; last layers zero, so that a fresh network says nothing and yet all of it learns."""
    torch.manual_seed(0)
    network = DDPM(2, resolution=8, model_channels=32, channel_mult=(1, 2), attn_resolutions=(8,))
    for name, parameter in network.named_parameters():
        layer, kind = name.rsplit(".", 2)[-2:]
        if "norm" in layer and kind == "weight":
            assert (parameter == 1).all(), name
        elif kind == "bias" or layer in ("conv1", "proj") or layer.endswith("aux_conv"):
            assert not parameter.any(), name
        else:
            outputs = len(parameter) // (3 if layer == "qkv" else 1)  # three layers in one
            bound = math.sqrt(6 / parameter[0, 0].numel() / (outputs + parameter.shape[1]))
            # Of n uniform draws the largest lies within 10/n of the bound (probability 1 - e^-10).
            assert 1 - 10 / parameter.numel() < parameter.abs().max() / bound <= 1 + 1e-6, name
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    x, c, told = torch.randn(4, 3, 8, 8), torch.randn(4), torch.randn(4, 9)
    assert not network(x, c, augment_labels=told).any()
    for _ in range(3):  # the output moves first, then the last layers of the branches, then what is before them
        optimizer.zero_grad()
        (network(x, c, augment_labels=told) - x[:, None]).square().sum().backward()
        optimizer.step()
    for name, parameter in network.named_parameters():
        assert (parameter != before[name]).any(), name


def assert_network_overlay_combines(overlay: Path, defaults: dict[str, Any]) -> None:
    """Nothing of the recipe's own network is left, and nothing but the network changes."""
    recipe = REPOSITORY / "configs" / "cifar10.yaml"
    module, _ = load_config([recipe, overlay])
    plain, _ = load_config(recipe)
    stated = yaml.safe_load(overlay.read_text())
    assert list(stated) == ["model"]
    assert list(stated["model"]) == ["network"]
    assert {**plain.config, "network": None} == {**module.config, "network": None}
    network = module.config["network"]
    assert network["class_path"].endswith(stated["model"]["network"]["class_path"])
    assert network["init_args"] == {**defaults, **stated["model"]["network"]["init_args"]}


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_network_overlays_combine(overlay: Path):
    assert_network_overlay_combines(overlay, {"channels_per_head": None})


def test_ddpm_on_cifar10():
    module, _ = load_config([REPOSITORY / "configs" / "cifar10.yaml", REPOSITORY / "configs" / "network" / "ddpm.yaml"])
    # Two branches, and an augmentation that the network is told of.
    assert sum(p.numel() for p in module.network.parameters()) == PUBLISHED + conv(128, 3) + 9 * 128
    assert module.network.dropout == 0.1
