"""The state of one pretend vendor, shared by its endpoints."""

from __future__ import annotations

import random
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.simulator.faults import IMAGE, Fault, FaultQueue
from gateway.simulator.gallery import Gallery
from gateway.simulator.journal import Journal
from gateway.simulator.models import load_models
from gateway.simulator.replies import Replies
from gateway.simulator.settings import Latency, Settings
from gateway.simulator.signing import Signer
from gateway.simulator.tasks import TaskBoard
from gateway.simulator.throttle import Throttle

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[object]]


class Simulator:
    """Settings, memory, time and chance of one pretend vendor; used from one event loop only."""

    def __init__(
        self, settings: Settings, clock: Clock, sleep: Sleep, chance: random.Random
    ) -> None:
        self.initial = settings
        self.settings = settings
        self.clock = clock
        self.sleep = sleep
        self.chance = chance
        self.models = load_models()
        self.replies = Replies()
        self.signer = Signer(secrets.token_bytes(20))
        self.throttle = Throttle()
        self.faults = FaultQueue([*self.replies.errors, *self.replies.raw], chance)
        self.gallery = Gallery()
        self.tasks = TaskBoard()
        self.journal = Journal()

    def configure(self, changes: dict[str, Any]) -> None:
        """Replaces some settings; `msgspec.ValidationError` leaves them as they were."""
        self.settings = self.settings.changed(changes)
        self.throttle.clear()

    def reset(self) -> None:
        """Back to the settings it was started with, with nothing remembered."""
        self.settings = self.initial
        self.throttle.clear()
        self.faults.clear()
        self.gallery.clear()
        self.tasks.clear()
        self.journal.clear()

    def admits(self, account: str, model: str) -> bool:
        """Whether one more call is within the account's rate for the model."""
        settings = self.settings
        rate = settings.rates.get(model) or self.models[model].facts.rate
        return self.throttle.admit(account, model, settings.throttle, rate, self.clock())

    def fault_for(self, model: str, prompt: str) -> Fault | None:
        """The fault this call meets: one asked for in its prompt, else one that is queued."""
        asked = self.prompt_fault(prompt)
        fault = asked if asked and asked.kind not in IMAGE else self.faults.take_for_call(model)
        if fault is not None:
            self.journal.faults[fault.kind] += 1
        return fault

    def prompt_fault(self, prompt: str) -> Fault | None:
        """The fault a prompt asks for, if prompts may."""
        return self.faults.from_prompt(prompt) if self.settings.prompt_faults else None

    def latency_s(self, model: str) -> float:
        """How long this generation takes, in seconds."""
        latency = self.settings.latency_s
        if isinstance(latency, dict):
            latency = latency.get(model, latency.get("*", 0.0))
        return self._drawn(latency)

    def _drawn(self, latency: Latency) -> float:
        return self.chance.uniform(*latency) if isinstance(latency, tuple) else latency
