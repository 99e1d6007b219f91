"""The rules of the house, read from the sources: who imports whom, how long things are, what is never done."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tlray.config import FIELDS

ROOT = Path(__file__).resolve().parents[1]

LAYERS = (
    ("errors", "patience"), ("storage",), ("registry", "cache"), ("lending",), ("config", "results"),
    ("data",), ("models",), ("training",), ("cluster",), ("report",), ("deploy",), ("runs",),
    ("arguments",), ("job", "inspecting"), ("experiment",), ("cli", "__main__"),
)  # fmt: skip
"""Each imports only from those before it and from itself; report and deploy, moreover, not from cluster."""

HIGHEST = {part: level for level, parts in enumerate(LAYERS) for part in parts}
MAY_OPEN_THE_TEST_SPLIT = ("tlray/runs/", "tlray/cli.py", "tlray/deploy/", "tlray/data/held_out.py")
MAY_PRINT = ("tlray/arguments.py", "tlray/cli.py", "tlray/inspecting.py", "tlray/__main__.py")
MAY_UNPICKLE = ("tlray/data/cifar.py",)
"""CIFAR-10 is published as pickles: read only after their md5 equals the one in torchvision's source."""
RAY_PRIVATE = "tlray/cluster/ray_private.py"


@dataclass(frozen=True)
class Source:
    """One Python file of the repository."""

    name: str  # relative, with slashes
    text: str
    tree: ast.Module

    @property
    def part(self) -> str:
        """`tlray/data/task.py` -> data; `tlray/config.py` -> config."""
        return self.name.split("/")[1].removesuffix(".py")


@cache
def sources(folder: str) -> tuple[Source, ...]:
    """Every Python file below `folder`, parsed."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found.append(Source(path.relative_to(ROOT).as_posix(), text, ast.parse(text, filename=str(path))))
    return tuple(found)


@cache
def package_modules() -> frozenset[str]:
    """Dotted names of tlray's modules and packages."""
    return frozenset(".".join(Path(source.name).with_suffix("").parts).removesuffix(".__init__") for source in sources("tlray")) | {
        f"tlray.{path.name}" for path in (ROOT / "tlray").iterdir() if path.is_dir()
    }


def imports(source: Source, at_import_time: bool = False) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every import; `from a import b` gives `a.b`. At import time: not those inside functions."""
    stack: list[ast.AST] = [source.tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source.name}:{node.lineno} imports relatively: write the full name"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif at_import_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            stack.extend(node.orelse)
            continue
        stack.extend(ast.iter_child_nodes(node))


def imported_part(name: str) -> str | None:
    """The part of tlray that an imported name belongs to; None for other packages and for `tlray` itself."""
    names = name.split(".")
    return names[1] if names[0] == "tlray" and len(names) > 1 and f"tlray.{names[1]}" in package_modules() else None


def called(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(source text of what is called, call) of every call."""
    return ((ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def within(name: str, places: tuple[str, ...]) -> bool:
    """Whether a file is one of `places` or lies in one that ends with a slash."""
    return any(name == place or (place.endswith("/") and name.startswith(place)) for place in places)


def report(problems: list[str]) -> None:
    assert not problems, "\n".join(["", *problems])


def test_there_is_something_to_check():
    assert {"tlray/config.py", "tlray/registry.py"} <= {source.name for source in sources("tlray")}


def test_every_part_has_its_place():
    report([f"{source.name}: {source.part!r} stands in no layer" for source in sources("tlray")
            if source.part not in HIGHEST and source.part != "__init__"])  # fmt: skip


def test_imports_go_down_only():
    problems = []
    for source in sources("tlray"):
        mine = HIGHEST.get(source.part, -1)
        for name, line in imports(source):
            other = imported_part(name)
            if other and other != source.part and HIGHEST.get(other, 99) >= mine:
                problems.append(f"{source.name}:{line} imports {name}, which is not below {source.part}")
    report(problems)


def test_report_and_deploy_know_no_cluster():
    report([f"{source.name}:{line} imports {name}" for source in sources("tlray") if source.part in ("report", "deploy")
            for name, line in imports(source) if imported_part(name) == "cluster"])  # fmt: skip


def test_only_cluster_imports_ray():
    report([f"{source.name}:{line} imports {name}: only tlray/cluster may"
            for source in (*sources("tlray"), *sources("experiments")) if source.part != "cluster"
            for name, line in imports(source) if name.split(".")[0] == "ray"])  # fmt: skip


def private(name: str) -> bool:
    """Whether a dotted name of ray has a part that starts with an underscore (`__version__` is public)."""
    return name.split(".")[0] == "ray" and any(re.match(r"_(?!_)", each) for each in name.split("."))


def test_private_names_of_ray_stand_in_one_file():
    problems = []
    for source in sources("tlray"):
        if source.name == RAY_PRIVATE:
            continue
        names = list(imports(source))
        names += [(ast.unparse(node), node.lineno) for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)]
        problems += [f"{source.name}:{line} uses {name}: it belongs in {RAY_PRIVATE}" for name, line in names if private(name)]
    report(problems)


def test_only_the_door_and_the_runs_reach_the_test_split():
    problems = []
    for source in (*sources("tlray"), *sources("experiments")):
        if within(source.name, MAY_OPEN_THE_TEST_SPLIT):
            continue
        problems += [f"{source.name}:{line} imports {name}" for name, line in imports(source)
                     if "held_out" in name or name.endswith(".open_test")]  # fmt: skip
    report(problems)


@pytest.mark.parametrize("module", ["tlray", "tlray.errors", "tlray.registry", "tlray.cache", "tlray.config"])
def test_light_modules_load_nothing_heavy(module):
    """In a fresh process, as other tests have loaded everything into this one."""
    script = f"import sys, {module}; print(*sorted({{'torch', 'ray', 'matplotlib', 'sklearn', 'pandas'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_listing_every_registered_name_loads_nothing_heavy():
    script = """
import sys, tlray.registry as registry
for each in vars(registry).values():
    if isinstance(each, registry.Registry):
        each.names()
print(*sorted({"torch", "ray", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_nothing_outside_cluster_and_report_loads_ray_or_matplotlib_at_import():
    problems = []
    for source in sources("tlray"):
        heavy = {"cluster": ("matplotlib",), "report": ("ray",)}.get(source.part, ("ray", "matplotlib"))
        problems += [f"{source.name}:{line} imports {name} at import time" for name, line in imports(source, at_import_time=True)
                     if name.split(".")[0] in heavy]  # fmt: skip
    report(problems)


def test_no_work_at_import_time():
    """At module level stand definitions, constants and docstrings: no call for its effect, no loop, no configuration."""
    problems = []
    for source in sources("tlray"):
        for node in source.tree.body:
            effect = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
            main = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
            if (effect or isinstance(node, ast.For | ast.While | ast.With)) and not main:
                problems.append(f"{source.name}:{node.lineno} does work at import time: {ast.unparse(node).splitlines()[0]}")
    report(problems)


def test_logging_is_configured_by_the_entry_points_only():
    configuring = ("logging.basicConfig", "logging.config.dictConfig", "logging.disable")
    report([f"{source.name}:{node.lineno} calls {name}" for source in sources("tlray") if not within(source.name, MAY_PRINT)
            for name, node in called(source.tree) if name in configuring])  # fmt: skip


def test_the_library_does_not_print():
    report([f"{source.name}:{node.lineno} prints: log, return or raise instead" for source in sources("tlray")
            if not within(source.name, MAY_PRINT) for name, node in called(source.tree) if name == "print"])  # fmt: skip


def unpickling(source: Source) -> Iterator[tuple[str, int]]:
    """(what, line) of everything in a file that could unpickle; the names of pickle's errors may be used."""
    modules = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
    names = [
        *imports(source),
        *((ast.unparse(node), node.lineno) for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)),
    ]
    for name, line in names:
        if name.split(".")[0] in modules and name not in ("pickle", "pickle.UnpicklingError", "pickle.PickleError"):
            yield name, line
    for name, node in called(source.tree):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if given.get("allow_pickle", "False") != "False":
            yield "allow_pickle", node.lineno
        if name == "torch.load" and given.get("weights_only") != "True":
            yield "torch.load without weights_only=True", node.lineno
        if name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
            yield "np.load without allow_pickle=False", node.lineno
        if name.endswith(".read_pickle") or name in ("eval", "exec"):
            yield name, node.lineno


def test_nothing_from_outside_is_unpickled():
    report([f"{source.name}:{line} {what}" for source in (*sources("tlray"), *sources("experiments"))
            if source.name not in MAY_UNPICKLE for what, line in unpickling(source)])  # fmt: skip


def test_files_and_functions_are_short():
    problems = []
    for source in (*sources("tlray"), *sources("benchmarks")):
        if (lines := len(source.text.splitlines())) > 350:
            problems.append(f"{source.name} has {lines} lines: at most 350")
        for node in functions(source.tree):
            if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > 60:
                problems.append(f"{source.name}:{node.lineno} {node.name} has {lines} lines: at most 60")
    report(problems)


def test_everything_public_says_what_it_is():
    """Modules, public classes and public functions have a docstring; methods that only implement an interface need none."""
    problems = []
    for source in sources("tlray"):
        if source.text.strip() and not ast.get_docstring(source.tree):
            problems.append(f"{source.name} has no docstring")
        for node in source.tree.body:
            named = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if named and not node.name.startswith("_") and not ast.get_docstring(node):
                problems.append(f"{source.name}:{node.lineno} {node.name} has no docstring")
    report(problems)


def test_public_functions_are_typed():
    problems = []
    for source in sources("tlray"):
        for node in source.tree.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [each.arg for each in arguments if each.annotation is None]
            if untyped or node.returns is None:
                problems.append(f"{source.name}:{node.lineno} {node.name}: no type for {', '.join(untyped) or 'what it returns'}")
    report(problems)


def test_asserts_only_narrow_a_type():
    """What can go wrong is raised as an error that survives `python -O`; `x is not None` and isinstance help the type checker."""
    problems = []
    for source in sources("tlray"):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Assert) and not re.search(r" is not None$|^isinstance\(", ast.unparse(node.test)):
                problems.append(f"{source.name}:{node.lineno} asserts {ast.unparse(node.test)}: raise the right error")
    report(problems)


def test_no_error_is_swallowed():
    """`except:`, and `except Exception: pass`, hide what went wrong."""
    problems = []
    for source in sources("tlray"):
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            wide = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            silent = all(isinstance(each, ast.Pass | ast.Continue) for each in node.body)
            if node.type is None or (wide and silent):
                problems.append(f"{source.name}:{node.lineno} swallows every error")
    report(problems)


def test_training_loops_stand_in_training_only():
    report([f"{source.name}:{node.lineno} calls {name}" for source in (*sources("tlray"), *sources("experiments"))
            if source.part != "training" for name, node in called(source.tree) if name.endswith(".backward")])  # fmt: skip


def test_experiments_are_short_and_say_how_to_run_them():
    problems = []
    for source in sources("experiments"):
        lines, most = len(source.text.splitlines()), 200 if source.name.endswith("tune_backbones.py") else 80
        if not 30 <= lines <= most:
            problems.append(f"{source.name} has {lines} lines: 30 to {most}")
        if f"python {source.name}" not in (ast.get_docstring(source.tree) or ""):
            problems.append(f"{source.name}: the docstring does not show the command `python {source.name}`")
    report(problems)


def test_every_field_is_documented():
    report([f"Config.{name} has no sentence" for name, field in FIELDS.items()
            if not re.fullmatch(r".{5,}\.", field.metadata.get("help", ""))])  # fmt: skip


def test_test_files_have_unique_names():
    """There are no packages in tests/, so two files of one name would hide each other."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_tests_do_not_sleep_or_mock():
    problems = []
    for source in sources("tests"):
        problems += [f"{source.name}:{line} imports {name}" for name, line in imports(source) if "mock" in name]
        problems += [f"{source.name}:{node.lineno} sleeps: wait for the thing itself" for name, node in called(source.tree)
                     if name in ("time.sleep", "sleep")]  # fmt: skip
    report(problems)
