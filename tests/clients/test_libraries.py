"""Libraries on top of OpenAI's API: their image, their errors, and one payment for each."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any, Final

import pytest
from msgspec.structs import replace

from tests.clients.run import EDITORS, LIBRARIES, run_libraries
from tests.pictures import picture
from tests.running import ACME, HeldClock, RunningGateway, account, config_for, tenants
from tests.simulated import SimulatedDashScope

pytestmark = [pytest.mark.peers, pytest.mark.slow]

Json = dict[str, Any]

MADE: Final = "a fox by "
REFUSED: Final = "[simulate:DataInspectionFailed] by "
LOST: Final = "[simulate:reset_after_generation] by "
EDITED: Final = "a hat by "
EACH: Final = pytest.mark.parametrize(
    ("environment", "library"),
    [(environment, library) for environment, all_ in LIBRARIES.items() for library in all_],
)
REFUSALS: Final = {
    "LangChain": "openai.BadRequestError",
    "LlamaIndex": "openai.BadRequestError",
    "LiteLLM": "litellm.BadRequestError",
    "LiteLLM on Azure's paths": "litellm.BadRequestError",
    "Haystack": "openai.BadRequestError",
    "Agno": "__main__.ToolError",
    "Semantic Kernel": "semantic_kernel.ServiceResponseException",
    "@ai-sdk/openai": "AI_APICallError",
    "@ai-sdk/openai, any name": "AI_APICallError",
    "@ai-sdk/openai-compatible": "AI_APICallError",
    "@ai-sdk/azure": "AI_APICallError",
}
"""What each makes of a prompt that the safety system refuses."""


class Served:
    """A gateway, the vendor behind it, and what each library got: one process for each set."""

    def __init__(self, gateway: RunningGateway, simulator: SimulatedDashScope) -> None:
        self._gateway = gateway
        self._simulator = simulator
        self._replies: dict[str, Json] = {}
        self._prompts: dict[str, list[str]] = {}

    def reply(self, environment: str, prompt: str) -> Json:
        """To one of the calls."""
        if environment not in self._prompts:
            self._call(environment)
        return self._replies[prompt]

    def sent(self, environment: str, prompt: str) -> int:
        """How often the vendor was sent a prompt."""
        return self._prompts[environment].count(prompt)

    def _call(self, environment: str) -> None:
        self._simulator.reset()
        # Some need bytes for an edit, and do not ask for them.
        bytes_first = tuple(replace(each, response_format="b64_json") for each in tenants())
        config = config_for(account(self._simulator.base_url), tenants=bytes_first)
        self._gateway.use(config, HeldClock().clock())
        calls = [
            {"library": library, "prompt": what + library}
            for what in (MADE, REFUSED, LOST)
            for library in LIBRARIES[environment]
        ]
        given = base64.b64encode(picture()).decode()
        calls += [
            {"library": library, "prompt": EDITED + library, "picture": given}
            for library in EDITORS[environment]
        ]
        scenario = {"url": self._gateway.url, "api_key": ACME, "calls": calls}
        replies = run_libraries(environment, scenario)
        for call, reply in zip(calls, replies, strict=True):
            self._replies[call["prompt"]] = reply
        self._prompts[environment] = [
            call["body"]["input"]["messages"][0]["content"][-1]["text"]
            for call in self._simulator.state()["log"]
        ]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    gateway = RunningGateway()
    with SimulatedDashScope(render="plain") as simulator:
        yield Served(gateway, simulator)
        gateway.close()


def says(reply: Json, library: str, words: str, status: str) -> bool:
    """Whether its error repeats the gateway's words; LiteLLM's client for Azure shows none."""
    return (status if library == "LiteLLM on Azure's paths" else words) in reply["message"]


@EACH
def test_it_gets_its_image_and_pays_once(environment: str, library: str, served: Served) -> None:
    reply = served.reply(environment, MADE + library)

    assert reply["ok"], reply
    assert len(reply["sha256"]) == len(hashlib.sha256().hexdigest())
    assert served.sent(environment, MADE + library) == 1


@pytest.mark.parametrize(
    ("environment", "library"),
    [(environment, library) for environment, all_ in EDITORS.items() for library in all_],
)
def test_it_edits_a_picture_and_pays_once(environment: str, library: str, served: Served) -> None:
    reply = served.reply(environment, EDITED + library)

    assert reply["ok"], reply
    assert served.sent(environment, EDITED + library) == 1


@EACH
def test_a_refused_prompt_is_its_own_error_and_is_not_sent_again(
    environment: str, library: str, served: Served
) -> None:
    reply = served.reply(environment, REFUSED + library)

    assert not reply["ok"]
    assert reply["class"] == REFUSALS[library]
    assert says(reply, library, "safety system", "400 Bad Request")
    assert served.sent(environment, REFUSED + library) == 1


@EACH
def test_an_unknown_outcome_is_paid_once(environment: str, library: str, served: Served) -> None:
    """Some repeat it by themselves, up to five times: they are given the same error again."""
    reply = served.reply(environment, LOST + library)

    assert not reply["ok"]
    assert says(reply, library, "may have been generated", "502 Bad Gateway")
    assert served.sent(environment, LOST + library) == 1
