"""Waiting on a condition, with a deadline."""

import threading
import time
from collections.abc import Callable
from typing import Any


def wait_until(condition: Callable[[], Any], seconds: float = 180.0) -> Any:
    """What `condition` gives as soon as it is true; fails after a deadline."""
    deadline, pause = time.monotonic() + seconds, threading.Event()  # nobody sets it: between two looks the processor is others'
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not so within {seconds:g} s"
        pause.wait(0.1)
    return answer
