r"""Does a network trained on chest radiographs help with pneumonia: frozen, fine-tuned, or unfrozen by degrees?

    python experiments/chest_to_pneumonia.py
    python experiments/chest_to_pneumonia.py --source chestmnist --target npz:pneumonia_28.npz --data DIR

Reports R0 to R2, part 2. A small CNN from the encoder of a classifier and of an autoencoder of the source: frozen, trainable, head first
and then all (LP-FT), gradual, each also with rates that fall by a factor of .65 per stage; against no transfer. One pretraining (seed 0)
serves all seeds. The arms with shifted images cannot use cached features: they time freezing as other tools do it.

Expected on 2 cores for the pneumonia npz from phantom_chest, 5 seeds, 3 to 10 minutes (95 % t-intervals; seconds on an idle machine):

| arm | test accuracy | test AUROC | s per epoch |
|---|---|---|---|
| no transfer | .847 [.827, .866] | .935 [.932, .937] | .38 |
| classifier, frozen | .834 [.831, .837] | .919 [.917, .920] | .05 (cached; .22 with shifted images) |
| classifier, trainable | .857 [.847, .866] | .939 [.937, .942] | .38 (.40 with shifted images) |
| classifier, gradual, decay | .870 [.866, .874] | .944 [.943, .944] | .16 |
| autoencoder, frozen | .860 [.854, .865] | .932 [.929, .934] | .05 |
| autoencoder, gradual | .870 [.861, .878] | .939 [.936, .941] | .15 |
"""

import sys
from typing import Any

from tlray.experiment import Lab, experiment, first_line
from tlray.runs.compare import Question
from tlray.runs.pictures import latent_drawing, reconstruction_drawing
from tlray.runs.verdicts import chest_to_pneumonia

SCHEDULES = {"frozen": "head", "trainable": "full", "LP-FT": "head_then_full", "gradual": "gradual"}
NONE = "no transfer"
METRICS = ("accuracy", "auroc", "balanced_accuracy", "f1")


def main(lab: Lab) -> None:
    """One comparison of all arms."""
    lab.needs_one_label()
    lab.needs_data_set()
    base = lab.config(backbone="small_cnn", epochs=15)
    question = Question("From chest radiographs to pneumonia", first_line(__doc__), METRICS, pairs)
    done = lab.compare(base, {"arm": arms(lab.source)}, question)
    names = (NONE, "classifier, frozen", "classifier, trainable", "autoencoder, frozen", "autoencoder, trainable")
    drawings = [
        latent_drawing(done, "latent", dict(zip(names, names, strict=True)), ("features",), "Latent space of validation images"),
        reconstruction_drawing(f"{lab.source}/autoencoder", base, lab.run),
    ]
    lab.report(done, drawings, chest_to_pneumonia(done, lab.source))


def arms(source: str) -> dict[str, dict[str, Any]]:
    """Name -> fields."""
    found: dict[str, dict[str, Any]] = {NONE: {"weights": "none"}}
    for name, weights in (("classifier", source), ("autoencoder", f"{source}/autoencoder")):
        for schedule, unfreeze in SCHEDULES.items():
            found[f"{name}, {schedule}"] = {"weights": weights, "unfreeze": unfreeze}
            if unfreeze != "head":
                found[f"{name}, {schedule}, decay"] = {"weights": weights, "unfreeze": unfreeze, "layer_decay": 0.65}
    for schedule in ("frozen", "trainable"):
        found[f"{schedule}, shifted images"] = {"weights": source, "unfreeze": SCHEDULES[schedule], "augment": "shift"}
    return found


def pairs(validation: dict[str, float]) -> list[tuple[str, str]]:
    """Every arm with no transfer, and every remedy with plain fine-tuning from the same encoder."""
    transferred = [arm for arm in validation if arm.startswith(("classifier", "autoencoder"))]
    remedies = [(arm, f"{arm.split(',')[0]}, trainable") for arm in transferred if not arm.endswith(" trainable")]
    return [(arm, NONE) for arm in transferred] + remedies


if __name__ == "__main__":
    sys.exit(experiment(main, __doc__, source="chestmnist", target="pneumoniamnist"))
