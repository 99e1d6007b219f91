"""The commands that use a finished run: what they print and write."""

import json
import math
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tlray.cli import main


@pytest.fixture
def model(searched):
    return searched.cell / "model"


@pytest.fixture
def image(searched, tmp_path):
    """The first test image as a PNG file."""
    with np.load(searched.npz) as file:
        Image.fromarray(file["test_images"][0]).save(tmp_path / "first.png")
    return tmp_path / "first.png"


def test_the_plan_comes_first_then_the_trials_then_the_table_then_the_next_commands(searched):
    cell, folder, text = searched.cell.name, searched.folder, searched.output
    pieces = [
        f"Run searched in {folder}", f"{cell}: 64 / 32 images to train / validate, binary", "2 known configurations first",
        "3 trials of up to 2 epochs", "2 at a time", "estimate: about", "Dashboard: http://127.0.0.1", "trial 0 ", "accuracy", "AUROC",
        "Dashboard: http://127.0.0.1", f"report  {folder}/report.html", f"model   {folder}/{cell}/model",
        f"tlray predict {folder}/{cell}/model", f"tlray evaluate {folder}/{cell}/model", f"tlray report {folder}",
    ]  # fmt: skip
    position = 0
    for piece in pieces:
        position = text.find(piece, position)
        assert position >= 0, f"{piece!r} is not there, or not in its place:\n{text}"


def test_the_table_shows_test_accuracy_and_auroc_with_intervals(searched):
    test = searched.summary["cells"][0]["test"]
    for name in ("accuracy", "auroc"):
        figure = test[name]
        assert f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]" in searched.output
    assert "95 % intervals" in searched.output


def test_predict_prints_the_class_and_its_calibrated_probability(model, searched, image, capsys):
    assert main(["predict", str(model), str(image)]) == 0
    with np.load(searched.cell / "predictions.npz") as file:
        row = file["test_probabilities"][0]
    printed = capsys.readouterr().out
    assert printed.startswith(f"{image}  {row.argmax()}  {row.max():.4f}")
    assert "threshold" in printed


def test_predict_prints_json_in_the_order_of_the_files(model, searched, image, tmp_path, capsys):
    with np.load(searched.npz) as file:
        Image.fromarray(file["test_images"][1]).save(tmp_path / "second.png")
    assert main(["predict", str(model), str(tmp_path / "second.png"), str(image), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    with np.load(searched.cell / "predictions.npz") as file:
        rows = file["test_probabilities"][[1, 0]]
    assert [answer["file"] for answer in answers] == [str(tmp_path / "second.png"), str(image)]
    for answer, row in zip(answers, rows, strict=True):
        assert answer["class"] == str(row.argmax())
        assert math.isclose(answer["probability"], row.max(), abs_tol=1e-6)


def test_predict_of_no_image_is_one_sentence_and_predicts_nothing(model, image, tmp_path, capsys):
    (tmp_path / "text.png").write_text("this is a text")
    assert main(["predict", str(model), str(image), str(tmp_path / "text.png")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"tlray: {tmp_path / 'text.png'} cannot be read")
    assert captured.err.count("\n") == 1


def test_evaluate_on_the_same_data_gives_the_test_figures_of_the_summary(model, searched, capsys):
    assert main(["evaluate", str(model), "--task", f"npz:{searched.npz}", "--json", "--offline"]) == 0
    result = json.loads(capsys.readouterr().out)
    written = searched.summary["cells"][0]
    for here, there in ((result["metrics"], written["test"]), (result["at_threshold"], written["test_at_threshold"])):
        assert here.keys() == there.keys()
        for name, figure in there.items():
            for part in ("value", "low", "high"):
                assert math.isclose(here[name][part], figure[part], abs_tol=1e-9), (name, part)
    assert len((searched.folder / "test_ledger.jsonl").read_text().splitlines()) == 1
    assert "evaluate" in json.loads((model / "test_ledger.jsonl").read_text().splitlines()[-1])["purpose"]


def test_evaluate_prints_figures_with_intervals(model, searched, capsys):
    assert main(["evaluate", str(model), "--task", f"npz:{searched.npz}", "--split", "val", "--offline"]) == 0
    printed = capsys.readouterr().out
    assert "val split, 32 images" in printed
    assert f"auroc              {searched.summary['cells'][0]['validation']['auroc']:.4f}  [" in printed
    assert "at the model's operating threshold" in printed
    assert printed.rstrip("\n") + "\n" == printed


def test_evaluate_on_a_task_of_other_classes_is_one_sentence(model, toy_npz, tmp_path, capsys):
    other = toy_npz(tmp_path / "other.npz", kind="multiclass")
    assert main(["evaluate", str(model), "--task", f"npz:{other}", "--offline"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tlray: ")
    assert error.count("\n") == 1
    assert "multiclass with 3 classes" in error
    assert "binary with 2" in error


def test_report_rebuilds_the_same_page_from_the_directory_alone_moved_elsewhere(searched, tmp_path, monkeypatch, capsys):
    moved = tmp_path / "elsewhere"
    shutil.copytree(searched.folder, moved)
    (moved / "report.html").unlink()
    monkeypatch.setenv("TLRAY_CACHE", str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path)
    assert main(["report", "elsewhere"]) == 0
    assert capsys.readouterr().out.strip() == "elsewhere/report.html"
    original = (searched.folder / "report.html").read_text()
    assert (moved / "report.html").read_text() == original.replace(f"{searched.folder}/", "elsewhere/").replace(
        str(searched.folder), "elsewhere"
    )
    assert not (tmp_path / "empty").exists()


def test_a_finished_run_that_is_resumed_says_so_and_touches_nothing(searched, capsys):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in searched.folder.rglob("*") if path.is_file()}
    assert main([*searched.argv, "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "is finished already" in printed
    assert f"tlray predict {searched.cell}/model" in printed
    assert "trial 0 finished" not in printed
    unlocked = {path: facts for path, facts in before.items() if path.name != ".lock"}
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in unlocked} == unlocked


@pytest.mark.parametrize("left", [None, "the partial run's page"])
def test_a_run_that_was_cut_short_at_its_report_gets_it_by_a_resume(searched, left, capsys):
    report = searched.folder / "report.html"
    page = report.read_bytes()
    report.unlink()
    if left:
        report.write_text(left)
        os.utime(report, ((searched.folder / "summary.json").stat().st_mtime - 1,) * 2)
    assert main([*searched.argv, "--resume"]) == 0
    assert "only its report was not" in capsys.readouterr().out
    assert report.read_bytes() == page


def test_a_finished_run_is_not_overwritten_by_the_same_command(searched, capsys):
    assert main(searched.argv) == 2
    assert "--resume" in capsys.readouterr().err
    assert searched.summary["partial"] is False


def test_a_resume_with_another_question_is_refused_by_its_name(searched, capsys):
    assert main([*searched.argv, "--trials", "5", "--resume"]) == 2
    assert "other settings (trials was 3 and is 5 now)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_time_budget_stops_the_trials_and_still_delivers(make_run):
    budgeted = make_run("budget", "tune", "--trials", "4", "--epochs", "50000", "--time-budget", "25", "--concurrent", "2")
    entry = budgeted.summary["cells"][0]
    assert budgeted.summary["partial"] is False
    assert entry["trials"]["stopped"] >= 1
    assert (budgeted.cell / "model" / "model.safetensors").is_file()
    reasons = {json.loads(path.read_text())["reason"] for path in budgeted.cell.glob("trials/*/trial.json")}
    assert "the time budget was over" in reasons


@pytest.mark.slow
def test_a_time_budget_that_is_over_at_once_is_one_sentence_or_a_run(searched, tmp_path, capsys):
    """So short that a trial may not come to its first epoch."""
    argv = ["tune", "--tasks", f"npz:{searched.npz}", "--backbones", "small_cnn", "--weights", "none", "--epochs", "50000", "--offline"]
    status = main([*argv, "--time-budget", "0.01", "--storage", str(tmp_path), "--name", "short"])
    error = capsys.readouterr().err
    if status == 0:
        assert json.loads((tmp_path / "short" / "summary.json").read_text())["partial"] is False
    else:
        assert status == 2
        assert error.startswith("tlray: ")
        assert error.count("\n") == 1
        assert json.loads((tmp_path / "short" / "summary.json").read_text())["partial"] is True


@pytest.mark.slow
def test_a_cell_without_a_winner_does_not_cost_the_others_theirs(ray_session, toy_npz, tmp_path, capsys):
    """MobileNetV2's batch-norm cannot train on one image at a time, small_cnn can: its model, table and report are there."""
    argv = ["tune", "--tasks", f"npz:{toy_npz(tmp_path / 'toy.npz')}", "--backbones", "mobilenet_v2", "small_cnn", "small_cnn", "--weights",
            "none", "--set", "batch_size=1", "--set", "samples=12", "--trials", "1", "--epochs", "1", "--offline", "--storage",
            str(tmp_path), "--name", "half"]  # fmt: skip
    assert main(argv) == 0, capsys.readouterr().err
    run = tmp_path / "half"
    lost, won = json.loads((run / "summary.json").read_text())["cells"]  # the backbone named twice is one cell
    assert (lost["winner"], lost["trials"]) == (None, {"failed": 1})
    assert won["winner"]["trial"] == 0
    assert "batch-norm" in capsys.readouterr().out
    assert "no model" in (run / "report.html").read_text()
    assert len((run / "test_ledger.jsonl").read_text().splitlines()) == 1


def test_a_cell_delivered_before_a_kill_keeps_its_test_figures(searched, tmp_path, capsys):
    """Killed between the delivery and the summary: `--resume` does not open the test split again."""
    copy = tmp_path / "runs" / "searched"
    shutil.copytree(searched.folder, copy)
    before = json.loads((copy / "summary.json").read_text())["cells"]
    (copy / "summary.json").unlink()
    argv = [*searched.argv, "--resume"]
    argv[argv.index("--storage") + 1] = str(copy.parent)
    assert main(argv) == 0, capsys.readouterr().err
    assert json.loads((copy / "summary.json").read_text())["cells"] == before
    assert len((copy / "test_ledger.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_time_budget_is_shared_by_the_cells(ray_session, toy_npz, tmp_path, capsys):
    """The first cell ends when its share is over, the second gets the rest, and both are delivered."""
    tasks = [f"npz:{toy_npz(tmp_path / f'{name}.npz', seed=seed)}" for seed, name in enumerate(("one", "two"))]
    argv = ["tune", "--tasks", *tasks, "--backbones", "small_cnn", "--weights", "none", "--trials", "500", "--epochs", "20", "--offline",
            "--time-budget", "40", "--storage", str(tmp_path), "--name", "shared"]  # fmt: skip
    assert main(argv) == 0, capsys.readouterr().err
    summary = json.loads((tmp_path / "shared" / "summary.json").read_text())
    assert not summary["partial"]
    for cell in summary["cells"]:
        assert cell["winner"]
        assert 1 <= sum(cell["trials"].values()) < 500
