"""Questions with pictures -> answers, batched for measuring and streamed for talking.

In: a loaded model and requests (messages ending with the user's turn, and their pictures). Out: the answers' text,
each with the model's confidence in it. Greedy, so that the same model gives the same answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import torch
from PIL import Image

from qilin.errors import UserError
from qilin.model.compose import Loaded


@dataclass(frozen=True)
class Request:
    """One question: messages in Hugging Face form, ending with the user's turn, and the pictures in their order."""

    messages: Sequence[Any]
    pictures: Sequence[Image.Image] = field(default=())


@dataclass(frozen=True)
class Answer:
    """What the model said, and the geometric mean of its tokens' probabilities (0 to 1)."""

    text: str
    confidence: float


def answer_all(
    loaded: Loaded, requests: Sequence[Request], batch: int = 16, max_new_tokens: int = 64
) -> Iterator[Answer]:
    """Answers in the order of the requests, `batch` at a time. Sort requests by length beforehand to save padding."""
    for start in range(0, len(requests), batch):
        yield from answer_batch(loaded, requests[start : start + batch], max_new_tokens)


@torch.inference_mode()
def answer_batch(loaded: Loaded, requests: Sequence[Request], max_new_tokens: int) -> list[Answer]:
    """Greedy answers of one batch, padded on the left as generation needs."""
    inputs = prepare(loaded, requests)
    made = loaded.model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    width = inputs["input_ids"].shape[1]
    said = made.sequences[:, width:]  # (B, new tokens)
    ends = end_tokens(loaded.model)
    answers = []
    logits = torch.stack(made.logits, dim=1).float()  # (B, new tokens, V)
    scores = logits.log_softmax(-1).gather(-1, said[:, : logits.shape[1], None]).squeeze(-1)
    for row, score in zip(said.tolist(), scores.tolist(), strict=True):
        stop = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
        text = loaded.processor.tokenizer.decode(row[: stop + 1], skip_special_tokens=True)
        mean = sum(score[: stop + 1]) / max(1, stop + 1)
        answers.append(Answer(text.strip(), float(torch.tensor(mean).exp())))
    return answers


def prepare(loaded: Loaded, requests: Sequence[Request]) -> dict[str, torch.Tensor]:
    """Requests -> padded ids, attention mask and pixels on the model's device, through the processor alone."""
    processor = loaded.processor
    for request in requests:
        if not request.messages or request.messages[-1]["role"] != "user":
            raise UserError("a request must end with the user's turn")
    texts = [
        processor.apply_chat_template(list(request.messages), add_generation_prompt=True, tokenize=False)
        for request in requests
    ]
    pictures = [picture for request in requests for picture in request.pictures]
    inputs = processor(
        text=texts,
        images=pictures or None,
        padding=True,
        padding_side="left",
        add_special_tokens=False,  # the template writes them
        return_tensors="pt",
    )
    device, dtype = loaded.model.device, loaded.model.dtype
    kept = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values") if name in inputs}
    return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in kept.items()}


def end_tokens(model: Any) -> set[int]:
    """The token ids that end an answer."""
    end = model.generation_config.eos_token_id
    return set(end if isinstance(end, list) else [end])


def stream(loaded: Loaded, request: Request, max_new_tokens: int = 512) -> Iterator[str]:
    """One answer, piece by piece as it is made. Closing the iterator early lets the model stop at its next token."""
    from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

    class Stopped(StoppingCriteria):
        flag = False

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.full((input_ids.shape[0],), self.flag, device=input_ids.device)

    stopped = Stopped()
    streamer = TextIteratorStreamer(loaded.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    inputs = prepare(loaded, [request])
    failure: list[BaseException] = []

    def work() -> None:
        try:
            with torch.inference_mode():
                loaded.model.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([stopped]),
                )
        except BaseException as error:  # handed to the reader, who would otherwise wait for ever
            failure.append(error)
            streamer.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        stopped.flag = True
        thread.join()
    if failure:
        raise failure[0]
