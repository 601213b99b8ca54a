"""Questions with images -> answers, batched for measuring and streamed for talking.

In: a loaded model and requests (messages ending with the user's turn, and their images). Out: the answers' text,
each with the model's confidence in it. Greedy, so that the same model gives the same answers.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from qilin.core.errors import UserError
from qilin.dataset.schema import count_images, text_of
from qilin.model.chat_template import IMAGE
from qilin.model.llava import LoadedModel


@torch.inference_mode()
def image_features(loaded: LoadedModel, images: Sequence[Image.Image]) -> NDArray[np.float16]:
    """(N, D) of N images, through encoder and projector in one batch; half precision, as there may be many."""
    pixels = loaded.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
    seen = loaded.model.get_image_features(pixel_values=pixels.to(loaded.model.device, loaded.model.dtype))
    means = torch.stack([tokens.float().mean(dim=0) for tokens in seen.pooler_output])  # (N, D)
    return (means / means.norm(dim=1, keepdim=True).clamp_min(1e-12)).half().cpu().numpy()


@dataclass(frozen=True)
class Request:
    """One question: messages in Hugging Face form, ending with the user's turn, and the images in their order."""

    messages: Sequence[Any]
    images: Sequence[Image.Image] = field(default=())


@dataclass(frozen=True)
class Answer:
    """What the model said, and the geometric mean of its tokens' probabilities (0 to 1)."""

    text: str
    confidence: float


class Sureness(LogitsProcessor):
    """Keeps, for every step, the log probability of each row's likeliest token: greedy decoding takes that one.

    A number a row and step, where generate's own output_logits would keep the whole vocabulary.
    """

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.steps.append(scores.float().log_softmax(-1).amax(-1))  # (B,)
        return scores


def answer_all(
    loaded: LoadedModel, requests: Sequence[Request], batch: int = 16, max_new_tokens: int = 64
) -> Iterator[Answer]:
    """Answers in the order of the requests, `batch` at a time. Sort requests by length beforehand to save padding."""
    for start in range(0, len(requests), batch):
        yield from answer_batch(loaded, requests[start : start + batch], max_new_tokens)


@torch.inference_mode()
def answer_batch(loaded: LoadedModel, requests: Sequence[Request], max_new_tokens: int) -> list[Answer]:
    """Greedy answers of one batch, padded on the left as generation needs."""
    inputs = prepare(loaded, requests)
    sureness = Sureness()
    made = loaded.model.generate(
        **inputs, max_new_tokens=max_new_tokens, do_sample=False, logits_processor=LogitsProcessorList([sureness])
    )
    said = made[:, inputs["input_ids"].shape[1] :]  # (B, new tokens)
    ends = ends_of(loaded.model)
    answers = []
    for row, score in zip(said.tolist(), torch.stack(sureness.steps, dim=1).tolist(), strict=True):
        stop = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
        mean = sum(score[: stop + 1]) / (stop + 1)
        answers.append(Answer(text_from(loaded, row[: stop + 1]), float(torch.tensor(mean).exp())))
    return answers


def text_from(loaded: LoadedModel, ids: Sequence[int]) -> str:
    """Token ids -> what a person is shown: no special tokens, no white space at the sides."""
    return str(
        loaded.processor.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    ).strip()


def prepare(loaded: LoadedModel, requests: Sequence[Request]) -> dict[str, torch.Tensor]:
    """Requests -> padded ids, attention mask and pixels on the model's device, through the processor alone."""
    processor = loaded.processor
    for request in requests:
        check(request)
    if not processor.chat_template:
        raise UserError(f"{loaded.path}: the model has no chat template (chat_template.jinja); it cannot be asked")
    texts = [
        processor.apply_chat_template(list(request.messages), add_generation_prompt=True, tokenize=False)
        for request in requests
    ]
    images = [image for request in requests for image in request.images]
    inputs = processor(
        text=texts,
        images=images or None,
        padding=True,
        padding_side="left",
        add_special_tokens=False,  # the template writes them
        return_tensors="pt",
    )
    device, dtype = loaded.model.device, loaded.model.dtype
    kept = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values") if name in inputs}
    return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in kept.items()}


def check(request: Request) -> None:
    """Raise UserError where a request cannot be asked."""
    if not request.messages or request.messages[-1]["role"] != "user":
        raise UserError("a request must end with the user's turn")
    marks = count_images(request.messages)
    if marks != len(request.images):
        raise UserError(f"a request has {marks} image parts for {len(request.images)} images; expected as many")
    if any(IMAGE in text_of(message) for message in request.messages):
        raise UserError(f"a message's text holds a literal {IMAGE}, the mark of an image; remove it")


def ends_of(model: Any) -> set[int]:
    """The token ids that end an answer."""
    end = model.generation_config.eos_token_id
    return set(end if isinstance(end, list) else [end])


class Tokens(BaseStreamer):
    """Hands each new token from the thread that makes them to the one that reads; None is the last."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[int | None] = SimpleQueue()
        self.prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_seen:
            self.queue.put(int(value))
        self.prompt_seen = True  # generate hands over the prompt first

    def end(self) -> None:
        self.queue.put(None)


class Stopped(StoppingCriteria):
    """Stops at the next token once `flag` is set."""

    flag = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self.flag, device=input_ids.device)  # type: ignore[return-value]


def stream(loaded: LoadedModel, request: Request, max_new_tokens: int = 512) -> Generator[str, None, None]:
    """One answer, piece by piece as it is made; joined, the pieces are the batch answer's text.

    Closing the iterator early lets the model stop at its next token. What fails in the model's thread is raised here.
    """
    inputs = prepare(loaded, [request])
    tokens, stopped = Tokens(), Stopped()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            with torch.inference_mode():
                loaded.model.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    streamer=tokens,
                    stopping_criteria=StoppingCriteriaList([stopped]),
                )
        except BaseException as error:  # handed to the reader, who would otherwise wait for ever
            failure.append(error)
            tokens.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from pieces(loaded, iter(tokens.queue.get, None))
    finally:
        stopped.flag = True
        thread.join()
    if failure:
        raise failure[0]


def pieces(loaded: LoadedModel, tokens: Iterator[int]) -> Iterator[str]:
    """Tokens -> what each adds to the text. A character whose bytes are not all there yet, and white space that may
    turn out to be the last, wait for what follows."""
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        text = text_from(loaded, ids)
        certain = text.rstrip("\ufffd").rstrip()
        if len(certain) > len(shown) and certain.startswith(shown):
            yield certain[len(shown) :]
            shown = certain
    if ids and len(text) > len(shown):
        yield text[len(shown) :]
