r"""Fixed features or fine-tuning, and does a search beat the best of the hand-made conditions?

    python experiments/fixed_or_finetune.py
    python experiments/fixed_or_finetune.py --source 'weights/{backbone}-cifar10.safetensors' --target npz:pneumonia_28.npz --set size=32

Report R4. Its twelve cells: ResNet-50 (learning rates 1e-3 and 5e-4, dropout .5) and MobileNetV2 (plain, dropout .5, a step scheduler),
each fine-tuned and as fixed features, here on 400 training images (--samples all: the whole). First tlray searches the same ground; its
winner on validation is trained with the same seeds and compared, on test, with the hand-made condition that is best on validation.

Expected on 2 cores for the pneumonia npz from CIFAR-10 weights at 32 px, 5 seeds, 19 minutes beside other work (95 % t-intervals):

| arm | test accuracy | test AUROC | s per epoch |
|---|---|---|---|
| ResNet-50, dropout, fine-tuned (fixed) | .862 [.848, .876] (.692) | .938 [.920, .956] (.856) | 7.6 (.04 cached) |
| MobileNetV2, plain, fine-tuned (fixed) | .866 [.843, .888] (.650) | .905 [.887, .922] (.900) | 1.5 (.02 cached) |
| searched: MobileNetV2, full, lr 2.9e-3, flip_shift | .890 [.878, .902] | .952 [.946, .958] | 1.5 |
"""

import sys
from dataclasses import replace
from typing import Any

from tlray.experiment import Lab, experiment, first_line, weights_of
from tlray.runs.compare import Question
from tlray.runs.planning import plan_cells
from tlray.runs.search import best_by_validation
from tlray.runs.verdicts import fixed_or_finetuned

CONDITIONS: dict[str, dict[str, Any]] = {
    "ResNet-50, lr 1e-3": {"backbone": "resnet50"},
    "ResNet-50, lr 5e-4": {"backbone": "resnet50", "lr": 5e-4},
    "ResNet-50, dropout": {"backbone": "resnet50", "dropout": 0.5},
    "MobileNetV2, plain": {"backbone": "mobilenet_v2"},
    "MobileNetV2, dropout": {"backbone": "mobilenet_v2", "dropout": 0.5},
    "MobileNetV2, scheduler": {"backbone": "mobilenet_v2", "scheduler": "step"},
}
WAYS = {"fine-tuned": "full", "fixed": "head"}
METRICS = ("accuracy", "auroc", "balanced_accuracy", "f1")
SEARCHED, TRIALS = "searched", 10


def main(lab: Lab) -> None:
    """The search by validation, then one comparison of the twelve cells and its winner; only then is the test split opened."""
    base = lab.config(epochs=8, scheduler="constant", weights="imagenet")
    cells = []
    for backbone in ("mobilenet_v2", "resnet50"):
        planned, _ = plan_cells([lab.target], [backbone], weights_of(lab.source, backbone), base, dict(lab.settings), lab.run.places)
        cells += planned
    question = Question("Fixed features or fine-tuning?", first_line(__doc__), METRICS, pairs)
    lab.check(base, {"arm": (arms := conditions(lab.source))}, question)
    lab.start_ray()
    best = best_by_validation(cells, lab.run, trials=TRIALS, seed=0).config
    searched = {field: value for field, value in best.items() if field not in ("monitor", "seed", "fold", "folds", "threads")}
    done = lab.compare(replace(base, backbone="resnet50"), {"arm": {**arms, SEARCHED: searched}}, question)
    lab.report(done, [], fixed_or_finetuned(done, list(CONDITIONS)))


def conditions(source: str) -> dict[str, dict[str, Any]]:
    """The twelve cells: name -> fields."""
    return {
        f"{condition}, {way}": {**fields, "weights": weights_of(source, fields["backbone"]), "unfreeze": unfreeze}
        for condition, fields in CONDITIONS.items()
        for way, unfreeze in WAYS.items()
    }


def pairs(validation: dict[str, float]) -> list[tuple[str, str]]:
    """Fixed with fine-tuned in each condition, and the search with the best hand-made arm on validation."""
    hand = max((arm for arm in validation if arm != SEARCHED), key=lambda arm: validation[arm])
    return [(f"{condition}, fixed", f"{condition}, fine-tuned") for condition in CONDITIONS] + [(SEARCHED, hand)]


if __name__ == "__main__":
    sys.exit(experiment(main, __doc__, source="imagenet", target="pneumoniamnist", samples=400))
