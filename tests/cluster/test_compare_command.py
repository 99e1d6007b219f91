"""`tlray compare`: from the command line to the table, and what it refuses in one sentence, leaving nothing."""

import pytest

from tlray.cli import main
from tlray.cluster.session import Session
from tlray.results import read_summary
from tlray.runs import compare, new_run


@pytest.fixture
def flags(toy_npz, tmp_path):
    file = toy_npz(tmp_path / "toy.npz")
    return ["compare", "--task", f"npz:{file}", "--backbone", "small_cnn", "--seeds", "2", "--storage", str(tmp_path), "--name", "run"]


@pytest.mark.slow
def test_a_comparison_from_the_command_line(flags, tmp_path, capsys, ray_session: Session):
    assert main([*flags, "--across", "lr=1e-2,1e-4", "augment=none,mixup", "--set", "epochs=2", "--metrics", "accuracy,auroc"]) == 0
    printed = capsys.readouterr().out
    about = read_summary(tmp_path / "run")["comparison"]
    assert [arm["arm"] for arm in about["arms"]] == [
        f"lr={lr} augment={augment}" for lr in ("0.01", "0.0001") for augment in ("none", "mixup")
    ]
    assert about["conclusion"] in printed
    assert "(chosen)" in printed
    assert "  trainings: " in printed
    assert "arithmetic in float32, unless an arm sets another" in printed
    assert main([*flags, "--across", "lr=1e-2,1e-4", "--set", "epochs=2"]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--across", "lr"], "--across 'lr' is not of the form field=value,value"),
        (["--across", "lr=1", "lr=2"], "--across lr is named twice"),
        (["--across", "lrr=1"], "unknown field 'lrr' (did you mean 'lr'?)"),
        (["--across", "lr=fast"], "lr='fast' is not a number"),
        (["--across", "lr=1e-3", "--set", "seed=3"], "--set seed=...: use --task, --backbone, --weights or --seeds"),
        (["--across", "lr=1e-3", "--set", "backbone=resnet18"], "--set backbone=...: use --task"),
        (["--across", "lr=1e-3", "--metrics", "acuracy"], "--metrics: unknown 'acuracy' (did you mean 'accuracy'?)"),
        (["--across", "lr=1e-3", "--metrics", "mae"], "mae is not measured for toy"),
        (["--across", "monitor=auroc,loss"], "monitor chooses among the arms"),
        (["--across", "folds=0"], "folds takes one number of at least 2"),
        (["--across", "samples=100"], "samples=100, but task toy"),
        (["--across", "lr=1e-3", "--set", "objective=autoencoder"], "an autoencoder is a pretraining"),
        (["--across", "lr=1e-3", "--set", "lr=1e-3,"], "lr='1e-3,' is not a number"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(flags, tmp_path, capsys, more, sentence):
    assert main([*flags, *more]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_from_python_as_the_readme_shows(toy_npz, tmp_path, monkeypatch, ray_session: Session):
    from tlray.config import Config

    base = Config(task=f"npz:{toy_npz(tmp_path / 'toy.npz')}", backbone="small_cnn", samples=32, epochs=1, threads=1)
    done = compare(base, {"lr": [1e-3, 1e-4]}, new_run(tmp_path / "runs" / "mine"), seeds=range(2))
    assert done.summary["comparison"]["conclusion"].startswith("Over 2 seeds")
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
