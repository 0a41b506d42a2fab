"""The short help of `warm fit`: the options that people use, with the defaults that the signatures in the source have.

The sources are read as text, since importing them takes seconds.
"""

import ast
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from warm_lightning.shipped import PACKAGE

SOURCES = {
    "model": ("module.py", "DiffusionModule"),
    "model.network": ("networks/unet.py", "UNet"),
    "model.process.path": ("processes/warm.py", "ConstantBNR"),
    "data": ("data/datamodule.py", "ImageDataModule"),
    "scores": ("callbacks/scores.py", "ScoreSamples"),
    "samples": ("callbacks/samples.py", "SampleGrid"),
    "checkpoints": ("callbacks/checkpoints.py", "Checkpoints"),
    "trainer": ("pytorch/trainer/trainer.py", "Trainer"),
}
"""The file and the class of the parameters of each group of options; that of the Trainer is in Lightning's package."""
OPTIONS = {
    "config": "a YAML file, or the name of a shipped one; may be given several times, and later ones win",
    "ckpt_path": "a checkpoint to go on from; last is that of the run, if there is one already",
    "trainer.default_root_dir": "the folder of the run; if not given, runs/ and the names of the configurations",
    "trainer.accelerator": "cpu, gpu, mps, or auto for the best there is",
    "trainer.devices": "the number of devices, or which",
    "trainer.precision": "such as bf16-mixed, for GPUs; float32 if not given",
    "trainer.accumulate_grad_batches": "the number of parts of a batch that does not fit into memory at once",
    "data.path": "the folder or zip of the images, where a data set has one",
    "data.batch_size": "images in a step, of all devices together",
    "data.num_workers": "processes that read images; 0 for none",
    "model.process.path.bnr": "the blur-to-noise ratio; 0 is EDM",
    "model.network.model_channels": "the width of the network",
    "model.duration": "images to train on",
    "model.lr": "the learning rate, after its ramp",
    "model.seed": "of weights, order, noise and dropout; the same seed gives the same bits",
    "model.init_from": "a checkpoint whose averaged weights training starts from",
    "model.compile": "whether to compile the network; worth its minutes on a GPU",
    "samples.every": "images between grids of samples; 0 for none on the way",
    "scores.every": "images between scores; 0 for none on the way",
    "checkpoints.every": "images between savings of last.ckpt",
}
"""The options that people use, without the dashes, each with what it is."""
HELP = """usage: warm fit --config NAME [--config NAME …] [--OPTION VALUE …]
       warm fit RUN

Train a model, or go on with the run in a folder.

{options}

These are twenty options of many. The defaults are those of the code, and configurations have their own values:
  warm fit                                  the configurations that come with this program
  warm fit --help=all                       all options
  warm fit --model.process.help Warm        the options of a class
  warm fit --config digits --print_config   all values of a configuration
"""


def short_help() -> str:
    """The help of `warm fit`: the usage, twenty options with their defaults, and how to see all."""
    width = max(map(len, OPTIONS))
    lines = []
    for option, text in OPTIONS.items():
        value = default_of(option)
        lines.append(f"  --{option:<{width}}  {text}{f' (default: {value})' if value is not None else ''}")
    return HELP.format(options="\n".join(lines)).rstrip()


def default_of(option: str) -> str | None:
    """The default of an option as it would be typed; None where it has none or it is None."""
    group, _, parameter = option.rpartition(".")
    return signature_defaults(*SOURCES[group]).get(parameter) if group else None


@cache
def signature_defaults(file: str, class_name: str) -> dict[str, str]:
    """The defaults of the parameters of a class that are plain values other than None, as they would be typed.

    Args:
        file: of the source, in this package, or in Lightning's.
        class_name: the class in it.
    """
    path = PACKAGE / file
    if not path.exists():
        lightning = find_spec("lightning")
        assert lightning is not None
        assert lightning.origin is not None
        path = Path(lightning.origin).parent / file
    source = path.read_text(encoding="utf-8")
    (kind,) = (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == class_name)
    (init,) = (n for n in kind.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    positional = init.args.args[len(init.args.args) - len(init.args.defaults) :]
    parameters = [*zip(positional, init.args.defaults, strict=True)]
    parameters += [(a, d) for a, d in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True) if d]
    constants = {a.arg: d for a, d in parameters if isinstance(d, ast.Constant) and d.value is not None}
    return {name: as_typed(d.value, ast.get_source_segment(source, d) or "") for name, d in constants.items()}


def as_typed(value: object, source: str) -> str:
    """A value as an option would have it: 200e6 stays as the source has it, and True becomes true."""
    if isinstance(value, str):
        return value
    return source if isinstance(value, float) else json.dumps(value)
