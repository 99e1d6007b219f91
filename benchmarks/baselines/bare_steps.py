"""What nobody can do without: seconds of a training step of the whole network on one thread, images ready in memory, nothing else."""

import time

import numpy as np
import torch
import torch.nn.functional as F
from loop import logits
from sides import read_request, write_answer

from tlray.cache import Places
from tlray.config import Config
from tlray.data.task import open_task
from tlray.training.optim import make_optimizer
from tlray.training.setup import new_model

WARM_UP = 3


def main() -> None:
    """Answer with the seconds of a step."""
    request = read_request()
    torch.set_num_threads(1)
    config, places = Config(**request["configs"][0]), Places(request["data"], offline=True)
    task = open_task(config.task, config.size, places)
    model, _, _ = new_model(config, task, places)
    optimizer = make_optimizer(model, model.backbone.stage_names, config)
    images = torch.from_numpy(np.array(task.train.images[: config.batch_size])).float() / 255
    labels = torch.from_numpy(np.array(task.train.labels[: config.batch_size]))
    model.train()
    started = 0.0
    for step in range(WARM_UP + request["steps"]):
        if step == WARM_UP:
            started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits(model, images, 0, config.precision), labels).backward()
        optimizer.step()
    write_answer(seconds=(time.perf_counter() - started) / request["steps"])


if __name__ == "__main__":
    main()
