"""Every regular expression of the package takes time in proportion to what it reads.

They are found in every module, read from the code as well so that none hides in a function, and
tried with texts that each of their repetitions may stumble over.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import pkgutil
import re
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from re import _parser  # type: ignore[attr-defined]  # how `re` itself reads a pattern
from typing import Any, Final, get_args

import msgspec
import pytest

import gateway
from gateway.domain import foreign
from gateway.domain.catalogue import matches
from gateway.observability.logs import Masker
from gateway.translate.failure import TABLE
from tests.running import shipped_catalogue

pytestmark = pytest.mark.slow

Pattern = re.Pattern[Any]

SIZES: Final = (*range(20, 44, 4), 1 << 10, 1 << 12, 1 << 14)
"""Characters. What is exponential shows at the first ones, what is quadratic at the last."""
ALLOWED_S: Final = 0.1
"""Of this thread's own time; 16 Ki characters take a linear one some 2 ms."""
ENDS: Final = ("", "\0", '"', "\n", "@")
FUNCTIONS: Final = frozenset(
    ("compile", "match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer")
)
CATEGORIES: Final = {
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
}
ASKED: Final = frozenset(("match", "fullmatch", "search", "findall", "finditer", "split"))
MADE: Final = {
    "gateway.domain.catalogue": {'"|".join((glob_to_regex(glob) for glob in globs)) or "(?!)"'},
    "gateway.observability.logs": {
        '"|".join([*known, *PATTERNS])',
        'f"[{UNSEEN}]"',
        'f"[\\\\x00-\\\\x1f{UNSEEN}]"',
        'f"[\\\\x00-\\\\x08\\\\x0b-\\\\x1f{UNSEEN}]"',
    },
    "gateway.tenants.usage_log": {
        're.escape(path.name) + "((\\\\.\\\\d+|-\\\\d{8,})(\\\\.gz)?)?"',
    },
}
"""Patterns that are made of parts; each is tried below, or reads only names of files."""


def modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(gateway.__path__, "gateway."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def patterns_in(value: Any, seen: set[int], depth: int = 3) -> Iterator[Pattern]:
    """Those that a value is, holds, or is described by."""
    if id(value) in seen or depth < 0:
        return
    seen.add(id(value))
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, msgspec.Meta) and value.pattern is not None:
        yield re.compile(value.pattern)
    for part in parts_of(value):
        yield from patterns_in(part, seen, depth - 1)


def parts_of(value: Any) -> list[Any]:
    """What a container, a class or an object of ours has inside."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    own = list(vars(value).values()) if is_ours(value) and hasattr(value, "__dict__") else []
    return [*own, *get_args(value)]


def is_ours(value: Any) -> bool:
    kind = value if isinstance(value, type) else type(value)
    return kind.__module__.startswith("gateway")


@cache
def nodes_of(module: Any) -> list[ast.AST]:
    """Of its code, read once."""
    return list(ast.walk(ast.parse(Path(module.__file__).read_text())))


def uses_in(module: Any) -> Iterator[tuple[str, ast.expr]]:
    """Every call of `re` with a pattern, and the pattern as it is written."""
    for node in nodes_of(module):
        if isinstance(node, ast.ImportFrom):
            assert node.module not in {"re", "regex"}, (
                f"{module.__name__}: `import re` is looked for"
            )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = node.func
            is_re = isinstance(called.value, ast.Name) and called.value.id == "re"
            if is_re and called.attr in FUNCTIONS:
                yield called.attr, node.args[0]


def methods_called() -> dict[str, set[str]]:
    """By the name of a pattern: what the package asks of it."""
    called: dict[str, set[str]] = {}
    for module in modules():
        for node in nodes_of(module):
            if isinstance(node, ast.Attribute) and node.attr in FUNCTIONS:
                owner = node.value
                name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
                called.setdefault(name, set()).add(node.attr)
    return called


def found_patterns() -> dict[tuple[Any, int], tuple[Pattern, set[str]]]:
    """Of all modules: each pattern once, and what is asked of it; all that can be, if unknown."""
    called = methods_called()
    found: dict[tuple[Any, int], tuple[Pattern, set[str]]] = {}
    for module in modules():
        for name, value in vars(module).items():
            for pattern in patterns_in(value, set()):
                entry = found.setdefault((pattern.pattern, pattern.flags), (pattern, set()))
                entry[1].update(called.get(name, ASKED) & ASKED or ASKED)
        for function, written in uses_in(module):
            if isinstance(written, ast.Constant):
                pattern = re.compile(written.value)
                entry = found.setdefault((pattern.pattern, pattern.flags), (pattern, set()))
                entry[1].update({function} & ASKED or ASKED)
    return found


FOUND: Final = found_patterns()


def sample(nodes: Any) -> str:
    """A short text that a parsed pattern takes."""
    return "".join(map(sample_of, nodes))


def sample_of(node: Any) -> str:
    kind, value = str(node[0]), node[1]
    match kind:
        case "LITERAL":
            return chr(int(value))
        case "ANY" | "NOT_LITERAL" | "IN":
            return characters(node)[0]
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            return sample(value[2]) * int(value[0])
    return sample(next(iter(inside(node)), []))


def inside(node: Any) -> list[Any]:
    """The sequences that a node is made of; of a branch, each."""
    kind, value = str(node[0]), node[1]
    match kind:
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            return [value[2]]
        case "SUBPATTERN":
            return [value[3]]
        case "ATOMIC_GROUP":
            return [value]
        case "BRANCH":
            return list(value[1])
        case "ASSERT":
            return [value[1]]
    return []


def characters(node: Any) -> list[str]:
    """Some that a node takes: what it names, and the usual ones that it lets pass."""
    kind, value = str(node[0]), node[1]
    if kind == "LITERAL":
        return [chr(value)]
    if kind in {"ANY", "NOT_LITERAL", "IN"}:
        one = re.compile(_source(node), re.DOTALL)
        taken = [c for c in map(chr, (*b'a1 :-_.=/\\",@%&`\t', 0xE9, 0xD800)) if one.fullmatch(c)]
        return taken[:6] or ["a"]
    return [sample_of(node)] if sample_of(node) else []


def _source(node: Any) -> str:
    """A character class again as text, as far as its members are concerned."""
    kind, value = str(node[0]), node[1]
    if kind == "ANY":
        return "."
    if kind == "NOT_LITERAL":
        return f"[^{re.escape(chr(value))}]"
    parts = []
    for member, what in value:
        match str(member):
            case "NEGATE":
                parts.append("^")
            case "LITERAL":
                parts.append(re.escape(chr(what)))
            case "RANGE":
                parts.append(f"{re.escape(chr(what[0]))}-{re.escape(chr(what[1]))}")
            case "CATEGORY":
                parts.append(CATEGORIES[str(what)])
    return f"[{''.join(parts)}]"


def stumbles(nodes: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """For each repetition: what leads to it, and what it may be given over and over."""
    for node in nodes:
        if str(node[0]).endswith("_REPEAT"):
            inner = list(node[1][2])
            yield from ((before, text) for each in inner for text in characters(each))
            yield before, sample(inner) or "a"
        for sequence in inside(node):
            yield from stumbles(sequence, before)
        before += sample_of(node)


def hostile(pattern: Pattern, size: int) -> Iterator[Any]:
    """Texts of about that size: each repetition's food alone, in pairs and with what leads to it.

    Each comes with ends that do not fit.
    """
    text = (
        pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    )
    places = list(dict.fromkeys(stumbles(_parser.parse(text, pattern.flags & ~re.UNICODE))))
    foods = list(dict.fromkeys(food for _, food in places))[:8]
    for before, food in places:
        for end in ENDS:
            yield before + food * (size // len(food)) + end
        yield (before + food) * (size // len(before + food))
        yield (before + food * 40) * (size // len(before + food * 40))
    for one, other in itertools.permutations(foods, 2):
        yield (one + other) * (size // len(one + other)) + "\0"
        yield one * (size // (2 * len(one))) + other * (size // (2 * len(other))) + "\0"


def as_kind(pattern: Pattern, text: str) -> Any:
    is_text = isinstance(pattern.pattern, str)
    return text if is_text else text.encode("latin-1", errors="replace")


def slowest_s(pattern: Pattern, size: int, methods: Iterable[str]) -> float:
    """Seconds of this thread for the worst of the hostile texts."""
    worst = 0.0
    asks = [getattr(pattern, method) for method in sorted(methods)]
    for text in hostile(pattern, size):
        given = as_kind(pattern, text)
        for ask in asks:
            started = time.thread_time()
            ask(given)
            worst = max(worst, time.thread_time() - started)
            if worst > ALLOWED_S:
                return worst
    return worst


def is_linear(
    pattern: Pattern, methods: Iterable[str] = ("search", "fullmatch", "findall")
) -> bool:
    return all(slowest_s(pattern, size, methods) <= ALLOWED_S for size in SIZES)


@pytest.mark.parametrize("found", FOUND.values(), ids=lambda found: repr(found[0].pattern)[:60])
def test_a_pattern_of_the_package_is_linear(found: tuple[Pattern, set[str]]) -> None:
    assert is_linear(*found)


@pytest.mark.parametrize(
    "text",
    [
        r'\s*([\w-]+)\s*(?:=\s*("[^"\\]*"|[^\s"]*)\s*)?',
        r"(?<=://)[^\s/@\"'\\]*:[^\s/@\"'\\]+(?=@)",
        r"(a+)+b",
        r"(a|aa)*b",
        r"x*y*x*z",
        r"^\w+\s*=\s*\w*\s*$",
        r"\d+-\d+\Z",
    ],
)  # fmt: skip
def test_one_that_is_not_is_found_out(text: str) -> None:
    """The first two were the package's own: a header line of 31 KB stopped a worker for 4 s."""
    assert not is_linear(re.compile(text))


def test_no_pattern_hides() -> None:
    """Each that the code makes of parts is known here; all others were timed above."""
    for module in modules():
        made = MADE.get(module.__name__, set())
        for function, written in uses_in(module):
            if not isinstance(written, ast.Constant):
                plain = ast.unparse(written).replace("'", '"')
                assert plain in made, f"{module.__name__}: re.{function}({plain})"
    assert len(FOUND) > 25


def test_the_masker_with_secrets_is_linear() -> None:
    masker = Masker()
    masker.hide(["sk-upstream-0f9b7c1d2e", "redis-password", "a" * 40])

    [pattern] = [value for value in vars(masker).values() if isinstance(value, re.Pattern)]
    assert is_linear(pattern)


@pytest.mark.parametrize("length", [foreign.CODE, 200, 1 << 14])
def test_globs_are_linear(length: int) -> None:
    """Of the catalogue, of the table of codes, and such as an operator may write."""
    catalogue = shipped_catalogue()
    globs = [model.snapshots for model in catalogue.models.values()]
    globs += [row.codes for row in TABLE]
    globs += [("*a*a*a*a*a*b",), ("*" * 20 + "b",), ("[a-z]*[a-z]*[a-z]*!",)]
    for each in globs:
        for food in ("a", "-2", "Data", "a.", "-20", "*"):
            started = time.thread_time()
            matches(tuple(each), food * (length // len(food)))
            assert time.thread_time() - started < ALLOWED_S
