"""Files are UTF-8 whatever the locale, and no message ends a command because the terminal cannot show it."""

import ast
import io
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small import DIGITS, REPOSITORY, SMALL, environment

from experiments.__main__ import main as experiments
from warm_lightning.cli import main
from warm_lightning.errors import UserError
from warm_lightning.paths import expand

ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_commands_work_in_a_locale_of_ascii(tmp_path: Path) -> None:
    (tmp_path / "größe.yaml").write_text("# größer als β\nmodel: {lr: 0.002}", encoding="utf-8")
    fit = [*SMALL, "--config=größe.yaml", "--model.duration=32", "--trainer.default_root_dir=läufe"]
    calls = [
        ("fit", *fit),
        ("describe", f"--config={DIGITS}", "--config=größe.yaml"),
        ("generate", "--ckpt_path=läufe/checkpoints/last.ckpt", "--seeds=0", "--outdir=bild-β"),
        ("export", "läufe/checkpoints/last.ckpt", "exportiert-ü"),
    ]
    # Two commands for each start of an interpreter, which takes seconds to import what they need. `main` without
    # arguments takes those of the program, and starts it again in UTF-8 mode.
    both = "import sys; from warm_lightning.cli import main\nfor call in sys.argv[1:]: sys.argv[1:] = call.split('|'); "
    both += "assert main() == 0, call"
    for group, variables in ((calls[0::2], {}), (calls[1::2], {"PYTHONIOENCODING": "ascii"})):
        done = subprocess.run(
            [sys.executable, "-c", both, *map("|".join, group)],
            cwd=tmp_path,
            env=environment(**ASCII_LOCALE, **variables),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "läufe" / "config.yaml").read_text(encoding="utf-8"))["model"]["lr"] == 0.002
    assert (tmp_path / "bild-β" / "000000.png").exists()


def ascii_stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)


def test_a_terminal_of_ascii_shows_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    for call, code in ((lambda: main(["describe", f"--config={DIGITS}"]), 0), (lambda: main(["fit", "--config=ü"]), 2)):
        out, err = ascii_stream(), ascii_stream()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert call() == code
        shown = (out if code == 0 else err).buffer
        assert isinstance(shown, io.BytesIO)
        assert ("\\u03b2" if code == 0 else "\\xfc").encode() in shown.getvalue()
    monkeypatch.setattr(sys, "stdout", out := ascii_stream())
    assert experiments(["list"]) == 0
    assert out.buffer.tell() > 0


def test_names_that_are_no_text_are_refused() -> None:
    with pytest.raises(UserError, match="UTF-8"):
        expand("folder-\udcff")


def test_every_text_file_names_its_encoding() -> None:
    """The encoding of a binary file is not asked for: its mode has a "b"."""
    others = {"Image", "lmdb", "tarfile", "os", "self", "Source", "_archive", "cls"}
    without = []
    for root in ("warm_lightning", "experiments"):
        for file in (REPOSITORY / root).rglob("*.py"):
            for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if not isinstance(call, ast.Call):
                    continue
                keywords = {keyword.arg: keyword.value for keyword in call.keywords}
                name = getattr(call.func, "attr", getattr(call.func, "id", ""))
                owner = getattr(call.func, "value", None)
                texts = [str(a.value) for a in [*call.args, *keywords.values()] if isinstance(a, ast.Constant)]
                binary = any("b" in text and len(text) <= 3 for text in texts)
                foreign = getattr(owner, "id", getattr(owner, "attr", "")) in others
                reads = name in ("read_text", "write_text") or (
                    name in ("open", "fdopen") and not binary and not foreign
                )
                decodes = name in ("run", "Popen", "check_output") and ("text" in keywords)
                if (reads or decodes) and "encoding" not in keywords:
                    without.append(f"{file.relative_to(REPOSITORY)}:{call.lineno}")
    assert not without
