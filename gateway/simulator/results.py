"""Makes the images of a call: issues their signed URLs, counts them as paid, words the reply."""

from __future__ import annotations

import time
from urllib.parse import quote

from gateway.simulator.faults import IMAGE, Fault
from gateway.simulator.gallery import Issued
from gateway.simulator.images import Picture
from gateway.simulator.inputs import digest
from gateway.simulator.replies import Json
from gateway.simulator.simulator import Simulator
from gateway.simulator.validation import MAX_SEED, Generation

LIFE_S = {"1d": 86_400, "7d": 604_800}
BEIJING_OFFSET_S = 8 * 3600
TWO_K_PIXELS = 2_250_000
"""Above this area the 3.0 family reports, and bills, a 2K image."""
_LIES = ((1664, 928), (928, 1664))

_URL_TRIES = 64


def generate(
    simulator: Simulator, generation: Generation, request_id: str, base: str, fault: Fault | None
) -> tuple[Json, int]:
    """The body of a synchronous success and its number of images, paid for from here on."""
    kind = fault.kind if fault else ""
    made = 0 if kind == "empty_choices" else images_made(simulator, generation, kind)
    urls = issue(simulator, generation, request_id, base, made)
    simulator.journal.paid[generation.model.name] += made
    body = simulator.replies.generated(
        generation.model.family_name,
        [None] * made if kind == "null_image" else list(urls),
        facts(simulator, generation, request_id, made),
        apart=simulator.settings.choice_per_image,
    )
    if made:
        _add_text(body, generation, kind)
    else:
        body["output"]["choices"] = []
    return body, made


def images_made(simulator: Simulator, generation: Generation, kind: str) -> int:
    """How many images a call yields: fewer or more than asked when so set, never none."""
    missing = simulator.settings.missing_images + (kind == "fewer_images") - (kind == "more_images")
    return max(1, generation.n - missing)


def issue(
    simulator: Simulator, generation: Generation, request_id: str, base: str, count: int
) -> list[str]:
    """Result URLs for `count` images of this call, under `base` (scheme and authority)."""
    seed = generation.seed
    if seed is None:
        seed = simulator.chance.randint(0, MAX_SEED)
    asked = simulator.prompt_fault(generation.prompt)
    in_prompt = asked if asked and asked.kind in IMAGE else None
    urls = []
    for index in range(count):
        path, query = _signed(simulator, generation.model.file_name, request_id, index)
        image = Issued(_picture(generation, seed, index), in_prompt)
        simulator.gallery.issue(path, image, simulator.settings.issued_images_max)
        urls.append(f"{base}{path}?{query}")
    return urls


def facts(simulator: Simulator, generation: Generation, request_id: str, made: int) -> Json:
    """Values for the keys of any family's reply."""
    width, height = generation.width, generation.height
    big = width * height > TWO_K_PIXELS
    if simulator.settings.usage_geometry == "lying":
        width, height = _LIES[(width, height) == _LIES[0]]
    inputs = len(generation.images)
    return {
        "request_id": request_id,
        "image_count": made,
        "output_image_count": made,
        "width": width,
        "height": height,
        "output_width": width,
        "output_height": height,
        "size": f"{width}*{height}",
        "output_image_type": "qima_output_2k" if big else "qima_output_1k",
        "input_image_count": inputs,
        "input_image_type": "qima_input_1k" if inputs else "",
        "rewrite_status": "success" if generation.prompt_extend else "not_use",
        "TOTAL": generation.n,
        "SUCCEEDED": made,
        "FAILED": generation.n - made,
    }


def _picture(generation: Generation, seed: int, index: int) -> Picture:
    return Picture(
        model=generation.model.name,
        prompt=generation.prompt,
        negative_prompt=generation.negative_prompt,
        seed=seed,
        index=index,
        width=generation.width,
        height=generation.height,
        inputs=digest(generation.images),
        watermark=generation.watermark,
    )


def _signed(simulator: Simulator, file_name: str, request_id: str, index: int) -> tuple[str, str]:
    """Path and query of a new image; the signature contains both `%2B` and `%2F` as a rule."""
    settings, now = simulator.settings, simulator.clock()
    life_s = LIFE_S[settings.url_life] if settings.url_life_s is None else settings.url_life_s
    expires = int(now + life_s)
    day = time.strftime("%Y%m%d", time.gmtime(now + BEIJING_OFFSET_S))
    name = file_name.format(request_id=request_id, index=index, number=index + 1)
    path = ""
    for _ in range(_URL_TRIES):
        salt = f"{simulator.chance.getrandbits(40):010x}"
        path = f"/{settings.url_life}/{salt[:2]}/{day}/{salt[2:]}/{quote(name)}"
        signature = simulator.signer.signature(path, expires)
        if "+" in signature and "/" in signature:
            break
    return path, simulator.signer.query(path, expires)


def _add_text(body: Json, generation: Generation, kind: str) -> None:
    """z-image shows the prompt it rewrote; other models only when told to."""
    content = body["output"]["choices"][0]["message"]["content"]
    if generation.model.family_name == "z-image" and generation.prompt_extend:
        content.append({"text": f"{generation.prompt}, in rich detail"})
    if kind == "text_content":
        content.insert(0, {"text": "Here is your picture."})
        content.append({"reasoning_content": "The prompt asks for a picture."})
