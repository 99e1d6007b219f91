r"""With few labelled images (300 chest radiographs): do class weights, early stopping, dropout or an autoencoder's weights help?

    python experiments/low_data.py
    python experiments/low_data.py --source chestmnist --target chestmnist_binary --data DIR --seeds 10

Reports R0 to R2, part 1. A small CNN is trained on 300 training images, drawn anew by each seed, from random weights and from an
autoencoder of the source's images. All arms of one seed see the same images, and every arm keeps its best epoch on validation. One
autoencoder (seed 0) serves all seeds: the intervals are those of draws and trainings on the target.

Expected on 2 cores, test accuracy, 95 % t-intervals over 10 seeds (phantoms in the place of ChestMNIST; 3 to 4 minutes each):

| data | plain | class weights | from the autoencoder | dropout .5 | SSIM |
|---|---|---|---|---|---|
| phantom_chest to phantom_chest_binary | .818 [.757, .879] | .855 [.829, .881] | .682 [.673, .691] | .659 [.658, .661] | .85 |
| pneumonia npz to itself | .863 [.858, .868] | .875 [.870, .880] | .850 [.843, .858] | .815 [.797, .832] | .903 [.900, .905] |
"""

import sys

from tlray.experiment import Lab, experiment, first_line
from tlray.runs.compare import Question
from tlray.runs.pictures import latent_drawing, reconstruction_drawing
from tlray.runs.verdicts import low_data

RECIPES = {
    "plain": {},
    "class weights": {"class_weights": "balanced"},
    "early stopping": {"patience": 4},
    "dropout .2": {"dropout": 0.2},
    "dropout .5": {"dropout": 0.5},
    "dropout .8": {"dropout": 0.8},
}
METRICS = ("accuracy", "balanced_accuracy", "auroc", "f1")


def main(lab: Lab) -> None:
    """One comparison: every recipe from both starts."""
    lab.needs_one_label()
    lab.needs_data_set()
    base = lab.config(backbone="small_cnn", epochs=20, batch_size=32)
    autoencoder = f"{lab.source}/autoencoder"
    across = {"recipe": RECIPES, "start": {"from random": {"weights": "none"}, "from autoencoder": {"weights": autoencoder}}}
    done = lab.compare(base, across, Question("Few labelled images", first_line(__doc__), METRICS, pairs))
    shown = {"plain from random": "from random", "plain from autoencoder": "from autoencoder"}
    drawings = [
        reconstruction_drawing(autoencoder, base, lab.run),
        latent_drawing(done, "latent", shown, ("conv1", "features"), "Latent space at two stages"),
    ]
    lab.report(done, drawings, low_data(done, real=lab.target == "chestmnist_binary"))


def pairs(validation: dict[str, float]) -> list[tuple[str, str]]:
    """Every recipe with plain, and every recipe from the autoencoder with the same one from random weights."""
    plain = [(f"{name} from random", "plain from random") for name in RECIPES if name != "plain"]
    return plain + [(f"{name} from autoencoder", f"{name} from random") for name in RECIPES]


if __name__ == "__main__":
    sys.exit(experiment(main, __doc__, source="chestmnist", target="chestmnist_binary", seeds=10, samples=300))
