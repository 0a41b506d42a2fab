"""The page of `warm explore` in a real browser, at the width of a desk and of a phone."""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import httpx
import numpy as np
import pytest
import torch
from image_files import encode
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from small import REPOSITORY, command, environment, fit, here, last
from torch import Tensor

from warm_lightning import load_checkpoint
from warm_lightning.commands.exploration import Explored, Settings, read_picture
from warm_lightning.images import quantise

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
QUIET += ["disable-component-update", "disable-sync"]
LONG = 120_000.0  # milliseconds
WIDTHS = {"desk": (1280, 900), "phone": (390, 844)}


@dataclass
class Served:
    """A running `warm explore`.

    Attributes:
        address: of the page.
        checkpoint: the model.
        process: the server.
        temporary: the folder where it may write.
    """

    address: str
    checkpoint: Path
    process: subprocess.Popen[str]
    temporary: Path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page of a short run of a model with classes and a range of BNRs."""
    folder, temporary = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("temporary")
    plane = f"--config={REPOSITORY / 'configs' / 'method' / 'plane.yaml'}"
    here(*fit(folder, plane, "--model.network.label_dim=10", "--model.label_dropout=0.2"))
    port = free_port()
    # A proxy that does not exist: the page must not need one, and Gradio must not ask it for the page.
    proxies = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "ALL_PROXY": ""}
    process = subprocess.Popen(
        command("explore", str(folder), f"--port={port}", "--seeds=0-3", "--accelerator=cpu"),
        env=environment(**proxies, TMPDIR=str(temporary), PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=(folder / "errors.txt").open("w"),
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    address = f"http://127.0.0.1:{port}"
    assert line.startswith(f"{address} shows the model"), (folder / "errors.txt").read_text()
    yield Served(address, last(folder), process, temporary)
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.fail("the page is tested in Chromium: apt-get install chromium", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[f"--{option}" for option in QUIET])
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page in the browser, and what it has asked for and complained of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def images(self, part: str) -> list[Tensor]:
        """The images in a part of the page, uint8 [C, H, W]."""
        sources = self.page.locator(f"#{part} img").evaluate_all("images => images.map(image => image.src)")
        pictures = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]
        return [torch.from_numpy(np.array(p)).view(p.height, p.width, -1).permute(2, 0, 1) for p in pictures]

    def press(self, button: str, part: str) -> None:
        """Press a button, and wait until the last image of a part of the page is another one."""
        image = self.page.locator(f"#{part} img").last
        before = image.get_attribute("src")
        self.page.locator(f"#{button}").click()
        expect(image).not_to_have_attribute("src", before or "", timeout=LONG)

    def check(self) -> None:
        """Check that nothing is wider than the window, went wrong, or came from another machine."""
        widths = self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert widths[0] <= widths[1]
        asked = {(urlsplit(url).scheme, urlsplit(url).hostname) for url in self.requests}
        assert asked <= {("http", "127.0.0.1"), ("data", None), ("blob", None)}
        assert not self.complaints
        assert "Traceback" not in self.page.content()


@pytest.fixture(params=WIDTHS)
def visit(request: pytest.FixtureRequest, browser: Browser, served: Served) -> Iterator[Visit]:
    width, height = WIDTHS[request.param]
    context = browser.new_context(viewport={"width": width, "height": height})
    visit = Visit(context.new_page())
    visit.page.on("request", lambda asked: visit.requests.append(asked.url))
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    visit.page.on("console", lambda m: visit.complaints.append(m.text) if m.type == "error" else None)
    visit.page.goto(served.address)
    yield visit
    context.close()


def test_samples_and_trajectories_are_those_of_the_settings(visit: Visit, served: Served) -> None:
    """Finds a picture of other settings, a page that needs the network, and one too wide for a phone."""
    page, model = visit.page, load_checkpoint(served.checkpoint).model()
    explored = Explored(load_checkpoint(served.checkpoint))
    expect(page.locator("#samples img")).to_have_count(4, timeout=LONG)
    assert torch.equal(torch.stack(visit.images("samples")), quantise(model.sample(model.sampler, range(4))))
    expect(page.locator("#charts img")).to_have_count(2, timeout=LONG)
    expect(page.locator("#spectrum img")).to_have_count(1)
    visit.check()

    page.get_by_label("Seeds").fill("7-9")
    visit.press("sample", "samples")
    assert torch.equal(torch.stack(visit.images("samples")), quantise(model.sample(model.sampler, [7, 8, 9])))

    page.get_by_label("number input for Blur-to-noise ratio").fill("1.5")
    page.get_by_role("button", name="Sampler").click()
    page.get_by_label("Step rule").click()
    page.get_by_role("option", name="Multistep order 2").click()
    expect(page.get_by_label("number input for η")).to_be_hidden()
    visit.press("sample", "samples")
    run = explored.run(Settings("7-9", rule="Multistep order 2", bnr=1.5))
    assert torch.equal(torch.stack(visit.images("samples")), run.images)
    rows = [row for part in ("u", "D", "R", "D + R") for row in [run.pictures(c).get(part) for c in run.columns]]
    shown = [row for row in rows if row is not None]
    assert all(torch.equal(*pair) for pair in zip(visit.images("trajectory"), shown, strict=True))
    assert f"{run.nfe} network calls each" in page.locator("#samples").inner_text()
    visit.check()

    page.get_by_label("Seeds").fill("9-7")
    page.locator("#sample").click()
    expect(page.get_by_text("the range 9-7 runs backwards")).to_be_visible(timeout=LONG)
    assert torch.equal(torch.stack(visit.images("samples")), run.images)
    visit.check()


def test_a_picture_of_ones_own_is_restored(visit: Visit, served: Served, tmp_path: Path) -> None:
    """Finds an upload that is lost, or restored from another level, and a damaged one that breaks the page."""
    page, explored = visit.page, Explored(load_checkpoint(served.checkpoint))
    expect(page.locator("#samples img")).to_have_count(4, timeout=LONG)
    page.get_by_role("tab", name="Restore").click()
    expect(page.locator("#restored img")).to_have_count(4, timeout=LONG)
    digit = explored.restore(visit.images("restored")[0], explored.restore_choices.value)
    assert torch.equal(visit.images("restored")[1], digit.pictures["degraded"])
    ramp = np.linspace(0, 255, 60 * 100 * 3).reshape(60, 100, 3).astype(np.uint8)
    (tmp_path / "photo.png").write_bytes(encode(ramp))
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "photo.png")
    expect(page.locator("#restored")).to_contain_text("your picture", timeout=LONG)
    page.get_by_label("number input for Noise β").fill("0.33")
    visit.press("restore", "restored")
    picture = read_picture(tmp_path / "photo.png", explored.model.image_shape)
    expected = explored.restore(picture, 0.33, bnr=0.5)
    assert torch.equal(torch.stack(visit.images("restored")), torch.stack([*expected.pictures.values()]))
    assert f"PSNR {expected.psnr['restored, mean']:.2f} dB" in page.locator("#restored").inner_text()
    visit.check()

    (tmp_path / "no.png").write_bytes(b"no picture")
    page.get_by_label("Clear").click()
    expect(page.locator("#restored")).not_to_contain_text("your picture", timeout=LONG)
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "no.png")
    expect(page.get_by_text("no.png is not a readable image")).to_be_visible(timeout=LONG)
    visit.check()


def test_files_of_this_machine_are_not_read_for_a_visitor(served: Served, tmp_path: Path) -> None:
    """Finds a page that opens a path that a request names, or hands out a file."""
    path = tmp_path / "secret.png"
    path.write_bytes(encode(np.zeros((8, 8), np.uint8)))
    with httpx.Client(base_url=served.address, trust_env=False, timeout=120) as client:
        assert client.get(f"/gradio_api/file={path}").status_code == 403
        config = client.get("/config").json()
        kinds = {part["id"]: part["type"] for part in config["components"]}
        for event in config["dependencies"]:
            if "file" not in [kinds[part] for part in event["inputs"]]:
                continue
            values = [0.5, 0.5, "own", 0]
            file = {"path": str(path), "orig_name": "secret.png", "meta": {"_type": "gradio.FileData"}}
            asked = {"data": [file, *values], "fn_index": event["id"], "session_hash": "visitor"}
            assert client.post("/gradio_api/queue/join", json=asked).is_success
            with client.stream("GET", "/gradio_api/queue/data?session_hash=visitor") as answer:
                lines = [json.loads(line[5:]) for line in answer.iter_lines() if line.startswith("data:")]
            last_line = next(line for line in lines if line["msg"] == "process_completed")
            assert not last_line["success"]
            assert "img" not in json.dumps(last_line)
            return
    pytest.fail("no event takes a file")


def test_other_machines_do_not_reach_the_page(served: Served) -> None:
    """Finds a server that listens on all addresses: 127.0.0.2 is this machine, too, but not the page's address."""
    port = urlsplit(served.address).port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=10)


def test_a_port_in_use_is_refused(served: Served) -> None:
    port = str(urlsplit(served.address).port)
    other = subprocess.run(
        command("explore", str(served.checkpoint), "--port", port),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (other.returncode, other.stdout) == (2, "")
    assert other.stderr.splitlines()[-1] == f"warm explore: port {port} is in use: choose another with --port"


def test_control_c_ends_the_page_in_the_middle_of_its_work(served: Served, browser: Browser) -> None:
    """The last test of the file. It finds uploads that stay, and a thread inside of PyTorch when Python ends."""
    page = browser.new_page()
    page.goto(served.address)
    page.get_by_label("Seeds").fill("0-99")
    page.get_by_label("number input for Steps").fill("64")
    page.locator("#sample").click()
    expect(page.get_by_text(re.compile(r"Step \d+ of 64")).first).to_be_visible(timeout=LONG)
    assert [name for name in os.listdir(served.temporary) if name.startswith("warm-explore-")]
    kept = urlopen(f"{served.address}/gradio_api/heartbeat/kept", timeout=10)  # a stream that this side never closes
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(timeout=60) == 130
    assert not [name for name in os.listdir(served.temporary) if name.startswith("warm-explore-")]
    assert "KeyboardInterrupt" not in (served.checkpoint.parent.parent / "errors.txt").read_text()
    kept.close()
    page.close()
