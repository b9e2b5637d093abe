"""A program that writes a usage record to a file that may not grow, and prints what was lost."""

from __future__ import annotations

import resource
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from gateway.tenants.usage_log import PaidCall, UsageLog

LINE: Final = PaidCall(
    at=datetime(2026, 11, 22, tzinfo=UTC),
    request_id="req_1",
    tenant="acme",
    key="ci",
    model="qwen-image-2.0",
    size=None,
    images=1,
    cost=200_000,
)


def main(file: Path) -> None:
    """Twenty lines, of which a thousand bytes fit, and one more once there is room."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    log, lost = UsageLog(file), 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    for _ in range(20):
        try:
            log.append(LINE)
        except OSError:
            lost += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    log.append(LINE)
    sys.stdout.write(str(lost))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
