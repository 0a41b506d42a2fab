"""`warm explore`: a page on this machine where samples, trajectories and restorations of a model are looked at."""

import base64
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from warm_lightning.analysis.figures import check_matplotlib
from warm_lightning.commands.exploration import (
    MOST_IMAGES,
    PICTURE,
    SAMPLE,
    Choices,
    Explored,
    ExploredData,
    Report,
    Restoration,
    Run,
    Settings,
    data_of_run,
    parse_few_seeds,
    read_picture,
)
from warm_lightning.commands.shared import find_device, load
from warm_lightning.config import module_from_options
from warm_lightning.errors import UserError, check, error_text, is_full_memory
from warm_lightning.images import png_bytes
from warm_lightning.model import DiffusionModel
from warm_lightning.paths import CHECKPOINTS, HUB, CheckpointText, expand_checkpoint
from warm_lightning.types import Weights

HOST = "127.0.0.1"
CONFIG = "config.yaml"
"""The configuration in the folder of a run."""
MEGABYTES = 64
"""The largest picture that can be uploaded."""
OWN = "own"
"""The class of a sample that its seed draws, or of a picture that comes with one."""


def explore(
    settings: list[str],
    run: CheckpointText,
    *,
    port: int = 7860,
    seeds: str = "0-15",
    weights: Weights = "ema",
    accelerator: str = "auto",
    override: list[str] | None = None,
) -> None:
    """Show a page in the browser of this machine where a model is looked at; it needs `warm-lightning[explore]`.

    One part samples with chosen seeds, steps, rule, BNR, class and guidance, and shows the samples, the trajectory of
    the first seed (u, D, R and D + R at some levels), spectra, and the path through the blur-noise plane. The other
    part degrades a picture of your own and restores it. Settings that the model does not have are not shown.

    The page is at http://127.0.0.1:PORT and cannot be reached from other machines; it loads nothing from the network.
    Ctrl-C ends it.

    Args:
        settings: the data whose spectrum is shown beside that of the samples; the configuration of the run if not
            given. Nothing is downloaded.
        run: folder of a run, whose last checkpoint is shown; or a checkpoint; or a folder of `warm export`.
        port: of the page.
        seeds: of the samples that the page begins with.
        weights: ema (averaged) or raw (last).
        accelerator: cpu, gpu, mps or auto.
        override: other settings of the model, such as --override+=parameterization.combination=Sum.
    """
    check(find_spec("gradio") is not None, "the page needs Gradio: pip install 'warm-lightning[explore]'")
    check_matplotlib()
    check(1 <= port <= 65535, f"--port is {port}: a port is from 1 to 65535")
    of_model = [option for option in settings if option.startswith("--model")]
    check(not of_model, f"{''.join(of_model[:1])}: the model is that of {run}; use --override for other settings of it")
    parse_few_seeds(seeds)
    path, config = find_checkpoint(run)
    trained = load(path, weights, {}, override)
    data, without = open_data(settings, config, trained.model(weights))
    explored = Explored(trained, weights, find_device(accelerator, "--accelerator"), data)
    explored.configured(Settings())
    title = f"{run}: {model_text(explored.model)}, {trained.images_seen:,} images seen, weights {weights}"
    serve(lambda work: make_page(explored, title, seeds, without, work), port)


def find_checkpoint(run: str) -> tuple[str, Path | None]:
    """The checkpoint of a run and the run's configuration, if there is one.

    Args:
        run: folder of the run, its checkpoint, or another path that `load_checkpoint` takes.
    """
    if run.startswith(HUB):
        return run, None
    path = Path(expand_checkpoint(run))
    config = path.parent.parent / CONFIG
    return str(path), config if path.parent.name == CHECKPOINTS and config.is_file() else None


def open_data(settings: list[str], config: Path | None, model: DiffusionModel) -> tuple[ExploredData | None, str]:
    """The data of some options, or else of a run's configuration, or a line that says why there are none.

    Raises:
        UserError: options are given, and something is wrong with them or with the images.
    """
    if settings:
        return ExploredData.of(module_from_options(settings)[1], model), ""
    if config is None:
        return None, "The data are not known, and their spectrum is not shown: give `--config` to `warm explore`."
    try:
        return ExploredData.of(data_of_run(config), model), ""
    except (UserError, OSError) as error:
        return None, f"The spectrum of the data is not shown: {error_text(error)}"


def model_text(model: DiffusionModel) -> str:
    """The parts of a model in words."""
    channels, size, _ = model.image_shape
    parts = " · ".join(type(part).__name__ for part in (model.process, model.parameterization, model.network))
    return f"{parts}, {size}×{size}×{channels}"


# ---------------------------------------------------------------------- the server


class Work:
    """The work of the page, one thing at a time, which is given up where the page ends.

    Python must not end while a thread is inside of PyTorch, which would abort.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.ended = threading.Event()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Do something, with the line of a user's error, or that the memory is full, on the page."""
        import gradio as gr

        try:
            with self.lock:
                yield
        except Exception as error:
            if not isinstance(error, UserError) and not is_full_memory(error):
                raise
            text = str(error) if isinstance(error, UserError) else "the memory is full: choose fewer seeds"
            raise gr.Error(escape(text), duration=20, print_exception=False) from error

    def report(self, progress: Any) -> Report:
        """The function that shows on the page how much is done, by a `gradio.Progress`."""

        def show(share: float, text: str) -> None:
            check(not self.ended.is_set(), "the page has ended")
            progress(share, desc=text)

        return show

    def end(self) -> None:
        """Give up what is being done, and wait for it."""
        self.ended.set()
        with self.lock:
            pass


def serve(make: Callable[[Work], Any], port: int) -> None:
    """Serve a page on this machine until Ctrl-C.

    Args:
        make: makes the page, a `gradio.Blocks`.
        port: of the page.

    Raises:
        UserError: the port is in use.
    """
    with tempfile.TemporaryDirectory(prefix="warm-explore-") as folder:
        # Uploads end with the page, nothing is sent or looked up, and no proxy of the environment is asked for it.
        os.environ |= {
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_RUN_HISTORY": "False",
            "NO_PROXY": ",".join(filter(None, (os.environ.get("NO_PROXY"), HOST))),
        }
        import gradio as gr

        work = Work()
        page = make(work)
        theme = gr.themes.Base(
            primary_hue="orange", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        )
        try:
            page.launch(
                server_name=HOST,
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                show_error=True,
                footer_links=[],
                max_file_size=MEGABYTES * 2**20,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                theme=theme,
                css=CSS,
            )
        except OSError as error:
            raise UserError(f"port {port} is in use: choose another with --port") from error
        print(f"http://{HOST}:{port} shows the model; Ctrl-C ends it", flush=True)
        try:
            threading.Event().wait()
        finally:
            work.end()
            page.server.force_exit = True  # or it would wait for browsers that keep a connection open
            page.close(verbose=False)


# ---------------------------------------------------------------------- the page

CSS = """
.gradio-container {max-width: 1240px !important; margin: 0 auto !important; padding: 0 !important}
@media (max-width: 640px) {.gradio-container .main {padding: 8px 14px !important}}
#about p {overflow-wrap: anywhere; font-size: 0.85rem; opacity: 0.75}
.gradio-container .main, .gradio-container main, .gradio-container .wrap {width: 100%}
.warm, .warm .html-container {padding: 0 !important}
.warm img {display: block; width: 100%; margin: 0; image-rendering: pixelated; border-radius: 2px}
.warm .chart {image-rendering: auto; background: white}
.warm .cells {display: grid; gap: 3px}
.warm .two {display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px}
.warm .figures {display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 12px}
@media (max-width: 640px) {
  #samples, #spectrum {min-width: 100% !important}
  .warm .two {grid-template-columns: minmax(0, 1fr)}
  .warm .figures {grid-template-columns: repeat(2, minmax(0, 1fr))}
}
.warm figure {margin: 0}
.warm figcaption {margin-top: 4px; font-size: 0.85rem; line-height: 1.35}
.warm table {width: 100%; table-layout: fixed; border-collapse: collapse; font-size: clamp(0.55rem, 1.6vw, 0.8rem)}
.warm table, .warm tr, .warm td, .warm th {border: 0 !important; background: none !important}
.warm th, .warm td {padding: 1.5px !important; text-align: center; font-weight: normal; line-height: 1.3}
.warm th:first-child {width: 4em; text-align: left; white-space: nowrap; font-weight: 600}
.warm p {margin: 6px 0; font-size: 0.85rem}
"""


def make_page(explored: Explored, title: str, seeds: str, without: str, work: Work) -> Any:
    """The page, a `gradio.Blocks`: settings and pictures, with no mathematics of its own.

    Args:
        explored: the model.
        title: a line about it.
        seeds: of the first samples.
        without: a line that says why there are no data; empty where there are.
        work: of the page.
    """
    import gradio as gr

    with gr.Blocks(title="warm explore", analytics_enabled=False) as page:
        gr.Markdown(f"## warm explore\n{escape(title)}", elem_id="about")
        with gr.Tab("Sample"):
            sampled = sample_tab(explored, seeds, without, work)
        with gr.Tab("Restore"):
            restored = restore_tab(explored, work)
        first = page.load(**sampled)
        if restored:
            first.then(**restored)
    return page


def sample_tab(explored: Explored, seeds: str, without: str, work: Work) -> dict[str, Any]:
    """Lay out settings and pictures of samples; returns the arguments of the event that fills them."""
    import gradio as gr

    choices = explored.choices
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            inputs = sample_settings(choices, seeds)
            press = gr.Button("Sample", variant="primary", elem_id="sample")
        with gr.Column(scale=3, min_width=320):
            with gr.Row():
                samples, spectrum = html_part("samples"), html_part("spectrum")
            trajectory, charts = html_part("trajectory"), html_part("charts")

    def answer(*values: Any, progress: Any = gr.Progress()) -> tuple[str, ...]:  # noqa: B008  (Gradio looks for it there)
        began = time.perf_counter()
        with work.alone():
            run = explored.run(chosen(dict(zip(inputs, values, strict=True))), work.report(progress))
            seconds = time.perf_counter() - began
            return samples_html(run, seconds), trajectory_html(run), *charts_html(run, explored.data, without)

    event = {
        "fn": answer,
        "inputs": list(inputs.values()),
        "outputs": [samples, trajectory, spectrum, charts],
        "show_progress_on": samples,
        "concurrency_id": "model",
        "api_visibility": "private",
    }
    gr.on([press.click, inputs["seeds"].submit], **event)
    return event


def sample_settings(choices: Choices, seeds: str) -> dict[str, Any]:
    """Lay out the settings that a model has, by the names of `Settings`."""
    import gradio as gr

    inputs: dict[str, Any] = {
        "seeds": gr.Textbox(seeds, label="Seeds", info=f"such as 0-15 or 1,5,8-11; up to {MOST_IMAGES}", max_lines=1)
    }
    if choices.bnr:
        low, high, own = choices.bnr
        inputs["bnr"] = gr.Slider(low, high, own, step=(high - low) / 100, label="Blur-to-noise ratio (BNR)")
    if choices.steps:
        own_steps, most = choices.steps
        inputs["steps"] = gr.Slider(1, most, own_steps, step=1, label="Steps")
    if choices.label_dim:
        inputs["label"] = gr.Dropdown([OWN, *map(str, range(choices.label_dim))], value=OWN, label="Class")
    if choices.guidance is not None:
        inputs["guidance"] = gr.Slider(
            0, max(8.0, choices.guidance), choices.guidance, step=0.1, label="Guidance", info="1 is none"
        )
    names = list(choices.rules)
    if len(names) > 1 or choices.churn is not None or choices.has_eta(names[0]):
        with gr.Accordion("Sampler", open=False):
            rule = gr.Dropdown(names, value=names[0], label="Step rule", visible=len(names) > 1)
            eta = gr.Slider(
                0,
                max(1.0, choices.eta),
                choices.eta,
                step=0.05,
                label="η",
                info="fresh noise in each step; 0 is none",
                visible=choices.has_eta(names[0]),
            )
            inputs |= {"rule": rule, "eta": eta}
            if choices.churn is not None:
                inputs["churn"] = gr.Slider(
                    0, max(80.0, choices.churn), choices.churn, step=1, label="Churn", info="0 is none"
                )
        rule.change(
            lambda name: gr.update(visible=choices.has_eta(name)), rule, eta, queue=False, api_visibility="private"
        )
    return inputs


def chosen(values: Mapping[str, Any]) -> Settings:
    """The settings of the values of the page."""
    label = values.get("label", OWN)
    return Settings(**{**values, "label": None if label == OWN else int(label)})


def restore_tab(explored: Explored, work: Work) -> dict[str, Any] | None:
    """Lay out a restoration; returns the arguments of its event, or None for a model that cannot restore."""
    import gradio as gr

    try:
        levels = explored.restore_choices
    except UserError as error:
        gr.Markdown(f"This model cannot restore pictures: {escape(str(error))}")
        return None
    choices = explored.choices
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            inputs: dict[str, Any] = {
                "upload": gr.File(label="A picture of your own", file_types=["image"], height=170, elem_id="upload")
            }
            of_noise = levels.coordinate == "beta"
            inputs["value"] = gr.Slider(
                levels.lowest,
                levels.highest,
                levels.value,
                step=(levels.highest - levels.lowest) / 300,
                label="Noise β" if of_noise else "Blur α in pixels",
                info="for images in [−1, 1]" if of_noise else None,
            )
            if choices.bnr:
                low, high, own = choices.bnr
                inputs["bnr"] = gr.Slider(low, high, own, step=(high - low) / 100, label="Blur α / noise β (BNR)")
            if choices.label_dim:
                names = [OWN, *map(str, range(choices.label_dim))]
                inputs["label"] = gr.Dropdown(names, value=OWN, label="Class", info="own: the data's, or not given")
            inputs["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1)
            press = gr.Button("Restore", variant="primary", elem_id="restore")
        with gr.Column(scale=3, min_width=320):
            pictures = html_part("restored")

    def answer(*values: Any, progress: Any = gr.Progress()) -> str:  # noqa: B008  (Gradio looks for it there)
        given = dict(zip(inputs, values, strict=True))
        upload, label = given.pop("upload"), given.pop("label", OWN)
        with work.alone():
            picture, own_label, words = explored.picture(given["seed"])
            if upload:
                picture, own_label, words = read_picture(Path(upload), explored.model.image_shape), None, "your picture"
            given["label"] = own_label if label == OWN else int(label)
            result = explored.restore(picture, **given, report=work.report(progress))
            return restoration_html(result, words, explored.restore_nfe(result.start))

    event = {
        "fn": answer,
        "inputs": list(inputs.values()),
        "outputs": pictures,
        "concurrency_id": "model",
        "api_visibility": "private",
    }
    gr.on([press.click, inputs["upload"].upload, inputs["upload"].clear], **event)
    return event


# ---------------------------------------------------------------------- pictures as HTML


def html_part(name: str) -> Any:
    """A part of the page that is filled with HTML, a `gradio.HTML`."""
    import gradio as gr

    return gr.HTML(elem_id=name, elem_classes="warm", js_on_load=None, min_height=60)


def image_html(content: bytes, words: str, kind: str = "") -> str:
    """A PNG file as an element of a page."""
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return f'<img class="{kind}" src="{source}" alt="{escape(words)}" title="{escape(words)}">'


def samples_html(run: Run, seconds: float) -> str:
    """Samples side by side, in about a square."""
    count = len(run.seeds)
    columns = next(n for n in range(1, count + 1) if n * n >= count)
    classes = [f", class {k}" for k in run.classes] if run.classes else [""] * count
    words = [f"seed {seed}{label}" for seed, label in zip(run.seeds, classes, strict=True)]
    cells = "".join(image_html(png_bytes(image), text) for image, text in zip(run.images, words, strict=True))
    text = f"{count} sample{'s' * (count > 1)}, {run.nfe} network calls each, {seconds:.1f} s"
    return f'<div class="cells" style="grid-template-columns: repeat({columns}, 1fr)">{cells}</div><p>{text}</p>'


def trajectory_html(run: Run) -> str:
    """The trajectory of the first seed: a row for u, D, R and D + R each, and a column for each level shown."""

    def row(head: str, cells: Iterable[str]) -> str:
        return f"<tr><th>{head}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"

    rows = [row("β", (f"{c.beta:.2g}" for c in run.columns)), row("α", (f"{c.alpha:.2g}" for c in run.columns))]
    pictures = [run.pictures(column) for column in run.columns]
    for part in pictures[0]:
        words = [f"{part} at β = {c.beta:.3g}, α = {c.alpha:.3g}" for c in run.columns]
        shown = [image_html(png_bytes(p[part]), w) if part in p else "" for p, w in zip(pictures, words, strict=True)]
        rows.append(row(part, shown))
    text = (
        f"The trajectory of seed {run.seeds[0]}, at noise β and blur α: the state u, scaled to fit; D, denoised and "
        "still blurred; R, the detail that the blur removed (grey is 0, and all is shown "
        f"{run.residual_factor:g} times as strong); and D + R."
    )
    return f"<p>{text}</p><table>{''.join(rows)}</table>"


def charts_html(run: Run, data: ExploredData | None, without: str) -> tuple[str, str]:
    """The spectrum of the samples; and the spectra of the trajectory's parts, with the path."""
    spectra = run.spectra(data)
    lines = [without] if without else []
    charts = [image_html(run.path(), "path through the blur-noise plane", "chart")]
    if spectra:
        text = "Spectra over all seeds by radial frequency; dashed: " + ("the data." if data else "the samples.")
        charts = [image_html(spectra[1], "spectra of u, D, R and D + R", "chart"), *charts]
        above = image_html(spectra[0], "spectrum of the samples", "chart")
    else:
        text, above = "A spectrum is a variance over samples: give two seeds or more.", ""
    below = "".join(f"<p>{escape(line)}</p>" for line in [text, *lines])
    return above, f'<div class="two">{"".join(charts)}</div>{below}'


def restoration_html(result: Restoration, words: str, nfe: int) -> str:
    """A picture, the degraded one and the restored ones, with PSNR and SSIM."""
    figures = []
    for name, image in result.pictures.items():
        lines = [words] if name == PICTURE else [f"PSNR {result.psnr[name]:.2f} dB", f"SSIM {result.ssim[name]:.3f}"]
        if name == SAMPLE:
            lines.append(f"{nfe} network calls")
        caption = "<br>".join([f"<b>{name}</b>", *map(escape, lines)])
        figures.append(f"<figure>{image_html(png_bytes(image), name)}<figcaption>{caption}</figcaption></figure>")
    level = result.start.level
    added = "; the noise that the model's level has more is added before" if result.start.fill else ""
    text = f"Blur α = {level.alpha.item():.3g} pixels, noise β = {result.start.beta:.3g}{added}."
    return f'<div class="figures">{"".join(figures)}</div><p>{text}</p>'
