"""The command line itself: help, data commands, exit statuses, Ctrl-C and what `--resume` makes of it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from waiting import wait_until

from tlray.arguments import run_command
from tlray.cli import build_parser, main, tune
from tlray.errors import Interrupted, UserError
from tlray.registry import TASKS
from tlray.training.checkpoint import found

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = "experiments/tune_backbones.py"


def test_help_names_every_command_and_flag_and_loads_nothing_heavy():
    script = f"""
import runpy, sys
from tlray.cli import main
for argv in (["--help"], ["tune", "--help"], ["train", "--help"]):
    try:
        main(argv)
    except SystemExit as end:
        assert end.code == 0
sys.argv = ["tune_backbones.py", "--help"]
try:
    runpy.run_path({str(ROOT / SCRIPT)!r}, run_name="__main__")
except SystemExit as end:
    assert end.code in (0, None)
print("loaded:", *sorted({{"torch", "ray", "sklearn", "pandas"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("loaded:\n")
    for piece in ("train", "tune", "report", "evaluate", "predict", "data", "--tasks", "--backbones", "--weights", "--trials",
                  "--time-budget", "--seeds", "--workers-per-trial", "--resume", "--offline", "Which backbone, schedule"):  # fmt: skip
        assert piece in done.stdout


def test_paths_are_made_absolute_and_names_stay_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("none", "digits", "own.safetensors"):
        (tmp_path / name).write_text("")

    def weights(text: str) -> str:
        return build_parser().parse_args(["train", "--task", "npz:a.npz", "--weights", text]).weights

    assert build_parser().parse_args(["train", "--task", "npz:a.npz"]).task == f"npz:{tmp_path}/a.npz"
    assert build_parser().parse_args(["train", "--task", "breastmnist"]).task == "breastmnist"
    assert weights("own.safetensors") == f"{tmp_path}/own.safetensors"
    assert weights("npz:b.npz") == f"npz:{tmp_path}/b.npz"
    assert [weights(name) for name in ("none", "imagenet", "digits", "phantom_chest?epochs=2")] == [
        "none", "imagenet", "digits", "phantom_chest?epochs=2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("two\n  lines"), 2, "tlray: two lines\n"),
        (Interrupted("go on with --resume"), 130, "tlray: go on with --resume\n"),
        (KeyboardInterrupt(), 130, "tlray: interrupted\n"),
    ],
)
def test_exit_statuses(error, status, said, capsys):
    def command() -> int:
        raise error

    assert run_command(command) == status
    assert capsys.readouterr().err == said


def test_a_bug_is_not_disguised_as_a_mistake_of_the_user():
    def command() -> int:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run_command(command)


def test_a_closed_pipe_is_no_error():
    """As with `tlray data list | true`."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reader, writer = os.pipe()
    os.close(reader)
    script = "import sys; from tlray.cli import main; sys.exit(main(['data', 'list']))"
    done = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 0


def test_the_status_is_right_also_where_nobody_reads():
    """As with `2>&1 | tee log`, when Ctrl-C has ended tee."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    script = (
        "import sys\n"
        "from tlray.arguments import run_command\n"
        "from tlray.errors import Interrupted\n"
        "def command():\n"
        "    sys.stdout.write('half a table')\n"
        "    raise Interrupted('interrupted')\n"
        "sys.exit(run_command(command))\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=writer, env=buffered)
    os.close(writer)
    assert done.returncode == 130


def test_data_list_prints_every_task(capsys):
    assert main(["data", "list"]) == 0
    assert capsys.readouterr().out.split() == TASKS.names()


def test_data_get_prepares_a_task_and_prints_its_source_and_audit(toy_npz, tmp_path, capsys):
    path = toy_npz(tmp_path / "mine.npz")
    assert main(["data", "get", f"npz:{path}", "--size", "32", "--offline"]) == 0
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert first.startswith("mine-")
    assert first.endswith("binary, 64 / 32 images to train / validate, classes 0, 1")
    facts = json.loads(rest)
    assert facts["source"]["file"] == str(path)
    assert "28 x 28 to 32 x 32 px" in facts["source"]["resampling"]
    assert facts["audit"]["classes"]["val"] == {"0": 16, "1": 16}


def test_data_check_says_which_tasks_can_be_had(capsys):
    assert main(["data", "check", "digits", "pathmnist", "--offline"]) == 0
    digits, pathmnist = capsys.readouterr().out.splitlines()
    assert digits == "digits: can be had"
    assert pathmnist.startswith("pathmnist: pathmnist is not there: pathmnist.npz")


def test_data_check_finds_a_file_in_the_data_folder(shared, capsys):
    assert main(["data", "check", "breastmnist", "--offline", "--data", str(shared / "data")]) == 0
    assert capsys.readouterr().out == "breastmnist: can be had\n"


def test_all_flags_of_the_script_are_flags_of_tlray_tune(capsys):
    helps = []
    for prog in ("tune_backbones.py", "tlray tune"):
        with pytest.raises(SystemExit):
            tune(["--help"], prog=prog)
        helps.append({word.strip("[],") for word in capsys.readouterr().out.split() if word.strip("[").startswith("--")})
    assert helps[0] == helps[1]


@pytest.mark.slow
def test_ctrl_c_in_mid_search_leaves_a_partial_table_and_resume_finishes(ray_session, toy_npz, tmp_path, capsys):
    npz, storage = toy_npz(tmp_path / "toy.npz"), tmp_path / "runs"
    argv = [
        "--tasks",
        f"npz:{npz}",
        "--backbones",
        "small_cnn",
        "--weights",
        "none",
        "--trials",
        "4",
        "--epochs",
        "20",
        "--cpus-per-trial",
        "1",
    ]
    argv += ["--concurrent", "1", "--storage", str(storage), "--name", "cut", "--offline"]
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *argv], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout
    assert any("trial 0 finished" in line for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)

    assert process.returncode == 130, error
    last = error.splitlines()[-1]
    assert last.startswith("tlray: interrupted")
    assert "--resume" in last
    assert "Traceback" not in error
    folder = storage / "cut"
    assert json.loads((folder / "summary.json").read_text())["partial"] is True
    assert pd.read_parquet(folder / "results.parquet")["trial"].tolist().count(0) == 20
    assert not (folder / "test_ledger.jsonl").exists()
    (cell,) = (path for path in folder.iterdir() if (path / "trials").is_dir())
    ended = {path: path.read_bytes() for path in cell.glob("trials/*/trial.json") if json.loads(path.read_text())["status"] == "finished"}
    assert 1 <= len(ended) < 4

    assert tune([*argv, "--resume"]) == 0, capsys.readouterr().err
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["partial"] is False
    assert sum(summary["cells"][0]["trials"].values()) == 4
    assert {path: path.read_bytes() for path in ended} == ended
    assert len((folder / "test_ledger.jsonl").read_text().splitlines()) == 1
    kept = [path.name for path in cell.glob("trials/*") if found(path / "checkpoints")]
    assert kept == [f"{summary['cells'][0]['winner']['trial']:04d}"]


@pytest.mark.slow
def test_ctrl_c_in_a_pretraining_says_so_and_keeps_its_checkpoints(toy_npz, tmp_path, session_cache):
    """Ray Train would end the process silently with status 1."""
    argv = ["--tasks", f"npz:{toy_npz(tmp_path / 'toy.npz')}", "--backbones", "small_cnn", "--weights", "digits?epochs=5000", "--offline",
            "--trials", "2", "--storage", str(tmp_path / "runs"), "--name", "cut"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *argv], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: any((session_cache / "pretrained").glob(".digits-*/epoch-*.safetensors")), 120)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert error.splitlines()[-1].startswith("tlray: interrupted")
    assert "--resume" in error
    assert "Traceback" not in error
