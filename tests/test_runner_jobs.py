"""Jobs of experiments that are killed, wait, run at once or on SLURM; plans; and wrong files and options."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import submitit
import torch
import yaml
from pretend import GRID, Pretend

from experiments import runner
from experiments.__main__ import main
from experiments.plan import Cost, check_affordable
from experiments.runner import Job, LocalProcesses, Slurm, run_all
from experiments.subprocesses import RestartableProcess
from warm_lightning.errors import UserError
from warm_lightning.paths import folder_lock


def test_killed_runs_are_not_taken_for_done(tmp_path: Path) -> None:
    class Killed(Pretend):
        def run(self, arguments: list[str], folder: Path) -> int:
            super().run(arguments, folder)
            raise KeyboardInterrupt

    job = Job("fit x", ("fit", "--a=1"), tmp_path / "x", "checkpoints/last.ckpt")
    with pytest.raises(KeyboardInterrupt):
        job.run(Killed(), {})
    assert not job.done()
    kept = tmp_path / "x" / "checkpoints" / "last.ckpt"
    before = kept.stat().st_mtime_ns
    executor = Pretend()
    job.run(executor, {"git_commit": "abc"})
    assert job.done()
    assert kept.stat().st_mtime_ns > before
    assert (kept.parent.parent / "job.json").exists()  # the folder was gone on with, not begun anew
    assert job.note()["git_commit"] == "abc"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titel": "x"}, "titel"),
        ({"measures": ["Scoers"]}, "Scoers"),
        ({"axes": {"BNR": {"setings": "x"}}}, "setings"),
        ({"budget": "small"}, "budget"),
        ({"plot": {"x": "BNR", "colour": "red"}}, "colour"),
        ({"data": ["cifar11"]}, "cifar11.yaml"),
        ({"paper": GRID["published"]}, "under published now"),
    ],
)
def test_wrong_files_are_errors_of_one_line(
    change: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID | change))
    assert main(["run", str(tmp_path / "grid.yaml"), "--budget=smoke", f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        (["table3_bnr", "--data=digitz"], "digitz"),
        (["table3_bnr", "--data=ffhq64", "--budget=small"], "--budget small"),
        (["table3_bnr", "--jobs=0"], "--jobs 0"),
        (["table3_bnr", "--data=digits", "--only=NFE=3"], "the axes are data, BNR"),
        (["table3_bnr", "--data=digits", "--only=BNR=3"], "no cell"),
        (["table3_bnr", "--seeds=0"], "--seeds 0"),
        (["table3_bnr", "--data=digits", "--", "model.lr=1"], "model.lr=1"),
        (["table3_bnr", "--data=digits", "--", "--model.process.path.bnr=1"], "--model.process.path.bnr"),
        (["table3_bnr", "--data=digits", "--", "--model.seed=1"], "--seeds"),
        (["fig5_bnr_nfe", "--data=digits", "--", "--model.sampler.grid.steps=3"], "--model.sampler.grid.steps"),
        (["table3_bnr", "--cells=0"], "--cells 0"),
        (["table3_bnr", "--tflops=0"], "--tflops 0"),
        (["table3_bnr", "--data=digits", "--in_process", "--jobs=2"], "--in_process"),
        (["table3_bnr", "--data=digits", '--slurm={"tasks_per_node": 8}'], "tasks_per_node"),
        (["table3_bnr", "--data=digits", "--slurm=x"], "--slurm x"),
        (["table3_bnr", "--budget=paper", '--slurm={"timeout_min": 60}'], '"gpus_per_node": 8'),
        (["table3_bnr", "--data=digits", "--", "--trainer.max_time=00:01:00:00"], "it goes on"),
        (["table3_bnr", "--data=digits", "--", "--scores.extractors=[Pixels]"], "under set and score"),
        (["table2_lsun", "--budget=paper", "--anyway", "--", "--data.path=nowhere"], "nowhere"),
        (
            ["table3_bnr", "--cells=1", "--data=digits", "--", "--scores.reference_stats=[none.npz,null]"],
            "none.npz: no such file",
        ),
        (["table3_bnr", "--cells=1", "--budget=paper"], "days without a GPU"),
    ],
)
def test_wrong_options_are_errors_of_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *options[:1], f"--out={tmp_path / 'out'}", *options[1:]]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not list(tmp_path.glob("out/*"))


def test_a_plan_says_what_it_would_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--budget=paper", "--cells=1", "--plan", "--tflops=50", f"--out={tmp_path}"]
    assert main(["run", "ablation_bnr", *options]) == 0
    out = capsys.readouterr().out
    # 200 Mimg · 3 passes and 3 · 50,000 images · 35 calls, of 42.4 GFLOPs each, at 50 TFLOP/s: 5.94 days.
    days = (200e6 * 3 + (150_000 + 12) * 35) * 42.4e9 / 50e12 / 86400
    days_in_plan = float(out.partition("expected: ")[2].split()[0])
    assert days_in_plan == pytest.approx(days, rel=0.02)
    assert "to do: 1 trainings, 2 measurements" in out
    assert not any(tmp_path.iterdir())


def test_a_given_speed_decides_what_is_affordable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cost = Cost(1e18, 0, 0, 60, "an assumption", gpu=True)
    with pytest.raises(UserError, match="about 89 days without a GPU"):  # 1e18 / 0.13e12 / 86400
        check_affordable(cost, None, anyway=False)
    with pytest.raises(UserError, match="about 12 days"):
        check_affordable(cost, 1, anyway=False)
    check_affordable(cost, 2, anyway=False)
    check_affordable(cost, None, anyway=True)


def test_slurm_jobs_go_through_submitit(tmp_path: Path) -> None:
    """Exit codes and output come back; submitit's executor of local processes takes the place of a cluster."""
    executor = Slurm({"timeout_min": 1}, cluster="local")
    for arguments, code, output in ((["--version"], 0, "0."), (["nonsense"], 2, "no command")):
        folder = tmp_path / arguments[0].strip("-")
        folder.mkdir()
        assert executor.run(arguments, folder) == code
        assert output in (folder / "log.txt").read_text()


def test_slurm_without_submitit_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    assert main(["run", "table3_bnr", "--data", "digits", "--slurm", "{}"]) == 2
    assert capsys.readouterr().err == "experiments: --slurm needs submitit: pip install 'warm-lightning[experiments]'\n"


def test_a_slurm_job_that_runs_out_of_time_goes_on(tmp_path: Path) -> None:
    """submitit ends the job after eight seconds and starts it again; it then finds the file that it had left."""
    executor = submitit.LocalExecutor(tmp_path, max_num_timeout=1)
    executor.update_parameters(timeout_min=12 / 60, signal_delay_s=4)
    left = tmp_path / "left"
    script = f"test -e {left} && exit 7; touch {left}; sleep 60"
    job = executor.submit(RestartableProcess(("bash", "-c", script), tmp_path, tmp_path, {}))
    assert job.result() == 7


def test_slurm_jobs_are_restarted_if_they_are_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other jobs that run out of time would begin anew each time."""
    given: list[object] = []

    class Submitted(submitit.AutoExecutor):
        def submit(self, call, *arguments):
            given.append(call)
            return super().submit(int)

    monkeypatch.setattr(submitit, "AutoExecutor", Submitted)
    for command in ("fit", "test"):
        (tmp_path / command).mkdir()
        assert Slurm(cluster="local").run([command, "--x=1"], tmp_path / command) == 0
    fit, test = given
    assert isinstance(fit, RestartableProcess)
    assert fit.command[-2:] == ("fit", "--x=1")
    assert not hasattr(test, "checkpoint")


def test_jobs_run_beside_each_other_and_after_what_they_need(tmp_path: Path) -> None:
    class Slow(Pretend):
        def run(self, arguments: list[str], folder: Path) -> int:
            self.calls.append(f"begin {folder.name}")
            time.sleep(0.2)
            self.calls.append(f"end {folder.name}")
            (folder / "log.txt").write_text("")
            return 0

    first, second = (Job(name, ("fit", name), tmp_path / name, "log.txt") for name in "ab")
    third = Job("c", ("fit", "c"), tmp_path / "c", "log.txt")
    executor = Slow()
    assert run_all({first: None, third: first, second: None}, executor, 2, {}, "test") == {}
    assert set(executor.calls[:2]) == {"begin a", "begin b"}
    assert executor.calls.index("begin c") > executor.calls.index("end a")


def test_a_process_that_outlived_its_runner_is_waited_for(tmp_path: Path) -> None:
    """Two trainings in one folder would write over each other's checkpoints."""
    with folder_lock(tmp_path) as lock:
        outlived = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[lock])
    # This runner is gone, its process is not.
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(LocalProcesses(1).run, ["--version"], tmp_path)
        time.sleep(1)
        waited = not call.done()
        outlived.kill()
        outlived.wait()
        assert call.result() == 0
    assert waited


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    for at_a_time, expected in (
        (1, ["0,1,2,3"]),
        (2, ["0,2", "1,3"]),
        (3, ["0,3", "1", "2"]),
        (4, ["0", "1", "2", "3"]),
        (6, ["0", "1", "2", "3", "0", "1"]),
    ):
        shares = LocalProcesses.sharing(at_a_time).gpus
        assert shares
        assert [shares.get() for _ in range(shares.qsize())] == expected
    monkeypatch.setattr("torch.cuda.device_count", lambda: 7)
    shares = LocalProcesses.sharing(1).gpus
    assert shares
    assert shares.get() == "0,1,2,3"  # seven do not divide a batch
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert LocalProcesses.sharing(2).gpus is None


def test_a_broken_note_names_its_folder(tmp_path: Path) -> None:
    job = Job("fit x", ("fit",), tmp_path / "x", "log.txt")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "job.json").write_text("{")
    with pytest.raises(UserError, match="delete the folder"):
        job.done()
