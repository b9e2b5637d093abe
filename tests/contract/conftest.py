"""One simulator and one gateway per worker, as if just started for each test."""

from tests.running_fixtures import (
    clock,
    gateway,
    http,
    logs,
    other_simulator,
    quick_retries,
    running_gateway,
    running_other_simulator,
    running_simulator,
    simulator,
    start,
)

__all__ = [
    "clock",
    "gateway",
    "http",
    "logs",
    "other_simulator",
    "quick_retries",
    "running_gateway",
    "running_other_simulator",
    "running_simulator",
    "simulator",
    "start",
]
