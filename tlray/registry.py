"""Names of things (backbones, data sets, schedules), known without importing what they name.

A registry scans the source text of its package for `NAME.register("a", "b")` and imports the module only when one of its names is
looked up. So `Config` can check a name, list the choices and guess what was meant while torch is not yet loaded.
"""

import ast
import difflib
import importlib
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from tlray.errors import ConfigError


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest of `choices`, or an empty string."""
    near = difflib.get_close_matches(str(name), [str(choice) for choice in choices], n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


class Registry:
    """Maps names to things registered in the modules of one package or module.

    Args:
        kind: what the things are, for messages ("backbone").
        variable: the registry's own variable name, as it stands in the modules (`BACKBONES`).
        package: the dotted package (every module directly in it is scanned) or module.
    """

    def __init__(self, kind: str, variable: str, package: str):
        self.kind = kind
        self._variable = variable
        self._package = package
        self._things: dict[str, Any] = {}

    @cached_property
    def _modules(self) -> dict[str, str]:
        """name -> dotted module that registers it, read from source text."""
        root = Path(__file__).parent.joinpath(*self._package.split(".")[1:])
        files = sorted(root.glob("*.py")) if root.is_dir() else [root.with_suffix(".py")]
        call = re.compile(rf"\b{self._variable}\.register\(([^)]*)\)")
        found = {}
        for file in files:
            module = self._package if file.stem in ("__init__", root.name) else f"{self._package}.{file.stem}"
            for names in call.findall(file.read_text(encoding="utf-8")):
                found.update(dict.fromkeys(ast.literal_eval(f"({names.rstrip().rstrip(',')},)"), module))
        return found

    def register(self, *names: str) -> Callable[[Any], Any]:
        """Decorator that registers a thing under each of `names`; they must be literal strings."""

        def add(thing: Any) -> Any:
            self._things.update(dict.fromkeys(names, thing))
            return thing

        return add

    def names(self) -> list[str]:
        """Every known name in the order of registration; imports nothing."""
        return list(dict.fromkeys([*self._modules, *self._things]))

    def __contains__(self, name: object) -> bool:
        return name in self._things or name in self._modules

    def problem(self, name: str) -> str | None:
        """One sentence that says why `name` is not one of ours, or None."""
        if name in self:
            return None
        choices = self.names()
        return f"unknown {self.kind} {name!r}{did_you_mean(name, choices)}: choose from {', '.join(choices)}"

    def __getitem__(self, name: str) -> Any:
        if name not in self._things:
            if problem := self.problem(name):
                raise ConfigError(problem)
            importlib.import_module(self._modules[name])
        return self._things[name]


TASKS = Registry("task", "TASKS", "tlray.data")
AUGMENTS = Registry("augmentation", "AUGMENTS", "tlray.data")
BACKBONES = Registry("backbone", "BACKBONES", "tlray.models")
UNFREEZE = Registry("unfreeze schedule", "UNFREEZE", "tlray.training")
OPTIMIZERS = Registry("optimizer", "OPTIMIZERS", "tlray.training")
SCHEDULERS = Registry("scheduler", "SCHEDULERS", "tlray.training")
METRICS = Registry("metric", "METRICS", "tlray.training")
