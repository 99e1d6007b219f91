"""A search the way Ray's user guide documents it: Tune runs a driver function that starts a TorchTrainer for each trial.

One worker of one thread per trial, as many trials at a time as there are cores; the interval at which Train asks its workers is tuned
(.2 s; every report waits for it, 2 s by default). Asked with `space`, trials are drawn from it at random and ASHA stops the worse ones;
else the given list is trained to its end. The loader has no worker processes: trials fill the cores.
"""

import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator
from sides import read_request, write_answer

from tlray.training.setup import available_threads


def train_per_worker(settings: dict[str, Any]) -> None:
    """What a TorchTrainer's worker runs."""
    import torch
    from loop import train
    from ray.train import Checkpoint, report
    from ray.train.torch import prepare_data_loader, prepare_model

    from tlray.cache import Places
    from tlray.config import Config

    torch.set_num_threads(1)
    places = Places(settings["data"], offline=True)
    trained = train(Config(**settings["config"]), places, prepare_model=prepare_model, prepare_loader=prepare_data_loader)
    for row, state in trained:
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder, "checkpoint.pt"))
            report(row, checkpoint=Checkpoint.from_directory(folder))


def driver_of(request: dict[str, Any], storage: str) -> Any:
    """The function that Tune runs for each trial."""

    def driver(chosen: dict[str, Any]) -> None:
        from ray.train import CheckpointConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.tune.integration.ray_train import TuneReportCallback

        config = {**request["configs"][0], **chosen} if "space" in request else request["configs"][chosen["number"]]
        TorchTrainer(
            train_per_worker,
            train_loop_config={"config": config, "data": request["data"]},
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(
                name=f"train-{tune.get_context().get_trial_id()}",
                storage_path=storage,
                callbacks=[TuneReportCallback()],
                checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="val_auroc"),  # and the newest
            ),
        ).fit()

    return tune.with_resources(driver, {"node:__internal_head__": 0.001})  # no CPU: these are its worker's


def domain(described: dict[str, Any]) -> Any:
    """Tune's domain for {"choices": [...]} or {"low", "high", "log"}."""
    if "choices" in described:
        return tune.choice(described["choices"])
    return (tune.loguniform if described["log"] else tune.uniform)(described["low"], described["high"])


def tune_config(request: dict[str, Any]) -> tune.TuneConfig:
    """Random search and ASHA with the settings of Ray's PyTorch example, or the list as it is."""
    slots = available_threads()
    if "space" not in request:
        return tune.TuneConfig(metric="val_auroc", mode="max", max_concurrent_trials=slots)
    return tune.TuneConfig(
        metric="val_auroc",
        mode="max",
        num_samples=request["trials"],
        search_alg=BasicVariantGenerator(max_concurrent=slots, random_state=request["seed"]),
        scheduler=ASHAScheduler(max_t=request["configs"][0]["epochs"], grace_period=1, reduction_factor=2),
    )


def start_ray() -> None:
    """Start Ray with its dashboard, all of whose processes know its address.

    Else they look for it on the machine and give up where there is another one; Train's cleaner then leaves the CPU of a trial that was
    stopped taken, and the next one waits for ever.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    os.environ |= {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}
    ray.init(address="local", include_dashboard=True)


def main() -> None:
    """Answer what is asked."""
    request = read_request()
    storage = str(Path(request["folder"]) / "storage")
    start_ray()
    listed = {"number": tune.grid_search(list(range(len(request["configs"]))))}
    space = {name: domain(each) for name, each in request["space"].items()} if "space" in request else listed
    tuner = tune.Tuner(
        driver_of(request, storage),
        param_space=space,
        tune_config=tune_config(request),
        run_config=tune.RunConfig(name="search", storage_path=storage),
    )
    grid = tuner.fit()
    winner = grid.get_best_result(scope="all")
    finished = time.time()
    rows = []
    for number in range(len(grid)):
        frame = grid[number].metrics_dataframe
        if frame is not None and "val_auroc" in frame:
            epochs = zip(frame["epoch"], frame["val_auroc"], frame["time"], strict=True)
            rows += [{"trial": number, "epoch": int(epoch), "val_auroc": auroc, "time": at} for epoch, auroc, at in epochs]
    write_answer(finished=finished, rows=rows, trials=len(grid), winner=winner.config)
    ray.shutdown()


if __name__ == "__main__":
    main()
