"""tlray's side of a given list of trials: a search of one cell whose first configurations are the list, so all run to their end.

The call is `tlray.runs.search.best_by_validation`: what `search` does up to its winner, without test split, report and model.
"""

import time
from pathlib import Path
from typing import Any

from sides import read_request, write_answer

from tlray.cache import Places
from tlray.cluster.resources import divide, machine
from tlray.cluster.session import started
from tlray.config import Config
from tlray.results import read_trials
from tlray.runs.folder import Run
from tlray.runs.planning import plan_cells
from tlray.runs.search import best_by_validation


def main() -> None:
    """Answer what is asked."""
    request: dict[str, Any] = read_request()
    configs = [Config(**each) for each in request["configs"]]
    base, varied = configs[0], request["varied"]
    first = [{name: getattr(config, name) for name in varied} for config in configs]
    folder = Path(request["folder"]) / "run"
    folder.mkdir()
    run = Run(folder, Places(request["data"], offline=True, run=str(folder)), divide([machine()], 0, None, None, None))
    with started():
        cells, _ = plan_cells([base.task], [base.backbone], base.weights, base, {}, run.places, space={}, first=first)
        winner = best_by_validation(cells, run, trials=len(configs), seed=0)
        finished = time.time()
    trials = read_trials(folder / cells[0].name)
    rows = [{"trial": trial.number, **row} for trial in trials for row in trial.history]
    wanted = [config.to_dict() for config in configs]
    if [trial.config for trial in trials] != wanted:
        raise SystemExit("the trials are not those of the list")
    write_answer(finished=finished, rows=rows, trials=len(trials), winner=winner.number)


if __name__ == "__main__":
    main()
