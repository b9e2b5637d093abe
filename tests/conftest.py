"""What every test may ask for; that no test shows a secret, nor in CI is skipped unseen."""

from __future__ import annotations

import gc
import json
import os
import re
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest
import structlog

from tests.redis_server import (
    RedisServer,
    available_redis_servers,
    missing_redis_releases,
    redis_releases,
)
from tests.running import SECRETS
from tests.security.secrets_search import SHOWN, Search

pytest_plugins = ["tests.figures", "tests.running_fixtures"]

# Skips that CI accepts: a pattern for the skip's reason, and why it is right that the test does
# not run there. Any other skip fails the run where CI=true.
ALLOWED_SKIPS: Final[dict[str, str]] = {
    r"run `make clients`": "a gigabyte of libraries, which .ci/run installs if it can",
    r"user namespaces were not found": "a right of the machine, which .ci/run cannot give",
}

TAKES_LONG: Final = {"slow", "peers"}

# Machines that run tests are slow and shared: no test fails for one slow example. The examples are
# the same in every run, so that a change is judged by itself; `--hypothesis-profile random` looks
# for others.
hypothesis.settings.register_profile("random", deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    "same", deadline=None, print_blob=True, derandomize=True, database=None
)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A real server, shared by the tests of a worker: do not stop or kill it."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The shared server, empty."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture
def own_redis_server() -> Iterator[RedisServer]:
    """A server for one test alone, to stop, kill and restart."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session", params=redis_releases())
def each_redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """As `redis_server`, once for each release that tests run on."""
    with RedisServer(available_redis_servers()[request.param]) as server:
        yield server


@pytest.fixture
def each_redis_url(each_redis_server: RedisServer) -> str:
    """As `redis_url`, once for each release that tests run on."""
    each_redis_server.flush()
    return each_redis_server.url


@pytest.fixture
def capsys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> pytest.CaptureFixture[str]:
    """As pytest has it, but what a test reads is searched too: it is missing from the report."""
    read = capsys.readouterr

    def readouterr() -> object:
        shown = read()
        SHOWN.add("what the test read of its output", shown.out + shown.err)
        return shown

    monkeypatch.setattr(capsys, "readouterr", readouterr)
    return capsys


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """What a test leaves of a command's logging would silence those after it."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def configured(**settings: Any) -> None:
    """As `structlog.configure`; a logger that is kept would keep one test's logging for all."""
    structlog_configure(**{**settings, "cache_logger_on_first_use": False})


structlog_configure = structlog.configure
structlog.configure = configured  # type: ignore[assignment]  # by keyword alone


class LeaksFail:
    """Fails a test in whose output, log lines or processes one of the suite's secrets is found."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "teardown":  # when all is written
            search = Search(SECRETS)
            for where, text in (*report.sections, *SHOWN.take()):
                search.add(where, text)
            if search.found():
                report.outcome = "failed"
                report.longrepr = "\n".join(["secrets were shown:", *sorted(set(search.found()))])
        return report


class SkipsFail:
    """Fails the run when a test was skipped for a reason that is not allowed."""

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._judge(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._judge(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.refused and session.exitstatus in (pytest.ExitCode.OK, 5):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.refused:
            terminalreporter.section("skipped, which fails the run in CI", red=True)
            for test, reason in self.refused.items():
                terminalreporter.line(f"{test}: {reason}")

    def _judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        reason = skip_reason(report)
        if not any(re.search(pattern, reason) for pattern in ALLOWED_SKIPS):
            self.refused[report.nodeid] = reason


class Results:
    """Writes what passed, failed and was skipped, for scripts/run-tests to read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        stats = terminalreporter.stats
        failed = [report.nodeid for kind in ("failed", "error") for report in stats.get(kind, ())]
        skipped = {report.nodeid: skip_reason(report) for report in stats.get("skipped", ())}
        passed = len(stats.get("passed", ())) + len(stats.get("xfailed", ()))
        results = {"passed": passed, "failed": list(dict.fromkeys(failed)), "skipped": skipped}
        self.file.write_text(json.dumps(results))


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The ten thousand tests themselves are no garbage, and need not be looked through for it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_missing_releases(items)
    find_timing(items)
    longest_first(items)


def find_timing(items: list[pytest.Item]) -> None:
    """`scripts/run-tests` looks for these tests in files that have the mark in so many words."""
    files = {item.path for item in items if item.get_closest_marker("timing")}
    hidden = sorted(str(file) for file in files if "mark.timing" not in file.read_text())
    if hidden:
        raise pytest.UsageError(f"write `mark.timing` in {', '.join(hidden)}")


def longest_first(items: list[pytest.Item]) -> None:
    """Whole files, so that no process is left with a long one when the others have ended."""
    tests = Counter(item.path for item in items)
    takes_long = {
        item.path for item in items for mark in item.iter_markers() if mark.name in TAKES_LONG
    }
    items.sort(key=lambda item: (item.path not in takes_long, -tests[item.path]))


def skip_missing_releases(items: list[pytest.Item]) -> None:
    """The tests on a release of Redis that this machine lacks."""
    missing = missing_redis_releases()
    for item in items if missing else ():
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        for release in missing.keys() & {value for value in parameters if isinstance(value, str)}:
            item.add_marker(pytest.mark.skip(missing[release]))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(LeaksFail())
    is_worker = hasattr(config, "workerinput")
    if os.environ.get("CI") == "true" and not is_worker:
        config.pluginmanager.register(SkipsFail())
    results = os.environ.pop("TEST_RESULTS", "")  # popped: for this run alone, not those it starts
    if results and not is_worker:
        config.pluginmanager.register(Results(Path(results)))
