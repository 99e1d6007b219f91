"""More than two hundred spoilt inputs, drawn by seeds: each ends soon, in one sentence or well, and leaves nothing that looks finished.

Nothing is unpickled: pickles that would leave a mark lie among them.
"""

import contextlib
import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from mutations import BYTES, spoil_bytes, spoil_json, spoil_place, spoil_words
from PIL import Image

from tlray.cli import main
from tlray.models.classifier import build_classifier
from tlray.models.weights import save_weights

pytestmark = pytest.mark.slow
SECONDS = 30
OUTPUTS = ("summary.json", "report.html", "model", "*.svg")
"""What a reader takes for the end of something."""


class Hung(BaseException):
    """A command that takes longer than it may."""


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    def over(*_: object) -> None:
        raise Hung(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def is_partial(summary: Path) -> bool:
    """Whether a summary says that its run is not finished; a spoilt one says nothing."""
    try:
        return summary.is_file() and json.loads(summary.read_text())["partial"] is True
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


class Judge:
    """Runs a command line in this process and judges how it ends."""

    def __init__(self, work: Path, capsys: pytest.CaptureFixture[str]):
        self.work, self.capsys, self.mark = work, capsys, work / "exploded"

    def outputs(self) -> dict[Path, int]:
        """What looks finished, and when it was written; not what lies in a run whose summary says that it is partial."""
        found = {path for pattern in OUTPUTS for path in self.work.rglob(pattern)}
        partial = [path.parent for path in found if path.name == "summary.json" and is_partial(path)]
        return {path: path.lstat().st_mtime_ns for path in found if not any(path.is_relative_to(run) for run in partial)}

    def __call__(self, argv: list[str], spoilt: str = "") -> tuple[int, str]:
        """Exit status and standard output."""
        before, about = self.outputs(), f"{argv} ({spoilt})"
        self.capsys.readouterr()
        try:
            with in_time():
                status = main(argv)
        except SystemExit as end:  # --help among the words
            status = end.code
        said = self.capsys.readouterr()
        assert not self.mark.exists(), f"{about} was unpickled"
        assert "Traceback" not in said.err, f"{about}: {said.err}"
        assert status in (0, 2), f"{about}: {status}"
        if status:
            assert said.err.startswith("tlray: "), f"{about}: {said.err}"
            assert said.err.count("\n") == 1, f"{about}: {said.err}"
            assert 20 < len(said.err) < 12_000, f"{about}: {said.err}"
            assert not said.out.strip() or argv[:1] == ["tune"] or "data" in argv, f"{about}: {said.out}"
            assert self.outputs().items() <= before.items(), about
        return status, said.out


@pytest.fixture
def judge(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Judge:
    """Judges commands that work in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    return Judge(tmp_path, capsys)


@pytest.fixture
def spoil(tmp_path: Path) -> Callable[..., str]:
    """`spoil(path, random, as_json=False)`: spoil a file in some way; in words how."""

    def change(path: Path, random: Random, as_json: bool = False) -> str:
        if random.random() < 0.15:
            return spoil_place(path, random)
        if as_json and random.random() < 0.75:
            return spoil_json(path, random)
        return spoil_bytes(path, random, tmp_path / "exploded")

    return change


def seeds(count: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("seed", range(count))


@seeds(40)
def test_flags_of_the_main_job(seed: int, judge: Judge, searched, tmp_path: Path):
    """A finished run is resumed: what is harmless says that it is finished, and starts nothing."""
    random = Random(f"tune {seed}")
    storage = tmp_path / "runs"
    shutil.copytree(searched.folder, storage / searched.folder.name)
    argv = [str(storage) if word == str(searched.folder.parent) else word for word in searched.argv]
    flags = ["--size", "28", "--seed", "0", "--monitor", "auroc", "--set", "lr=1e-3", "--cpus-per-trial", "1", "--time-budget", "60"]
    judge(spoil_words([*argv, *random.choice(([], flags[:4], flags[4:8], flags[8:])), "--resume"], random))


COMMANDS = (
    "train --task {npz} --backbone small_cnn --epochs 1 --cpus-per-trial 1",
    "compare --task {npz} --backbone small_cnn --across lr=1e-3,1e-4 --seeds 1 --set epochs=1 --storage /dev/null/x",
    "report {run}",
    "evaluate {model} --task {npz} --split val",
    "predict {model} {image} --json",
    "latent {model} --task {npz} --split val --stage features --seed 0 --out latent.svg",
    "data get {npz} --size 28",
    "data check digits {npz}",
    "cache show",
)


@seeds(45)
def test_flags_of_every_command(seed: int, judge: Judge, searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    random = Random(f"command {seed}")
    monkeypatch.setenv("TLRAY_CACHE", str(tmp_path / "cache"))
    shutil.copytree(searched.folder, tmp_path / "run")
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "image.png")
    npz = shutil.copy(searched.npz, tmp_path / "toy.npz")
    known = {"npz": f"npz:{npz}", "run": "run", "model": f"run/{searched.cell.name}/model", "image": "image.png"}
    words = COMMANDS[seed % len(COMMANDS)].format(**known).split()
    judge(spoil_words([*words, "--offline"] if words[0] not in ("report", "predict", "cache") else words, random))


def spoil_arrays(path: Path, random: Random) -> str:
    """Change an array of an npz: its type, its shape, its values, or leave it out."""
    with np.load(path) as file:
        arrays = dict(file)
    key = random.choice(sorted(arrays))
    array = arrays[key]
    ways: dict[str, Callable[[], Any]] = {
        "float": lambda: array.astype(np.float32), "nan": lambda: np.full(array.shape, np.nan), "complex": lambda: array.astype("c8"),
        "large": lambda: array.astype(np.int64) * 10**12, "text": lambda: array.astype("U3"), "object": lambda: array.astype(object),
        "bool": lambda: array > 0, "scalar": lambda: np.array(3), "empty": lambda: array[:0], "one": lambda: array[:1],
        "flat": lambda: array.reshape(-1), "deeper": lambda: array[None], "shorter": lambda: array[:-1], "thin": lambda: array[..., :0],
        "constant": lambda: np.zeros_like(array), "negative": lambda: array.astype(np.int16) - 1, "dates": lambda: array.astype("M8[s]"),
        "fields": lambda: array.astype([("a", "u1")]), "wide": lambda: np.repeat(array, 3, axis=-1), "swapped": lambda: array.astype(">i4"),
    }  # fmt: skip
    way = random.choice(sorted(ways))
    arrays[key] = ways[way]()
    if random.random() < 0.1:
        del arrays[key]
    if random.random() < 0.2:
        arrays["train_groups"] = random.choice((np.array(["a"] * 64), np.zeros(3), np.array([None] * 64)))
    np.savez(path, **arrays)
    return f"{key} {way}"


def huge_claim(path: Path, random: Random) -> str:
    """An npz whose arrays say that they are larger than any memory."""
    import io
    import zipfile

    with np.load(path) as file:
        arrays = dict(file)
    with zipfile.ZipFile(path, "w") as packed:
        for key, array in arrays.items():
            buffer = io.BytesIO()
            shape = (10 ** random.choice((10, 15, 30)), 28, 28) if key == "train_images" else array.shape
            np.lib.format.write_array_header_1_0(buffer, {"descr": array.dtype.str, "fortran_order": False, "shape": shape})
            packed.writestr(f"{key}.npy", buffer.getvalue() + array.tobytes())
    return "a huge claim"


@seeds(40)
def test_npz_files(seed: int, judge: Judge, spoil, toy_npz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    random = Random(f"npz {seed}")
    monkeypatch.setenv("TLRAY_CACHE", str(tmp_path / "cache"))
    path = toy_npz(tmp_path / "toy.npz", kind=random.choice(("binary", "multiclass", "multilabel")))
    way = random.random()
    said = huge_claim(path, random) if way < 0.1 else spoil_arrays(path, random) if way < 0.55 else spoil(path, random)
    status, out = judge(["data", "get", f"npz:{path}"], said)
    if status == 0:
        assert json.loads(out[out.index("\n{") :])["audit"]
    assert bool(list(tmp_path.glob("cache/tasks/toy*"))) == (status == 0)


def image(path: Path, random: Random) -> None:
    pixels = np.frombuffer(random.randbytes(28 * 28 * 3), np.uint8).reshape(28, 28, 3)
    kind = random.choice(("L", "RGB", "RGBA", "P", "1", "LA", "I;16"))
    if kind == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(path.with_suffix(".png"))
        path.with_suffix(".png").replace(path)
        return
    made = Image.fromarray(pixels).convert(kind)
    made.save(path, format="JPEG" if kind in ("L", "RGB") and random.random() < 0.5 else "PNG")


@seeds(25)
def test_images(seed: int, judge: Judge, spoil, searched, tmp_path: Path):
    random = Random(f"image {seed}")
    path = tmp_path / "image.png"
    image(path, random)
    said = spoil(path, random)
    status, out = judge(["predict", str(searched.cell / "model"), str(path), "--json"], said)
    if status == 0:
        assert_probabilities(out)


def assert_probabilities(out: str) -> None:
    (answer,) = json.loads(out)
    values = list(answer["probabilities"].values())
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in values), values
    assert math.isclose(sum(values), 1, abs_tol=1e-6)


@seeds(15)
def test_folders_of_images(seed: int, judge: Judge, spoil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    random = Random(f"folder {seed}")
    monkeypatch.setenv("TLRAY_CACHE", str(tmp_path / "cache"))
    root, paths = tmp_path / "images", []
    for index in range(24):
        paths.append(root / f"class{index % 2}" / f"{index}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        image(paths[-1], random)
    groups = root / "groups.csv"
    groups.write_text("path,group\n" + "".join(f"{path.relative_to(root)},{index // 2}\n" for index, path in enumerate(paths)))
    chosen = random.choice((groups, random.choice(paths)))
    said = spoil(chosen, random)
    status, _ = judge(["data", "get", f"folder:{root}"], f"{chosen.name}: {said}")
    assert bool(list(tmp_path.glob("cache/tasks/images*"))) == (status == 0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of a small_cnn, as safetensors and as a torch file."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    model = build_classifier("small_cnn", "binary", 2, 1, 0.0, (0.5,), (0.5,))
    save_weights(folder / "encoder.safetensors", model, {"classes": ["0", "1"]})
    torch.save(model.state_dict(), folder / "encoder.pt")
    return {"safetensors": folder / "encoder.safetensors", "pt": folder / "encoder.pt"}


@seeds(20)
def test_weights(seed: int, judge: Judge, spoil, encoder, searched, tmp_path: Path):
    random = Random(f"weights {seed}")
    kind = random.choice(("safetensors", "safetensors", "pt"))
    path = Path(shutil.copy(encoder[kind], tmp_path / f"encoder.{kind}"))
    said = spoil(path, random)
    job = ["train", "--task", f"npz:{searched.npz}", "--backbone", "small_cnn", "--epochs", "1", "--storage", str(tmp_path / "runs"),
           "--name", "run", "--offline"]  # fmt: skip
    status, _ = judge([*job, "--weights", str(path), "--set", "unfreeze=head"], said)
    assert (tmp_path / "runs" / "run").exists() == (status == 0)


@seeds(30)
def test_model_folders(seed: int, judge: Judge, spoil, searched, tmp_path: Path):
    random = Random(f"model {seed}")
    model = tmp_path / "folder"
    shutil.copytree(searched.cell / "model", model)
    image(tmp_path / "image.png", Random(0))
    name = random.choice(("config.json", "config.json", "config.json", "metrics.json", "model.safetensors"))
    said = f"{name}: {spoil(model / name, random, as_json=name.endswith('json'))}"
    status, out = judge(["predict", str(model), str(tmp_path / "image.png"), "--json"], said)
    if status == 0:
        assert_probabilities(out)
        if random.random() < 0.3:
            judge(["evaluate", str(model), "--task", f"npz:{searched.npz}", "--split", "val", "--json", "--offline"], said)


@seeds(30)
def test_reports_of_spoilt_runs(seed: int, judge: Judge, spoil, searched, tmp_path: Path):
    random = Random(f"report {seed}")
    run = tmp_path / "run"
    shutil.copytree(searched.folder, run)
    (run / "report.html").unlink()
    shutil.rmtree(run / "pictures")
    name = random.choice(("summary.json", "summary.json", "results.parquet", "test_ledger.jsonl", f"{searched.cell.name}/predictions.npz"))
    status, _ = judge(["report", str(run)], f"{name}: {spoil(run / name, random, as_json=name.endswith('json'))}")
    assert (run / "report.html").exists() == (status == 0)


@seeds(20)
def test_resumes_of_spoilt_runs(seed: int, judge: Judge, spoil, searched, tmp_path: Path):
    """Of a run whose trials have ended and whose model is not delivered yet, one file is spoilt."""
    random = Random(f"resume {seed}")
    run = tmp_path / "runs" / searched.folder.name
    shutil.copytree(searched.folder, run)
    for left in ("summary.json", "report.html", "results.parquet", f"{searched.cell.name}/delivered.json"):
        (run / left).unlink()
    shutil.rmtree(run / searched.cell.name / "model")
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name in ("run.json", "trial.json")]
    files += list(run.rglob("epoch-*.safetensors"))
    path = random.choice(files)
    said = f"{path.relative_to(run)}: {spoil(path, random, as_json=path.suffix == '.json')}"
    argv = [str(tmp_path / "runs") if word == str(searched.folder.parent) else word for word in searched.argv]
    status, _ = judge([*argv, "--resume"], said)
    if status == 0:
        assert not json.loads((run / "summary.json").read_text())["partial"]
        assert main(["report", str(run)]) == 0
        return
    assert not (run / "summary.json").exists() or is_partial(run / "summary.json")
    assert not (run / searched.cell.name / "model").exists()


@seeds(4)
def test_a_process_of_its_own_ends_as_soon_and_as_well(seed: int, toy_npz, encoder, tmp_path: Path):
    random = Random(f"process {seed}")
    path, weights = toy_npz(tmp_path / "toy.npz"), Path(shutil.copy(encoder["pt"], tmp_path / "encoder.pt"))
    spoilt = (path, weights)[seed % 2]
    spoilt.write_bytes(random.choice(BYTES[:4])(spoilt.read_bytes(), random)[: -1 - random.randrange(9)])
    command = [
        "-c",
        "import sys; from tlray.cli import main; sys.exit(main())",
        "train",
        "--task",
        f"npz:{path}",
        "--backbone",
        "small_cnn",
        "--weights",
        str(weights),
        "--offline",
    ]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 2
    assert done.stderr.startswith("tlray: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
