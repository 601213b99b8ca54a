"""`qilin chat`: a talk about images in the terminal, or a question a line from a script.

In: a model folder, images, what a person types. Out: answers on stdout, piece by piece as they are made; everything
else (the notice, what was done to the talk, errors) on stderr. Nothing said is written to disk: it may be of patients.
"""

import shlex
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from glob import escape, glob
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from qilin.convert.run import usable
from qilin.core.errors import QilinError, RunError, UserError
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import MANIFEST, assistant, user
from qilin.evaluate.report.html import is_drawn
from qilin.imaging.decode import BadImage, read_bytes, to_rgb
from qilin.model.generate import Request, prepare, stream
from qilin.model.llava import LoadedModel, load_model
from qilin.serve.config import ChatConfig

NOTICE = "For research. Not for diagnosis or treatment: what the model says may be wrong."
HELP = """\
  /image PATH …   add images to the next question (PNG, JPEG, TIFF, …)
  /reset          forget the talk and its images
  /help           this
  /quit           leave (Ctrl-D too); Ctrl-C stops an answer"""
PROMPT = "> "


@dataclass(frozen=True)
class Conversation:
    """What was said so far, the images of its image parts in order, and those that wait for the next question."""

    messages: tuple[Any, ...] = ()
    images: tuple[Image.Image, ...] = ()
    waiting: tuple[Image.Image, ...] = ()


def chat(config: ChatConfig) -> None:
    """Talk until the person leaves or the script's questions end.

    At a terminal a bad image or question is said and the talk goes on. A script stops at the first (UserError): its
    later answers would be about something else than it thinks.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    notes = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())  # a log keeps its lines whole
    terminal = sys.stdin.isatty()
    say(notes, NOTICE, "bold yellow")
    model = usable(config.model, config.hub)  # before the spinner: converting has a bar of its own
    with notes.status(f"loading {config.model}"):
        loaded = load_model(model, config.device, config.dtype, config.hub, bits=config.bits, spread=config.spread)
    for mark in marks(loaded):
        say(notes, mark, "yellow")
    talk = Conversation()
    for path in config.images:
        talk = attempt(terminal, notes, talk, add_image, path, notes)
    if terminal:
        say(notes, "/image PATH adds an image, /help tells more.")
    for line in typed_lines(notes) if terminal else piped_lines():
        if line == "/quit":
            break
        talk = attempt(terminal, notes, talk, step, line, loaded, config, notes)


def say(notes: Console, words: str, style: str = "dim") -> None:
    """A line that is no answer. Without markup: paths and errors may hold square brackets."""
    notes.print(words, style=style, markup=False, emoji=False)


def marks(loaded: LoadedModel) -> list[str]:
    """What must not be overlooked about this model, from its qilin.json."""
    found = []
    if loaded.card.get("label"):
        found.append(f"This model is marked: {loaded.card['label']}.")
    if any(learnt_drawn(Path(source["path"])) for source in loaded.card.get("data", ())):
        found.append("This model learnt from drawn images: what it says of real ones means nothing.")
    if loaded.card.get("template") == "plain":
        found.append("This model is of stage 1: it describes an image, whatever it is asked.")
    return found


def learnt_drawn(dataset: Path) -> bool:
    """Whether the dataset a model learnt from is here and was drawn."""
    return (dataset / MANIFEST).is_file() and is_drawn(open_dataset(dataset))


def attempt(
    terminal: bool, notes: Console, talk: Conversation, do: Callable[..., Conversation], *details: Any
) -> Conversation:
    """do(talk, *details), or at a terminal the talk as it was, with a line that says what went wrong."""
    try:
        return do(talk, *details)
    except (UserError, RuntimeError) as error:  # RuntimeError: what torch raises, such as out of memory
        if not terminal:
            raise error if isinstance(error, QilinError) else RunError(f"the model failed: {error}") from error
        say(notes, " ".join(str(error).split()), "red")
        return talk


def typed_lines(notes: Console) -> Iterator[str]:
    """What a person types, with readline's editing and history. Ctrl-C empties the line, Ctrl-D ends."""
    import readline

    readline.set_completer_delims(" ")
    readline.set_completer(lambda text, n: [*glob(escape(text) + "*"), None][n] if text else None)
    readline.parse_and_bind("tab: complete")
    while True:
        try:
            line = input(PROMPT).strip()
        except KeyboardInterrupt:
            say(notes, "\n/quit or Ctrl-D leaves")
            continue
        except EOFError:
            notes.print()
            return
        if line:
            yield line


def piped_lines() -> Iterator[str]:
    """The questions of a script, one a line."""
    try:
        yield from (line.strip() for line in sys.stdin if line.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"stdin: not UTF-8 text ({error.reason} at byte {error.start})") from None


def step(talk: Conversation, line: str, loaded: LoadedModel, config: ChatConfig, notes: Console) -> Conversation:
    """One line: a command, or a question that gets its answer. Returns the talk after it."""
    word, _, rest = line.partition(" ")
    if word == "/image":
        for path in paths(rest):
            talk = add_image(talk, path, notes)
        return talk
    if word == "/reset":
        say(notes, "a new talk, without images")
        return Conversation()
    if word == "/help":
        say(notes, HELP)
        return talk
    if word.startswith("/") and word[1:].isascii() and word[1:].isalpha():
        raise UserError(f"{word}: no such command; /help names them")
    return ask(talk, line, loaded, config, notes)


def paths(words: str) -> list[Path]:
    """What follows /image: one path that may hold spaces, or several, quoted or escaped as in a shell."""
    if not words.strip():
        raise UserError("/image: expected the path of an image")
    whole = Path(words.strip()).expanduser()
    if whole.exists():
        return [whole]
    try:
        return [Path(word).expanduser() for word in shlex.split(words)]
    except ValueError:  # an apostrophe that opens no quotation
        return [whole]


def add_image(talk: Conversation, path: Path, notes: Console) -> Conversation:
    """The talk with one more image waiting. Raises UserError, naming the file, where it is no image."""
    try:
        image = to_rgb(read_bytes(path))
    except BadImage as error:
        words = str(error)
        raise UserError(words if str(path) in words else f"{path}: {words}") from None
    number = len(talk.images) + len(talk.waiting) + 1
    say(notes, f"image {number}: {path.name}, {image.width} x {image.height}")
    return Conversation(talk.messages, talk.images, (*talk.waiting, image))


def ask(talk: Conversation, text: str, loaded: LoadedModel, config: ChatConfig, notes: Console) -> Conversation:
    """Print the answer as it is made; returns the talk with question and answer in it.

    An answer stopped by Ctrl-C stays in the talk as far as it was said; one that had not begun leaves no trace.
    """
    request, room = fit(
        Request((*talk.messages, user(text, len(talk.waiting))), (*talk.images, *talk.waiting)),
        lambda asked: int(prepare(loaded, [asked])["input_ids"].shape[1]),
        getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None),
        config.max_new_tokens,
        lambda words: say(notes, words),
    )
    said, stopped = show(stream(loaded, request, room), notes)
    if stopped and not sys.stdin.isatty():
        raise KeyboardInterrupt
    if stopped:
        say(notes, "(stopped)")
    elif not said:
        say(notes, "(the model said nothing)")
    return Conversation((*request.messages, assistant(said)), tuple(request.images)) if said else talk


def show(pieces: Generator[str, None, None], notes: Console) -> tuple[str, bool]:
    """Print the pieces as they come. Returns (what was said, whether Ctrl-C stopped it)."""
    out = Console(highlight=False, soft_wrap=True)
    said: list[str] = []
    stopped = False
    try:
        with notes.status("looking"):  # encoding images and reading the talk take a moment
            first = next(pieces, "")
        for piece in chain([first], pieces):
            out.print(piece, end="", markup=False, emoji=False)
            said.append(piece)
    except KeyboardInterrupt:
        stopped = True
    finally:
        pieces.close()  # lets the model's thread end
    if said or not stopped:
        out.print()
    return "".join(said), stopped


def fit(
    request: Request,
    count: Callable[[Request], int],
    limit: int | None,
    max_new_tokens: int,
    tell: Callable[[str], None],
) -> tuple[Request, int]:
    """(the request without its oldest turns where the context cannot hold it, the room for the answer), in tokens.

    Images stay, moved to the oldest turn that is left: the talk is about them. Raises UserError where the question
    alone is too long.
    """
    if limit is None:
        return request, max_new_tokens
    room = min(max_new_tokens, limit // 2)
    messages: Sequence[Any] = request.messages
    dropped = 0
    while (tokens := count(Request(messages, request.images))) + room > limit:
        if len(messages) < 3:
            raise UserError(
                f"the question takes {tokens} tokens with its {len(request.images)} images, and the model's "
                f"context is {limit}, {room} of them kept for the answer; ask shorter, or /reset"
            )
        messages = without_oldest(messages)
        dropped += 1
    if dropped:
        tell(f"the talk is longer than the model's context of {limit} tokens; oldest turns dropped: {dropped}")
    return Request(messages, request.images), room


def without_oldest(messages: Sequence[Any]) -> list[Any]:
    """The messages without the first question and answer; that question's images move to the next one."""
    asked, _, following, *rest = messages
    kept = [part for part in asked["content"] if part["type"] == "image"]
    return [{"role": "user", "content": [*kept, *following["content"]]}, *rest]
