"""A served model in the place of a loaded one: the evaluation's requests, asked of an OpenAI-compatible service.

In: messages in Hugging Face form with their pictures. Out: what the service said, in order. Pictures travel as PNG.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from qilin import endpoint
from qilin.evaluate.predict import Ask, Said


def asker(
    url: str, model: str, cache: Path | None, concurrency: int = 8, budget: int | None = None, seed: int = 0
) -> Ask:
    """A function that asks the service a list of requests and waits for all of them."""
    there = endpoint.Endpoint(url, model, concurrency=concurrency, cache=cache, budget=budget, seed=seed)

    def ask(requests: Sequence[Any], longest: int) -> list[Said]:
        asks = [endpoint.Ask(open_form(request.messages, request.pictures), longest) for request in requests]
        return [Said(reply.text, reply.confidence) for reply in endpoint.ask_all(there, asks)]

    return ask


def open_form(messages: Sequence[Mapping[str, Any]], pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """Hugging Face messages with their pictures in order -> OpenAI's form; text alone stays a plain string."""
    left = iter(pictures)
    made = []
    for message in messages:
        parts: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "image":
                parts.append({"type": "image_url", "image_url": {"url": data_uri(next(left))}})
            else:
                parts.append({"type": "text", "text": part["text"]})
        texts = "".join(part["text"] for part in parts if part["type"] == "text")
        plain = all(part["type"] == "text" for part in parts)
        made.append({"role": message["role"], "content": texts if plain else parts})
    return made


def data_uri(picture: Image.Image) -> str:
    """A picture as PNG in a data: address."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
