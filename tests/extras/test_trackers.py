"""W&B, MLflow, TensorBoard and CSV files have values, pictures and configuration, read back from what each stored."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
import yaml
from mlflow.tracking import MlflowClient
from PIL import Image
from small import REPOSITORY, SMALL, fit, here, refusal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_documents import blocks
from wandb.proto.wandb_internal_pb2 import Record

URI = "sqlite:///mlflow.db"
TRACKERS = ("wandb", "mlflow", "tensorboard", "csv")

Values = dict[str, dict[int, float]]
Pictures = dict[tuple[str, int], np.ndarray]


def write_loggers(*files: str) -> str:
    """Write all loggers of some files of docs/how-to/trackers.md to one file; gives the option that reads it."""
    page = REPOSITORY / "docs" / "how-to" / "trackers.md"
    loggers: list[dict[str, Any]] = []
    for language, code in blocks(page):
        if language == "yaml" and code.startswith(tuple(f"# {file}\n" for file in files)):
            found = yaml.safe_load(code)["trainer"]["logger"]
            loggers += found if isinstance(found, list) else [found]
    Path("all.yaml").write_text(yaml.safe_dump({"trainer": {"logger": loggers}}))
    return "--config=all.yaml"


def warm(*arguments: str) -> None:
    here(*arguments)
    wandb.finish()  # which happens by itself at the end of a process


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder where a training with all loggers, its continuation with a longer duration, and `warm test` have run."""
    folder = tmp_path_factory.mktemp("trackers")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pictures = ["--samples.every=160", "--samples.trajectory=2", "--trainer.log_every_n_steps=5"]
        scores = ["--scores.every=320", "--scores.every_num_images=16"]
        start = ["fit", *SMALL, *pictures, *scores]
        loggers = write_loggers("wandb.yaml", "mlflow.yaml", "files.yaml")
        warm(*start, loggers, "--trainer.default_root_dir=runs/digits-files", "--model.duration=320")
        loggers = write_loggers("wandb.yaml", "mlflow_again.yaml", "files.yaml")
        text = Path("all.yaml").read_text()
        assert "0123456789abcdef0123456789abcdef" in text
        Path("all.yaml").write_text(text.replace("0123456789abcdef0123456789abcdef", mlflow_run().info.run_id))
        warm("fit", "runs/digits-files", loggers, "--model.duration=640")
        warm("test", "runs/digits-files")
        warm(*start, "--trainer.logger=false", "--trainer.default_root_dir=plain", "--model.duration=640")
        yield folder


def mlflow_run() -> Any:
    """The only run of the database."""
    client = MlflowClient(URI)
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return run


def read_mlflow(place: Path) -> tuple[Values, Pictures]:
    client, run = MlflowClient(URI), mlflow_run()
    identity = run.info.run_id
    values = {n: {m.step: m.value for m in client.get_metric_history(identity, n)} for n in run.data.metrics}
    pictures = {}
    for artifact in client.list_artifacts(identity, "images"):
        key, _, step, *_ = Path(artifact.path).name.split("+")
        if artifact.path.endswith(".png"):
            path = client.download_artifacts(identity, artifact.path)
            pictures[key.replace("~", "/"), int(step)] = np.array(Image.open(path))
    return values, pictures


def wandb_records(folder: Path) -> Iterator[Record]:
    """The records of an offline run, whose file is LevelDB's log after seven bytes: blocks of 32 KiB with fragments."""
    (path,) = folder.glob("*.wandb")
    data, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        if left < 7 or kind == 0:  # the rest of the block is empty
            position += left
            continue
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last fragment of one
            yield Record.FromString(whole)
            whole = b""


def read_wandb(place: Path) -> tuple[Values, Pictures]:
    values: Values = defaultdict(dict)
    pictures = {}
    for folder in place.glob("runs/wandb/offline-run-*-digits-warm"):
        for record in wandb_records(folder):
            items = {item.key or "|".join(item.nested_key): item.value_json for item in record.history.item}
            step = int(items.pop("trainer/global_step", -1))
            for name, text in items.items():
                key, _, field = name.partition("|")
                if field == "filenames":
                    (path,) = json.loads(text)
                    pictures[key, step] = np.array(Image.open(folder / "files" / path))
                elif not field and not name.startswith("_"):
                    values[name][step] = float(json.loads(text))
    return values, pictures


def read_tensorboard(place: Path) -> tuple[Values, Pictures]:
    values: Values = defaultdict(dict)
    pictures = {}
    for path in place.glob("runs/digits-files/events.out.*"):
        events = EventAccumulator(str(path), size_guidance={"images": 0, "scalars": 0}).Reload()
        for name in events.Tags()["scalars"]:
            values[name] |= {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["images"]:
            for event in events.Images(name):
                pictures[name, event.step] = np.array(Image.open(BytesIO(event.encoded_image_string)))
    values.pop("hp_metric")  # which Lightning writes with hyperparameters
    return values, pictures


def read_csv(place: Path) -> tuple[Values, Pictures]:
    values: Values = defaultdict(dict)
    pictures = {}
    run = place / "runs" / "digits-files"
    for folder in run.glob("csv/version_*"):
        for row in csv.DictReader((folder / "metrics.csv").open()):
            step = int(row.pop("step"))
            for name, text in row.items():
                if text:
                    values[name][step] = float(text)
        if (folder / "pictures.csv").exists():
            for row in csv.DictReader((folder / "pictures.csv").open()):
                pictures[row["key"], int(row["step"])] = np.array(Image.open(run / row["path"]))
    return values, pictures


READERS = {"wandb": read_wandb, "mlflow": read_mlflow, "tensorboard": read_tensorboard, "csv": read_csv}


@pytest.mark.parametrize("tracker", TRACKERS)
def test_values_are_those_of_the_run_over_images_seen(tracker: str, place: Path) -> None:
    values, _ = READERS[tracker](place)
    # The ramp of the learning rate in closed form: 1.5e-3 after 3,200 images.
    assert values["train/lr"] == pytest.approx({n: 1.5e-3 * n / 3200 for n in (160, 320, 480, 640)}, rel=1e-6)
    stored = json.loads((place / "runs/digits-files/scores.json").read_text())
    scores = {f"test/{name}": {640: value} for name, value in stored.items() if name != "protocol"}
    assert {name for name in values if name.startswith("test/")} == scores.keys()
    for name, series in scores.items():
        assert values[name] == pytest.approx(series, rel=1e-6), name
        training = values[name.replace("test/", "score/")]  # of the same seeds and weights
        assert training.keys() == {320, 640}
        assert training[640] == pytest.approx(series[640], rel=1e-6), name
    other, _ = read_csv(place)
    assert values.keys() == other.keys()
    for name, series in values.items():
        assert series == pytest.approx(other[name], rel=1e-6), name


@pytest.mark.parametrize("tracker", TRACKERS)
def test_pictures_have_the_pixels_of_the_png_files(tracker: str, place: Path) -> None:
    _, pictures = READERS[tracker](place)
    assert pictures.keys() == {(f"{n}/ema", seen) for n in ("samples", "trajectory") for seen in (160, 320, 480, 640)}
    for (key, seen), picture in pictures.items():
        path = place / "runs/digits-files/samples" / f"{key.removesuffix('/ema')}-{seen:09d}.png"
        np.testing.assert_array_equal(picture, np.array(Image.open(path)))


def test_the_configuration_reaches_every_tracker(place: Path) -> None:
    text = (place / "runs/digits-files/config.yaml").read_text()
    config = yaml.safe_load(text)
    assert config["model"]["duration"] == 640
    _, second, _ = sorted(place.glob("runs/wandb/offline-run-*"))  # by time
    shown = {i.key: json.loads(i.value_json) for r in wandb_records(second) for i in r.config.update if i.key}
    assert {name: shown[name] for name in config} == config
    run = mlflow_run()
    artifact = MlflowClient(URI).download_artifacts(run.info.run_id, "config.yaml")
    assert Path(artifact).read_text() == text
    assert run.data.params["model/process/init_args/path/init_args/bnr"] == "0.5"
    assert run.data.params["model/duration"] == "320.0"  # of the first start
    assert yaml.safe_load((place / "runs/digits-files/csv/version_1/hparams.yaml").read_text()) == config
    _, events, _ = sorted(place.glob("runs/digits-files/events.out.*"))
    summary = EventAccumulator(str(events)).Reload().SummaryMetadata("_hparams_/session_start_info")
    assert b"model/process/init_args/path/init_args/bnr" in summary.plugin_data.content


def test_a_run_goes_on_where_its_id_is_named(place: Path) -> None:
    assert mlflow_run().info.status == "FINISHED"
    folders = sorted(place.glob("runs/wandb/offline-run-*"))
    identities = [r.run.run_id for folder in folders for r in wandb_records(folder) if r.HasField("run")]
    assert set(identities) == {"digits-warm"}
    assert len(folders) == 3  # two trainings and a test


def test_loggers_do_not_change_the_weights(place: Path) -> None:
    tracked, plain = (
        torch.load(place / run / "checkpoints/last.ckpt", weights_only=True) for run in ("runs/digits-files", "plain")
    )
    for name, weights in plain["state_dict"].items():
        assert torch.equal(tracked["state_dict"][name], weights), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["MLFlowLogger", f"tracking_uri={URI}", "run_id=0123"], "0123 not found"),
        (["WandbLogger", "mode=online"], "wandb login"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_a_tracker_refuses_is_one_line(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where an account might be
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    logger, *settings = options
    given = [f"--trainer.logger={logger}", *(f"--trainer.logger.{setting}" for setting in settings)]
    assert words in refusal(capsys, *fit(tmp_path / "run", *given))
