"""The program of docs/how-to/sweep.md, started with few images and trials."""

import re
from pathlib import Path

import optuna
import pytest
from small import REPOSITORY

PAGE = REPOSITORY / "docs" / "how-to" / "sweep.md"


def test_the_search_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trial is looked at as often as said, a bad one is pruned, and the same command goes on with the study."""
    program = re.search(r"```python\n# sweep\.py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert program
    text = program[1].replace("51_200, 500, 20", "512, 16, 3").replace("n_startup_trials=5", "n_startup_trials=1")
    text = text.replace('"configs/leaves8.yaml"', repr(str(REPOSITORY / "configs" / "leaves8.yaml")))
    assert "512, 16, 3" in text
    monkeypatch.chdir(tmp_path)
    for count in (3, 6):
        exec(compile(text, "sweep.py", "exec"), {"__name__": "__main__"})
        study = optuna.load_study(study_name="leaves8", storage="sqlite:///sweep.db")
        assert len(study.trials) == count
    states = {trial.state for trial in study.trials}
    assert states == {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED}
    for trial in study.trials:
        values = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
        assert len(set(values)) == len(values)  # each look has scores of its own
        if trial.state == optuna.trial.TrialState.COMPLETE:
            assert len(values) == 4
            assert trial.value == values[-1]
