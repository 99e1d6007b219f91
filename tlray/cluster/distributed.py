"""TorchTrainer round `fit`: gloo on CPUs, NCCL on GPUs, resuming from the newest whole checkpoint after a worker is lost."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from tlray.cache import Places
from tlray.cluster.faults import LOST_PROCESSES, lost, reason_of
from tlray.cluster.interrupts import heed_notice
from tlray.cluster.ray_private import free_orphans
from tlray.cluster.resources import Resources
from tlray.cluster.trial import Job, worker
from tlray.config import Config
from tlray.errors import RunError, StorageError
from tlray.results import FAILED, NONFINITE, RUNNING, Trial, read_trial, write_trial
from tlray.storage import AnyPath, RemotePath, remove_tree
from tlray.training.pretrain import encoder_file, pretrain
from tlray.training.world import World


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """torch's process group, in workers that let SIGTERM wait for a checkpoint."""

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        """Called by Ray; runs in each worker's main thread, where signals come."""
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(heed_notice)


class _Torch(TorchConfig):
    @property
    def backend_cls(self) -> type:
        return _Backend


class WorkerLosses(UserCallback):
    """Hears from a TorchTrainer's controller that workers are gone and their group is started again."""

    def __init__(self, job: "Job", number: int):
        self.job, self.number = job, number

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Count it once, however many workers it took; where a worker itself went wrong it has ended the trial by now."""
        said = [f"{error} {getattr(error, 'health_check_failure', '')}" for error in worker_exceptions.values()]
        lost(self.job, self.number, " ".join(said))


def torch_trainer(
    loop: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    name: str,
    storage: AnyPath,
    resources: Resources,
    callbacks: Sequence[UserCallback] = (),
) -> TorchTrainer:
    """A TorchTrainer of `resources.workers` processes that run `loop(settings)`; Ray Train lists it as `name`.

    Ray would take up an earlier run of that name from its own snapshot; ours are taken up from their checkpoints, so it is cleared.
    """
    remove_tree(storage / name)
    filesystem, path = storage.filesystem() if isinstance(storage, RemotePath) else (None, str(storage))
    gpu = resources.gpus > 0
    return TorchTrainer(
        loop,
        train_loop_config=settings,
        torch_config=_Torch(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(1, resources.processes) if resources.elastic else resources.processes,
            use_gpu=gpu,
            resources_per_worker={"CPU": resources.cpus} | ({"GPU": resources.gpus} if gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            callbacks=list(callbacks),
            failure_config=FailureConfig(max_failures=LOST_PROCESSES),
        ),
    )


def _fit(trainer: TorchTrainer) -> None:
    """`trainer.fit()` in a thread of its own, so that Ctrl-C stays ours.

    In the main thread Ray puts a handler in the place of Python's and leaves it there: Ctrl-C then ends the process silently.
    """
    free_orphans()  # of an earlier call that broke off
    outcome: Future[None] = Future()

    def run() -> None:
        try:
            trainer.fit()
            outcome.set_result(None)
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    outcome.result()


def train_distributed(job: Job, config: Config, number: int = 0) -> Trial:
    """Train one Config in a TorchTrainer, taking up what an earlier call left; the trial as it ended.

    Raises RunError with the reason when it failed, or when Ray lost more of it than its workers.
    """
    try:
        known = read_trial(job.cell, number)
    except StorageError:
        raise
    except RunError:
        known = None
    if known is None or known.config != config.to_dict():
        write_trial(job.cell, Trial(number, config.to_dict()))
    if known is None or known.status == RUNNING:
        settings, losses = {"job": job, "number": number}, [WorkerLosses(job, number)]
        try:
            _fit(torch_trainer(worker, settings, job.label, job.cell / "ray", job.resources, losses))
        except (TrainingFailedError, RayError) as error:
            if not read_trial(job.cell, number).ended:
                raise RunError(f"the training in {job.cell} broke off, the same call goes on with it: {reason_of(error)}") from error
    trial = read_trial(job.cell, number)
    if trial.status in (FAILED, NONFINITE):
        raise RunError(f"the training in {job.cell} ended as {trial.status}: {trial.reason}")
    return trial


def _pretrain_worker(settings: dict[str, Any]) -> None:
    from ray import train as ray_train

    context = ray_train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    places, dealt = settings["places"], settings["deal_out"]
    alone = World(0, 1, World.current().device)
    for index, fields in enumerate(settings["configs"]):
        config = Config(**fields)
        if dealt and index % size != rank:
            continue
        pretrain(config, places, alone if dealt else None)


def pretrain_all(configs: Sequence[Config], places: Places, resources: Resources, run: str, storage: AnyPath) -> None:
    """Make the weights of these pretrainings in one TorchTrainer: dealt out where there is one for each worker, else each by all workers.

    Raises RunError when one of them did not come to an end.
    """
    settings = {
        "places": places,
        "configs": [config.to_dict() for config in configs],
        "deal_out": len(configs) >= resources.processes > 1,
    }
    name = f"{run}-pretraining"
    try:
        _fit(torch_trainer(_pretrain_worker, settings, name, storage, resources))
    except (TrainingFailedError, RayError) as error:
        first = next(iter(getattr(error, "worker_failures", {}).values()), error)
        raise RunError(f"{name} failed: {reason_of(first)}") from error
    for config in configs:
        if not encoder_file(config, places).is_file():
            raise RunError(f"pretraining {config.backbone} on {config.task} did not come to an end: see Ray's log of {name}")
