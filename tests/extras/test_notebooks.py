"""The notebooks of docs/notebooks run from their first cell to their last, in an empty folder, with short trainings."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from small import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cell raises, no command ends with an error, and what it draws is there."""
    monkeypatch.setenv("WARM_NOTEBOOK_IMAGES", "1280")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert not re.search(r"^warm( experiments)?: ", printed, re.MULTILINE)  # the line of a command that failed
    assert "Traceback" not in printed
    assert any("image/png" in output.get("data", {}) or "text/markdown" in output.get("data", {}) for output in outputs)
