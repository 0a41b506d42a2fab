"""A check of a machine with one GPU, by tests, speed and a short training: `make gpu-check`, or

    python -m experiments.benchmarks.gpu_check --minutes 5 --data cifar10.zip --out docs/measurements

It runs the tests that need a GPU, measures how fast the full-size networks train, sample and are scored
(`gpu_speed.py`), then trains a configuration by `warm fit` for some minutes, and writes `gpu-check-<device>.json` and a
grid of samples beside it. `--parts` runs some of the three, and keeps the results of the others that are in the file.
No internet is needed. With `--device cpu` and a small configuration the same code can be tried out on a CPU.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.benchmarks.gpu_speed import MODES, measure_inception, measure_sampling, measure_training
from experiments.benchmarks.timing import peak_memory
from warm_lightning import load_checkpoint, records
from warm_lightning.checkpoints import SECTION, read_checkpoint
from warm_lightning.cli import main as warm
from warm_lightning.errors import UserError, check
from warm_lightning.paths import path_argument
from warm_lightning.records import to_json, writable_folder, write_file

REPOSITORY = Path(__file__).resolve().parents[2]

PARTS = ("tests", "speed", "training")
FULL_SIZE = {"configs/cifar10.yaml": 256, "configs/ffhq64.yaml": 128}
"""Configurations whose speed is measured, and images at once: a guess at what 80 GB hold, halved until it fits."""


def run_tests(device: str) -> dict[str, Any]:
    """Run the tests marked `gpu` on a device; returns how many passed, and which failed."""
    # On a CPU compiling takes minutes and half precision is emulated; neither would show anything about a GPU. One
    # system is enough to see that the tests run.
    quick = "not compiled and not mixed_precision and (warm or not every_system)"
    chosen = [] if device == "cuda" else ["-k", quick]
    command = ["-m", "pytest", "-q", "-m", "gpu", *chosen, "tests/test_gpu.py", "tests/test_gpu_analyses.py"]
    environment = os.environ | {"WARM_TEST_DEVICE": device, "PYTHONPATH": str(REPOSITORY)}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run([sys.executable, *command, f"--junitxml={report}"], cwd=REPOSITORY, env=environment, check=False)
        check(report.exists(), "the tests did not run: install pytest (pip install 'warm-lightning[dev]')")
        return {"command": " ".join(["python", *command]), **read_report(report)}


def read_report(path: Path) -> dict[str, Any]:
    """Read pytest's JUnit XML: the number of tests that passed, and the names of all others with the reason."""
    passed, failed = 0, {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        problems = [child for child in case if child.tag in ("failure", "error", "skipped")]
        passed += not problems
        for problem in problems:
            failed[str(case.get("name"))] = str(problem.get("message")).splitlines()[0]
    return {"passed": passed, "failed": failed}


def measure_speed(options: argparse.Namespace) -> dict[str, Any]:
    """The speed of training, sampling and features: on a GPU of full-size configurations, on a CPU of --config."""
    on_gpu = options.device == "cuda"
    sizes = FULL_SIZE if on_gpu else {options.config: 4}
    modes = MODES if on_gpu else {"fp32": MODES["fp32"]}
    limit = options.seconds

    def of(config: str, batch_size: int) -> dict[str, Any]:
        paths, changes = [Path(config)], {"data.batch_size": batch_size}
        kinds = None if on_gpu else modes
        return {
            "training": measure_training(paths, options.device, limit, changes, modes),
            "sampling": measure_sampling(paths, options.device, limit, batch_size=batch_size, modes=kinds),
        }

    speeds = {Path(config).stem: halved_until_it_fits(partial(of, config), size) for config, size in sizes.items()}
    inception = measure_inception(options.device, limit, batch_size=256 if on_gpu else 2)
    return {**speeds, "inception": inception}


def halved_until_it_fits(measure: Callable[[int], dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """A measurement with a batch size, or with the largest half, quarter, … of it that the GPU's memory holds."""
    while True:
        try:
            return measure(batch_size)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
            torch.cuda.empty_cache()


def data_options(data: str | None) -> list[str]:
    """The options for a path of images: torchvision's folder of CIFAR-10, or a folder or zip of image files."""
    if data is None:
        return []
    torchvisions = (Path(data) / "cifar-10-batches-py").is_dir()
    return [f"--data.{'root' if torchvisions else 'path'}={data}"]


def fit(options: argparse.Namespace, folder: Path) -> list[str]:
    """Train into a folder for --minutes; returns the command.

    Raises:
        UserError: if `warm fit` did not end well.
    """
    minutes, seconds = divmod(round(options.minutes * 60), 60)
    command = [
        "fit",
        f"--config={options.config}",
        *data_options(options.data),
        f"--trainer.accelerator={'gpu' if options.device == 'cuda' else options.device}",
        "--trainer.devices=1",
        f"--trainer.precision={options.precision}",
        f"--trainer.max_time=00:{minutes // 60:02}:{minutes % 60:02}:{seconds:02}",
        f"--model.compile={str(options.compile).lower()}",
        "--scores.extractors=[Pixels]",  # nothing is scored, and Inception's weights may not be here
        "--scores.every=0",
        "--samples.every=0",
        "--samples.trajectory=0",
        "--checkpoints.every=0",
        "--checkpoints.keep_every=0",
    ]
    code = warm([*command, f"--trainer.default_root_dir={folder}"])
    check(code == 0, f"`warm fit` ended with exit code {code}; see above")
    return command


def read_log(folder: Path) -> dict[str, Any]:
    """Read a run's TensorBoard log: the loss by images seen, and the images per second after the first half."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    check("train/loss" in events.Tags()["scalars"], "training was too short for a line of its log: give more --minutes")
    loss = [(event.step, event.value) for event in events.Scalars("train/loss")]
    rates = [event.value for event in events.Scalars("train/images_per_second")]
    return {
        # The first lines hold compilation and the choice of kernels.
        "images_per_second": statistics.median(rates[len(rates) // 2 :]),
        "loss_curve": loss,
    }


def train(options: argparse.Namespace, picture: Path) -> dict[str, Any]:
    """Train for --minutes, and write samples to a PNG file; returns the results."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        command = fit(options, folder)
        last = folder / "checkpoints" / "last.ckpt"
        trained = load_checkpoint(last)
        samples = max((folder / "samples").glob("samples-*.png"))
        write_file(picture, samples.read_bytes())
        return {
            "command": "warm " + " ".join(command),
            "parameters": sum(p.numel() for p in trained.model().network.parameters()),
            "images_seen": trained.images_seen,
            **read_log(folder),
            "nonfinite_gradients": read_checkpoint(last)[SECTION]["nonfinite_gradients"],
            "peak_memory_bytes": peak_memory(options.device),
            "seconds": round(time.perf_counter() - began, 1),
            "samples": f"{picture.name}: seeds 0-63, averaged weights, NFE {trained.sampler.nfe}",
        }


def run(options: argparse.Namespace) -> int:
    """Run the parts and write their results; returns the exit code, 1 if a test failed."""
    check(
        options.device != "cuda" or torch.cuda.is_available(),
        "no GPU here that PyTorch can use: run this where there is one, or try it out with "
        "--device cpu --config configs/digits.yaml --minutes 0.2",
    )
    check(options.minutes > 0, f"--minutes {options.minutes}: must be positive")
    machine = records.machine(options.device)
    out = writable_folder(options.out)
    name = "gpu-check-" + re.sub(r"[^a-z0-9]+", "-", machine.get("gpu", "cpu").lower()).strip("-")
    path = out / f"{name}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    report = {"machine": machine, **{part: known[part] for part in PARTS if part in known}}
    stages = {
        "tests": lambda: run_tests(options.device),
        "speed": lambda: measure_speed(options),
        "training": lambda: train(options, out / f"{name}.png"),
    }
    for part in options.parts:
        report[part] = stages[part]()
        write_file(path, to_json(report).encode())  # now: a later part may run out of time
    print(f"\n{machine.get('gpu', machine['cpu'])}", *summary(report), f"written to {path}", sep="\n")
    return 1 if "tests" in options.parts and report["tests"]["failed"] else 0


def summary(report: dict[str, Any]) -> Iterator[str]:
    """The results in words, a line at a time."""
    if "tests" in report:
        tests = report["tests"]
        yield f"{tests['passed']} tests passed, {len(tests['failed'])} failed"
        yield from (f"  {test}: {reason}" for test, reason in tests["failed"].items())
    speed = dict(report.get("speed", {}))
    if inception := speed.pop("inception", None):
        yield f"Inception: {inception['images_per_second']:.0f} images/s"
    for config, measured in speed.items():
        for mode, result in measured["training"]["modes"].items():
            rest = 100 * sum(measured["training"]["shares"][mode].values())
            rate, gain, memory = (result[n] for n in ("images_per_second", "speed_over_first", "peak_memory_bytes"))
            yield (
                f"{config}, training, {mode}: {rate:.0f} images/s, {gain:.2f} times the first, "
                f"{memory / 2**30:.1f} GiB, {rest:.1f} % of it data, augmentation and blur"
            )
        for mode, result in measured["sampling"]["modes"].items():
            yield f"{config}, sampling at NFE {result['nfe']}, {mode}: {result['images_per_second']:.1f} images/s"
    if "training" in report:
        training = report["training"]
        yield (
            f"{training['command']}: {training['images_per_second']:.0f} images/s, "
            f"{training['peak_memory_bytes'] / 2**30:.2f} GiB, loss {training['loss_curve'][0][1]:.4g} → "
            f"{training['loss_curve'][-1][1]:.4g} in {training['images_seen']} images"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.gpu_check", description="GPU tests, and some minutes of training."
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to run (default: all)")
    parser.add_argument("--seconds", type=float, default=10, help="for each measurement of speed (default: 10)")
    parser.add_argument("--minutes", type=float, default=5, help="of training, compilation included (default: 5)")
    parser.add_argument(
        "--data", type=path_argument, help="folder or zip of images, or torchvision's folder of CIFAR-10"
    )
    parser.add_argument(
        "--out", type=path_argument, default="docs/measurements", help="folder to write to (default: %(default)s)"
    )
    parser.add_argument(
        "--config", type=path_argument, default="configs/cifar10.yaml", help="what to train (default: %(default)s)"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu is to try this out")
    parser.add_argument("--precision", help="of the trainer; bf16-mixed if not given, 32-true on a CPU")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="the network; if not given, on a GPU only"
    )
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    options.precision = options.precision or ("bf16-mixed" if on_gpu else "32-true")
    options.compile = on_gpu if options.compile is None else options.compile
    try:
        return run(options)
    except UserError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
