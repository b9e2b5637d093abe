"""Asynchronous tasks: what was submitted, and how far each is.

A task's state follows from the clock alone; nothing runs in the background. Its images are made,
and paid for, when the end of the task is first noticed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from msgspec import Struct

from gateway.simulator.faults import Fault
from gateway.simulator.models import Endpoint
from gateway.simulator.replies import Json
from gateway.simulator.validation import Generation

RETENTION_S = 24 * 3600
"""After this the vendor answers UNKNOWN."""
KEPT_TASKS = 10_000

Status = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELED"]


class Task(Struct, kw_only=True):
    """One submitted task. Times in Unix seconds."""

    task_id: str
    account: str
    endpoint: Endpoint
    generation: Generation
    base: str
    fault: Fault | None
    submitted: float
    scheduled: float
    ends: float
    canceled: float | None = None
    result: Json | None = None

    def status(self, now: float) -> Status:
        """How far the task is at `now`."""
        if self.canceled is not None:
            return "CANCELED"
        if now < self.scheduled:
            return "PENDING"
        if now < self.ends:
            return "RUNNING"
        return "FAILED" if self.fault and self.fault.kind == "task_failed" else "SUCCEEDED"


class TaskBoard:
    """Tasks by id, the oldest forgotten first."""

    def __init__(self) -> None:
        self._tasks: OrderedDict[str, Task] = OrderedDict()

    def add(self, task: Task) -> None:
        """Remembers a submitted task."""
        self._tasks[task.task_id] = task
        while len(self._tasks) > KEPT_TASKS:
            self._tasks.popitem(last=False)

    def find(self, task_id: str, account: str, now: float) -> Task | None:
        """The account's task, unless it is unknown or older than a day."""
        task = self._tasks.get(task_id)
        if task is None or task.account != account or now - task.submitted > RETENTION_S:
            return None
        return task

    def all(self) -> list[Task]:
        """Every task, oldest first."""
        return list(self._tasks.values())

    def clear(self) -> None:
        """Forgets every task."""
        self._tasks.clear()
