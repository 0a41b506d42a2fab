"""Inception features: torch-fidelity's own numbers, and the messages where its weights are missing or wrong."""

import hashlib
import os
import sys
import time
from pathlib import Path
from unittest.mock import patch
from urllib.error import URLError

import pytest
import torch
import torch.distributed as dist
from processes import spawn
from torch import nn

from warm_lightning.errors import UserError
from warm_lightning.metrics import Evaluation, Extraction, FidelityFeatures, InceptionFeatures, Reference
from warm_lightning.metrics.distances import Normal


@pytest.fixture(scope="module")
def inception() -> nn.Module:
    """torch-fidelity's own extractor with random weights that keep activations alive."""
    from torch_fidelity import feature_extractor_inceptionv3 as source

    nothing = patch.object(source, "load_state_dict_from_url", return_value={})
    unloaded = patch.object(source.FeatureExtractorInceptionV3, "load_state_dict")
    with nothing, unloaded:
        network = source.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"])
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=generator)
    return network


def test_inception_features_are_torch_fidelitys(inception, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(inception.state_dict(), path)
    extractor = InceptionFeatures(str(path))
    images = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features, logits = extractor(images)
    expected = inception(images)
    assert features.shape == (2, 2048)
    assert features.std() > 0.01  # alive
    assert torch.allclose(features, expected[0], rtol=1e-5)
    assert torch.allclose(logits, expected[1], rtol=1e-4, atol=1e-4)
    # As one of all networks of torch-fidelity it is the same, under a name that is no FID's.
    other = FidelityFeatures("inception-v3-compat", "tensorflow", str(path))
    for ours, theirs in zip(other(images), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert (other.frechet_name, other.splits, other.name) == ("fd", 10, "inception_tf1")
    grey = images[:, :1]
    assert torch.equal(extractor(grey)[0], extractor(grey.repeat(1, 3, 1, 1))[0])
    # Of other weights the scores are no FIDs to compare, and the table says so; where they lie is no matter.
    described = extractor.describe()
    assert (described["file"], described["published_weights"]) == ("weights.pth", False)
    assert extractor.identity().keys() == described.keys() - {"file", "published_weights"}
    reference = Reference(Normal(torch.zeros(2048).double(), torch.eye(2048).double()), "")
    assert "NOT COMPARABLE" in Evaluation(Extraction(extractor), reference, (3, 20, 20)).table({}, 50_000)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with patch.object(InceptionFeatures, "url", f"https://host/weights-inception-{digest[:8]}.pth"):
        assert extractor.describe()["published_weights"]
        assert "NOT COMPARABLE" not in Evaluation(Extraction(extractor), reference, (3, 20, 20)).table({}, 50_000)


@pytest.fixture
def no_network(tmp_path, monkeypatch) -> list[str]:
    """Torch hub's cache empty, the variable unset, and no network; gives the addresses that were asked for."""
    asked = []

    def refuse(url: str, *args: object, **kwargs: object) -> None:
        asked.append(url)
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("WARM_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return asked


def test_weights_are_looked_for_in_order(tmp_path, monkeypatch, no_network):
    cached = InceptionFeatures().path
    assert cached.parent == tmp_path / "hub" / "hub" / "checkpoints"
    monkeypatch.setenv("WARM_INCEPTION_WEIGHTS", str(tmp_path / "variable.pth"))
    assert InceptionFeatures().path == tmp_path / "variable.pth"
    assert InceptionFeatures(str(tmp_path / "given.pth")).path == tmp_path / "given.pth"
    # A file that was asked for and is not there is said, and nothing else is taken instead.
    for given, setting in ((None, "WARM_INCEPTION_WEIGHTS"), ("x", "weights_path")):
        with pytest.raises(UserError, match=f"no such file: set {setting} to a copy of http") as caught:
            InceptionFeatures(given).prepare()
        assert "\n" not in str(caught.value)
    assert no_network == []


def test_without_weights_and_network_the_file_and_its_place_are_named(no_network):
    with pytest.raises(UserError, match=r"cannot be downloaded .*Name or service not known") as caught:
        InceptionFeatures().prepare()
    path, message = str(caught.value).split(": ", 1)
    assert path == str(InceptionFeatures().path)
    assert f"put {no_network[0]} there" in message
    assert no_network[0].endswith(Path(path).name)
    assert "\n" not in message


@pytest.mark.parametrize("whole", [True, False])
def test_weights_are_downloaded_once_and_only_whole(inception, tmp_path, monkeypatch, whole):
    """torch hub's own function, from a file: URL, whose name ends with the start of the content's hash."""
    torch.save(inception.state_dict(), tmp_path / "weights")
    content = (tmp_path / "weights").read_bytes()
    source = tmp_path / f"weights-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    source.write_bytes(content if whole else content[:-1000])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("WARM_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setattr(InceptionFeatures, "url", source.as_uri())
    extractor = InceptionFeatures()
    if not whole:
        with pytest.raises(UserError, match="invalid hash value"):
            extractor.prepare()
        assert not list(extractor.path.parent.iterdir())
        return
    extractor.prepare()
    source.unlink()
    extractor.prepare()
    assert extractor(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))[0].shape == (1, 2048)
    assert [file.name for file in extractor.path.parent.iterdir()] == [source.name]


def in_process(rank: int, folder: Path) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    os.environ.pop("WARM_INCEPTION_WEIGHTS", None)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    found = []
    for network in (False, True):

        def download(url: str, path: str, hash_prefix: str, network: bool = network) -> None:
            time.sleep(0.3)  # the others must wait
            if not network:
                raise URLError("no route")
            Path(path).write_text(f"from {rank}")

        torch.hub.download_url_to_file = download
        os.environ["TORCH_HOME"] = str(folder / str(network))
        extractor = InceptionFeatures()
        try:
            extractor.prepare()
            found.append(extractor.path.read_text())
        except UserError as error:
            found.append(str(error))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_the_first_process_downloads_and_all_get_the_error(tmp_path):
    spawn(in_process, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert "no route" in first[0]
    assert first[1] == "from 0"


@pytest.mark.parametrize("content", ["missing", "text", "code", "other"])
def test_inception_weights_that_are_none_are_named(tmp_path, content):
    path = tmp_path / "weights.pth"
    if content == "text":
        path.write_text("hello")
    elif content == "code":
        torch.save({"weight": pytest.raises}, path)  # a pickle that imports
    elif content == "other":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(UserError, match=r"weights\.pth"):
        InceptionFeatures(str(path))(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_without_torch_fidelity_inception_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UserError, match="pip install 'warm-lightning\\[inception\\]'"):
        InceptionFeatures()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
