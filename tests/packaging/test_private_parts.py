"""What the gateway leans on in its libraries without their promise: each part is named here.

A release that changes one fails this test, not a request; pyproject.toml keeps such releases from
who installs without the lock (docs/decisions/0016-private-parts.md).
"""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT: Final = Path(__file__).parents[2]
GATEWAY: Final = ROOT / "gateway"
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Of each library: a place in it, and the names there that no document of it promises. Names that
# an instance gets are looked for in the code of its class.
PARTS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "uvicorn": {
        # gateway/server/worker.py: what its own server adds to the start, the signals and the end.
        "uvicorn.server:Server": (
            "startup", "shutdown", "handle_exit",
            "started", "should_exit", "force_exit", "servers", "server_state", "lifespan",
        ),
        # gateway/server/http.py: what a protocol class is given, and enters itself into.
        "uvicorn.server:ServerState": ("connections", "tasks", "default_headers"),
        "uvicorn.config:Config": ("loaded_app", "http"),
    },
    "prometheus-client": {
        # gateway/observability/metrics.py: many observations at once, and the files of the dead.
        "prometheus_client.metrics:Histogram": ("_buckets", "_sum"),
        "prometheus_client.mmap_dict:MmapedDict": ("read_all_values_from_file",),
    },
    "redis": {
        # gateway/store/redis/pipeliner.py: one connection, and what is sent over it.
        "redis.asyncio.connection:AbstractConnection": (
            "register_connect_callback", "send_packed_command", "read_response", "disconnect",
        ),
        "redis.asyncio.connection:ConnectionPool": (
            "get_connection", "release", "disconnect", "aclose",
        ),
        "redis.crc": ("key_slot",),
    },
    "aiohttp": {
        # gateway/upstream/transport.py: a connection that is opened before there is a request.
        "aiohttp.client_reqrep:ClientRequest": ("__init__",),
        "aiohttp.connector:BaseConnector": ("connect",),
        # How it writes a body whose length it knows.
        "aiohttp.payload:BytesPayload": ("write_with_length",),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("place", "name"),
    [(place, name) for parts in PARTS.values() for place in parts for name in parts[place]],
)
def test_it_is_still_there(place: str, name: str) -> None:
    module, _, owner = place.partition(":")
    found: Any = import_module(module)
    if owner:
        found = getattr(found, owner)

    assert hasattr(found, name) or re.search(rf"\bself\.{name}\b", inspect.getsource(found))


@pytest.mark.parametrize("library", PARTS)
def test_the_library_has_an_upper_bound(library: str) -> None:
    """The release after that of the lock is not taken unseen."""
    (asked_for,) = [
        one
        for one in map(Requirement, PROJECT["dependencies"])
        if canonicalize_name(one.name) == library
    ]
    major, minor = Version(version(library)).release[:2]

    assert not asked_for.specifier.contains(f"{major}.{minor + 1}.0")
    assert asked_for.specifier.contains(version(library))


@pytest.mark.slow
def test_no_private_name_is_used_that_is_not_listed() -> None:
    listed = {name for parts in PARTS.values() for names in parts.values() for name in names}

    assert [(file, name) for file, name in private_names() if name not in listed] == []


def test_every_library_that_is_imported_is_asked_for() -> None:
    """By name, not only by another one that brings it along."""
    asked_for = {canonicalize_name(Requirement(one).name) for one in PROJECT["dependencies"]}
    owners = packages_distributions()
    imported = {
        canonicalize_name(owner)
        for name in imported_names() - {"gateway", "opentelemetry"}  # of the extra `otel`
        for owner in owners.get(name, ())
    }

    assert imported <= asked_for


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(GATEWAY.rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def private_names() -> Iterator[tuple[str, str]]:
    """Attributes, modules and names that begin with an underscore, and are not the gateway's own.

    Nor `os._exit`, which Python documents.
    """
    own = {"_exit"} | {name for _, tree in trees() for name in assigned_names(tree)}
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                if node.attr not in own:
                    yield file, node.attr
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("gateway"):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                yield from ((file, name) for name in names if is_private(name))


def assigned_names(tree: ast.Module) -> Iterator[str]:
    """What classes give themselves."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}:
                yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def imported_names() -> set[str]:
    found = set()
    for _, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found
