"""Generates answers: batched for evaluation, streamed for chat; and image features.

In: a loaded model and requests (messages that end with a user turn, and their images). Out: answer texts, with the
model's confidence. Decoding is greedy, so the same model gives the same answers.
"""

import inspect
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import LlavaConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from qilin.core.errors import UserError
from qilin.dataset.schema import count_images, text_of
from qilin.model.chat_template import IMAGE, escape_control_tokens
from qilin.model.llava import LoadedModel
from qilin.model.processor import image_token, render, writes_special_tokens

# One settled way to decode, equal in evaluation, chat and serving: a checkpoint's own sampling settings and penalties
# (such as Qwen2.5-VL's repetition_penalty of 1.05) would change which token is taken, and its log probability.
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "min_p": None,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}


class RefusedRequest(UserError):
    """The model's processor does not take an image of a request, or that number of images; or the answer is no text."""


@torch.inference_mode()
def image_features(loaded: LoadedModel, images: Sequence[Image.Image]) -> NDArray[np.float16]:
    """(N, D) unit vectors of N images: mean over the tokens after encoder and projector; for a Llava in one batch.

    The vector of an image that the processor refuses is NaN.
    """
    if isinstance(loaded.model.config, LlavaConfig):
        means = torch.stack([tokens.float().mean(dim=0) for tokens in features(loaded, images)])  # (N, D)
    else:  # images may have different numbers of tokens and crops, which the models return in different shapes
        means = torch.stack([mean_feature(loaded, image) for image in images])  # (N, D)
    return (means / means.norm(dim=1, keepdim=True).clamp_min(1e-12)).half().cpu().numpy()


def mean_feature(loaded: LoadedModel, image: Image.Image) -> torch.Tensor:
    """(D,): the mean over an image's tokens in all its crops; NaN if the processor refuses the image."""
    try:
        tokens = features(loaded, [image])
    except ValueError:
        return torch.full((loaded.model.config.get_text_config().hidden_size,), torch.nan, device=loaded.model.device)
    return torch.cat([crop.float().flatten(0, -2) for crop in tokens]).mean(dim=0)


def features(loaded: LoadedModel, images: Sequence[Image.Image]) -> Any:
    """What the model's get_image_features returns: token features, (…, D) each."""
    outputs = loaded.processor.image_processor(images=list(images), return_tensors="pt")
    names = inspect.signature(loaded.model.get_image_features).parameters
    inputs = {name: move(value, loaded.model) for name, value in outputs.items() if name in names}
    return loaded.model.get_image_features(**inputs).pooler_output


@dataclass(frozen=True)
class Request:
    """One question: messages in Hugging Face form that end with a user turn, and the images in their order."""

    messages: Sequence[Any]
    images: Sequence[Image.Image] = field(default=())


@dataclass(frozen=True)
class Answer:
    """A generated text and the geometric mean of its tokens' probabilities (0 to 1).

    `refusal`: why the processor did not take the request, whose text is then empty.
    """

    text: str
    confidence: float
    refusal: str = ""


class LogProbRecorder(LogitsProcessor):
    """Records the log probability of each row's most probable token, which greedy decoding selects.

    One number per row and step; generate's output_logits would keep the complete vocabulary.
    """

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.steps.append(scores.float().log_softmax(-1).amax(-1))  # (B,)
        return scores

    def log_probs(self, loaded: LoadedModel) -> torch.Tensor:
        """(B, new tokens). Raises RefusedRequest if some are not finite: the tokens then mean nothing."""
        log_probs = torch.stack(self.steps, dim=1)
        if log_probs.isnan().any():
            raise RefusedRequest(
                f"{loaded.path}: the model's probabilities are not numbers; are its weights damaged, or too large for "
                f"{str(loaded.model.dtype).removeprefix('torch.')}?"
            )
        return log_probs


def answer_all(
    loaded: LoadedModel, requests: Sequence[Request], batch_size: int = 16, max_new_tokens: int = 64
) -> Iterator[Answer]:
    """Answers in the order of the requests, `batch_size` at a time. Requests sorted by length need less padding.

    A request that the processor refuses (an image of 1 x 300 pixels, for Qwen-VL) costs only itself.
    """
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        try:
            answers = answer_batch(loaded, batch, max_new_tokens)
        except RefusedRequest:
            answers = [answer_or_refusal(loaded, request, max_new_tokens) for request in batch]
        yield from answers


def answer_or_refusal(loaded: LoadedModel, request: Request, max_new_tokens: int) -> Answer:
    """The answer to one request; an empty one with the reason if the processor refuses it."""
    try:
        return answer_batch(loaded, [request], max_new_tokens)[0]
    except RefusedRequest as error:
        return Answer("", 0.0, str(error))


@torch.inference_mode()
def answer_batch(loaded: LoadedModel, requests: Sequence[Request], max_new_tokens: int) -> list[Answer]:
    """Greedy answers of one batch. Raises UserError for an invalid request."""
    inputs = prepare_inputs(loaded, requests)
    recorder = LogProbRecorder()
    with explain_other_processor(loaded):
        output = loaded.model.generate(
            **inputs, **GREEDY, max_new_tokens=max_new_tokens, logits_processor=LogitsProcessorList([recorder])
        )
    new_ids = output[:, inputs["input_ids"].shape[1] :].tolist()  # (B, new tokens)
    log_probs = recorder.log_probs(loaded).tolist()
    eos_ids = eos_token_ids(loaded.model)
    answers = []
    for ids, row_log_probs in zip(new_ids, log_probs, strict=True):
        length = next((i for i, token in enumerate(ids) if token in eos_ids), len(ids) - 1) + 1
        mean = sum(row_log_probs[:length]) / length
        answers.append(Answer(decode_answer(loaded, ids[:length]), float(torch.tensor(mean).exp())))
    return answers


def decode_answer(loaded: LoadedModel, ids: Sequence[int]) -> str:
    """Token ids -> text without special tokens and without white space at both ends."""
    text = loaded.processor.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).strip()


def prepare_inputs(loaded: LoadedModel, requests: Sequence[Request]) -> dict[str, Any]:
    """Requests -> everything that the model's processor returns for them: ids and attention mask (B, T), left-padded,
    pixels, image sizes, token types, … on the model's device.

    Raises UserError for an invalid request, a model without a chat template, or one that its processor refuses.
    """
    processor = loaded.processor
    for request in requests:
        check_request(request)
        check_image_token(request, processor)
    if not processor.chat_template:
        raise UserError(f"{loaded.path}: the model has no chat template (chat_template.jinja), which generation needs")
    prompts = [render(processor, escape_control_tokens(request.messages, processor.tokenizer)) for request in requests]
    images = [list(request.images) for request in requests]
    try:
        outputs = processor(
            text=prompts,
            images=images if any(images) else None,
            padding=True,
            padding_side="left",
            add_special_tokens=not all(writes_special_tokens(processor, prompt) for prompt in prompts),
            return_tensors="pt",
        )
    except (ValueError, TypeError) as error:  # an image or a number of images that the processor does not take
        raise RefusedRequest(f"the model's processor refuses the request: {error}") from error
    check_token_ids(loaded, outputs["input_ids"])
    return {name: move(value, loaded.model) for name, value in outputs.items()}


def check_token_ids(loaded: LoadedModel, ids: torch.Tensor) -> None:
    """Raise UserError for a token that the model's embeddings do not have: on a GPU it would end the process."""
    rows, largest = loaded.model.get_input_embeddings().num_embeddings, int(ids.max())
    if largest >= rows:
        token = loaded.processor.tokenizer.convert_ids_to_tokens(largest)
        raise UserError(
            f"{loaded.path}: token {largest} ({token!r}) of the tokenizer has no row among the model's {rows} "
            "embeddings; use the tokenizer that the model was trained with"
        )


@contextmanager
def explain_other_processor(loaded: LoadedModel) -> Iterator[None]:
    """Turn transformers' complaint about the number of image tokens into a UserError that names the cause."""
    try:
        yield
    except ValueError as error:
        if "image tokens" not in str(error):
            raise
        raise UserError(
            f"{loaded.path}: the processor writes another number of tokens for an image than the model has features "
            f"({error}); copy processor_config.json and preprocessor_config.json of this model"
        ) from error


def move(value: Any, model: Any) -> Any:
    """A processor's output on the model's device, in the model's precision; lists of tensors too."""
    if isinstance(value, torch.Tensor):
        return value.to(model.device, model.dtype if value.is_floating_point() else None)
    return [move(item, model) for item in value] if isinstance(value, list | tuple) else value


def check_request(request: Request) -> None:
    """Raise UserError for a request that the model cannot answer."""
    if not request.messages or request.messages[-1]["role"] != "user":
        raise UserError("a request must end with the user's turn")
    image_parts = count_images(request.messages)
    if image_parts != len(request.images):
        raise UserError(f"a request has {image_parts} image parts for {len(request.images)} images; expected as many")
    if any(part["type"] == "video" for message in request.messages for part in message["content"]):
        raise UserError("a request contains a video, which Qilin does not read; send frames of it as images")
    if any(IMAGE in text_of(message) for message in request.messages):
        raise UserError(f"a message contains a literal {IMAGE}, the token of an image; remove it")


def check_image_token(request: Request, processor: Any) -> None:
    """Raise UserError for a text with the processor's own image token, unless that is escaped as a control token."""
    token = image_token(processor)
    messages = escape_control_tokens(request.messages, processor.tokenizer)
    if token and any(token in text_of(message) for message in messages):
        raise UserError(f"a message contains a literal {token}, the token of an image; remove it")


def eos_token_ids(model: Any) -> set[int]:
    """The token ids that end an answer."""
    eos = model.generation_config.eos_token_id
    return set(eos if isinstance(eos, list) else [eos])


class TokenQueue(BaseStreamer):
    """Passes each new token from the generating thread to the reading thread; None marks the end.

    Not transformers' TextIteratorStreamer: that decodes every line separately, which loses SentencePiece's space at the
    start of a line, and keeps white space at both ends, so the joined text would differ from the batch answer.
    """

    def __init__(self) -> None:
        self.queue: SimpleQueue[int | None] = SimpleQueue()
        self.received_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self.received_prompt:
            self.queue.put(int(value))
        self.received_prompt = True  # the first call passes the prompt

    def end(self) -> None:
        self.queue.put(None)


class StopFlag(StoppingCriteria):
    """Stops generation at the next token once `stopped` is set."""

    stopped = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self.stopped, device=input_ids.device)  # type: ignore[return-value]


def stream_answer(loaded: LoadedModel, request: Request, max_new_tokens: int = 512) -> Generator[str, None, str]:
    """One answer in increments as tokens arrive; joined, they equal the batch answer's text.

    Returns why it ended: "stop" for the end of the answer, "length" for the limit of tokens.

    Closing the iterator stops the model at its next token. Errors of the model's thread are raised here.
    """
    inputs = prepare_inputs(loaded, [request])
    tokens, stop_flag, recorder = TokenQueue(), StopFlag(), LogProbRecorder()
    errors: list[BaseException] = []

    def generate() -> None:
        try:
            with torch.inference_mode(), explain_other_processor(loaded):
                loaded.model.generate(
                    **inputs,
                    **GREEDY,
                    max_new_tokens=max_new_tokens,
                    streamer=tokens,
                    stopping_criteria=StoppingCriteriaList([stop_flag]),
                    logits_processor=LogitsProcessorList([recorder]),
                )
        except BaseException as error:  # passed to the reader, which would wait forever otherwise
            errors.append(error)
            tokens.end()

    thread = Thread(target=generate, daemon=True)
    thread.start()
    try:
        last_token = yield from text_increments(loaded, iter(tokens.queue.get, None))
    finally:
        stop_flag.stopped = True
        thread.join()
    if errors:
        raise errors[0]
    recorder.log_probs(loaded)
    return "stop" if last_token in eos_token_ids(loaded.model) else "length"


def text_increments(loaded: LoadedModel, tokens: Iterator[int]) -> Generator[str, None, int | None]:
    """Tokens -> the text that each adds; returns the last token. Incomplete characters, and white space that may be the
    last, are held back until the next token."""
    ids: list[int] = []
    emitted = ""
    for token in tokens:
        ids.append(token)
        text = decode_answer(loaded, ids)
        complete = text.rstrip("\ufffd").rstrip()
        if len(complete) > len(emitted) and complete.startswith(emitted):
            yield complete[len(emitted) :]
            emitted = complete
    if ids and len(text) > len(emitted):
        yield text[len(emitted) :]
    return ids[-1] if ids else None
