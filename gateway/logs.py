"""Structured logs: JSON lines, or readable ones on a terminal.

Of a prompt, only its length and hash appear.
"""

from __future__ import annotations

import hashlib
import logging
import sys

import structlog
from structlog.typing import Processor

NOISY = ("httpx", "httpcore", "aiohttp", "uvicorn.access")


def configure_logs(*, json_lines: bool, level: str = "info") -> None:
    """Set up the process' logging, on standard error; called once, at start.

    httpx writes a line per request at INFO, which costs more than the request.
    """
    renderer: Processor = (
        structlog.processors.JSONRenderer() if json_lines else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def prompt_facts(prompt: str) -> dict[str, object]:
    """What a log may say of a prompt: enough to recognise a repeat, nothing of what it says."""
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    return {"prompt_length": len(prompt), "prompt_sha256": digest[:16]}
