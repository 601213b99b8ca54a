"""A model's answers to a split, in resumable passes: as it is, from the mean image, from shuffled images.

In: a model folder, items, and a way to get images. Out: passes/NAME.jsonl rows {id, prediction, confidence} as they
are made, and predictions.jsonl in the order of the dataset. A pass that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from qilin.core import llm_client as endpoint
from qilin.core.progress import ProgressBars
from qilin.dataset.reader import Dataset
from qilin.dataset.schema import CAPTION_KINDS
from qilin.evaluate.items import Item, prediction_row, write_jsonl
from qilin.imaging.decode import to_rgb

PASSES = "passes"
# Requests handed over at once: images of these are decoded together, so this bounds memory.
BATCHES_A_CHUNK = 8


@dataclass(frozen=True)
class Said:
    """What a model said to one item."""

    prediction: str
    confidence: float | None


# Requests and the longest answer in tokens -> what was said to each.
Ask = Callable[[Sequence[Any], int], Sequence[Said]]


@dataclass(frozen=True)
class Pass:
    """One walk over the items: its name, and which image the model is shown in place of an item's own."""

    name: str
    image: Callable[[str], Image.Image]  # image_id -> RGB


def write_predictions(items: Sequence[Item], said: Mapping[str, Said], out: Path) -> list[dict[str, Any]]:
    """predictions.jsonl in the order of the items; returns its rows."""
    rows = [prediction_row(item, said[item.id].prediction, said[item.id].confidence) for item in items]
    write_jsonl(out / "predictions.jsonl", rows)
    return rows


def image_of(data: Dataset, keep: int = 128) -> Callable[[str], Image.Image]:
    """image_id -> the dataset's image as RGB; the last `keep` stay decoded, as an image has several questions."""
    return lru_cache(maxsize=keep)(lambda image_id: to_rgb(data.image(image_id).bytes))


def answer_pass(
    load: Callable[[], Any],
    items: Sequence[Item],
    this: Pass,
    out: Path,
    *,
    batch: int,
    max_new_tokens: int,
    caption_tokens: int,
    ask: Ask | None = None,
) -> dict[str, Said]:
    """Answers to all items, those of an earlier call included. `load` is called only if something is left to answer.

    With `ask` (requests, longest answer in tokens -> what was said to each) a service is asked in place of the model.
    """
    path = out / PASSES / f"{this.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    said = read_pass(path, {item.id for item in items})
    left = [item for item in items if item.id not in said]
    if not left:
        return said
    from qilin.model.generate import Request, answer_all

    loaded: Any = load() if ask is None else None
    with path.open("a", encoding="utf-8") as file, progress(this.name, len(items), len(said)) as advance:
        for captions in (False, True):
            # Long questions first: what does not fit into memory fails at once, and batches hold equal lengths.
            todo = sorted(
                (item for item in left if (item.kind in CAPTION_KINDS) == captions), key=_length, reverse=True
            )
            for start in range(0, len(todo), batch * BATCHES_A_CHUNK):
                chunk = todo[start : start + batch * BATCHES_A_CHUNK]
                requests = [
                    Request(list(item.messages), [this.image(image_id) for image_id in item.image_ids])
                    for item in chunk
                ]
                longest = caption_tokens if captions else max_new_tokens
                answers = (
                    (Said(a.text, a.confidence) for a in answer_all(loaded, requests, batch, longest))
                    if ask is None
                    else ask(requests, longest)
                )
                for item, answer in zip(chunk, answers, strict=True):
                    said[item.id] = answer
                    row = {"id": item.id, "prediction": answer.prediction, "confidence": answer.confidence}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    file.flush()
                    advance()
    return said


def _length(item: Item) -> tuple[int, int]:
    return len(item.image_ids), sum(len(str(message["content"])) for message in item.messages)


def read_pass(path: Path, ids: set[str]) -> dict[str, Said]:
    """The answers that a pass file holds already; a last line cut short by an interruption is taken off the file."""
    said: dict[str, Said] = {}
    if not path.is_file():
        return said
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    for line in whole.decode("utf-8").split("\n")[:-1]:  # splitlines would also cut at U+2028
        row = json.loads(line)
        if row["id"] in ids:
            said[row["id"]] = Said(row["prediction"], row["confidence"])
    return said


@contextmanager
def progress(name: str, total: int, done: int, of: str = "answers") -> Iterator[Callable[[], None]]:
    """A progress bar on stderr; yields the function that advances it by one."""
    with ProgressBars() as bars:
        task = bars.add_task(f"{of}, {name.replace('_', ' ')}", total=total, completed=done)
        yield lambda: bars.advance(task)


def asker(
    url: str, model: str, cache: Path | None, concurrency: int = 8, budget: int | None = None, seed: int = 0
) -> Ask:
    """A function that asks the service a list of requests and waits for all of them."""
    there = endpoint.Endpoint(url, model, concurrency=concurrency, cache=cache, budget=budget, seed=seed)

    def ask(requests: Sequence[Any], longest: int) -> list[Said]:
        asks = [endpoint.ChatRequest(open_form(request.messages, request.images), longest) for request in requests]
        return [Said(reply.text, reply.confidence) for reply in endpoint.complete_all(there, asks)]

    return ask


def open_form(messages: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """Hugging Face messages with their images in order -> OpenAI's form; text alone stays a plain string."""
    left = iter(images)
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


def data_uri(image: Image.Image) -> str:
    """An image as PNG in a data: address."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
