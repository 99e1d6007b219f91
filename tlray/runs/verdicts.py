"""Verdicts on what the five reports claim (R0a to R4c), each from the comparison that its experiment makes.

The arms' names are those of the experiment; a verdict is about the data that were compared, and says which they were.
"""

from collections.abc import Sequence

import numpy as np

from tlray.data.task import open_task
from tlray.report.stats import t_interval
from tlray.runs.claims import FAILS, HOLDS, OPEN, Claim, apart, differs, said, same, together, within_family
from tlray.runs.compare import Comparison
from tlray.runs.pictures import separabilities

STRONGLY = 0.25
"""Share of the rarer class below which two classes are strongly imbalanced here."""
APART = 0.02
"""Range of accuracy over seeds from which on results change from run to run here; the reports' was .03."""


def low_data(done: Comparison, real: bool) -> list[Claim]:
    """R0a to R0c, and what R2b says of dropout. real: whether the images are ChestMNIST's, of whose balance R0a speaks."""
    plain, other = "plain from random", "plain from autoencoder"
    labels = np.asarray(open_task(done.grid.base.task, done.grid.base.size, done.run.places).train.labels)
    rarest = float(np.bincount(labels).min() / len(labels))
    deep, early = (separabilities(done, plain, stage) for stage in ("features", "conv1"))
    stages = apart("5-NN accuracy", ("features", "conv1"), deep, early)
    gain = done.paired("accuracy", [(other, plain)])[0]
    fitted = apart("train accuracy", (other, plain), *(done.values(arm, "accuracy", "train") for arm in (other, plain)))
    seen = within_family([_unguessed(done, plain, space) for space in ("PCA", "t-SNE")])
    unseparated = [{HOLDS: FAILS, FAILS: HOLDS, OPEN: OPEN}[differs(row, "higher")] for row in seen]
    dropout = done.paired("accuracy", [(f"dropout {p} from random", plain) for p in (".2", ".5", ".8")])
    sensitive = {HOLDS: FAILS, FAILS: HOLDS, OPEN: OPEN}[together([same(row) for row in dropout])]
    imbalanced = f"the rarer class has {rarest:.1%} of the training images" + ("" if real else ", which are not ChestMNIST's")
    return [
        Claim("R0a", "binary ChestMNIST is strongly imbalanced", imbalanced, (HOLDS if rarest < STRONGLY else FAILS) if real else OPEN),
        Claim("R0b", "the stage of the embedding does not change how separable the classes are; PCA and t-SNE show no separation",
              _all([stages, *seen]), together([same(stages), *unseparated])),
        Claim("R0c", "autoencoder weights raise test accuracy and lower train accuracy", f"{said(gain)}; {said(fitted)}",
              together([differs(gain, "higher"), differs(fitted, "lower")])),
        Claim("R2b", "results are sensitive to the dropout probability", _all(dropout), sensitive),
    ]  # fmt: skip


def chest_to_pneumonia(done: Comparison, source: str) -> list[Claim]:
    """R0d, R1a to R1c, R2a, and what R2b says of latent spaces. source: the data set that was pretrained on.

    Forgetting shows in how well the features still tell apart the source's own images: with a finding, or of one class or another.
    """
    none, frozen, trainable = "no transfer", "classifier, frozen", "classifier, trainable"
    remedies = done.paired("accuracy", [(f"classifier, {each}", trainable) for each in ("LP-FT", "gradual", "trainable, decay")])
    gain, cost = done.paired("accuracy", [(trainable, none), (trainable, frozen)])
    uncached = time_ratio(done, "frozen, shifted images", "trainable, shifted images")
    times = {"uncached": uncached, "cached": time_ratio(done, frozen, trainable)}
    spaces = {(arm, space): separabilities(done, arm, space=space) for arm in (frozen, trainable) for space in ("features", "PCA", "t-SNE")}
    better = [apart("5-NN accuracy", (f"t-SNE ({arm})", "PCA"), spaces[arm, "t-SNE"], spaces[arm, "PCA"]) for arm in (frozen, trainable)]
    moved = [np.abs(np.subtract(spaces[frozen, space], spaces[trainable, space])).tolist() for space in ("PCA", "t-SNE")]
    change = apart("change of 5-NN accuracy by training", ("PCA", "t-SNE"), *moved)
    alike = apart("5-NN accuracy of features", (trainable, frozen), spaces[trainable, "features"], spaces[frozen, "features"])
    home = open_task(source, done.grid.base.size, done.run.places)
    remembered = [separabilities(done, arm, task=home) for arm in (trainable, frozen)]
    forgot = apart(f"5-NN accuracy on {home.name}", (trainable, frozen), *remembered)
    latent = within_family([*better, change, alike, forgot])
    reached, tuned = (done.entry(f"autoencoder, {each}")["test"]["accuracy"] for each in ("frozen", "trainable"))
    moves = OPEN if tuned["low"] is None else HOLDS if max(tuned["values"]) - min(tuned["values"]) >= APART else FAILS
    ratios = "; ".join(f"{kind} {each['mean']:.2f}{_range(each)}" for kind, each in times.items())
    return [
        Claim("R0d", "LP-FT, gradual unfreezing and layer-wise rates keep a new head from destroying transferred features", _all(remedies),
              together([differs(row, "higher") for row in remedies])),
        Claim("R1a", "transfer improves pneumonia slightly, not significantly", said(gain), same(gain)),
        Claim("R1b", "freezing all but the head is about 40 % faster; everything trainable is more accurate",
              f"epoch time frozen / trainable {ratios}; {said(cost)}", together([_lies(uncached, 0.5, 0.7), differs(cost, "higher")])),
        Claim("R1c", "t-SNE separates better than PCA; training changes the PCA picture more", _all(latent[:3]),
              together([differs(row, "higher") for row in latent[:3]])),
        Claim("R2a", "frozen features of the autoencoder's encoder reach about .85; fine-tuned .84 or .87 from run to run",
              f"accuracy frozen {_figure(reached)}; fine-tuned {min(tuned['values']):.3f} to {max(tuned['values']):.3f} over seeds",
              together([_lies(reached, 0.83, 0.87), moves])),
        Claim("R2b", "frozen and fine-tuned latent spaces look alike, and fine-tuning forgets the source", _all(latent[3:]),
              together([same(latent[3]), differs(latent[4], "lower")])),
    ]  # fmt: skip


def shots(done: Comparison, source: str, target: str) -> list[Claim]:
    """R3a and R3b."""

    def arm(shots: int, augment: str, of: str = source, to: str = target) -> str:
        return f"{of} to {to}, {shots}/class, {augment}"

    first = done.paired(
        "accuracy", [(arm(1, "mixup"), arm(1, "none")), (arm(1, "collage"), arm(1, "none")), (arm(1, "mixup"), arm(1, "collage"))]
    )
    late = done.paired("accuracy", [(arm(s, augment), arm(s, "none")) for s in (32, 64) for augment in ("mixup", "collage")])
    more, home = done.paired("accuracy", [(arm(64, "none"), arm(32, "none")), (arm(64, "none", target), arm(64, "none"))])
    easy, hard = (done.entry(arm(64, "none", each, each))["test"]["accuracy"] for each in (source, target))
    easier = OPEN if easy["low"] is None else HOLDS if easy["low"] > hard["high"] else FAILS if easy["high"] < hard["low"] else OPEN
    return [
        Claim("R3a", "mixup and collage gain 12 points at one sample per class and nothing from 32 on, and do equally well",
              _all([*first, *late]),
              together([*(differs(row, "higher") for row in first[:2]), same(first[2]), *(same(row) for row in late)])),
        Claim("R3b", "32 to 64 samples per class add little; pretraining on the same data is better; MNIST is easier than EMNIST",
              f"{said(more)}; {said(home)}; accuracy {source} alone {_figure(easy)}, {target} alone {_figure(hard)}",
              together([same(more), differs(home, "higher"), easier])),
    ]  # fmt: skip


def fixed_or_finetuned(done: Comparison, conditions: Sequence[str]) -> list[Claim]:
    """R4a to R4c, and whether the search beats the hand; the search is the last of the compared pairs."""
    plain, calm = "ResNet-50, lr 1e-3, fine-tuned", [f"ResNet-50, {each}, fine-tuned" for each in ("lr 5e-4", "dropout")]
    narrower = within_family(
        [
            apart(what, (arm, plain), *(done.entry(each)[what]["values"] for each in (arm, plain)))
            for what in ("gap", "deviation")
            for arm in calm
        ]
    )
    accuracy = [row for row in done.summary["comparison"]["comparisons"] if row["metric"] == "accuracy"]
    resnet, mobile = ([row for row in accuracy if row["arm"].startswith(name) and row["arm"].endswith("fixed")] for name in ("Res", "Mob"))
    ways, seeds = ("fixed", "fine-tuned"), range(len(done.grid.replicates))
    calmness = {way: [done.entry(f"{name}, {way}")["deviation"]["values"] for name in conditions] for way in ways}
    # conditions of one seed share draw and initial weights: they are averaged, not counted as so many pairs
    steadier = apart("deviation over epochs", ways, *([float(np.mean([one[at] for one in calmness[way]])) for at in seeds] for way in ways))
    large, small = (done.entry(f"{each}, fixed")["cost"] for each in ("ResNet-50, lr 1e-3", "MobileNetV2, plain"))
    named = {"parameters": "parameters", "megabytes": "MB", "ms_per_image": "ms per image"}
    lighter, searched = all(small[name] < large[name] for name in named), accuracy[-1]
    costs = ", ".join(f"{small[name]:,.4g} against {large[name]:,.4g} {words}" for name, words in named.items())
    return [
        Claim("R4a", "a lower learning rate and dropout narrow the gap between training and validation and calm validation", _all(narrower),
              together([differs(row, "lower") for row in narrower])),
        Claim("R4b", "fixed features are better for ResNet-50, fine-tuning for MobileNetV2; fixed features are more stable",
              _all([*resnet, *mobile, steadier]),
              together([differs(row, "higher") for row in resnet] + [differs(row, "lower") for row in [*mobile, steadier]])),
        Claim("R4c", "MobileNetV2 is lighter and faster at inference", costs, HOLDS if lighter else FAILS),
        Claim("R4", "a search beats the hand-made condition that is best on validation", said(searched), differs(searched, "higher")),
    ]  # fmt: skip


def _unguessed(done: Comparison, arm: str, space: str) -> dict:
    """How far the 5-NN accuracy of points in a space lies above guessing, over seeds."""
    found = separabilities(done, arm, space=space)
    labels = done.scored[arm][0].labels["val"]
    guess = float(np.bincount(labels).max() / len(labels))
    return apart("5-NN accuracy", (space, "guessing"), found, [guess] * len(found))


def time_ratio(done: Comparison, fast: str, slow: str) -> dict:
    """Median epoch time of one arm over another's: a t-interval of the ratios, paired by seed."""
    seconds = [done.entry(arm)["cost"]["epoch_seconds"]["values"] for arm in (fast, slow)]
    return t_interval([one / other for one, other in zip(*seconds, strict=True)])


def _lies(figure: dict, low: float, high: float) -> str:
    """The verdict on "it lies in low..high": by the interval, which one seed does not have."""
    if figure["low"] is None:
        return OPEN
    if figure["low"] >= low and figure["high"] <= high:
        return HOLDS
    return FAILS if figure["low"] > high or figure["high"] < low else OPEN


def _range(figure: dict) -> str:
    return "" if figure["low"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]"


def _figure(figure: dict) -> str:
    return f"{figure['mean']:.3f}{_range(figure)}"


def _all(rows: Sequence[dict]) -> str:
    return "; ".join(map(said, rows))
