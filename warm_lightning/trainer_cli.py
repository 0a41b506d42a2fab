"""`warm fit`, `validate` and `test`: the Lightning CLI with the classes of this package, and a folder for each run."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

import warm_lightning.data.datasets
import warm_lightning.data.huggingface
import warm_lightning.metrics
import warm_lightning.networks  # noqa: F401  (short class names in YAML are those of imported classes)
from warm_lightning.callbacks import (
    Checkpoints,
    Expectations,
    ImageProgressBar,
    Interrupt,
    PostHocEMA,
    SampleGrid,
    ScoreSamples,
    TrainingLog,
)
from warm_lightning.callbacks.samples import SAMPLES
from warm_lightning.callbacks.tracking import check_trackers, log_configuration
from warm_lightning.checkpoints import (
    MEANING,
    SECTION,
    check_same_kernel,
    check_same_meaning,
    check_same_model,
    check_same_training,
    check_start,
    check_weights,
    read_checkpoint,
    save_checkpoint,
    with_own_loss,
)
from warm_lightning.data.datamodule import ImageDataModule
from warm_lightning.ema import SNAPSHOTS
from warm_lightning.errors import UserError, building, check, user_errors
from warm_lightning.migrations import accept_old_names, current_option
from warm_lightning.module import DiffusionModule
from warm_lightning.paths import CHECKPOINTS, LAST, expand, expand_in_parsers, expand_settings, folder_lock
from warm_lightning.records import writable_folder, write_file
from warm_lightning.strategies import check_launcher, lost_processes

RUNS = "runs"
ALONE = ("fit", "test")
"""Commands that hold the lock of the run's folder."""
CONFIG = "config.yaml"
"""The whole configuration of a run, in its folder."""
SHORT_OPTIONS = {"--rounds": "--scores.rounds", "--num_images": "--scores.num_images"}
"""Short options of `warm test`, and the options they stand for."""


class SaveConfig(SaveConfigCallback):
    """Writes the whole configuration to `config.yaml` of the run and to the loggers, once training has begun."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing yet: the checkpoint to resume may turn out to be of another model."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not cast(DiffusionModule, pl_module).ended:
            text = self.parser.dump(self.config, skip_unset=False)
            write_file(Path(trainer.default_root_dir) / self.config_filename, text.encode())
            log_configuration(trainer, self.config_filename, text)


class CheckpointFiles(TorchCheckpointIO):
    """Reads and writes checkpoints for Lightning: also those of older formats and exported folders, and whole files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_checkpoint(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path)


class WarmCLI(LightningCLI):
    """The Lightning CLI of this package.

    A run lives in one folder, `trainer.default_root_dir`, by default `runs/` and the names of its YAML files:
    `runs/digits-hot` for `--config configs/digits.yaml --config configs/method/hot.yaml`.

    Args:
        arguments: the command, if any, and its options.
        interrupt: the callback for Ctrl-C.
        run: whether there is a command.
        held: keeps the lock of the run's folder.
    """

    def __init__(
        self,
        arguments: list[str],
        interrupt: Interrupt | None = None,
        run: bool = True,
        held: ExitStack | None = None,
    ) -> None:
        self.held = held or ExitStack()
        quieten()
        accept_old_names()
        expand_in_parsers()
        arguments = [current_option(argument) for argument in arguments]
        refuse_optimizers(arguments)
        self.arguments = arguments
        self.command = arguments[:1] if run else []
        super().__init__(
            DiffusionModule,
            ImageDataModule,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=False,  # nothing here draws from a global generator; see model.seed
            trainer_defaults={
                "max_epochs": -1,  # model.duration, in images, ends training
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,  # the data modules share images out themselves
                "log_every_n_steps": 10,
                "enable_model_summary": False,
                "callbacks": [ImageProgressBar(), TrainingLog(), Expectations(), interrupt or Interrupt()],
            },
            load_from_checkpoint_support=False,
            auto_configure_optimizers=False,  # they would have no effect: see `refuse_optimizers`
            args=arguments,
            run=run,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The Trainer's methods that are commands, each with the arguments that are not options.

        Only the command that is called, if it is one of them, since each takes a quarter of a second to describe.
        """
        hidden = {"model", "dataloaders", "datamodule", "weights_only"}
        commands = {
            "fit": hidden | {"train_dataloaders", "val_dataloaders"},
            "validate": hidden,
            "test": hidden,
        }
        return {name: arguments for name, arguments in commands.items() if name in self.command} or commands

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "test":
            parser.epilog = "Short options: " + ", ".join(f"{s} N is {long} N" for s, long in SHORT_OPTIONS.items())
        return parser

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return super().init_parser(exit_on_error=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(ScoreSamples, "scores")
        parser.add_lightning_class_args(SampleGrid, "samples")
        parser.add_lightning_class_args(PostHocEMA, "posthoc_ema")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let a checkpoint's hyperparameters override the command line."""

    @property
    def settings(self) -> Any:
        """The parsed configuration of the command that runs."""
        return self.config[self.config["subcommand"]] if "subcommand" in self.config else self.config

    def before_instantiate_classes(self) -> None:
        settings = self.settings
        expand_settings(settings)
        if settings.trainer.enable_progress_bar is False:
            callbacks = self.trainer_defaults["callbacks"]
            self.trainer_defaults["callbacks"] = [c for c in callbacks if not isinstance(c, ImageProgressBar)]
        if settings.trainer.default_root_dir is None:
            stems = [Path(str(path)).stem for path in settings.config or []]
            settings.trainer.default_root_dir = str(Path(RUNS) / ("-".join(stems) or "run"))
        folder = settings.trainer.default_root_dir
        check_own_folder([str(path) for path in settings.config or []], folder, self.arguments)
        if self.config.get("subcommand"):
            command, trial = self.config["subcommand"], bool(settings.trainer.fast_dev_run)
            if not trial:
                writable_folder(folder)
                for name in (CHECKPOINTS, SAMPLES, SNAPSHOTS) if command == "fit" else ():
                    if os.path.lexists(place := Path(folder) / name):
                        writable_folder(place)
                if command in ALONE and is_first_process():
                    self.held.enter_context(folder_lock(Path(folder)))
            settings.ckpt_path = resume_path(command, settings.ckpt_path, Path(folder), trial)
            if trial:  # a trial leaves nothing that could be taken for a run
                settings.trainer.default_root_dir = self.held.enter_context(TemporaryDirectory(prefix="warm-"))
            self.init_from = settings.model.init_from
            if settings.ckpt_path:  # it has the weights; the file that training started from may not exist any more
                settings.model.init_from = None

    def _set_seed(self) -> None:
        with building():
            super()._set_seed()

    def instantiate_classes(self) -> None:
        """Make model, data and Trainer with its loggers and callbacks."""
        check_trackers(self.settings.trainer.logger)
        with building():
            super().instantiate_classes()

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if config["logger"] in (None, True):
            # Not in the configuration, which may be used for another folder. The scores of `warm test` are in files.
            folder = config["default_root_dir"]
            default = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
            config["logger"] = default if self.command != ["test"] else False
        return super()._instantiate_trainer(config, callbacks)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        check_launcher(trainer.strategy)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not another one of the user
            trainer.strategy.checkpoint_io = CheckpointFiles()
        return trainer

    def after_instantiate_classes(self) -> None:
        if self.config.get("subcommand"):
            self.settings.model.init_from = self.init_from
        self._dump_config()
        self.model.config = self.config_dump["model"]
        if self.config.get("subcommand") and self.settings.ckpt_path:
            checkpoint, ours = read_checkpoint(self.settings.ckpt_path), self.model.state_dict()
            saved = checkpoint["state_dict"]
            try:
                check_same_model(saved if self.config["subcommand"] == "fit" else with_own_loss(saved, ours), ours)
            except UserError as error:
                raise UserError(f"{error}{own_configuration(self.settings.ckpt_path)}") from error
            stored, source = checkpoint[SECTION]["config"], f"--ckpt_path {self.settings.ckpt_path}"
            check_same_kernel(stored, self.model.config, source)
            if stored:
                check_same_meaning(stored, self.model.config, MEANING, source)
            # Checkpoints of earlier versions, without the data, have settings whose meaning may have changed since.
            if self.config["subcommand"] == "fit" and "data" in checkpoint[SECTION]:
                ended = checkpoint[SECTION]["images_seen"] >= self.model.duration
                check_same_training(stored, self.model.config, ended, source)
            test = self.config["subcommand"] == "test"
            weights = self.settings.scores.weights if test else "ema"
            check_weights(self.settings.ckpt_path, checkpoint, weights, choice=test)
        else:
            check_start(self.model.config, self.model.network)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return super()._prepare_subcommand_kwargs(subcommand) | {"weights_only": True}


def resume_path(command: str, ckpt_path: str | None, folder: Path, trial: bool = False) -> str | None:
    """The checkpoint to start from, read once so that a bad one is found before anything else happens.

    "last" is the last one of the run; `warm fit` starts from the beginning if there is none yet, so that one command
    line serves a first start and every restart, and from the newest of the others if only that file is missing. It is
    the default of `warm validate` and `warm test`.

    Args:
        command: fit, validate or test.
        ckpt_path: as `expand_checkpoint` makes it.
        folder: of the run.
        trial: whether nothing will be written into the folder.
    """
    last = folder / CHECKPOINTS / LAST
    if command == "fit":
        last = newest_checkpoint(last)
    is_of_this_run = is_checkpoint_of(ckpt_path, folder)
    check(
        command != "fit" or is_of_this_run or trial or not last.exists(),
        f"{folder} already holds a run: go on with it by --ckpt_path last, or choose another folder with "
        "--trainer.default_root_dir",
    )
    if command == "fit" and ckpt_path is None:
        return None
    if ckpt_path in (None, "last"):
        if command == "fit" and not last.exists():
            return None
        check(last.exists(), f"{last}: no such checkpoint; train first, or name one with --ckpt_path")
        ckpt_path = str(last)
    checkpoint = read_checkpoint(ckpt_path)
    check(
        command != "fit" or "optimizer_states" in checkpoint,
        f"{ckpt_path}: holds weights only, with which no training can be resumed: start one with --model.init_from",
    )
    seen = checkpoint[SECTION]["images_seen"]
    writes_over = command == "fit" and is_of_this_run and not trial and Path(ckpt_path) != last
    later = images_seen(last) if writes_over else 0
    check(
        later <= seen,
        f"{ckpt_path} has seen {seen:,} images and {last} {later:,}, which would be lost: go on with --ckpt_path last, "
        "or choose another folder with --trainer.default_root_dir",
    )
    return ckpt_path


def is_checkpoint_of(ckpt_path: str | None, folder: Path) -> bool:
    """Whether the checkpoint to start from, as given, is of the run in a folder."""
    return ckpt_path is not None and (
        ckpt_path == "last" or Path(ckpt_path).resolve().parent == (folder / CHECKPOINTS).resolve()
    )


def newest_checkpoint(last: Path) -> Path:
    """The last checkpoint of a run or, if that is missing, the one beside it from which the fewest images are lost."""
    others = [] if last.exists() else [path for path in last.parent.glob("*.ckpt") if images_seen(path)]
    return max(others, key=images_seen, default=last)


def images_seen(path: Path) -> int:
    """The number of images of a checkpoint from which a training can go on; 0 for any other file."""
    try:
        checkpoint = read_checkpoint(path)
    except UserError:
        return 0
    return int(checkpoint[SECTION]["images_seen"]) if "optimizer_states" in checkpoint else 0


def own_configuration(ckpt_path: str) -> str:
    """A hint for an error of another model: the configuration of the checkpoint's run, if it is there."""
    run = Path(ckpt_path).parent.parent
    known = (run / CONFIG).is_file()
    return f"; that run's own is {run / CONFIG}, which `warm test {run}` takes" if known else ""


def check_own_folder(configs: Sequence[str], folder: str, arguments: Sequence[str]) -> None:
    """Check that a run's own configuration is used for that run: a copied or renamed one names the folder it had.

    Raises:
        UserError: it is used for another folder, which no option names.
    """
    given = any(argument.startswith("--trainer.default_root_dir") for argument in arguments)
    for path in map(Path, configs):
        run = path.parent
        of_run = path.name == CONFIG and (run / CHECKPOINTS).is_dir()
        check(
            given or not of_run or Path(folder).resolve() == run.resolve(),
            f"{path} names the folder {folder}, and lies in another: add --trainer.default_root_dir={run} to go on "
            "there, or another folder",
        )


def expand_run(arguments: list[str]) -> list[str]:
    """The arguments of `warm fit RUN`, `validate` and `test`, with the options that the folder of a run stands for.

    Raises:
        UserError: the folder is not that of a run.
    """
    if not arguments or arguments[0].startswith("-"):
        return arguments
    run, others = expand(arguments[0]), arguments[1:]
    config = run / CONFIG
    check(config.is_file(), f"{run}: not the folder of a run, which has a {CONFIG}; or give --config and --ckpt_path")
    return [f"--config={config}", f"--trainer.default_root_dir={run}", "--ckpt_path=last", *others]


def refuse_optimizers(arguments: Sequence[str]) -> None:
    """Check that no option of Lightning's is given for what `model` sets itself.

    Raises:
        UserError: one is.
    """
    for argument in arguments:
        name = argument.partition("=")[0].partition(".")[0]
        check(
            name not in ("--optimizer", "--lr_scheduler"),
            f"{name}: the optimizer is Adam with a ramp of its learning rate, as in the papers: set --model.lr, "
            "--model.lr_ramp, --model.betas and --model.eps",
        )


def is_first_process() -> bool:
    """Whether this process is the first of a run on several devices, by the environment variables of launchers."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return all(os.environ.get(name, "0") in ("0", "") for name in ranks)


def report_thread(error: threading.ExceptHookArgs) -> None:
    """Show the traceback of a thread, unless a file cannot be written: loggers raise that again in the main thread."""
    if not isinstance(error.exc_value, OSError):
        threading.__excepthook__(error)


def quieten() -> None:
    """Silence hints of Lightning that do not apply to this package, and tracebacks of its threads on a full disk."""
    threading.excepthook = report_thread
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for hint in (
        "does not have many workers",
        "args parameter is intended",
        "in eval mode",
        "LeafSpec",
        "returned a view",
        "Grad strides do not match",  # DDP's, of 1×1 kernels, whose strides mean nothing
    ):
        warnings.filterwarnings("ignore", message=f".*{hint}.*")


PLACEHOLDER = (
    "--data=Digits",
    "--model.network=DDPMpp",
    "--model.network.resolution=8",
    "--scores.extractors=[Pixels]",
)
"""The fewest options with which the parser can be made; `Resolver.resolve` replaces them."""


class Resolver(WarmCLI):
    """Resolves options to a configuration without making model or data."""

    def instantiate_classes(self) -> None:
        """Do nothing: only the configuration is needed."""

    def after_instantiate_classes(self) -> None:
        """Do nothing: the configuration of the constructor is a placeholder."""

    def resolve(self, options: Sequence[str]) -> dict[str, Any]:
        """The whole configuration of some options, as plain data."""
        self.config = self.parser.parse_args([current_option(option) for option in options])
        self.before_instantiate_classes()
        vars(self).pop("config_dump", None)  # of earlier options
        self._dump_config()
        return dict(self.config_dump)


@cache
def resolver() -> Resolver:
    """The resolver, made once, since that takes longer than its use."""
    return Resolver([*PLACEHOLDER], run=False)


def spell_out(arguments: list[str]) -> list[str]:
    """The arguments of `warm test` with its short options in full: --scores.rounds for --rounds."""
    names = [argument.partition("=") for argument in arguments]
    return [SHORT_OPTIONS.get(name, name) + equals + value for name, equals, value in names]


def run_trainer(command: str, arguments: list[str]) -> int:
    """Run a command of the Trainer; returns the exit code, 128 and the signal's number if one has ended it."""
    interrupt = Interrupt()
    try:
        with user_errors(), lost_processes(), ExitStack() as held:
            given = expand_run(arguments if command == "fit" else spell_out(arguments))
            WarmCLI([command, *given], interrupt, True, held)
    except SIGTERMException:  # a SystemExit of Lightning's, whose code would be that of success
        return 143
    except SystemExit as end:
        if not interrupt.number and not isinstance(end.__context__, KeyboardInterrupt):
            raise
        return 128 + (interrupt.number or signal.SIGINT)
    return 128 + interrupt.number if interrupt.number else 0
