"""`qilin data look`: a vision model looks at the figures whose captions leave unsure whether they are medical pictures.

In: rows of `qilin data figures`, the articles' folder, a service that sees pictures. Out: the same rows in a new
folder: what it sees as medical with modality and body part, what it does not refused, the rest still unsure.
"""

import base64
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from qilin.data.bars import bar
from qilin.data.medical import BODY_PARTS, MODALITIES
from qilin.data.pieces import piece_file, read_pieces, read_step, run_pieces
from qilin.data.resolve import resolve
from qilin.data.sources.rows import Refused
from qilin.data.through import read_through
from qilin.endpoint import Ask, Endpoint, ask_all
from qilin.imaging.pixels import BadPicture, to_rgb
from qilin.settings import setting, settings

SIDE = 768  # pixels of the longer side that is sent
PROMPT = (
    "Is this a medical picture of a body or tissue (a scan, an endoscopy, a photograph of a patient, microscopy), and "
    'not a chart, a drawing or a table? Answer with JSON alone: {"medical": true or false, "modality": one of '
    f"{', '.join(MODALITIES)} or null, "
    f'"body_part": one of {", ".join(BODY_PARTS)} or null}}. Its caption: '
)


@settings
class LookSettings:
    """Which figures, and who looks at them."""

    source: Path = setting(help="a folder of `qilin data figures`")
    out: Path = setting(help="the folder of rows to make; an interrupted one is gone on with")
    images: Path = setting(help="the folder of articles that the figures were read from")
    endpoint: str = setting(help="the service's address, up to and including /v1")
    model: str = setting(help="the name of a model there that sees pictures")
    cache: Path = setting(default=Path("looks.sqlite"), help="the file of replies: what is in it costs nothing")
    concurrency: int = setting(default=8, help="requests at once, at most")
    budget: int | None = setting(default=None, help="tokens of one piece of rows after which it stops")


def look(given: LookSettings) -> None:
    """Make the rows, or say that they are there."""
    step = read_step(given.source)
    there = Endpoint(given.endpoint, given.model, concurrency=given.concurrency, cache=given.cache, budget=given.budget)
    pieces = [str(piece_file(given.source.resolve(), "rows", n)) for n in range(step["made_by"]["pieces"])]
    made_by = {"step": "look", "model": given.model, "prompt": PROMPT, "made_from": step["made_by"]}
    with bar() as progress:
        task = progress.add_task("looking at figures", total=len(pieces))
        work = partial(looked_at, there, given.images.resolve())
        counts = run_pieces(work, pieces, given.out, made_by, None, lambda number: progress.advance(task))
    kinds = Counter(row["medical"] for row in read_pieces(given.out))
    words = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{given.out}: medical: {words or 'none'}; {counts['dropped']:,} refused")


def looked_at(there: Endpoint, images: Path, piece: str) -> Iterator[dict[str, Any] | Refused]:
    """The step: rows of a piece, the unsure ones with what the model sees."""
    with open(piece, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    shown = [picture_of(row, images) if row["medical"] == "unsure" else None for row in rows]
    asks = [question(row, picture) for row, picture in zip(rows, shown, strict=True) if picture]
    replies = iter(ask_all(there, asks) if asks else [])
    for row, picture in zip(rows, shown, strict=True):
        yield judged(row, next(replies).text) if picture else row


def picture_of(row: Mapping[str, Any], images: Path) -> bytes | None:
    """The figure's first picture as a small JPEG; None where it is not there or no picture."""
    folder = images / Path(row["file"]).parent
    for form in row["pictures"][0]:
        try:
            image = to_rgb(read_through(resolve(form, (folder,)).path))
        except BadPicture:
            continue
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        return buffer.getvalue()
    return None


def question(row: Mapping[str, Any], picture: bytes) -> Ask:
    url = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": PROMPT + row["caption"]}]
    return Ask([{"role": "user", "content": content}], max_tokens=100, json=True)


def judged(row: dict[str, Any], said: str) -> dict[str, Any] | Refused:
    """The row as the model sees it; as it was where the answer is of another form."""
    try:
        found = json.loads(said)
        medical = found["medical"]
    except (ValueError, KeyError, TypeError):
        medical = None
    if medical is False:
        return Refused(row, "figure: no medical picture, as a vision model sees it")
    if medical is not True:
        return row | {"reason": f"{row['reason']}; the vision model's answer is of no use"}
    modality = found.get("modality") if found.get("modality") in MODALITIES else row["modality"]
    part = found.get("body_part") if found.get("body_part") in BODY_PARTS else row["body_part"]
    return row | {"medical": "yes", "modality": modality, "body_part": part, "reason": "seen by a vision model"}
