"""The one door to the test split, which writes down that it was opened."""

import json
import time

from tlray.cache import append_line
from tlray.data.task import Split, Task, open_split
from tlray.errors import DataError, StorageError
from tlray.storage import AnyPath


def open_test(task: Task, ledger: AnyPath, purpose: str) -> Split:
    """Open the test split of `task` after one JSON line {"task", "purpose", "time", "images"} stands in `ledger`.

    `time` is in seconds since 1970. Raises DataError when the ledger cannot be written or the arrays are damaged.
    """
    try:
        split = open_split(task.folder, "test")
    except (OSError, ValueError) as error:
        raise DataError(f"the prepared arrays in {task.folder} are damaged ({error}): delete that folder") from None
    line = json.dumps({"task": task.name, "purpose": purpose, "time": time.time(), "images": len(split)})
    try:
        append_line(ledger, line)
    except (OSError, StorageError) as error:
        raise DataError(f"the test split of {task.name} stays closed, its opening cannot be written to {ledger}: {error}") from None
    return split
