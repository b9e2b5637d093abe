"""What the suite needs of the machine."""

from __future__ import annotations

import resource

import pytest

OPEN_FILES = 8192
"""Thousands of connections at once; the gateways inherit it."""


@pytest.fixture(scope="session", autouse=True)
def open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))
