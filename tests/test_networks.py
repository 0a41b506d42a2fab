"""DDPM++, NCSN++ and DDPM: counts, names, conditioning, initialisation, precision."""

import copy
import json
import math
import sys
from collections.abc import Callable

import jsonargparse
import pytest
import torch

from warm_lightning.errors import UserError
from warm_lightning.networks import DDPM, DDPMpp, DiffusersNetwork, NCSNpp, Network

CIFAR10 = {"resolution": 32}
FFHQ = {"resolution": 64, "channel_mult": (1, 2, 2, 2)}
LSUN = {
    "resolution": 128,
    "model_channels": 64,
    "channel_mult": (1, 2, 4, 6, 8),
    "num_blocks": 3,
    "attn_resolutions": (8, 16, 32),
    "channels_per_head": 64,
}
FULL_SIZE = {
    # name in edm_parameters.json: class, settings, parameters with one branch and with two.
    # CIFAR-10's second branch is an output convolution of 256 channels: 3·256·9 + 3 = 6,915 more, which is
    # the paper's 55.741 M.
    "cifar10-32x32-uncond": (DDPMpp, CIFAR10, 55_733_891, 55_740_806),
    "cifar10-32x32-cond": (DDPMpp, CIFAR10 | {"label_dim": 10}, 55_735_299, 55_742_214),
    "ffhq-64x64-uncond": (NCSNpp, FFHQ, 62_761_091, 62_764_550),
    "lsun-church-128x128-uncond": (DDPMpp, LSUN, 117_955_139, 117_956_870),
}
FAMILIES = [DDPMpp, NCSNpp, DDPM]
SMALL = {
    "resolution": 8,
    "model_channels": 16,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (8,),
    "channels_per_head": 8,
    "label_dim": 3,
}


def small(family: type[Network], branches: int = 2, random: bool = True, **changes) -> Network:
    """A small network; `random` weights, unlike fresh ones, let every input reach the output."""
    torch.manual_seed(0)
    settings = SMALL | changes
    if family is DDPM:
        settings = {name: value for name, value in settings.items() if name != "channels_per_head"}
    network = family(branches, **settings)
    if random:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2 if parameter.dim() > 1 else 0.5)
    return network.eval()


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(4, 3, 8, 8, generator=g).to(dtype),
        "c_noise": torch.tensor([-1.5, -0.3, 0.2, 1.1]).to(dtype),
        "c_blur": torch.tensor([0.0, 0.4, 1.0, 2.4]).to(dtype),
        "class_labels": torch.eye(4)[:, :3].to(dtype),  # the last image has no class
        "augment_labels": torch.randn(4, 9, generator=g).to(dtype),
    }


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_networks(name, reference_dir):
    """The counts of the papers, and every name and shape of EDM's checkpoints."""
    family, settings, one_branch, two_branches = FULL_SIZE[name]
    truth = json.loads((reference_dir / "edm_parameters.json").read_text())[name]
    with torch.device("meta"):
        baseline, warm = family(1, **settings), family(2, **settings)
    assert {f"model.{n}": list(p.shape) for n, p in baseline.named_parameters()} == truth["parameters"]
    assert {f"model.{n}": list(b.shape) for n, b in baseline.named_buffers()} == truth["buffers"]
    assert sum(p.numel() for p in baseline.parameters()) == truth["trainable_parameters"] == one_branch
    assert sum(p.numel() for p in warm.parameters()) == two_branches
    shapes = {n: p.shape for n, p in baseline.named_parameters()}
    changed = {n for n, p in warm.named_parameters() if p.shape != shapes[n]}
    r = settings["resolution"]
    assert changed == {f"dec.{r}x{r}_aux_conv.weight", f"dec.{r}x{r}_aux_conv.bias"}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_blur_is_edm_bit_for_bit(family):
    network, given = small(family), inputs()
    without = network(**(given | {"c_blur": None}))
    assert torch.equal(without, network(**(given | {"c_blur": torch.zeros(4)})))
    changed = (network(**given) - without).abs().amax(dim=(1, 2, 3, 4))
    assert changed[0] == 0  # its c_blur is 0
    assert (changed[1:] > 1e-3).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("signal", ["class_labels", "augment_labels"])
def test_labels_reach_the_output_and_zeros_mean_none(family, signal):
    network, given = small(family), inputs()
    without = network(**(given | {signal: None}))
    assert torch.equal(without, network(**(given | {signal: torch.zeros_like(given[signal])})))
    changed = (network(**given) - without).abs().amax(dim=(1, 2, 3, 4))
    assert (changed[given[signal].any(dim=1)] > 1e-3).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_are_blocks_of_output_channels(family):
    """A one-branch network with the first half of the output convolution is branch 0 of two, bit for bit."""
    warm, baseline, given = small(family), small(family, branches=1), inputs()
    state = warm.state_dict()
    for name in ("dec.8x8_aux_conv.weight", "dec.8x8_aux_conv.bias"):
        state[name][3:] = 0
        baseline_part = state[name][:3].clone()
        baseline.state_dict()[name].copy_(baseline_part)
    rest = {n: p for n, p in state.items() if "aux_conv" not in n}
    baseline.load_state_dict(rest, strict=False)
    out = warm(**given)
    assert out.shape == (4, 2, 3, 8, 8)
    assert out[:, 0].std() > 0.1
    # Another number of output channels may take another convolution kernel: rounding of float32.
    torch.testing.assert_close(out[:, :1], baseline(**given), rtol=1e-5, atol=1e-5)
    assert not out[:, 1].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_gets_a_gradient(family):
    """In a warm step all parameters do, but attention's key biases: a shift of all of a query's logits."""
    network, given = small(family).double().train(), inputs(torch.float64)
    network(**given).pow(2).sum().backward()
    for name, parameter in network.named_parameters():
        grad = parameter.grad
        assert grad is not None, name
        if name.endswith("qkv.bias"):
            grad = grad.unflatten(0, (-1, 3))
            assert grad[:, 1].abs().max() < 1e-9 * grad.abs().max(), name
            grad = grad[:, [0, 2]]
        assert (grad != 0).all() or "norm" in name, name
        assert grad.abs().max() > 1e-9, name


@pytest.mark.parametrize("family", FAMILIES)
def test_no_parameter_is_unused_without_labels(family):
    """An unused parameter, rather than one with a zero gradient, stops distributed training."""
    network, given = small(family), inputs()
    network(given["x"], given["c_noise"]).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_precisions_agree(family):
    network, given = small(family), inputs()
    double = copy.deepcopy(network).double()
    exact = double(**inputs(torch.float64))
    assert exact.dtype == torch.float64
    scale = exact.std()
    error = (network(**given) - exact).abs().max() / scale
    assert error < 2e-5  # float32 rounding (6e-8) through some 20 layers and random phases of 100 radians
    # The embedding must stay in float32 (a phase of 100 radians has no digits in bfloat16).
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(**given)
    assert (mixed - exact).std() / scale < 0.05  # 8 bits through some 20 layers
    # A float64 network asked in float32 must not fall back to the signals' precision in its layers.
    assert double(**(inputs(torch.float64) | {"c_noise": given["c_noise"]})).dtype == torch.float64


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_format_and_compilation_change_nothing(family):
    network, given = small(family), inputs()
    expected = network(**given)
    close = {"rtol": 1e-4, "atol": 1e-4}  # other kernels, other rounding; outputs are of order 1 to 10
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)  # no graph break
    torch.testing.assert_close(compiled(**given), expected, **close)
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    given["x"] = given["x"].contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(**given), expected, **close)


@pytest.mark.parametrize("family", [DDPMpp, NCSNpp])
def test_initialisation(family):
    """Xavier-uniform bounds √(6/(fan_in + fan_out)), with the scales of the last layers; output almost 0."""
    network = small(family, random=False, model_channels=32)
    scales = {"conv1": 1e-5, "proj": 1e-5, "aux_conv": 1e-5, "qkv": 0.2**0.5}
    for name, parameter in network.named_parameters():
        layer, kind = name.rsplit(".", 2)[-2:]
        if kind == "bias":
            assert not parameter.any(), name
        elif "norm" in layer:
            assert (parameter == 1).all(), name
        else:
            receptive = parameter[0, 0].numel()
            bound = math.sqrt(6 / receptive / (parameter.shape[0] + parameter.shape[1]))
            scale = scales.get(layer.split("_", 1)[-1], 1.0)
            # Of n uniform draws the largest lies within 10/n of the bound (probability 1 - e^-10).
            assert 1 - 10 / parameter.numel() < parameter.abs().max() / (bound * scale) <= 1 + 1e-6, name
    outputs = network(**inputs())
    assert 0 < outputs.abs().max() < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_follows_the_global_seed(family):
    network, given = small(family, dropout=0.5), inputs()

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return network(**given)

    assert torch.equal(run(1), run(2))  # evaluation: none
    network.train()
    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jsonargparse 4.49 renames the method
def test_factory_from_yaml():
    """A configuration names the class and its settings; whoever knows the branches adds them."""
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--network", type=Callable[[int], Network])
    text = """
    network:
      class_path: warm_lightning.networks.DDPMpp
      init_args: {resolution: 8, model_channels: 16, channel_mult: [1, 2], attn_resolutions: [8]}
    """
    network = parser.instantiate_classes(parser.parse_string(text)).network(3)
    assert isinstance(network, DDPMpp)
    assert network.branches == 3
    assert list(network.widths.items()) == [(8, 16), (4, 32)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 10, "channel_mult": (1, 2, 2)}, "resolution 10 is not a multiple of 4"),
        ({"model_channels": 18, "channels_per_head": None}, "model_channels"),
        ({"model_channels": 3}, "model_channels"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"channel_mult": (1, 0)}, "channel_mult"),
        ({"channels_per_head": 5}, "channels_per_head"),
        ({"channels_per_head": -8}, "channels_per_head"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"dropout": 1.0}, "dropout"),
        ({"branches": 0}, "branches"),
        ({"label_dim": -1}, "label_dim"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(UserError, match=message):
        DDPMpp(**({"branches": 1} | SMALL | changes))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("class_labels", (4, 2), "class_labels"),
        ("class_labels", (4,), "class_labels"),
        ("augment_labels", (1, 9), "augment_labels"),
        ("x", (4, 1, 8, 8), "image_channels"),
        ("x", (4, 3, 16, 16), "resolution"),
    ],
)
def test_bad_inputs(name, shape, message):
    with pytest.raises(UserError, match=message):
        small(DDPMpp)(**(inputs() | {name: torch.zeros(shape)}))


def test_labels_for_an_unconditional_network():
    with pytest.raises(UserError, match="class_labels"):
        small(DDPMpp, label_dim=0)(**inputs())


def test_diffusers_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"needs diffusers: pip install 'warm-lightning\[diffusers\]'$"):
        DiffusersNetwork(2, model="UNet2DModel", resolution=8)
