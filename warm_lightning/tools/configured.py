"""Model and data of commands that take the options of `warm fit`; see `SETTINGS` of this package."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from warm_lightning.checkpoints import SECTION, check_same_meaning, check_same_model, read
from warm_lightning.data import ImageDataModule, ImageSet
from warm_lightning.errors import check
from warm_lightning.lightning_cli import WarmCLI, user_errors
from warm_lightning.module import DiffusionModule

ANYWHERE = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--trainer.strategy=auto",
    "--trainer.precision=32-true",
]


def configured(settings: Sequence[str]) -> tuple[DiffusionModule, ImageDataModule]:
    """The untrained module and the data, not yet prepared, of options such as --config=configs/digits.yaml.

    Raises:
        UserError: there is no --config, or a file, name or value is wrong.
    """
    check(
        any(setting.startswith("--config=") for setting in settings),
        "--config is missing: name the YAML file of the data and model, such as --config configs/digits.yaml",
    )
    with user_errors():
        # A configuration made for eight GPUs would want them for the Trainer, which is not used here.
        cli = WarmCLI([*settings, "--model.init_from=null", *ANYWHERE], run=False)
    return cli.model, cli.datamodule


NETWORK = ("--model.network=DDPMpp", "--model.network.resolution=8")


class Resolved(WarmCLI):
    """Parses only."""

    def instantiate_classes(self) -> None:
        """Nothing is needed but the configuration."""

    def after_instantiate_classes(self) -> None:
        """Nor a dump of this one."""

    def resolve(self, options: Sequence[str]) -> dict[str, Any]:
        """The whole configuration of some options, as plain data."""
        self.config = self.parser.parse_args(list(options))
        self.before_instantiate_classes()
        vars(self).pop("config_dump", None)  # of earlier options
        self._dump_config()
        return dict(self.config_dump)


@cache
def resolver() -> Resolved:
    """One for all, since it takes longer to make than to use."""
    return Resolved(["--data=Digits", *NETWORK, "--scores.extractors=[Pixels]"], run=False)


def resolve(options: Sequence[str]) -> dict[str, Any]:
    """The whole configuration of some options of `warm fit`, by section, as plain data with all defaults.

    Raises:
        UserError: a file, name or value is wrong.
    """
    with user_errors():
        return resolver().resolve(options)


def trained(settings: Sequence[str], ckpt_path: str) -> tuple[DiffusionModule, ImageDataModule]:
    """The same with the weights of a checkpoint or exported folder, in evaluation mode.

    Raises:
        UserError: see `configured`, `checkpoints.read`, `check_same_model` and `check_same_meaning`; the process may be
            another, as when a plane model is to follow another path.
    """
    checkpoint = read(ckpt_path)
    module, data = configured(settings)
    check_same_model(checkpoint["state_dict"], module.state_dict())
    theirs = checkpoint[SECTION]["config"]
    if theirs and module.config:
        sections = ("network", "preconditioning", "parameterization")
        check_same_meaning(theirs, module.config, sections, f"--ckpt_path {ckpt_path}")
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval(), data


def open_split(data: ImageDataModule, split: str) -> ImageSet:
    """The images of a split; raises UserError where the data have none."""
    data.prepare_data()
    images = data.train_images() if split == "train" else data.held_out_images()
    check(images is not None, "the data have no held-out images: set them aside in --data, or ask for --split train")
    assert images is not None
    return images
