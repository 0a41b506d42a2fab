"""Models of diffusers as networks: their own outputs, signals and weights; training, restoring and exporting them."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import load_file, save_file
from small import DIGITS, PLAIN, REPOSITORY, here, last, refusal
from test_ddpm import PUBLISHED, assert_network_overlay_combines, conv

from warm_lightning import load_checkpoint, load_config
from warm_lightning.data.stream import InOrder
from warm_lightning.errors import UserError
from warm_lightning.networks import DiffusersNetwork
from warm_lightning.rng import SeedStreams
from warm_lightning.strategies import check_strategy

OVERLAYS = sorted((REPOSITORY / "configs" / "network").glob("diffusers_*.yaml"))
CONFIG: dict[str, dict[str, Any]] = {
    "UNet2DModel": {
        "block_out_channels": [16, 32],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
    },
    "DiTTransformer2DModel": {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "patch_size": 2},
    "PRXTransformer2DModel": {"hidden_size": 32, "num_heads": 2, "depth": 2, "axes_dim": [8, 8], "patch_size": 2},
}
MODELS = list(CONFIG)
LABELS = 3


def network(model: str, branches: int = 2, random: bool = True, **changes: Any) -> DiffusersNetwork:
    """A small network; `random` weights, unlike new ones, let every input reach the output."""
    torch.manual_seed(0)
    settings = {"resolution": 8, "label_dim": LABELS, "augment_dim": 9, "config": CONFIG[model]} | changes
    made = DiffusersNetwork(branches, model=model, **settings)
    if random:
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.2 if parameter.dim() > 1 else 0.5)
    return made.eval()


def inputs() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(4, 3, 8, 8, generator=g),
        "c_noise": torch.tensor([-1.5, -0.3, 0.2, 1.1]),
        "c_blur": torch.tensor([0.0, 0.4, 1.0, 2.4]),
        "class_labels": torch.eye(4)[:, :LABELS],  # the last image has no class
        "augment_labels": torch.randn(4, 9, generator=g),
    }


def plain(model: str, branches: int, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The model as a user of diffusers writes it, with classes and their "no class", and given weights."""
    config = dict(CONFIG[model])
    if model == "PRXTransformer2DModel":
        config |= {"in_channels": 3 * branches, "context_in_dim": LABELS + 1}
    else:
        config |= {"sample_size": 8, "in_channels": 3, "out_channels": 3 * branches}
        config["num_embeds_ada_norm" if "DiT" in model else "num_class_embeds"] = LABELS + ("DiT" not in model)
    made = getattr(diffusers, model)(**config)
    made.load_state_dict(weights)
    return made.eval()


def plain_outputs(made: torch.nn.Module, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """The outputs of diffusers for images of the classes 0, 1, 2 and none, [B, branches, 3, H, W]."""
    classes = torch.arange(LABELS + 1)
    if isinstance(made, diffusers.PRXTransformer2DModel):
        repeated, text = x.repeat(1, made.in_channels // 3, 1, 1), torch.eye(LABELS + 1).to(x)[:, None]
        return made(repeated, timestep / 1000, text).sample.unflatten(1, (-1, 3))
    return made(x, timestep, class_labels=classes).sample.unflatten(1, (-1, 3))


# ---- the model of diffusers


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_without_blur_it_is_the_model_of_diffusers(model: str) -> None:
    ours, given = network(model), inputs()
    x, c_noise, labels = given["x"], given["c_noise"], given["class_labels"]
    truth = plain_outputs(plain(model, 2, ours.model.state_dict()), x, 250 * c_noise)
    assert truth.std() > 0.05
    torch.testing.assert_close(ours(x, c_noise, class_labels=labels), truth, rtol=1e-6, atol=1e-6)
    ours.train()  # in which DiT of diffusers hides a tenth of the classes, by the global generator
    torch.testing.assert_close(ours(x, c_noise, class_labels=labels), truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_every_signal_reaches_the_output_and_zeros_mean_none(model: str) -> None:
    ours, given = network(model), inputs()
    for signal in ("c_blur", "class_labels", "augment_labels"):
        without = ours(**(given | {signal: None}))
        assert torch.equal(without, ours(**(given | {signal: torch.zeros_like(given[signal])})))
        changed = (ours(**given) - without).abs().amax(dim=(1, 2, 3, 4))
        present = given[signal].reshape(4, -1).any(dim=1)
        assert (changed[present] > 1e-3).all(), signal
        assert not changed[~present].any(), signal


@pytest.mark.parametrize("model", MODELS)
def test_levels_are_told_apart(model: str) -> None:
    """All pairs of noise from 0.002 to 80 and BNR from 0 to 8 have different embeddings where they enter the model."""
    ours = network(model)
    noise = torch.linspace(math.log(0.002), math.log(80), 50).div(4)
    blur = torch.cat([torch.zeros(1), torch.logspace(-2, math.log10(8), 29)]).log1p()
    pairs = torch.cartesian_prod(noise, blur)
    seen: list[torch.Tensor] = []
    (entrance, *_) = ours.family.entrances(ours.model)
    entrance.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        ours(torch.zeros(len(pairs), 3, 8, 8), *pairs.unbind(1))
    distances = torch.cdist(seen[0].double(), seen[0].double()) + 1e9 * torch.eye(len(pairs))
    assert distances.min() > 0.05 * seen[0].std()


@pytest.mark.parametrize("model", MODELS)
def test_a_new_network_outputs_zero_and_learns_with_all_its_parameters(model: str) -> None:
    ours, given = network(model, random=False), inputs()
    assert not ours(**given).any()
    before = copy.deepcopy(ours.state_dict())
    optimizer = torch.optim.Adam(ours.train().parameters(), lr=1e-2)
    for _ in range(4):  # the output moves first, then the gates of the blocks, then what is before them
        optimizer.zero_grad()
        (ours(**given) - given["x"][:, None]).square().sum().backward()
        optimizer.step()
    for name, tensor in ours.named_parameters():
        assert (tensor != before[name]).any(), name
    unconditional = network(model, label_dim=0, augment_dim=0)
    unconditional(given["x"], given["c_noise"]).sum().backward()
    assert all(p.grad is not None for p in unconditional.parameters())  # an unused one stops distributed training


def test_compiled_without_a_graph_break() -> None:
    ours, given = network("DiTTransformer2DModel"), inputs()
    expected = ours(**given)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**given), expected, rtol=1e-5, atol=1e-5)


UNET, DIT = "UNet2DModel", "DiTTransformer2DModel"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": UNET, "resolution": 9}, "resolution 9 is not a multiple of 2"),
        ({"model": DIT, "resolution": 9}, "resolution 9 is not a multiple of 2"),
        ({"model": UNET, "config": {"in_channels": 3}}, "config.in_channels follows from"),
        ({"model": DIT, "config": {"depth": 3}}, "config.depth is no argument of DiT"),
        ({"model": UNET, "config": {"block_out_channels": [6, 6]}}, "UNet2DModel does not take these arguments"),
        ({"model": "UNet2DConditionModel"}, "model.network.model is UNet2DConditionModel"),
        ({"model": UNET, "timestep_scale": 0}, "timestep_scale is 0"),
        (
            {"model": UNET, "config": CONFIG[UNET] | {"up_block_types": ["SkipUpBlock2D", "UpBlock2D"]}},
            "SkipUpBlock2D have no branches",
        ),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DiffusersNetwork(2, **({"resolution": 8, "config": CONFIG.get(settings["model"])} | settings))


def test_bad_images() -> None:
    with pytest.raises(UserError, match="resolution"):
        network(DIT)(**(inputs() | {"x": torch.zeros(4, 3, 16, 16)}))


# ---- weights in and out


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("bnr", [0.0, 0.5])
@torch.no_grad()
def test_exported_weights_give_the_same_outputs_in_diffusers(model: str, bnr: float, tmp_path: Path) -> None:
    """At the one level of blur that a model of a constant BNR has, and without blur."""
    ours, given = network(model).double(), {name: tensor.double() for name, tensor in inputs().items()}
    ours.save_pretrained(tmp_path / "out", c_blur=math.log1p(bnr))
    theirs = getattr(diffusers, model).from_pretrained(tmp_path / "out", torch_dtype=torch.float64).eval()
    blur = torch.full((4,), math.log1p(bnr), dtype=torch.float64)
    expected = ours(given["x"], given["c_noise"], blur, given["class_labels"])
    found = plain_outputs(theirs, given["x"], 250 * given["c_noise"])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    if bnr:  # the blur is no small matter
        assert (ours(given["x"], given["c_noise"], None, given["class_labels"]) - expected).abs().max() > 1e-3
    with pytest.raises(UserError, match="not empty"):
        ours.save_pretrained(tmp_path / "out")


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder that diffusers wrote, of a model with one image as output."""
    weights = network(request.param, branches=1).model.state_dict()
    plain(request.param, 1, weights).save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize("source", MODELS, indirect=True)
@torch.no_grad()
def test_weights_of_diffusers_become_the_first_branch(source: Path) -> None:
    model = json.loads((source / "config.json").read_text())["_class_name"]
    ours, given = network(model, random=False), inputs()
    text = ours.load_pretrained(source)
    theirs = getattr(diffusers, model).from_pretrained(source).eval()
    truth = plain_outputs(theirs, given["x"], 250 * given["c_noise"])
    found = ours(given["x"], given["c_noise"], None, given["class_labels"])
    torch.testing.assert_close(found[:, :1], truth, rtol=1e-5, atol=1e-5)
    assert not found[:, 1].any()
    assert ours.family.output + ".weight" in text
    assert "new: map_augment.weight" in text
    # Classes of another number are not known; all else is.
    assert ours.family.tables in network(model, label_dim=5, random=False).load_pretrained(source)


@pytest.mark.parametrize("source", [DIT], indirect=True)
def test_weights_that_mean_something_else_are_refused(source: Path) -> None:
    with pytest.raises(UserError, match="is a DiTTransformer2DModel, and model"):
        network(UNET).load_pretrained(source)
    heads = CONFIG[DIT] | {"num_attention_heads": 4, "attention_head_dim": 8}  # of which tensors show nothing
    with pytest.raises(UserError, match="attention_head_dim is 16 there and 8"):
        network(DIT, config=heads).load_pretrained(source)
    with pytest.raises(UserError, match=r"pos_embed\.proj\.weight"):
        network(DIT, image_channels=1).load_pretrained(source)
    file = source / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if name != "proj_out_1.bias"}, file)
    with pytest.raises(UserError, match=r"missing_keys \['proj_out_1\.bias'\]"):
        network(DIT).load_pretrained(source)
    file.write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="damaged"):
        network(DIT).load_pretrained(source)


@pytest.mark.parametrize("source", [UNET], indirect=True)
def test_a_model_of_ddpm_goes_on_as_it_was(source: Path, tmp_path: Path) -> None:
    """With DDPM's process the timestep, input and output of a model of diffusers are those of its own pipeline."""
    settings = {"model": UNET, "resolution": 8, "label_dim": LABELS, "config": CONFIG[UNET], "timestep_offset": -1}
    overlay = {"model": {"network": {"class_path": "DiffusersNetwork", "init_args": settings}}}
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    shipped = [REPOSITORY / "configs" / name for name in ("leaves8.yaml", "method/ddpm.yaml")]
    module, _ = load_config([*shipped, tmp_path / "overlay.yaml"], {"model.init_from": str(source)})
    model, given = module.model("ema"), inputs()
    theirs = diffusers.UNet2DModel.from_pretrained(source).eval()
    scheduler = diffusers.DDPMScheduler(beta_schedule="linear", clip_sample=False)
    steps = torch.tensor([10, 300, 600, 999])
    noise = torch.randn(4, 3, 8, 8)
    x = scheduler.add_noise(given["x"], noise, steps)
    level = model.process.level(steps + 1.0)  # diffusers counts the steps from 0
    gains = model.process.gains(level, x)
    kept = scheduler.alphas_cumprod[steps].sqrt()
    torch.testing.assert_close(gains.signal[:, 0, 0, 0], kept, rtol=1e-4, atol=1e-6)
    with torch.no_grad(), model.conditioned(None):
        found = model.outputs(x, level, given["class_labels"])
        truth = plain_outputs(theirs, x, steps)
    torch.testing.assert_close(found, truth, rtol=1e-3, atol=2e-3)  # timesteps to 6e-5, times fast sinusoids


# ---- the suite around it


def options(model: str, folder: Path, *more: str) -> list[str]:
    """A training on digits, as arguments of `warm`."""
    settings = {"model": model, "resolution": 8, "image_channels": 1, "config": CONFIG[model]}
    chosen = {"class_path": "DiffusersNetwork", "init_args": settings}
    overlay = {"model": {"network": chosen, "lr": 2e-3, "lr_ramp": 640}}
    folder.mkdir(exist_ok=True)
    (folder / "network.yaml").write_text(yaml.safe_dump(overlay))
    run = ["--data.batch_size=32", f"--trainer.default_root_dir={folder / 'run'}"]
    return [*PLAIN, f"--config={folder / 'network.yaml'}", *run, *more]


def held_loss(checkpoint: Path | None, arguments: list[str]) -> float:
    """The loss on digits at fixed levels and noise, of a checkpoint or of the untrained network."""
    files = [argument.removeprefix("--config=") for argument in arguments if argument.startswith("--config=")]
    module, data = load_config(files)
    model = load_checkpoint(checkpoint).model("raw") if checkpoint else module.model("raw")
    with torch.no_grad(), model.conditioned(None):
        images = InOrder(data.train_images())[range(256)]
        return model.loss(images, SeedStreams(range(256)), training=False)[0].mean().item()


@pytest.mark.parametrize("model", MODELS)
def test_a_training(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The loss falls; a resumed run ends with the same bits; checkpoint and exported folder give the same samples."""
    arguments, run = options(model, tmp_path), tmp_path / "run"
    here("describe", *[argument for argument in arguments if argument.startswith("--config=")])
    assert f"model {model}" in capsys.readouterr().out
    here("fit", *arguments, "--model.duration=640")
    here("fit", *arguments, "--model.duration=1280", "--ckpt_path=last")
    assert held_loss(last(run), arguments) < 0.8 * held_loss(None, arguments)
    whole = options(model, tmp_path / "whole", "--model.duration=1280")
    here("fit", *whole)
    resumed, straight = (load_checkpoint(last(f)) for f in (run, tmp_path / "whole" / "run"))
    for weights in ("ema", "raw"):
        assert resumed.model(weights).weights_hash() == straight.model(weights).weights_hash()
    assert resumed.model("ema").weights_hash() != resumed.model("raw").weights_hash()
    here("export", str(last(run)), str(tmp_path / "exported"))
    exported = load_checkpoint(tmp_path / "exported")
    images = [trained.model().sample(trained.sampler, [0, 1]) for trained in (resumed, exported)]
    assert torch.equal(*images)
    assert images[0].isfinite().all()


def test_a_strategy_that_would_fail_is_refused() -> None:
    with pytest.raises(UserError, match="fsdp2 cannot spread the blocks of a DiffusersNetwork: use ddp"):
        check_strategy(ModelParallelStrategy(), network(DIT))


@pytest.mark.parametrize("source", [UNET], indirect=True)
def test_weights_of_diffusers_for_another_network(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "fit", f"--config={DIGITS}", f"--model.init_from={source}")
    assert "its weights are for model.network DiffusersNetwork" in line


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_network_overlays_combine(overlay: Path) -> None:
    assert_network_overlay_combines(overlay, {"timestep_scale": 250.0, "timestep_offset": 0.0})


def test_the_unet_of_ddpm_on_cifar10() -> None:
    """The overlay is the published network, plus a branch and the map of the augmentation."""
    settings = yaml.safe_load((REPOSITORY / "configs/network/diffusers_unet.yaml").read_text())
    with torch.device("meta"):
        made = DiffusersNetwork(2, **settings["model"]["network"]["init_args"])
    assert sum(p.numel() for p in made.parameters()) == PUBLISHED + conv(128, 3) + 9 * 128
