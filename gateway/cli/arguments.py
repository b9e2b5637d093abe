"""Commands with arguments: a thin layer over argparse, so that each command stays one function."""

from __future__ import annotations

import inspect
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

Command = Callable[..., None]


class Argument(NamedTuple):
    """As `ArgumentParser.add_argument` takes it."""

    name: str
    settings: Mapping[str, Any]


def argument(name: str, **settings: Any) -> Argument:  # noqa: ANN401 - argparse's own
    return Argument(name, settings)


class Commands:
    """The commands of one program, or of one of its commands."""

    def __init__(self, parser: ArgumentParser) -> None:
        self._parsers = parser.add_subparsers(title="commands", metavar="COMMAND")
        # Without a command, and in `gateway cache`, its help is what was asked for.
        parser.set_defaults(run=parser.print_help)

    def add(self, name: str, run: Command, *arguments: Argument) -> None:
        """Call `run` with the arguments by their names; its docstring is the command's help."""
        parser = self._add(name, inspect.cleandoc(run.__doc__ or ""))
        parser.set_defaults(run=run)
        for one in arguments:
            parser.add_argument(one.name, **one.settings)

    def group(self, name: str, text: str) -> Commands:
        return Commands(self._add(name, text))

    def _add(self, name: str, text: str) -> ArgumentParser:
        parser: ArgumentParser = self._parsers.add_parser(
            name,
            help=text.partition("\n")[0],
            description=text,
            allow_abbrev=False,
            formatter_class=RawDescriptionHelpFormatter,
        )
        return parser


def run(parser: ArgumentParser, arguments: list[str] | None) -> None:
    """Raises SystemExit: 0 after `--help`, 2 for a wrong argument."""
    found = vars(parser.parse_args(arguments))
    found.pop("run")(**found)


def utc_time(text: str) -> datetime:
    """A date, or a date and a time, as ISO 8601 writes them."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(
            f"{text!r} is no UTC time such as 2026-11-01 or 2026-11-01T12:00:00"
        ) from None
