"""Edits by unmodified OpenAI SDKs: pictures in every way that they take them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.peers.run import PEERS, run_peer
from tests.pictures import picture
from tests.running import ACME, HeldClock, RunningGateway, account, config_for
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.peers

EACH_PEER: Final = [pytest.param(peer, marks=pytest.mark.xdist_group(peer)) for peer in PEERS]
WAYS: Final = ("path", "file", "bytes", "BytesIO", "tuple")

Json = dict[str, Any]


class Served:
    """A gateway with the vendor behind it, and three pictures on the disk."""

    def __init__(
        self, gateway: RunningGateway, simulator: SimulatedDashScope, folder: Path
    ) -> None:
        self._gateway = gateway
        self.simulator = simulator
        images = [picture("PNG"), picture("JPEG", seed=1), picture("WEBP", seed=2)]
        self.files = [folder / name for name in ("a.png", "b.jpg", "c.webp")]
        for file, image in zip(self.files, images, strict=True):
            file.write_bytes(image)

    def edit(self, prompt: str, *ways: str, **more: Any) -> Json:
        """A call with so many pictures, each given in its way."""
        given = [
            {"as": way, "path": str(file)} for way, file in zip(ways, self.files, strict=False)
        ]
        args = {"model": "qwen-image-2.0", "prompt": prompt, **more.pop("args", {})}
        return {"method": "images.edit", "args": args, "pictures": given, **more}

    def run(self, peer: str, calls: list[Json], root: str = "/v1", **more: Any) -> list[Json]:
        """Their replies, from a gateway as if just started."""
        self.simulator.reset()
        self._gateway.use(config_for(account(self.simulator.base_url)), HeldClock().clock())
        scenario = {"base_url": self._gateway.url + root, "api_key": ACME, "calls": calls, **more}
        return run_peer(peer, scenario)

    def inputs(self, prompt: str) -> list[str]:
        """Hashes of the pictures that the vendor was sent with a prompt."""
        [call] = [call for call in self.simulator.state()["log"] if text_of(call) == prompt]
        return [each["sha256"] for each in call["inputs"]]

    def hashes(self, count: int) -> list[str]:
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in self.files[:count]]


def text_of(call: Json) -> str:
    text: str = call["body"]["input"]["messages"][0]["content"][-1]["text"]
    return text


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    gateway = RunningGateway()
    with SimulatedDashScope(render="plain") as simulator:
        yield Served(gateway, simulator, tmp_path_factory.mktemp("pictures"))
    gateway.close()


@pytest.mark.parametrize("peer", EACH_PEER)
def test_edits(peer: str, served: Served) -> None:
    """Every way to give a picture, one and several, with fields; a stream; a refusal."""
    args = {"n": 2, "size": "1024x1024", "extra_body": {"seed": 7, "negative_prompt": "dogs"}}
    calls = {
        **{way: served.edit(f"one as {way}", way) for way in WAYS},
        "list": served.edit("a list of one", "file", list=True),
        "three": served.edit("three", "file", "bytes", "BytesIO", args=args),
        "gpt-image-1": served.edit("by alias", "bytes", args={"model": "gpt-image-1"}),
        "stream": served.edit("stream", "bytes", args={"stream": True, "model": "gpt-image-1"}),
        "no such": served.edit("no such", "bytes", args={"model": "qwen-image-max"}),
    }

    replies = dict(zip(calls, served.run(peer, list(calls.values())), strict=True))

    for way in WAYS:
        assert replies[way]["ok"], replies[way]
        assert served.inputs(f"one as {way}") == served.hashes(1)
    assert replies["list"]["ok"], replies["list"]
    assert len(replies["three"]["data"]) == 2
    assert served.inputs("three") == served.hashes(3)
    assert replies["three"]["headers"]["x-gateway-size"] == "1024x1024"
    assert replies["gpt-image-1"]["data"][0]["raw_keys"] == ["b64_json"]
    assert [event["type"] for event in replies["stream"]["events"]] == ["image_edit.completed"]
    refused = replies["no such"]
    assert (refused["class"], refused["code"], refused["param"]) == (
        "BadRequestError",
        "unsupported_model",
        "model",
    )


@pytest.mark.parametrize("peer", EACH_PEER)
@pytest.mark.parametrize("root", ["", "/v1"])
def test_edits_by_azure_s_client(peer: str, root: str, served: Served) -> None:
    """The deployment in the path; what the SDK puts into the form besides does no harm."""
    call = served.edit("azure", "bytes", "file", args={"model": "gpt-image-1"})

    [reply] = served.run(peer, [call], root, azure="2025-04-01-preview")

    assert reply["ok"], reply
    assert reply["headers"]["x-gateway-model"] == "qwen-image-2.0-pro"
    assert served.inputs("azure") == served.hashes(2)
