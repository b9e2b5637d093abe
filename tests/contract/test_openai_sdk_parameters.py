"""Every parameter of the official SDKs' image methods in one call, loosely and strictly read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.peers.run import PEERS, run_script
from tests.running import ACME, HeldClock, RunningGateway, account, config_for
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.peers

WHOLE = """
import inspect, json, pathlib, sys, openai
url, key, file = sys.argv[1:]
GIVEN = dict(
    prompt="whole", model="qwen-image-2.0", n=1, size="1024x1024", response_format="b64_json",
    background="opaque", complexity="low", input_fidelity="high", moderation="low",
    output_compression=100, output_format="png", partial_images=0, quality="high", stream=False,
    safety_identifier="safe-1", style="vivid", user="user-1",
)
NOT_HERE = dict(
    mask=b"Example data", markup=b"Example data", svg=True, frame_count=4, frame_duration_ms=40
)
OWN = {"extra_headers", "extra_query", "extra_body", "timeout"}
refused = {}
for strict in (False, True):
    client = openai.OpenAI(
        base_url=url, api_key=key, max_retries=0, _strict_response_validation=strict
    )
    for method in (client.images.generate, client.images.edit):
        names = set(inspect.signature(method).parameters) - OWN
        unknown = names - GIVEN.keys() - NOT_HERE.keys() - {"image"}
        assert not unknown, unknown
        picture = {"image": pathlib.Path(file).read_bytes()} if "image" in names else {}
        given = {name: GIVEN[name] for name in names & GIVEN.keys()} | picture
        made = method(**given)
        assert type(made) is openai.types.ImagesResponse, made
        assert made.data[0].b64_json and (made.size, made.output_format) == ("1024x1024", "png")
        events = list(method(**given | {"stream": True, "partial_images": 1}))
        assert [event.type.partition(".")[2] for event in events] == ["completed"]
        for name in names & NOT_HERE.keys():
            try:
                method(**given | {name: NOT_HERE[name]})
            except openai.BadRequestError as error:
                refused[name] = error.param
print(json.dumps({"refused": refused, "not here": sorted(names & NOT_HERE.keys())}))
"""


@pytest.fixture
def served(simulator: SimulatedDashScope) -> Iterator[RunningGateway]:
    gateway = RunningGateway()
    gateway.use(config_for(account(simulator.base_url)), HeldClock().clock())
    yield gateway
    gateway.close()


@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer != "openai-node"])
def test_every_parameter_of_an_image_method(
    peer: str, served: RunningGateway, tmp_path: Path
) -> None:
    """What has a meaning here is taken, what has none is refused by its name."""
    picture = tmp_path / "picture.png"
    Image.effect_noise((512, 512), 64).convert("RGB").save(picture)

    told = run_script(peer, WHOLE, f"{served.url}/v1", ACME, str(picture))

    assert told["refused"] == {name: name for name in told["not here"]}
