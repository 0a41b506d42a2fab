"""Models of the library diffusers as networks: its U-Net, the transformer DiT, and PRX, a transformer on pixels."""

import copy
import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from warm_lightning.errors import UserError, check, error_text
from warm_lightning.networks.base import Network
from warm_lightning.networks.layers import Linear, PositionalEmbedding
from warm_lightning.paths import expand_checkpoint

CONFIG = "config.json"
"""The file of a folder in the layout of diffusers that names the class of a model and its settings."""

# ---- classes of models


class Family(ABC):
    """A class of diffusers: how it is made for a number of branches, called, and conditioned.

    Attributes:
        sizes: its arguments that follow from those of the network, and are not given in `config`.
        output: name of the last layer.
        tables: the end of the names of tensors that embed classes.
    """

    sizes: tuple[str, ...] = ("sample_size", "in_channels", "out_channels")
    output: str
    tables: str

    @abstractmethod
    def settings(self, branches: int, resolution: int, channels: int, label_dim: int) -> dict[str, Any]:
        """The values of `sizes`, and other arguments that the conditioning needs."""

    @abstractmethod
    def factor(self, model: Any) -> int:
        """The number of which the resolution must be a multiple."""

    @abstractmethod
    def entrances(self, model: Any) -> list[nn.Linear]:
        """The layers whose input is the sinusoidal embedding of the timestep."""

    @abstractmethod
    def call(self, model: Any, x: Tensor, timestep: Tensor, classes: Tensor) -> Tensor:
        """The output [B, branches·C, H, W] for one-hot classes [B, label_dim + 1], of which the last is "no class"."""

    def initialise(self, model: Any) -> None:
        """Set the output of a new model to zero."""
        for parameter in model.get_submodule(self.output).parameters():
            nn.init.zeros_(parameter)

    def rows(self, model: Any, channels: int) -> Tensor:
        """The indices of the last layer's outputs that belong to the first channels of the image."""
        return torch.arange(channels)

    def first_images(self, name: str, source: Tensor, ours: Tensor) -> Tensor | None:
        """A tensor of the first layer of a model with fewer input channels, for this one; None for other tensors."""
        return None


class UNetFamily(Family):
    """`UNet2DModel`: class_labels is an index of `num_class_embeds`, and one more is added for "no class"."""

    output = "conv_out"
    tables = "class_embedding.weight"

    def settings(self, branches: int, resolution: int, channels: int, label_dim: int) -> dict[str, Any]:
        sizes = {"sample_size": resolution, "in_channels": channels, "out_channels": branches * channels}
        return {
            **sizes,
            "num_class_embeds": label_dim + 1 if label_dim else None,
            "class_embed_type": None,
            "time_embedding_type": "positional",
        }

    def factor(self, model: Any) -> int:
        return 2 ** (len(model.config.block_out_channels) - 1)

    def entrances(self, model: Any) -> list[nn.Linear]:
        blocks = (*model.down_blocks, *model.up_blocks)
        # Their skip connection of the image has three channels, whatever out_channels is.
        check(
            not any(hasattr(block, "skip_conv") for block in blocks),
            "model.network.config: the blocks SkipDownBlock2D and SkipUpBlock2D have no branches: choose others",
        )
        return [model.time_embedding.linear_1]

    def call(self, model: Any, x: Tensor, timestep: Tensor, classes: Tensor) -> Tensor:
        labels = classes.argmax(1) if model.class_embedding is not None else None
        return model(x, timestep, class_labels=labels, return_dict=False)[0]


class DiTFamily(Family):
    """`DiTTransformer2DModel` (Peebles & Xie 2023), whose class table has a last row for "no class"."""

    output = "proj_out_2"
    tables = "embedding_table.weight"

    def settings(self, branches: int, resolution: int, channels: int, label_dim: int) -> dict[str, Any]:
        sizes = {"sample_size": resolution, "in_channels": channels, "out_channels": branches * channels}
        return {**sizes, "num_embeds_ada_norm": label_dim, "norm_type": "ada_norm_zero"}

    def factor(self, model: Any) -> int:
        return model.config.patch_size

    def entrances(self, model: Any) -> list[nn.Linear]:
        embeddings = [block.norm1.emb for block in model.transformer_blocks]
        for embedding in embeddings:
            embedding.class_embedder.dropout_prob = 0.0  # the training step hides classes, by its own generator
        return [embedding.timestep_embedder.linear_1 for embedding in embeddings]

    def call(self, model: Any, x: Tensor, timestep: Tensor, classes: Tensor) -> Tensor:
        return model(x, timestep, class_labels=classes.argmax(1), return_dict=False)[0]

    def initialise(self, model: Any) -> None:
        """Set the output of a new model to zero, and every block to the identity (adaLN-Zero; Section 3.2)."""
        super().initialise(model)
        for block in model.transformer_blocks:
            nn.init.zeros_(block.norm1.linear.weight)
            nn.init.zeros_(block.norm1.linear.bias)

    def rows(self, model: Any, channels: int) -> Tensor:
        pixels = model.config.patch_size**2
        return torch.arange(pixels * model.out_channels).view(pixels, -1)[:, :channels].flatten()


class PRXFamily(Family):
    """`PRXTransformer2DModel`: its input has as many channels as its output, so that the image is repeated.

    The class is the one token of its text, a one-hot vector.
    """

    sizes = ("in_channels", "context_in_dim")
    output = "final_layer.linear"
    tables = "txt_in.weight"

    def settings(self, branches: int, resolution: int, channels: int, label_dim: int) -> dict[str, Any]:
        return {"in_channels": branches * channels, "context_in_dim": label_dim + 1}

    def factor(self, model: Any) -> int:
        return model.config.patch_size

    def entrances(self, model: Any) -> list[nn.Linear]:
        return [model.time_in.in_layer]

    def call(self, model: Any, x: Tensor, timestep: Tensor, classes: Tensor) -> Tensor:
        repeated = x.repeat(1, model.in_channels // x.shape[1], 1, 1)
        # It multiplies the time by `time_factor` itself.
        return model(repeated, timestep / model.time_factor, classes[:, None], return_dict=False)[0]

    def rows(self, model: Any, channels: int) -> Tensor:
        return torch.arange(channels * model.patch_size**2)

    def first_images(self, name: str, source: Tensor, ours: Tensor) -> Tensor | None:
        if name not in ("img_in.weight", "img_in.0.weight") or len(source) != len(ours):
            return None
        return torch.cat([source, source.new_zeros(len(source), ours.shape[1] - source.shape[1])], dim=1)


FAMILIES: Mapping[str, Family] = {
    "UNet2DModel": UNetFamily(),
    "DiTTransformer2DModel": DiTFamily(),
    "PRXTransformer2DModel": PRXFamily(),
}

# ---- the network


class DiffusersNetwork(Network):
    """A model of the library diffusers: UNet2DModel, DiTTransformer2DModel or PRXTransformer2DModel.

    Its weights have the names and shapes of diffusers, so that `model.init_from` reads a folder of diffusers, and
    `save_pretrained` writes one. Each branch after the first adds its part of the last layer, and nothing else but
    the first layer of PRX, whose input has as many channels as its output. The signals go these ways:

    * `c_noise`, times `timestep_scale` and plus `timestep_offset`, is the model's timestep. It passes the model's own
      sinusoidal embedding and its layers after that.
    * `c_blur` is embedded without parameters, as in this package's own networks (`layers.embed_levels`):
      reversed(PE(s·c_blur) - PE(0)), with s = `timestep_scale`, is added to the sinusoidal embedding of the timestep
      before its first linear layer, in DiT that of every block. It is 0 for no blur, so that a hot model is the plain
      model of diffusers, and different pairs (c_noise, c_blur) have different embeddings.
    * `class_labels` are indices for the model's own class embedding, which has one row more, the last, for "no class":
      the table of UNet2DModel, added to the embedded timestep; DiT's tables in adaptive layer norms; in PRX a text of
      one token, the one-hot vector of label_dim + 1 numbers. The label dropout of DiT itself is off.
    * `augment_labels` pass a linear map without bias, `map_augment`, whose result is added where the blur is. The map
      is the only tensor that diffusers does not have; sampling needs none of it.

    The last layer of a new model is zero, so that its raw output is exactly 0; blocks of a new DiT are the identity.
    All else is initialised as diffusers does. The strategy `fsdp2` is refused: these models have blocks within blocks,
    and layers of one block that others use.

    Args:
        branches: number of output images.
        model: the class of diffusers.
        resolution: height and width of the images; a multiple of the patch size, or of 2 ** (levels - 1) of the U-Net.
        image_channels: channels of the images.
        label_dim: number of classes, 0 for none.
        augment_dim: length of the augmentation vector, 0 for none.
        config: arguments of the class, such as `block_out_channels`, without those that follow from the other arguments
            here: sizes, channels and classes.
        timestep_scale: timesteps per unit of c_noise. With 250, EDM's c_noise = ln(β)/4 gives timesteps from -388 at
            β = 0.002 to 274 at β = 80, and twice the noise is 43 timesteps more. A c_noise that is a time from 0 to
            1,000 (`Preconditioning.time`) is the timestep itself, whatever this is.
        timestep_offset: a number that is added to the timestep. -1 for weights that were trained in diffusers with the
            process of DDPM, whose steps are 0 to 999 there and 1 to 1,000 here.

    Raises:
        UserError: diffusers is not installed, or does not take these arguments.
    """

    can_shard = False

    def __init__(
        self,
        branches: int,
        *,
        model: Literal["UNet2DModel", "DiTTransformer2DModel", "PRXTransformer2DModel"],
        resolution: int,
        image_channels: int = 3,
        label_dim: int = 0,
        augment_dim: int = 0,
        config: dict[str, Any] | None = None,
        timestep_scale: float = 250.0,
        timestep_offset: float = 0.0,
    ) -> None:
        super().__init__(branches, resolution, image_channels, label_dim, augment_dim)
        check(
            0 < timestep_scale < math.inf,
            f"model.network.timestep_scale is {timestep_scale}: it must be positive and finite",
        )
        self.timestep_scale = timestep_scale
        self.timestep_offset = timestep_offset
        self.time_scale = 1 / timestep_scale
        self.kind = _class(model)
        self.family = FAMILIES[model]
        self.model = self._make(config or {})
        factor = self.family.factor(self.model)
        check(
            resolution % factor == 0,
            f"resolution {resolution} is not a multiple of {factor}, which this {model} needs: change its "
            f"{'patch_size' if hasattr(self.model.config, 'patch_size') else 'levels'}, or the images",
        )
        entrances = self.family.entrances(self.model)
        self.family.initialise(self.model)
        self.map_blur = PositionalEmbedding(entrances[0].in_features)
        if augment_dim:
            self.map_augment = Linear(augment_dim, entrances[0].in_features, bias=False)
        self.signals: Tensor | None = None
        for layer in entrances:
            layer.register_forward_pre_hook(self._add_signals)

    def _make(self, config: Mapping[str, Any]) -> Any:
        """The model of diffusers with the settings of `config`."""
        name = self.kind.__name__
        fixed = self.family.settings(self.branches, self.resolution, self.image_channels, self.label_dim)
        known = inspect.signature(self.kind.__init__).parameters.keys() - {"self"}
        for setting in config:
            check(
                setting not in fixed,
                f"model.network.config.{setting} follows from the network's other arguments: leave it out",
            )
            check(
                setting in known,
                f"model.network.config.{setting} is no argument of {name}, which has {', '.join(sorted(known))}",
            )
        try:
            return self.kind(**config, **fixed)
        except Exception as error:  # diffusers checks little, and some of it in PyTorch
            reason = f"{type(error).__name__}: {error_text(error, 200)}"
            raise UserError(f"model.network.config: {name} does not take these arguments ({reason})") from error

    def _add_signals(self, layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        """Add blur and augmentation to the sinusoidal embedding of the timestep, the input of a layer."""
        assert self.signals is not None
        return inputs[0] + self.signals.to(inputs[0])

    def embed_blur(self, c_blur: Tensor) -> Tensor:
        """The embedding of c_blur [B] that is added to that of the timestep, [B, channels]; 0 for no blur."""
        none = torch.zeros_like(c_blur)
        return (self.map_blur(c_blur * self.timestep_scale) - self.map_blur(none)).flip(1)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        c_blur: Tensor | None = None,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        self.check_images(x)
        one_hot = self.vector("class_labels", class_labels, self.label_dim, x)
        augmentation = self.vector("augment_labels", augment_labels, self.augment_dim, x)
        signals = self.embed_blur(torch.zeros_like(c_noise) if c_blur is None else c_blur)
        if self.augment_dim:
            signals = signals + self.map_augment(augmentation)
        with_none = torch.cat([one_hot, 1 - one_hot.sum(dim=1, keepdim=True)], dim=1)
        self.signals = signals
        timestep = c_noise * self.timestep_scale + self.timestep_offset
        out = self.family.call(self.model, x, timestep, with_none)
        self.signals = None
        return out.unflatten(1, (self.branches, self.image_channels))

    # ------------------------------------------------------------------ weights of diffusers

    def save_pretrained(self, folder: str | Path, c_blur: float = 0.0) -> None:
        """Write the weights as a folder that `from_pretrained` of the class in diffusers reads.

        For images times c_in, the timestep `timestep_scale`·c_noise + `timestep_offset` and the classes of this
        network, that model gives the raw outputs, with the branches one after another in its output channels, at one
        level of blur. For a hot model that is 0. A model of a constant blur-to-noise ratio has c_blur = ln(1 + BNR) at
        all levels; its embedding is constant and becomes part of a bias.

        Args:
            folder: a new or empty folder.
            c_blur: the level of blur.

        Raises:
            UserError: the folder is not empty.
        """
        folder = Path(folder)
        check(
            not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
            f"{folder}: already exists and is not empty; give another folder",
        )
        exported = copy.deepcopy(self).model
        blur = self.embed_blur(torch.tensor([c_blur], dtype=torch.float64))[0]
        with torch.no_grad():
            for layer in self.family.entrances(exported):
                layer.bias.add_(layer.weight @ blur.to(layer.weight))
        exported.save_pretrained(folder, safe_serialization=True)

    def load_pretrained(self, path: str | Path) -> str:
        """Copy the weights of a folder of diffusers into this network, in place.

        * The last layer becomes that of the first branch, and is zero for the others, whose raw output is then 0. The
          first layer of PRX uses the first of its repeated images.
        * Tables of classes that have another size there, or are missing, and `map_augment` stay new.
        * All other tensors must be there in the shapes of this network, and nothing else.

        Args:
            path: the folder, or a file in it.

        Returns:
            A text that says which tensors were copied, and which are new.

        Raises:
            UserError: the folder cannot be read, or is of another class, or of other settings; the first one is named.
        """
        source = _read(path, self.kind)
        given, own = (dict(model.config) for model in (source, self.model))
        sizes = self.family.settings(self.branches, self.resolution, self.image_channels, self.label_dim)
        for name in sorted(own.keys() & given.keys() - sizes.keys() - {"dropout"}):
            there, here = (list(c[name]) if isinstance(c[name], tuple) else c[name] for c in (given, own))
            check(
                there == here or name.startswith("_"),
                f"init_from {path}: {name} is {there} there and {here} in model.network.config: make them the same",
            )
        ours, theirs, new, first = self.model.state_dict(), source.state_dict(), [], []
        rows = self.family.rows(self.model, self.image_channels)
        copied: dict[str, Tensor] = {}
        for name, tensor in ours.items():
            there = theirs.pop(name, None)
            table = name.endswith(self.family.tables)
            if there is not None and there.shape == tensor.shape:
                copied[name] = there
            elif table:
                new.append(name)
            elif there is not None and name.startswith(f"{self.family.output}.") and len(there) == len(rows):
                copied[name] = torch.zeros_like(tensor)
                copied[name][rows] = there.to(tensor)
                first.append(name)
            elif there is not None and (images := self.family.first_images(name, there, tensor)) is not None:
                copied[name] = images
                first.append(name)
            else:
                shape = "absent" if there is None else list(there.shape)
                raise UserError(f"init_from {path}: {name} is {shape} there and {list(tensor.shape)} here")
        unused = [name for name in theirs if not name.endswith(self.family.tables)]
        check(not unused, f"init_from {path}: has {unused[:1]}, which the network lacks")
        self.model.load_state_dict(copied, strict=False)
        if self.augment_dim:
            new.append("map_augment.weight")
        parts = [f"{len(copied) - len(first)} tensors copied"]
        parts += [f"for the first branch only: {', '.join(first)}"] if first else []
        parts += [f"new: {', '.join(new)}"] if new else []
        return f"init_from {path}: {'; '.join(parts)}"


def is_pretrained(path: str | Path) -> bool:
    """Whether a path is a folder of diffusers, or a file in one that is no checkpoint of this package."""
    if Path(path).suffix == ".ckpt":
        return False
    config = _folder(path) / CONFIG
    try:
        return "_diffusers_version" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _folder(path: str | Path) -> Path:
    path = Path(expand_checkpoint(path))
    return path if path.is_dir() else path.parent


def _class(name: str) -> Any:
    """A class of diffusers.

    Raises:
        UserError: the library is not installed, or is of a version without it.
    """
    check(
        find_spec("diffusers") is not None,
        "model.network DiffusersNetwork needs diffusers: pip install 'warm-lightning[diffusers]'",
    )
    import diffusers

    check(
        name in FAMILIES and hasattr(diffusers, name),
        f"model.network.model is {name}: diffusers {diffusers.__version__} has none, or it is none of "
        f"{', '.join(FAMILIES)}",
    )
    return getattr(diffusers, name)


def _read(path: str | Path, kind: Any) -> Any:
    """The model in a folder of diffusers, from safetensors files.

    Raises:
        UserError: the folder cannot be read, is of another class, or lacks tensors.
    """
    folder = _folder(path)
    try:
        document = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        there = document.get("_class_name")
        check(there == kind.__name__, f"init_from {path}: is a {there}, and model.network a {kind.__name__}")
        model, info = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except UserError:
        raise
    except Exception as error:  # a damaged folder may raise any exception
        reason = error_text(error, 200)
        raise UserError(f"init_from {path}: damaged, or no model of diffusers as safetensors ({reason})") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = list(info[problem])
        check(not names, f"init_from {path}: its weights do not fit its {CONFIG}: {problem} {names[:1]}")
    return model
