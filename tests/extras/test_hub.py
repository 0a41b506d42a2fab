"""Exported models on the Hugging Face Hub: the metadata of their card, and reading them through the Hub's cache."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, metadata_load
from small import DIGITS, REPOSITORY, SMALL, environment, here, last, refusal

from warm_lightning import load_checkpoint, load_config
from warm_lightning.errors import UserError
from warm_lightning.interop import hub
from warm_lightning.model import TrainedModel

COMMITS = {"main": "a" * 40, "v1": "b" * 40, "other": "c" * 40}
"""Revisions of the repository team/digits: averaged weights, raw weights, and no export of this package."""
NETWORK = {"model.network.model_channels": 8, "model.network.channel_mult": [1, 2]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run that was scored, with two exported models in it, `ema` and `raw`."""
    folder = tmp_path_factory.mktemp("run")
    here("fit", *SMALL, "--model.duration=320", f"--trainer.default_root_dir={folder}")
    here("test", *SMALL, f"--trainer.default_root_dir={folder}")
    here("export", str(last(folder)), str(folder / "ema"), "--license=cc-by-4.0")
    here("export", str(last(folder)), str(folder / "raw"), "--weights=raw")
    return folder


def samples(trained: TrainedModel, weights: Any = "ema") -> torch.Tensor:
    model = trained.model(weights)
    return model.sample(model.sampler, [0, 1])


# ---------------------------------------------------------------------- the card


def test_the_hub_reads_the_metadata_of_a_card_as_they_are_written(run: Path) -> None:
    card, written = ModelCard.load(run / "ema" / "README.md"), metadata_load(run / "ema" / "README.md")
    assert card.data.to_dict() == written  # nothing is lost or put right on the way through the Hub's own classes
    assert ModelCard(str(card)).data.to_dict() == written
    assert (card.data.library_name, card.data.pipeline_tag) == ("warm-lightning", "unconditional-image-generation")
    scores = json.loads((run / "scores.json").read_text())
    measured = {name: scores[name] for name in scores["protocol"]["better"] if scores[name] is not None}
    assert "fd16_pixel" in measured
    results = card.data.eval_results
    assert results
    assert all(
        isinstance(r, EvalResult) and (r.dataset_name, r.task_type) == ("Digits", card.data.pipeline_tag)
        for r in results
    )
    assert {r.metric_type: r.metric_value for r in results} == measured


def test_a_licence_is_the_users(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ModelCard.load(run / "ema" / "README.md").data.license == "cc-by-4.0"
    assert "Not stated yet" not in (run / "ema" / "README.md").read_text()
    assert "license" not in metadata_load(run / "raw" / "README.md")
    assert "Not stated yet" in (run / "raw" / "README.md").read_text()
    assert "apache-2.0" in refusal(capsys, "export", str(last(run)), str(tmp_path / "x"), "--license=Apache 2")


def test_scores_of_other_weights_are_not_in_the_metadata(run: Path) -> None:
    card = ModelCard.load(run / "raw" / "README.md")
    assert "scores of other weights" in card.text
    assert card.data.eval_results is None


# ---------------------------------------------------------------------- a Hub on this machine


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's interface that downloads of team/digits need; every other repository is unknown."""

    files: ClassVar[dict[str, Path]] = {}
    """The folder of each commit."""
    read: ClassVar[list[str]] = []
    """The names of the files that were downloaded."""

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if path.startswith("/api/models/team/digits/revision/"):
            commit = COMMITS.get(path.rpartition("/")[2])
            if commit is None:
                self.refuse("RevisionNotFound")
            else:
                self.answer(json.dumps({"id": "team/digits", "sha": commit, "siblings": self.listing(commit)}).encode())
        elif path.startswith("/api/models/team/digits/tree/"):
            self.answer(json.dumps(self.listing(path.split("/")[6])).encode())
        elif path.startswith("/team/digits/resolve/"):
            commit, name = path.split("/")[4:]
            if self.command == "GET":
                self.read.append(name)
            content = (self.files[commit] / name).read_bytes()
            self.answer(content, {"ETag": f'"{commit[:8]}{name}"', "X-Repo-Commit": commit})
        else:
            self.refuse("RepoNotFound")

    do_HEAD = do_GET

    def listing(self, commit: str) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": p.name, "rfilename": p.name, "size": p.stat().st_size, "oid": commit}
            for p in sorted(self.files[commit].iterdir())
        ]

    def answer(self, content: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def refuse(self, code: str) -> None:
        self.answer(b"", {"X-Error-Code": code}, 404)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def online(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a process that finds the Hub on this machine, with an empty cache."""
    other = tmp_path_factory.mktemp("other")
    (other / "config.yaml").write_text("model_type: bert\n")
    (other / "pytorch_model.bin").write_bytes(b"a pickle")
    for folder in (run / "ema", run / "raw"):
        (folder / "last.ckpt").write_bytes(b"a pickle")
    Hub.files = dict(zip(COMMITS.values(), (run / "ema", run / "raw", other), strict=True))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = tmp_path_factory.mktemp("home")
    yield environment(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HOME=str(home), HF_HUB_OFFLINE="0")
    server.shutdown()


SCRIPT = """
import sys, torch
from warm_lightning import load_checkpoint
from warm_lightning.errors import UserError
for address, weights, out in zip(*[iter(sys.argv[1:])] * 3):
    try:
        model = load_checkpoint(address).model(weights)
        torch.save(model.sample(model.sampler, [0, 1]), out)
    except UserError as error:
        print(str(error).replace(chr(10), "<newline>"))
"""


def load_elsewhere(variables: dict[str, str], *arguments: str | Path) -> list[str]:
    """Load models and save samples of each in another process; returns the messages of those that cannot be loaded.

    Args:
        variables: its environment, which huggingface_hub reads when it is imported.
        *arguments: address, weights and a file for the samples of each.
    """
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return done.stdout.splitlines()


def test_a_model_comes_through_the_hubs_cache_and_then_without_a_network(
    run: Path, online: dict[str, str], tmp_path: Path
) -> None:
    offline = online | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    main, tag = "hf://team/digits", "hf://team/digits@v1"
    assert not load_elsewhere(online, main, "ema", tmp_path / "main", tag, "raw", tmp_path / "tag")
    assert set(Hub.read) == {"config.yaml", "model.safetensors"}  # above all no pickle
    by_commit = f"hf://team/digits@{COMMITS['v1']}"
    assert not load_elsewhere(offline, main, "ema", tmp_path / "main2", by_commit, "raw", tmp_path / "tag2")
    assert len(Hub.read) == 4
    for name, folder in (("main", "ema"), ("main2", "ema"), ("tag", "raw"), ("tag2", "raw")):
        expected = samples(load_checkpoint(run / folder), folder)
        assert torch.equal(torch.load(tmp_path / name), expected), name


def test_what_the_hub_refuses_is_one_line(online: dict[str, str], tmp_path: Path) -> None:
    cases = {
        "hf://team/nothing": "there is no such model on the Hub",
        "hf://team/digits@v9": "no branch, tag or commit v9",
        "hf://team/digits@other": "has no model.safetensors",
    }
    messages = load_elsewhere(online, *(word for address in cases for word in (address, "ema", tmp_path / "x")))
    assert len(messages) == 3
    for message, (address, words) in zip(messages, cases.items(), strict=True):
        assert message.startswith(f"{address}: ")
        assert words in message
        assert "<newline>" not in message


# ---------------------------------------------------------------------- the cache alone


@pytest.fixture
def cache(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of huggingface_hub with the model team/digits, in its documented layout, made by hand."""
    folder = tmp_path / "cache" / "models--team--digits"
    (folder / "refs").mkdir(parents=True)
    (folder / "snapshots").mkdir()
    (folder / "refs" / "main").write_text(COMMITS["main"])
    os.symlink(run / "ema", folder / "snapshots" / COMMITS["main"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.download.cache_clear()
    return folder


def test_every_way_in_takes_an_address(cache: Path, run: Path, tmp_path: Path) -> None:
    address, folder = "hf://team/digits", run / "ema"
    options = [
        *(f"--{name}={value}" for name, value in NETWORK.items()),
        "--num_images=4",
        "--steps=2",
        "--split=train",
    ]
    for name, path in (("hub", address), ("folder", folder)):
        here("generate", f"--ckpt_path={path}", "--seeds=0-3", f"--outdir={tmp_path / name}")
        here("test", *SMALL, f"--ckpt_path={path}", f"--trainer.default_root_dir={tmp_path / name / 'run'}")
        here("bits", f"--config={DIGITS}", *options, f"--ckpt_path={path}", f"--outdir={tmp_path / name / 'bits'}")
    for image in ("000000.png", "000003.png"):
        assert (tmp_path / "hub" / image).read_bytes() == (tmp_path / "folder" / image).read_bytes()
    ours, theirs = (json.loads((tmp_path / n / "run" / "scores.json").read_text()) for n in ("hub", "folder"))
    assert ours["protocol"].pop("ckpt_path") == address  # and not where this machine keeps it
    assert theirs["protocol"].pop("ckpt_path") == str(folder)
    assert ours == theirs
    started, _ = load_config(DIGITS, {**NETWORK, "model.init_from": address})
    assert torch.equal(samples(started), samples(load_checkpoint(folder)))
    guided = load_checkpoint(address, {"guide": {"path": address}, "guidance": 2.0})
    assert samples(guided).isfinite().all()


def test_what_is_not_in_the_cache_is_one_line(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate = ["--seeds=0", f"--outdir={tmp_path / 'out'}"]
    for address, words in {
        "hf://team/absent": "is not in the cache of huggingface_hub, and the Hub is turned off",
        "hf://team/digits@v1": "`hf download team/digits --revision v1`",
        "hf://digits": "write hf://OWNER/NAME",
        "hf://datasets/team/digits": "write hf://OWNER/NAME",
    }.items():
        assert words in refusal(capsys, "generate", f"--ckpt_path={address}", *generate)
    assert not (tmp_path / "out").exists()
    line = refusal(capsys, "generate", "--ckpt_path=hf://team/digits", "--seeds=0", "--outdir=hf://team/out")
    assert "remote addresses are not supported" in line


def test_another_model_is_not_taken_for_an_export(cache: Path, tmp_path: Path) -> None:
    other = cache / "snapshots" / COMMITS["other"]
    other.mkdir()
    (other / "config.yaml").write_text(yaml.safe_dump({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        load_checkpoint(f"hf://team/digits@{COMMITS['other']}")
    (other / "model.safetensors").write_bytes(
        (cache / "snapshots" / COMMITS["main"] / "model.safetensors").read_bytes()
    )
    with pytest.raises(UserError, match="not the configuration of an exported model"):
        load_checkpoint(f"hf://team/digits@{COMMITS['other']}")


def test_without_huggingface_hub_the_message_says_how_to_install_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    line = refusal(capsys, "generate", "--ckpt_path=hf://team/digits", "--seeds=0", "--outdir=out")
    assert "pip install 'warm-lightning[hub]'" in line
