"""Reads the Dockerfile's instructions."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from tests.deploy.rendering import ROOT

DOCKERFILE: Final = ROOT / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Each with its arguments, in order; continued lines are one."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word
    ]


def final_stage() -> list[tuple[str, str]]:
    """What is after the last FROM."""
    found = instructions()
    last = max(index for index, (word, _) in enumerate(found) if word == "FROM")
    return found[last:]


def final(word: str) -> str:
    """The arguments of an instruction that stands once in the final stage."""
    (arguments,) = [rest for each, rest in final_stage() if each == word]
    return arguments


def exec_form(arguments: str) -> list[str]:
    """The words of an exec form, which needs no shell; anything else is an error."""
    words: Any = json.loads(arguments[arguments.index("[") :])
    assert all(isinstance(word, str) for word in words)
    return list(words)


def health_check() -> list[str]:
    """The command that tells whether a container is well."""
    return exec_form(final("HEALTHCHECK").partition("CMD ")[2])
