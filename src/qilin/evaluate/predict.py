"""Runs a model over a split in resumable passes: with each item's own images, mean images or shuffled images.

In: items, a function that loads their images, and a local or remote model. Out: passes/NAME.jsonl with rows {id,
prediction, confidence} as the model generates them, and {refusal} where its processor does not take a question. An
interrupted pass continues where it stopped.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from qilin.core.errors import UserError
from qilin.core.files import data_uri
from qilin.core.llm_client import ChatRequest, Endpoint, complete_all
from qilin.core.progress import ProgressBars
from qilin.dataset.reader import Dataset
from qilin.evaluate.items import Item
from qilin.imaging.decode import to_rgb

if TYPE_CHECKING:
    from qilin.model.generate import Request

PASSES_DIR = "passes"
# names of pass files that progress bars show otherwise; the names on disk stay, so that old evaluations resume
PASS_TITLES = {"as_it_is": "original images", "mean_picture": "mean image", "blank_picture": "black image"}
# The images of one chunk are decoded together, so this bounds memory.
BATCHES_PER_CHUNK = 8


@dataclass(frozen=True)
class ModelAnswer:
    """A model's answer to one item; confidence is the geometric mean of its token probabilities, 0 to 1.

    `refusal`: why the model's processor did not take the question; the answer is empty then.
    """

    prediction: str
    confidence: float | None
    refusal: str = ""


# (requests, maximum answer length in tokens) -> one answer per request
AnswerFunction = Callable[[Sequence["Request"], int], Iterable[ModelAnswer]]
ImageLoader = Callable[[str], Image.Image]  # image_id -> RGB


def image_loader(dataset: Dataset, cache_size: int = 128) -> ImageLoader:
    """image_id -> the dataset's image as RGB; caches decoded images, as an image has several questions."""
    return lru_cache(maxsize=cache_size)(lambda image_id: to_rgb(dataset.image(image_id).bytes))


def run_pass(
    answer: AnswerFunction,
    items: Sequence[Item],
    name: str,
    load_image: ImageLoader,
    out: Path,
    *,
    batch_size: int,
    max_new_tokens: int,
    caption_tokens: int,
) -> dict[str, ModelAnswer]:
    """Item id -> answer; the model sees `load_image(image_id)` in place of each image.

    Reads finished answers from the file of the pass `name` and calls `answer` only for the others.
    """
    from qilin.model.generate import Request

    path = out / PASSES_DIR / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    answers = read_pass(path, {item.id for item in items})
    pending = [item for item in items if item.id not in answers]
    title = f"answers, {PASS_TITLES.get(name, name.replace('_', ' '))}"
    if not pending:
        report_refusals(answers.values(), title)
        return answers
    # half of a surrogate pair, which a token limit can leave, becomes "?"
    file_options: dict[str, Any] = {"encoding": "utf-8", "errors": "replace"}
    with path.open("a", **file_options) as file, progress_bar(title, len(items), len(answers)) as advance:
        for captions in (False, True):
            # Longest questions first: an out-of-memory error comes at once, and batches have similar lengths.
            queue = sorted((item for item in pending if item.is_caption == captions), key=_length, reverse=True)
            chunk_size = batch_size * BATCHES_PER_CHUNK
            for start in range(0, len(queue), chunk_size):
                chunk = queue[start : start + chunk_size]
                requests = [Request(list(item.messages), [load_image(i) for i in item.image_ids]) for item in chunk]
                max_length = caption_tokens if captions else max_new_tokens
                for item, model_answer in zip(chunk, answer(requests, max_length), strict=True):
                    answers[item.id] = model_answer
                    row = {"id": item.id, "prediction": model_answer.prediction, "confidence": model_answer.confidence}
                    row |= {"refusal": model_answer.refusal} if model_answer.refusal else {}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    file.flush()
                    advance()
    report_refusals(answers.values(), title)
    return answers


def report_refusals(answers: Iterable[ModelAnswer], title: str) -> None:
    """Say how many questions the model's processor refused. Raises UserError if it refused all of them."""
    answers = list(answers)
    refusals = [answer.refusal for answer in answers if answer.refusal]
    if refusals and len(refusals) == len(answers):
        raise UserError(f"{title}: none of {len(refusals)} questions was answered: {refusals[0]}")
    if refusals:
        print(f"{title}: {len(refusals):,} of {len(answers):,} count as empty: {refusals[0]}", file=sys.stderr)


def count_refusals(out: Path) -> int:
    """The questions about their own images that the model's processor refused."""
    path = out / PASSES_DIR / "as_it_is.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return sum(bool(answer and answer[1].refusal) for answer in map(parse_pass_row, map(str.encode, lines)))


def _length(item: Item) -> tuple[int, int]:
    return len(item.image_ids), sum(len(str(message["content"])) for message in item.messages)


def read_pass(path: Path, item_ids: set[str]) -> dict[str, ModelAnswer]:
    """The answers in a pass file; truncates the file after its last complete line."""
    answers: dict[str, ModelAnswer] = {}
    if not path.is_file():
        return answers
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if complete != content:
        path.write_bytes(complete)
    damaged = 0
    for line in complete.split(b"\n")[:-1]:
        answer = parse_pass_row(line)
        if answer is None:
            damaged += 1
        elif answer[0] in item_ids:
            answers[answer[0]] = answer[1]
    if damaged:
        print(f"{path}: {damaged:,} damaged lines; their questions are answered again", file=sys.stderr)
    return answers


def parse_pass_row(line: bytes) -> tuple[str, ModelAnswer] | None:
    """(item id, answer) of one line of a pass file; None for a damaged one."""
    try:
        row = json.loads(line)
        row_id, text, confidence = row["id"], row["prediction"], row["confidence"]
        refusal = row.get("refusal", "")
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not (isinstance(row_id, str) and isinstance(text, str) and isinstance(confidence, float | int | None)):
        return None
    return row_id, ModelAnswer(text, confidence, str(refusal))


@contextmanager
def progress_bar(title: str, total: int, completed: int = 0) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr; yields the function that advances it by one."""
    with ProgressBars() as bars:
        task = bars.add_task(title, total=total, completed=completed)
        yield lambda: bars.advance(task)


def local_model(load: Callable[[], Any], batch_size: int) -> AnswerFunction:
    """Answers with the model that `load` returns; calls `load` for the first requests, not before."""

    def answer(requests: Sequence[Request], max_new_tokens: int) -> Iterator[ModelAnswer]:
        from qilin.model.generate import answer_all

        for result in answer_all(load(), requests, batch_size, max_new_tokens):
            yield ModelAnswer(result.text, result.confidence, result.refusal)

    return answer


def remote_model(endpoint: Endpoint) -> AnswerFunction:
    """Answers by an OpenAI-compatible service; the endpoint's token budget is for all calls together."""
    tokens_used = 0
    reported: set[str] = set()

    def answer(requests: Sequence[Request], max_new_tokens: int) -> Iterator[ModelAnswer]:
        nonlocal tokens_used
        chat_requests = [ChatRequest(to_openai(r.messages, r.images), max_new_tokens) for r in requests]
        remaining = None if endpoint.budget is None else max(0, endpoint.budget - tokens_used)
        replies = complete_all(replace(endpoint, budget=remaining), chat_requests)
        tokens_used += sum(reply.tokens_in + reply.tokens_out for reply in replies if not reply.cached)
        for reply in replies:
            if reply.refusal and reply.refusal not in reported:
                reported.add(reply.refusal)
                print(f"{endpoint.address}: an answer counts as empty: {reply.refusal}", file=sys.stderr)
            yield ModelAnswer(reply.text, reply.confidence)

    return answer


def to_openai(messages: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """Converts Hugging Face messages and their images in order to OpenAI's form; text-only content becomes a string."""
    remaining = iter(images)
    converted = []
    for message in messages:
        parts: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "image":
                parts.append({"type": "image_url", "image_url": {"url": to_png_uri(next(remaining))}})
            else:
                parts.append({"type": "text", "text": part["text"]})
        text_only = all(part["type"] == "text" for part in parts)
        content = "".join(part["text"] for part in parts) if text_only else parts
        converted.append({"role": message["role"], "content": content})
    return converted


def to_png_uri(image: Image.Image) -> str:
    """An image as PNG in a `data:` URI."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return data_uri(file.getvalue(), "image/png")
