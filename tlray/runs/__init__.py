"""search(...) and compare(...): plan, train on Ray, choose by validation, open the test split once, report, hand over the model."""

from tlray.runs.compare import compare
from tlray.runs.folder import new_run
from tlray.runs.search import search

__all__ = ["compare", "new_run", "search"]
