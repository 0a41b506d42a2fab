"""Model and data of commands that take the options of `warm fit`; see `SETTINGS` of this package."""

from collections.abc import Sequence

from warm_lightning.checkpoints import check_same_model, read
from warm_lightning.data import ImageDataModule
from warm_lightning.errors import check
from warm_lightning.lightning_cli import WarmCLI, user_errors
from warm_lightning.module import DiffusionModule


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
        cli = WarmCLI([*settings, "--model.init_from=null"], run=False)
    return cli.model, cli.datamodule


def trained(settings: Sequence[str], ckpt_path: str) -> tuple[DiffusionModule, ImageDataModule]:
    """The same with the weights of a checkpoint or exported folder, in evaluation mode.

    Raises:
        UserError: see `configured`, `checkpoints.read` and `check_same_model`.
    """
    checkpoint = read(ckpt_path)
    module, data = configured(settings)
    check_same_model(checkpoint["state_dict"], module.state_dict())
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval(), data
