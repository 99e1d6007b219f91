"""Which backbone, schedule and settings classify these images best? tlray's main job.

    python experiments/tune_backbones.py
    python experiments/tune_backbones.py --tasks breastmnist npz:my.npz --backbones mobilenet_v2 --weights imagenet --size 64

Searches learning rate, weight decay, dropout, scheduler, unfreeze schedule, layer-wise decay, label smoothing and augmentation for each
task and backbone with Optuna's TPE and ASHA on Ray Tune; the best validation checkpoint wins and is scored once on the test split.
With no arguments: ResNet-50 and MobileNetV2 on PneumoniaMNIST and BreastMNIST, or on embedded phantom data where they cannot be had.
"""

import sys

from tlray.cli import tune

if __name__ == "__main__":
    sys.exit(tune(description=__doc__))
