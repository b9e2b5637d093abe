"""The layers of the gateway: this table is their documentation, and this test holds it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Final

import pytest

GATEWAY: Final = Path(__file__).parents[1] / "gateway"

# From the top down: a module imports from the layers below its own, and from its own folder.
LAYERS: Final = (
    ("__main__",),
    ("cli",),
    ("server",),
    ("app",),
    ("sampling",),
    ("api",),
    ("requests",),
    ("results",),
    ("delivery", "pacing", "tenants"),
    ("upstream",),
    ("store",),
    ("config",),
    ("translate",),
    ("observability",),
    ("domain",),
    ("protocol",),
)

# Imports of others that only these modules may have.
ONLY: Final = {
    "httpx": ("app", "upstream.client", "upstream.transport"),
    "aiohttp": ("upstream.*",),
    "redis": ("store.redis", "store.redis.*"),
    "litestar": ("app", "api.*", "simulator.*"),
    "prometheus_client": ("observability.metrics", "observability.multiprocess"),
    "uvicorn": ("server.*", "simulator.*"),
    "yaml": ("config.decode", "simulator.models"),
    "PIL": ("delivery.conversion", "api.uploads.examine", "simulator.*"),
    "multipart": ("api.edit_form", "api.edit_request"),
    "argparse": ("cli", "cli.arguments"),
    "opentelemetry": ("observability.tracing",),
}
# What these may import of the gateway, narrower than their layer allows.
OF_OURS: Final = {
    "protocol.*": ("protocol.*",),
    "translate.*": ("translate.*", "protocol.*", "domain.*"),
    "domain.errors": (),
    "simulator.*": ("simulator.*",),
}
SIMULATOR_IS_KNOWN_TO: Final = ("cli.*", "simulator.*")
PURE: Final = ("translate.*", "protocol.*", "domain.catalogue", "domain.errors", "upstream.retry")
LONGEST_FUNCTION: Final = 60
LONGEST_FILE: Final = 400
DOCSTRINGS: Final = 0.15
"""Their lines, at most, for each line of code: what is said once in docs/ is not said again."""

MODULES: Final = {
    ".".join(path.relative_to(GATEWAY).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(GATEWAY.rglob("*.py"))
    if path != GATEWAY / "__init__.py"
}
EACH: Final = pytest.mark.parametrize("module", MODULES)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def is_in(module: str, names: tuple[str, ...]) -> bool:
    """Whether one of the names or globs covers a module; `a.*` covers `a` too."""
    return any(fnmatchcase(module, each) or f"{module}.*" == each for each in names)


def imports(module: str) -> Iterator[str]:
    """Full names of what a module imports, wherever in it."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                ours = whole.removeprefix("gateway.") in MODULES
                yield whole if ours else node.module or ""


def ours(module: str) -> list[str]:
    """Which of our own modules it imports."""
    found = (name.removeprefix("gateway.") for name in imports(module) if name[:8] == "gateway.")
    return sorted(set(found))


def top(module: str) -> str:
    """The folder or file below the package."""
    return module.partition(".")[0]


def layer(module: str) -> int:
    [place] = [index for index, names in enumerate(LAYERS) if top(module) in names]
    return place


@EACH
def test_imports_go_downward(module: str) -> None:
    """Never up, never sideways: only the modules of one folder know each other."""
    folder = top(module)
    others = [name for name in ours(module) if top(name) not in {folder, "simulator"}]
    if folder != "simulator":
        assert [name for name in others if layer(name) <= layer(module)] == []


@EACH
def test_imports_that_only_some_may_have(module: str) -> None:
    for name in imports(module):
        allowed = ONLY.get(top(name))
        assert allowed is None or is_in(module, allowed), name


@EACH
def test_narrow_modules_stay_narrow(module: str) -> None:
    """Wire types know nothing; translation knows wire types, errors and the catalogue."""
    for glob, allowed in OF_OURS.items():
        if is_in(module, (glob,)):
            assert [name for name in ours(module) if not is_in(name, allowed)] == []


@EACH
def test_the_simulator_is_nobody_s_dependency(module: str) -> None:
    """And has none: a misreading of the vendor that both shared would pass on both sides."""
    uses_it = any(top(name) == "simulator" for name in ours(module))
    assert not uses_it or is_in(module, SIMULATOR_IS_KNOWN_TO)


@EACH
def test_pure_modules_wait_for_nothing(module: str) -> None:
    """No await, no clock, no files: safe to repeat."""
    if is_in(module, PURE):
        waits = (ast.Await, ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith)
        assert not any(isinstance(node, waits) for node in ast.walk(tree(module)))
        assert {"time", "asyncio", "random", "os", "pathlib"}.isdisjoint(imports(module))


@EACH
def test_a_module_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(tree(module))


@EACH
def test_nothing_is_too_long(module: str) -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree(module)):
        if isinstance(node, functions):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"
    assert len(MODULES[module].read_text().splitlines()) <= LONGEST_FILE


def test_docstrings_are_short() -> None:
    """Counted over all; the simulator, which is documentation of the vendor, is left out."""
    said = code = 0
    for module, path in MODULES.items():
        if top(module) != "simulator":
            strings = docstring_lines(tree(module))
            lines = enumerate(path.read_text().splitlines(), 1)
            said += len(strings)
            code += sum(
                bool(line.strip()) and not line.strip().startswith("#") and number not in strings
                for number, line in lines
            )
    assert said <= DOCSTRINGS * code, f"{said} lines for {code}: {said / code:.1%}"


def docstring_lines(module: ast.AST) -> set[int]:
    """Those of modules, classes, functions and attributes."""
    return {
        line
        for node in ast.walk(module)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


@EACH
def test_nothing_happens_at_import(module: str) -> None:
    """A module's top level defines; `__main__` alone acts."""
    defining = (
        ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.ClassDef, ast.FunctionDef,
        ast.AsyncFunctionDef,
    )  # fmt: skip
    for node in tree(module).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        fine = isinstance(node, defining) or is_docstring or is_typing
        assert fine or module == "__main__", ast.unparse(node)


def test_every_layer_is_there() -> None:
    """A name that nothing has any more would document what is gone."""
    tops = set(map(top, MODULES)) - {"simulator"}
    assert {name for names in LAYERS for name in names} == tops
