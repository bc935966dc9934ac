"""The house keeps its walls: who may import whom, how long a file and a function may be, which words stay outside."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("models", "harness", "studies")
LONGEST_FILE = 350
LONGEST_FUNCTION = 60
TOOL_FILES = {
    "ray": r"harness/adapters/ray_\w+\.py",
    "optuna": r"harness/adapters/optuna_\w+\.py",
    "mlflow": r"harness/adapters/mlflow_\w+\.py",
    "openmm": r"models/molecules/openmm_\w+\.py",
    "tblite": r"models/molecules/tblite_\w+\.py",
}
"""A tool, and the files that may import it."""
MATHEMATICS = re.compile(
    r"\b(gmm4|gmm40|dw4|lj13|lj55|lennard|double_well|flow_matching|path_gradient|maximum_likelihood|egnn)\b", re.I
)
"""Names of energies, losses and fields, which the machinery does not know."""


def sources(*rooms: str) -> dict[str, str]:
    """The text of every Python file of some rooms, by its path from the root."""
    files = sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))
    return {str(path.relative_to(ROOT)): path.read_text() for path in files}


def imports(path: str, source: str, *, at_import_time: bool = False) -> Iterator[str]:
    """Dotted names that a file imports, inside functions as well; `from a import b` gives "a.b".

    Args:
        at_import_time: leave out functions, and blocks under TYPE_CHECKING.
    """
    package = path.split("/")[:-1]
    for node in nodes(ast.parse(source), at_import_time):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and (name := named_module(node)) is not None:
            yield name


def nodes(tree: ast.AST, at_import_time: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if at_import_time and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if at_import_time and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from nodes(child, at_import_time)


def named_module(call: ast.Call) -> str | None:
    """The module of `import_module("a.b")` or `__import__("a.b")`."""
    name = ast.unparse(call.func).rpartition(".")[2]
    if name not in ("import_module", "__import__") or not call.args:
        return None
    first = call.args[0]
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def breaks(path: str, source: str) -> list[str]:
    """What a file imports against the rule."""
    room = path.split("/")[0]
    return [f"{path} imports {name}" for name in imports(path, source) if not allowed(path, room, name)]


def allowed(path: str, room: str, name: str) -> bool:
    tool = next((tool for tool in TOOL_FILES if within(name, tool)), None)
    if tool is not None:
        return re.fullmatch(TOOL_FILES[tool], path) is not None
    if within(name, "torchdyn"):
        return room == "models" and within(name, "torchdyn.numerics")
    if room == "models":
        return not any(within(name, other) for other in ("harness", "studies"))
    if room == "harness":
        public = ("models.contracts", "models.estimators")
        return not within(name, "studies") and (
            not within(name, "models") or any(within(name, module) for module in public)
        )
    return True


def cycles(files: Mapping[str, str]) -> list[list[str]]:
    """Cycles of imports at import time."""
    modules = {module_name(path): path for path in files}
    graph = {
        module: {found for name in imports(path, files[path], at_import_time=True) if (found := owner(name, modules))}
        for module, path in modules.items()
    }
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append([*trail[trail.index(module) :], module])
        elif module not in done:
            for other in sorted(graph[module] - {module}):
                walk(other, [*trail, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return found


def module_name(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def owner(name: str, modules: Mapping[str, str]) -> str | None:
    """The module that a dotted name belongs to: the name itself, or what it is taken from."""
    parent = name.rpartition(".")[0]
    return name if name in modules else parent if parent in modules else None


def long_functions(path: str, source: str) -> list[str]:
    """Functions that are too long, their docstrings not counted."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1 - docstring_lines(node)
            if lines > LONGEST_FUNCTION:
                found.append(f"{path}:{node.lineno} {node.name} has {lines} lines")
    return found


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if ast.get_docstring(node) is None:
        return 0
    first = node.body[0]
    assert first.end_lineno is not None
    return first.end_lineno - first.lineno + 1


def mathematics_named(path: str, source: str) -> list[str]:
    """Energies and losses named in code; help texts of the command line, which are docstrings, may give examples."""
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        words = ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            words = node.value if " " not in node.value else ""
        elif isinstance(node, (ast.Name, ast.Attribute, ast.arg, ast.FunctionDef, ast.ClassDef)):
            words = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", "")
        if MATHEMATICS.search(words or ""):
            found.append(f"{path}:{node.lineno} names {words}")  # type: ignore[attr-defined]
    return found


def broken_links(page: Path) -> list[str]:
    """Relative links and paths in backquotes of a Markdown page that lead nowhere."""
    text = page.read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    links += re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    quoted = re.findall(r"`((?:models|harness|studies|tests|benchmarks)/[\w./-]*)`", text)
    missing = [link for link in links if link and not re.match(r"[a-z]+:", link) and not (page.parent / link).exists()]
    return missing + [path for path in quoted if not (ROOT / path).exists() and not (page.parent / path).exists()]


# the house


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    assert [fault for path, source in sources(room).items() for fault in breaks(path, source)] == []


def test_no_module_imports_itself_in_the_end() -> None:
    assert cycles(sources(*ROOMS)) == []


def test_the_machinery_names_no_energy_and_no_loss() -> None:
    faults = [fault for path, source in sources("harness").items() for fault in mathematics_named(path, source)]
    assert faults == []


def test_files_and_functions_are_short() -> None:
    files = sources(*ROOMS, "benchmarks")
    lines = {path: len(source.splitlines()) for path, source in files.items()}
    assert {path: count for path, count in lines.items() if count > LONGEST_FILE} == {}
    assert [fault for path, source in files.items() for fault in long_functions(path, source)] == []


def test_every_file_says_what_lives_there() -> None:
    assert [
        path for path, source in sources(*ROOMS).items() if source and not ast.get_docstring(ast.parse(source))
    ] == []


def test_a_study_is_a_value_that_needs_no_tool() -> None:
    studies = ", ".join(f"studies.{path.stem}" for path in sorted((ROOT / "studies").glob("[!_]*.py")))
    code = f"import sys, {studies}; print(*({{'ray', 'optuna', 'mlflow'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "", f"one of {studies} imports {done.stdout}"


@pytest.mark.parametrize("page", ["README.md", "studies/README.md"])
def test_pages_lead_somewhere(page: str) -> None:
    assert broken_links(ROOT / page) == []


# the checks themselves


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/a.py", "import ray"),
        ("models/a.py", "import openmm.app"),
        ("models/molecules/openmm_system.py", "from tblite.interface import Calculator"),
        ("models/a.py", "from harness.plan import Phase"),
        ("models/a.py", "def f():\n    import harness.plan"),
        ("models/targets/a.py", "from ...harness import plan"),
        ("models/a.py", "from studies import budget_split"),
        ("models/a.py", "from torchdyn.core import NeuralODE"),
        ("models/a.py", "import torchdyn"),
        ("harness/a.py", "from torchdyn.numerics import odeint"),
        ("harness/a.py", "def f():\n    from models.problem import build"),
        ("harness/a.py", "import models"),
        ("harness/a.py", "from models import systems"),
        ("harness/a.py", "import models.contracts_of_others"),
        ("harness/a.py", "import importlib\nimportlib.import_module('models.systems')"),
        ("harness/a.py", "from studies.budget_split import BudgetSplit"),
        ("harness/a.py", "class A:\n    def f(self):\n        import optuna.samplers"),
        ("harness/adapters/inline_runner.py", "import ray"),
        ("harness/adapters/ray_runner.py", "import mlflow"),
        ("harness/adapters/mlflow_recorder.py", "from optuna import create_study"),
        ("studies/a.py", "import ray.tune"),
        ("studies/a.py", "__import__('mlflow')"),
    ],
)
def test_a_breach_is_found(path: str, source: str) -> None:
    assert len(breaks(path, source)) >= 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/a.py", "from torchdyn.numerics import odeint\nimport rayleigh"),
        ("harness/a.py", "from models.contracts import Batch\nfrom models.estimators import Estimate"),
        ("harness/adapters/ray_worker.py", "def f():\n    import ray.train"),
        ("harness/adapters/optuna_search.py", "import optuna"),
        ("studies/a.py", "from harness.cli import conclude\nfrom models.systems import system_of"),
    ],
)
def test_what_the_rule_allows_is_let_through(path: str, source: str) -> None:
    assert breaks(path, source) == []


def test_cycles_are_found_and_late_imports_are_none() -> None:
    around = {"m/a.py": "import m.b", "m/b.py": "from m.c import x", "m/c.py": "from m import a"}
    assert [set(cycle) for cycle in cycles(around)] == [{"m.a", "m.b", "m.c"}]
    late = {**around, "m/c.py": "def f():\n    from m import a"}
    assert cycles(late) == []
    typed = {**around, "m/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from m import a"}
    assert cycles(typed) == []


def test_named_mathematics_and_long_functions_are_found() -> None:
    assert mathematics_named("a.py", "kind = 'flow_matching'") != []
    assert mathematics_named("a.py", "def f():\n    return path_gradient(1)") != []
    assert mathematics_named("a.py", "class A:\n    target: str = 'gmm4'") != []
    assert mathematics_named("a.py", '"""gmm4 or your own"""\nflow_of(1)') == []
    body = "\n".join("    x = 1" for _ in range(LONGEST_FUNCTION))
    assert long_functions("a.py", f"def f():\n{body}") != []
    assert long_functions("a.py", f'def f():\n    """{body}"""\n    return 1') == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('[a](there.md#part) [b](gone.md) [c](https://example.org) `harness/gone.py` <img src="no.png">')
    (tmp_path / "there.md").touch()
    assert broken_links(page) == ["gone.md", "no.png", "harness/gone.py"]
