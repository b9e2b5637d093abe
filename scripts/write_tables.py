"""Write the tables of the documents from the code; `--check` only says whether they are current.

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway import config, errors
from gateway.errors import GatewayError
from gateway.translate.fields import FIELDS

ROOT = Path(__file__).parent.parent
PLACE = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)
SECTIONS = (
    config.Config,
    config.Listen,
    config.Redis,
    config.OnLoss,
    config.Account,
    config.Images,
    config.Upstream,
    config.Pacing,
    config.Tenant,
    config.Key,
    config.Limits,
    config.Cache,
)


def table(heading: str, rows: Iterator[str]) -> str:
    """A Markdown table."""
    rule = "|" + "---|" * (heading.count("|") - 1)
    return "\n".join([heading, rule, *rows, ""])


def fields() -> str:
    """The fate of every request field."""
    rows = (f"| `{row.name}` | {row.fate} | {row.what} |" for row in FIELDS)
    return table("| field | fate | what |", rows)


def error_classes(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
    """The tree, depth first, in the order of the file."""
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from error_classes(child)


def error_table() -> str:
    """Every error that a client can see."""
    retry = {None: "as the SDK decides", True: "yes", False: "no"}
    rows = (
        f"| {kind.status} | `{kind.type}` | `{kind.code}` | {retry[kind.retry]} "
        f"| {(inspect.getdoc(kind) or '').splitlines()[0]} |"
        for kind in error_classes(GatewayError)
    )
    return table("| status | type | code | retry | when |", rows)


def config_tables() -> str:
    """Every key of the configuration file, with its type, default and meaning."""
    tree = ast.parse(inspect.getsource(config))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    parts = []
    for section in SECTIONS:
        node = classes[section.__name__]
        parts.append(f"### {section.__name__}\n\n{ast.get_docstring(node)}\n")
        parts.append(table("| key | type | default | |", config_rows(node)))
    return "\n".join(parts)


def config_rows(node: ast.ClassDef) -> Iterator[str]:
    """One row a field; the string after a field is its documentation."""
    for index, item in enumerate(node.body):
        if isinstance(item, ast.AnnAssign) and ast.unparse(item.target) != "catalogue":
            kind = ast.unparse(item.annotation).replace("|", "or").replace("'", '"')
            default = "required" if item.value is None else f"`{ast.unparse(item.value)}`"
            following = node.body[index + 1] if index + 1 < len(node.body) else None
            text = documentation(following)
            yield f"| `{ast.unparse(item.target)}` | {kind} | {default} | {text} |"


def documentation(node: ast.stmt | None) -> str:
    """The text of a string that stands as a statement."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return " ".join(str(node.value.value).split()).replace("|", "or")
    return ""


TABLES: dict[str, Callable[[], str]] = {
    "fields": fields,
    "errors": error_table,
    "config": config_tables,
}


def current(text: str) -> str:
    """The document with its tables written anew."""
    return PLACE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", text)


def main() -> None:
    """Write, or check."""
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        if current(text) != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(current(text))
    if stale and "--check" in sys.argv:
        sys.exit(f"stale tables in {', '.join(stale)}: run `make tables`")


if __name__ == "__main__":
    main()
