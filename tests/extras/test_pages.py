"""The code of pages that need heavy extras is run, as tests/test_documents.py runs the others."""

from pathlib import Path

import pytest
from test_documents import EXTRAS, Reader, run_page, trained

__all__ = ["trained"]  # a fixture


@pytest.mark.parametrize("page", EXTRAS, ids=lambda page: page.stem)
def test_code_blocks_of_a_page_run(page: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, Reader(trained, lambda: tmp_path), tmp_path, monkeypatch)
