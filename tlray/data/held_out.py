"""The one door to the test split, which writes down that it was opened."""

import json
import os
import time
from pathlib import Path

from tlray.data.task import Split, Task, open_split
from tlray.errors import DataError


def open_test(task: Task, ledger: Path, purpose: str) -> Split:
    """Open the test split of `task` after one JSON line {"task", "purpose", "time", "images"} stands in `ledger`.

    `time` is in seconds since 1970. Raises DataError when the ledger cannot be written or the arrays are damaged.
    """
    try:
        split = open_split(task.folder, "test")
    except (OSError, ValueError) as error:
        raise DataError(f"the prepared arrays in {task.folder} are damaged ({error}): delete that folder") from None
    line = json.dumps({"task": task.name, "purpose": purpose, "time": time.time(), "images": len(split)})
    try:
        Path(ledger).parent.mkdir(parents=True, exist_ok=True)
        with open(ledger, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"the test split of {task.name} stays closed, its opening cannot be written to {ledger}: {error}") from None
    return split
