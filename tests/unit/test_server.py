"""Signals that come in one moment."""

from __future__ import annotations

import signal
from typing import Any, cast

import pytest

from gateway.server.worker import Server
from tests.running import account, config_for


class Interrupted:
    """What is told to drain, and in that very moment the next signal comes."""

    def __init__(self) -> None:
        self.server: Server | None = None
        self.drained = 0

    def drain(self) -> None:
        self.drained += 1
        if self.drained == 1 and self.server is not None:
            self.server.handle_exit(signal.SIGINT, None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_interrupts_the_first_one_drops_nothing(number: int) -> None:
    """A signal to a group reaches a worker by two ways."""
    gateway = Interrupted()
    config = config_for(account("http://127.0.0.1:1"))
    gateway.server = server = Server(cast("Any", gateway), config, lambda: None)

    server.handle_exit(number, None)

    assert server.should_exit
    assert not server.force_exit
