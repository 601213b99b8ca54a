"""`qilin chat`: a conversation about images in the terminal, or one question per line from a script.

In: a model folder, images, the user's input. Out: answers on stdout as they are generated; everything else (notice,
notes, errors) on stderr. Nothing is written to disk, since conversations may be about patients.
"""

import shlex
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from glob import escape, glob
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from qilin.convert.cache import ensure_hf_layout
from qilin.core.errors import QilinError, RunError, UserError
from qilin.core.provenance import run_paths
from qilin.core.terminal import make_console
from qilin.dataset.reader import is_synthetic, open_dataset
from qilin.dataset.schema import MANIFEST, assistant, user_with_labels
from qilin.imaging.content import image_content
from qilin.imaging.decode import read_bytes
from qilin.imaging.medical import ShownImage, open_series, to_images
from qilin.imaging.volume import Selection, parse_selection
from qilin.imaging.windowing import Windowing, model_windowing
from qilin.model.generate import Request, prepare_inputs, stream_answer
from qilin.model.llava import LoadedModel, load_model
from qilin.serve.config import ChatConfig
from qilin.serve.policy import RESEARCH_USE
from qilin.serve.repetition import CHECK_EVERY, find_repetition
from qilin.serve.safeguards import IMAGE_TEXTS
from qilin.text.modality import other_modality

NOTICE = RESEARCH_USE.text_en
HELP = """\
  /image PATH …   add images to the next question (PNG, JPEG, DICOM, NIfTI, …); a folder is a series of DICOM files
  /slices 8 …     of series and volumes: 8, axial:8, coronal:4, sagittal@120,140
  /reset          start a new conversation without images
  /help           show this list
  /quit           exit (or Ctrl-D); Ctrl-C stops an answer"""
PROMPT = "> "
MAX_FILES = 3000  # of a folder with a series
FINISH_NOTES = {
    "interrupt": "(stopped)",
    "length": "(stopped at {tokens} tokens, the limit: --max-new-tokens)",
    "repetition": "(stopped: the answer repeats itself; the conversation keeps the repeated part once)",
}


@dataclass(frozen=True)
class Conversation:
    """The messages so far, the images of their image parts in order, and the images of the next question."""

    messages: tuple[Any, ...] = ()
    images: tuple[Image.Image, ...] = ()
    next_images: tuple[Image.Image, ...] = ()
    next_labels: tuple[str, ...] = ()  # one for each of next_images: 轴位 3/8 for a slice, else ""
    modalities: tuple[str, ...] = ()  # of all images so far; "" for those whose file names none
    selections: tuple[Selection, ...] = (Selection(),)  # which slices the next series adds
    windowing: Windowing = field(default_factory=Windowing)


def chat(config: ChatConfig) -> None:
    """Answer until the user exits or the script's questions end.

    At a terminal, errors are printed and the conversation continues. A script stops at the first error (UserError),
    because its later questions may depend on it.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    console = make_console(stderr=True, soft_wrap=not sys.stderr.isatty())  # no line breaks in log files
    interactive = sys.stdin.isatty()
    note(console, NOTICE, "bold yellow")
    selections = tuple(parse_selection(text) for text in config.slices)  # a mistake is said before the model loads
    model_windowing({}, config.window)
    path = ensure_hf_layout(config.model, config.hub)  # before the spinner: conversion has its own progress bar
    with console.status(f"loading {config.model}"):
        loaded = load_model(
            path, config.device, config.dtype, config.hub, bits=config.bits, device_map_auto=config.device_map_auto
        )
    for warning in model_warnings(loaded):
        note(console, warning, "yellow")
    windowing, window_note = model_windowing(loaded.metadata, config.window)
    if window_note:
        note(console, window_note)
    conversation = Conversation(selections=selections, windowing=windowing)
    for image_path in config.images:
        conversation = run_or_report(interactive, console, conversation, add_image, image_path, console)
    if interactive:
        note(console, "/image PATH adds an image, /help lists the commands.")
    for line in terminal_lines(console) if interactive else script_lines():
        if line == "/quit":
            break
        conversation = run_or_report(interactive, console, conversation, handle_line, line, loaded, config, console)


def note(console: Console, text: str, style: str = "dim") -> None:
    """Print a line other than an answer. Without markup, because paths and errors may contain square brackets."""
    console.print(text, style=style, markup=False, emoji=False)


def model_warnings(loaded: LoadedModel) -> list[str]:
    """What users must know about this model, from its qilin.json."""
    warnings = []
    if loaded.metadata.get("label"):
        warnings.append(f"This model is labeled: {loaded.metadata['label']}.")
    paths = run_paths(Path(loaded.path))
    sources = [Path(paths.get(source.get("hash", ""), source["path"])) for source in loaded.metadata.get("data", ())]
    if any(is_synthetic_dataset(path) for path in sources):
        warnings.append("This model was trained on synthetic images: its answers about real images mean nothing.")
    if loaded.metadata.get("template") == "plain":
        warnings.append("This model is from stage 1: it describes an image, whatever the question.")
    return warnings


def is_synthetic_dataset(path: Path) -> bool:
    """Whether a training dataset is on this machine and synthetic."""
    return (path / MANIFEST).is_file() and is_synthetic(open_dataset(path))


def run_or_report(
    interactive: bool,
    console: Console,
    conversation: Conversation,
    action: Callable[..., Conversation],
    *arguments: Any,
) -> Conversation:
    """action(conversation, *arguments). At a terminal an error is printed and the conversation stays as it was."""
    try:
        return action(conversation, *arguments)
    except (UserError, RuntimeError) as error:  # RuntimeError: from torch, such as out of memory
        if not interactive:
            raise error if isinstance(error, QilinError) else RunError(f"the model failed: {error}") from error
        note(console, " ".join(str(error).split()), "red")
        return conversation


def terminal_lines(console: Console) -> Iterator[str]:
    """The user's input, with readline's editing and history. Ctrl-C clears the line, Ctrl-D ends."""
    import readline

    readline.set_completer_delims(" ")
    readline.set_completer(lambda text, n: [*glob(escape(text) + "*"), None][n] if text else None)
    readline.parse_and_bind("tab: complete")
    while True:
        try:
            line = input(PROMPT).strip()
        except KeyboardInterrupt:
            note(console, "\n/quit or Ctrl-D exits")
            continue
        except EOFError:
            console.print()
            return
        if line:
            yield line


def script_lines() -> Iterator[str]:
    """The questions of a script, one per line."""
    try:
        yield from (line.strip() for line in sys.stdin if line.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"stdin: not UTF-8 text ({error.reason} at byte {error.start})") from None


def handle_line(
    conversation: Conversation, line: str, loaded: LoadedModel, config: ChatConfig, console: Console
) -> Conversation:
    """Run one line, a command or a question. Returns the conversation after it."""
    command, _, arguments = line.partition(" ")
    if command == "/image":
        for path in parse_paths(arguments):
            conversation = add_image(conversation, path, console)
        return conversation
    if command == "/reset":
        note(console, "new conversation, without images")
        return Conversation(selections=conversation.selections, windowing=conversation.windowing)
    if command == "/slices":
        selections = tuple(parse_selection(part) for part in arguments.split())
        return replace(conversation, selections=selections or (Selection(),))
    if command == "/help":
        note(console, HELP)
        return conversation
    if command.startswith("/") and command[1:].isascii() and command[1:].isalpha():
        raise UserError(f"{command}: no such command; /help lists them")
    return answer_question(conversation, line, loaded, config, console)


def parse_paths(text: str) -> list[Path]:
    """The arguments of /image: one path that may contain spaces, or several, quoted or escaped as in a shell."""
    if not text.strip():
        raise UserError("/image: expected the path of an image")
    single = Path(text.strip()).expanduser()
    if single.exists():
        return [single]
    try:
        return [Path(path).expanduser() for path in shlex.split(text)]
    except ValueError:  # an apostrophe without a closing one
        return [single]


def add_image(conversation: Conversation, path: Path, console: Console) -> Conversation:
    """Add an image, or the slices of a series, to the next question. Raises UserError with the path where it cannot."""
    try:
        images = read_images(path, conversation, console)
    except UserError as error:
        text = str(error)
        raise UserError(text if str(path) in text else f"{path}: {text}") from None
    for number, shown in enumerate(images, start=len(conversation.images) + len(conversation.next_images) + 1):
        label = f", {shown.label}" if shown.label else ""
        note(console, f"image {number}: {path.name}, {shown.image.width} x {shown.image.height}{label}")
        if problem := image_content(shown.image).problem:
            note(console, f"image {number} {IMAGE_TEXTS[problem][1]}", "yellow")
    return replace(
        conversation,
        next_images=(*conversation.next_images, *(shown.image for shown in images)),
        next_labels=(*conversation.next_labels, *(shown.label for shown in images)),
        modalities=(*conversation.modalities, *(shown.modality for shown in images)),
    )


def read_images(path: Path, conversation: Conversation, console: Console) -> list[ShownImage]:
    """The images of a file, or of the largest series of a folder's DICOM files."""
    if not path.is_dir():
        return to_images(read_bytes(path), conversation.windowing, conversation.selections)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if len(files) > MAX_FILES:
        raise UserError(f"{path}: {len(files):,} files; expected a folder with one series, at most {MAX_FILES:,} files")
    series = open_series(files)
    if len(series) > 1:
        note(console, f"{path.name}: {len(series)} series; the one with most slices ({series[0].count}) is used")
    return to_images(series[0], conversation.windowing, conversation.selections)


def answer_question(
    conversation: Conversation, text: str, loaded: LoadedModel, config: ChatConfig, console: Console
) -> Conversation:
    """Print the answer as it is generated; returns the conversation with question and answer.

    An answer that Ctrl-C stops is kept as far as it was printed; without any text, the question is dropped too.
    """
    if (kind := other_modality(text, conversation.modalities)) is not None:
        shown = ", ".join(dict.fromkeys(conversation.modalities))
        note(console, f"the question speaks of {kind}, and the images are {shown}", "yellow")
    request = Request(
        (*conversation.messages, user_with_labels(conversation.next_labels, text)),
        (*conversation.images, *conversation.next_images),
    )
    request, max_new_tokens = truncate_to_context(
        request,
        lambda request: int(prepare_inputs(loaded, [request])["input_ids"].shape[1]),
        getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None),
        config.max_new_tokens,
        lambda message: note(console, message),
    )
    answer, finish_reason = print_stream(stream_answer(loaded, request, max_new_tokens), console)
    if finish_reason == "interrupt" and not sys.stdin.isatty():
        raise KeyboardInterrupt
    if finish_reason == "stop" and not answer:
        note(console, "(empty answer)")
    elif finish_reason != "stop":
        note(console, FINISH_NOTES[finish_reason].format(tokens=max_new_tokens))
    if not answer:
        return conversation
    return replace(
        conversation,
        messages=(*request.messages, assistant(answer)),
        images=tuple(request.images),
        next_images=(),
        next_labels=(),
    )


def print_stream(increments: Generator[str, None, str], console: Console) -> tuple[str, str]:
    """Print an answer as it arrives. Returns its text and why it ended: "stop", "length", "repetition" or "interrupt".

    An answer that goes round in circles is stopped; what is returned of it, and so the conversation, holds the repeated
    part once.
    """
    out = make_console()
    text, checked, finish_reason = "", 0, "interrupt"
    try:
        with console.status("processing"):  # encoding images and the prompt takes a moment
            increment = next(increments)
        while True:
            out.print(increment, end="", markup=False, emoji=False)
            text += increment
            if len(text) - checked >= CHECK_EVERY:
                checked = len(text)
                repeats_from = find_repetition(text)
                if repeats_from is not None:
                    text, finish_reason = text[:repeats_from], "repetition"
                    break
            increment = next(increments)
    except StopIteration as end:
        finish_reason = end.value or "stop"
    except KeyboardInterrupt:
        pass
    finally:
        increments.close()  # stops the model's thread
    if text or finish_reason != "interrupt":
        out.print()
    return text, finish_reason


def truncate_to_context(
    request: Request,
    count_tokens: Callable[[Request], int],
    context: int | None,
    max_new_tokens: int,
    log: Callable[[str], None],
) -> tuple[Request, int]:
    """Drop the oldest turns of a request that exceeds the context, in tokens. Returns (request, answer tokens).

    The answer gets at most half the context. Images move to the oldest remaining turn: later questions are about them.
    Raises UserError if the last question alone is too long.
    """
    if context is None:
        return request, max_new_tokens
    answer_tokens = min(max_new_tokens, context // 2)
    messages: Sequence[Any] = request.messages
    dropped = 0
    while (tokens := count_tokens(Request(messages, request.images))) + answer_tokens > context:
        if len(messages) < 3:
            raise UserError(
                f"the question takes {tokens} tokens with its {len(request.images)} images, and the model's "
                f"context is {context}, {answer_tokens} of them reserved for the answer; shorten it, or /reset"
            )
        messages = drop_oldest_turn(messages)
        dropped += 1
    if dropped:
        log(f"the conversation exceeds the model's context of {context} tokens; oldest turns dropped: {dropped}")
    return Request(messages, request.images), answer_tokens


def drop_oldest_turn(messages: Sequence[Any]) -> list[Any]:
    """The messages without the first question and answer; that question's images move to the next one."""
    question, _, following, *rest = messages
    images = [part for part in question["content"] if part["type"] == "image"]
    return [{"role": "user", "content": [*images, *following["content"]]}, *rest]
