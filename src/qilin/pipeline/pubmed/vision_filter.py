"""`qilin data filter-figures`: a vision model looks at the figures whose captions leave unsure whether they are medical images.

In: rows of `qilin data figures`, the articles' folder, a service that sees images. Out: the same rows in a new
folder: what it sees as medical with modality and body part, what it does not refused, the rest still unsure.
"""

import base64
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from qilin.core.config import config_class, option
from qilin.core.errors import UserError
from qilin.core.llm_client import ChatReply, ChatRequest, Endpoint, complete_all, parse_json_reply
from qilin.core.llm_client_config import KEY_HELP
from qilin.core.progress import ProgressBars
from qilin.dataset.import_rows import RejectedRow
from qilin.imaging.archive_paths import read_path_or_member
from qilin.imaging.decode import ImageError, to_rgb
from qilin.pipeline.execution.llm_budget import TokenBudget
from qilin.pipeline.execution.sharded_map import shard_paths, read_shards, read_step_record, run_sharded
from qilin.pipeline.pubmed.caption_classifier import BODY_PARTS, MODALITIES
from qilin.pipeline.pubmed.image_lookup import resolve

SIDE = 768  # pixels of the longer side that is sent
NOT_HERE = "its image is not there, or damaged"
ROWS_AT_ONCE = 256  # with an image of some 100 KB each
PROMPT = (
    "Is this a medical image of a body or tissue (a scan, an endoscopy, a photograph of a patient, microscopy), and "
    'not a chart, a drawing or a table? Answer with JSON alone: {"medical": true or false, "modality": one of '
    f"{', '.join(MODALITIES)} or null, "
    f'"body_part": one of {", ".join(BODY_PARTS)} or null}}. Its caption: '
)


@config_class
class LookConfig:
    """Which figures, and who looks at them."""

    source: Path = option(help="a folder of `qilin data figures`")
    out: Path = option(help="the folder of rows to make; an interrupted one is gone on with")
    images: Path = option(help="the folder of articles that the figures were read from")
    endpoint: str = option(help="the service's address, up to and including /v1")
    model: str = option(help="the name of a model there that sees images")
    cache: Path = option(default=Path("looks.sqlite"), help="the file of replies: what is in it costs nothing")
    concurrency: int = option(default=8, help="requests at once, at most")
    budget: int | None = option(default=None, help="tokens, read and written, after which it stops; goes on later")
    price_in: float = option(default=0.0, help="price of a million tokens read, for the cost on the bar")
    price_out: float = option(default=0.0, help="price of a million tokens written")
    timeout: float = option(default=120.0, help="seconds for one reply")

    EPILOG = KEY_HELP


def look(given: LookConfig) -> None:
    """Make the rows, or say that they are there. Raises UserError where the folder of images is not."""
    if not given.images.is_dir():
        raise UserError(f"{given.images}: no such folder; expected the articles that {given.source} was made from")
    step = read_step_record(given.source)
    there = Endpoint(
        given.endpoint, given.model, concurrency=given.concurrency, timeout=given.timeout, cache=given.cache
    )
    pieces = list(map(str, shard_paths(given.source.resolve())))
    made_by = {"step": "look", "model": given.model, "prompt": PROMPT, "made_from": step["made_by"]}
    with ProgressBars(transient=True) as progress:
        task = progress.add_task("looking at figures", total=len(pieces))
        prices = (given.price_in, given.price_out)
        purse = TokenBudget("looking at figures", given.budget, prices, given.cache, progress, task)
        work = partial(looked_at, there, purse, given.images.resolve())
        counts = run_sharded(work, pieces, given.out, made_by, None, lambda number: progress.advance(task))
    kinds: Counter[str] = Counter()
    gone = 0
    for row in read_shards(given.out):
        kinds[row["medical"]] += 1
        gone += row["medical"] == "unsure" and row["reason"].endswith(NOT_HERE)
    words = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{given.out}: medical: {words or 'none'}; {counts['dropped']:,} refused")
    console.print(purse.usage_summary())
    if gone:
        console.print(f"{gone:,} of the unsure were not seen: their images are not in {given.images}, or are damaged")


def looked_at(there: Endpoint, purse: TokenBudget, images: Path, piece: str) -> Iterator[dict[str, Any] | RejectedRow]:
    """The step: rows of a piece, the unsure ones with what the model sees. Some rows at a time: each has an image."""
    with open(piece, encoding="utf-8") as lines:
        while rows := [json.loads(line) for line in islice(lines, ROWS_AT_ONCE)]:
            shown = [image_of(row, images) if row["medical"] == "unsure" else None for row in rows]
            asks = [question(row, image) for row, image in zip(rows, shown, strict=True) if image]
            replies = iter(complete_all(replace(there, budget=purse.remaining()), asks, purse.on_reply()) if asks else [])
            for row, image in zip(rows, shown, strict=True):
                if image:
                    yield judged(row, next(replies))
                else:
                    yield row | ({"reason": f"{row['reason']}; {NOT_HERE}"} if row["medical"] == "unsure" else {})


def image_of(row: Mapping[str, Any], images: Path) -> bytes | None:
    """The figure's first image as a small JPEG; None where it is not there or no image."""
    folder = images / Path(row["file"]).parent
    for form in row["images"][0]:
        try:
            image = to_rgb(read_path_or_member(resolve(form, (folder,)).path))
        except ImageError:
            continue
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        return buffer.getvalue()
    return None


def question(row: Mapping[str, Any], image: bytes) -> ChatRequest:
    url = "data:image/jpeg;base64," + base64.b64encode(image).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": PROMPT + row["caption"]}]
    return ChatRequest([{"role": "user", "content": content}], max_tokens=100, json=True)


def judged(row: dict[str, Any], said: ChatReply) -> dict[str, Any] | RejectedRow:
    """The row as the model sees it; as it was where the answer is of another form."""
    try:
        found = parse_json_reply(said)
        medical = found["medical"]
    except (ValueError, KeyError, TypeError):
        medical = None
    if medical is False:
        return RejectedRow(row, "figure: no medical image, as a vision model sees it")
    if medical is not True:
        return row | {"reason": f"{row['reason']}; the vision model's answer is of no use"}
    # through str: a list of kinds, or a number, is no kind
    modality = found["modality"] if str(found.get("modality")) in MODALITIES else row["modality"]
    part = found["body_part"] if str(found.get("body_part")) in BODY_PARTS else row["body_part"]
    return row | {"medical": "yes", "modality": modality, "body_part": part, "reason": "seen by a vision model"}
