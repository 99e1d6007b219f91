r"""How many labelled images per class must a source have, and do mixup and collage stand in for more of them?

    python experiments/mnist_to_emnist.py --source mnist --target emnist_letters --data DIR --seeds 5

Report R3. A small CNN is pretrained on s images per class of the source (5 x 1,000 batches of 8, SGD with rate .01, dropout .25) with no
augmentation, mixup or collage; then a new head alone is trained on the target (1,000 batches; 256 images per class, or 100 of digits,
which has no more). Every seed has draws and a pretraining of its own.

Expected on 2 cores with digits in the place of EMNIST, 5 seeds, 10 to 17 minutes (test accuracy, 95 % t-intervals):

| images per class of MNIST | to digits: none | mixup | collage | to MNIST: none |
|---|---|---|---|---|
| 1 | .924 [.912, .936] | .922 [.902, .943] | .904 [.898, .910] | .889 [.855, .924] |
| 4 | .943 [.935, .952] | .934 [.923, .946] | .913 [.905, .922] | .927 [.908, .947] |
| 64 | .949 [.940, .959] | .933 [.921, .946] | .916 [.905, .927] | .959 [.955, .963] |
"""

import sys
from typing import Any

from tlray.experiment import Lab, experiment, first_line
from tlray.runs.arms import SEED, short_name
from tlray.runs.compare import Comparison, Question
from tlray.runs.folder import Drawing
from tlray.runs.pictures import augmented_drawing, line_drawing, square_drawing
from tlray.runs.verdicts import shots

AUGMENTS = ("none", "mixup", "collage")
SHOTS, HOME = (1, 2, 4, 8, 16, 32, 64), (1, 4, 16, 64)
STEPS: dict[str, Any] = {
    "optimizer": "plain_sgd", "lr": 0.01, "scheduler": "constant", "weight_decay": 0.0, "batch_size": 8, "steps_per_epoch": 1000,
    "monitor": "accuracy",
}  # fmt: skip


def main(lab: Lab) -> None:
    """One comparison: lines from source to target and to the source itself, and the square of sources and targets."""
    lab.needs_one_label()
    lab.needs_data_set()
    steps = STEPS | {key: value for key, value in lab.settings.items() if key in STEPS}
    specs = {short_name(spec): spec for spec in (lab.source, lab.target)}
    source, target = short_name(lab.source), short_name(lab.target)
    images = {task: lab.samples or ("100/class" if task == "digits" else "256/class") for task in specs}
    wanted = [(source, target, s, augment) for s in SHOTS for augment in AUGMENTS]
    wanted += [(source, source, s, augment) for s in HOME for augment in AUGMENTS]
    wanted += [(target, to, 64, "none") for to in (target, source)]
    arms = {
        name(a, b, count, augment): {"task": specs[b], "samples": images[b], "weights": weights(specs[a], count, augment, steps)}
        for a, b, count, augment in wanted
    }
    base = lab.config(backbone="small_cnn", weights="imagenet", unfreeze="head", epochs=1, **STEPS)
    gains = [(name(source, target, s, augment), name(source, target, s, "none")) for s in SHOTS for augment in AUGMENTS[1:]]
    done = lab.compare(base, {"arm": arms}, Question("Shots of the source", first_line(__doc__), ("accuracy",), lambda _: gains))
    lab.report(done, drawings(done, lab, source, target), shots(done, source, target))


def name(source: str, target: str, count: int, augment: str) -> str:
    """An arm's name."""
    return f"{source} to {target}, {count}/class, {augment}"


def weights(source: str, count: int, augment: str, steps: dict[str, Any]) -> str:
    """The pretraining on a source, with the seed of the training."""
    fields = {**steps, "epochs": 5, "dropout": 0.25, "samples": f"{count}/class", "augment": augment, "seed": SEED}
    return f"{source}?" + "&".join(f"{key}={value}" for key, value in fields.items())


def drawings(done: Comparison, lab: Lab, source: str, target: str) -> list[Drawing]:
    """Both figures of the report, the square of sources and targets, the augmentations."""
    found = []
    for to, values in ((target, SHOTS), (source, HOME)):
        series = {augment: [(float(s), name(source, to, s, augment)) for s in values] for augment in AUGMENTS}
        title = f"{source} to {to}" + (" (digits stands in for EMNIST)" if to == "digits" else "")
        found.append(line_drawing(done, f"lines-{to}", series, "accuracy", title, f"images per class of {source}", ""))
    found.append(square_drawing(done, (source, target), lambda a, b: name(a, b, 64, "none"), "accuracy"))
    return [*found, augmented_drawing(done.grid.first(name(source, target, 1, "none")), lab.run)]


if __name__ == "__main__":
    sys.exit(experiment(main, __doc__, source="mnist", target="emnist_letters"))
