"""`qilin data filter-figures`: a vision-language model classifies the figures that captions leave undecided.

In: rows of `qilin data extract-figures`, the articles' folder, a service with a vision-language model. Out: the same
rows in a new folder: figures that the model calls medical get a modality and a body part, others are rejected; a figure
without a usable image or reply stays unsure.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from qilin.core.config import config_class, option
from qilin.core.errors import UserError
from qilin.core.files import data_uri
from qilin.core.llm_client import ChatReply, ChatRequest, Endpoint, make_endpoint
from qilin.core.llm_client_config import KEY_HELP, ServiceConfig
from qilin.core.llm_reply import parse_json_reply
from qilin.core.terminal import make_console
from qilin.dataset.import_rows import RejectedRow
from qilin.imaging.archive_paths import read_path_or_member
from qilin.imaging.decode import to_rgb
from qilin.imaging.errors import ImageError
from qilin.pipeline.execution.llm_budget import TokenBudget, open_budget
from qilin.pipeline.execution.sharded_map import read_shards, read_step_record, run_sharded, shard_paths
from qilin.pipeline.execution.step_output import command_line
from qilin.pipeline.pubmed.caption_classifier import BODY_PARTS, MODALITIES
from qilin.pipeline.pubmed.image_lookup import resolve

MAX_SIDE = 768  # pixels of the longer side of the image that is sent
NO_IMAGE = "its image is missing or damaged"  # end of the reason of a row whose image cannot be read
ROWS_PER_BATCH = 256  # in memory at once, each with an image of some 100 KB
PROMPT = (
    "Is this a medical picture of a body or tissue (a scan, an endoscopy, a photograph of a patient, microscopy), and "
    'not a chart, a drawing or a table? Answer with JSON alone: {"medical": true or false, "modality": one of '
    f"{', '.join(MODALITIES)} or null, "
    f'"body_part": one of {", ".join(BODY_PARTS)} or null}}. Its caption: '
)


@config_class
class FilterFiguresConfig:
    """Which figures to classify, and with which model."""

    source: Path = option(help="folder written by `qilin data extract-figures`")
    out: Path = option(help="folder for the figure rows; an interrupted run continues")
    images: Path = option(help="folder of the articles that the figures were extracted from")
    service: ServiceConfig = option(default={"cache": Path("filter.sqlite"), "concurrency": 8}, flatten=True)

    EPILOG = KEY_HELP


def filter_figures(config: FilterFiguresConfig) -> None:
    """Write the classified rows, unless they are complete. Raises UserError if the images' folder does not exist."""
    if not config.images.is_dir():
        raise UserError(f"{config.images}: no such folder; expected the articles that {config.source} was made from")
    shards = [str(path) for path in shard_paths(config.source.resolve())]
    made_by = {
        "step": "filter-figures",
        "command": command_line("data filter-figures", config, ("source", "out")),
        "model": config.service.model,
        "prompt": PROMPT,
        "made_from": read_step_record(config.source)["made_by"],
    }
    endpoint = make_endpoint(config.service)
    with open_budget(config.service, "classifying figures", len(shards)) as budget:
        function = partial(classify_shard, endpoint, budget, config.images.resolve())
        counts = run_sharded(
            function, shards, config.out, made_by, None, lambda number: budget.set_progress(number + 1)
        )
    medical: Counter[str] = Counter()
    without_image = 0
    for row in read_shards(config.out):
        medical[row["medical"]] += 1
        without_image += row["medical"] == "unsure" and row["reason"].endswith(NO_IMAGE)
    classes = ", ".join(f"{name} {count:,}" for name, count in medical.most_common()) or "none"
    console = make_console()
    console.print(f"{config.out}: medical: {classes}; {counts['dropped']:,} rejected")
    console.print(budget.usage_summary())
    if without_image:
        console.print(
            f"{without_image:,} unsure figures were not classified: their images are missing from {config.images} or "
            "damaged"
        )


def classify_shard(
    endpoint: Endpoint, budget: TokenBudget, images: Path, shard: str
) -> Iterator[dict[str, Any] | RejectedRow]:
    """The rows of a shard, the unsure ones with the model's answer."""
    with open(shard, encoding="utf-8") as lines:
        while rows := [json.loads(line) for line in islice(lines, ROWS_PER_BATCH)]:
            jpegs = [encode_image(row, images) if row["medical"] == "unsure" else None for row in rows]
            requests = [make_request(row, jpeg) for row, jpeg in zip(rows, jpegs, strict=True) if jpeg]
            replies = iter(budget.complete(endpoint, requests))
            for row, jpeg in zip(rows, jpegs, strict=True):
                if jpeg:
                    yield apply_reply(row, next(replies))
                else:
                    yield row | ({"reason": f"{row['reason']}; {NO_IMAGE}"} if row["medical"] == "unsure" else {})


def encode_image(row: Mapping[str, Any], images: Path) -> bytes | None:
    """The figure's first image as a small JPEG; None if it is missing or unreadable."""
    folder = images / Path(row["file"]).parent
    for name in row["images"][0]:
        try:
            image = to_rgb(read_path_or_member(resolve(name, (folder,)).path))
        except ImageError:
            continue
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        return buffer.getvalue()
    return None


def make_request(row: Mapping[str, Any], jpeg: bytes) -> ChatRequest:
    image_part = {"type": "image_url", "image_url": {"url": data_uri(jpeg, "image/jpeg")}}
    content = [image_part, {"type": "text", "text": PROMPT + row["caption"]}]
    return ChatRequest([{"role": "user", "content": content}], max_tokens=100, json=True)


def apply_reply(row: dict[str, Any], reply: ChatReply) -> dict[str, Any] | RejectedRow:
    """The row with the model's answer, or rejected; still unsure if the reply has another form."""
    try:
        answer = parse_json_reply(reply)
        is_medical = answer["medical"]
    except (ValueError, LookupError, TypeError):
        is_medical = None
    if is_medical is False:
        return RejectedRow(row, "figure: not a medical image according to the vision model")
    if is_medical is not True:
        why = "the vision model's answer could not be read"
        if reply.refusal and reply.refused_by != "form":
            why = f"the {reply.refused_by} refused it"
        return row | {"reason": f"{row['reason']}; {why}"}
    # str(): a list or a number is not a valid name, and may not be hashable
    modality = answer["modality"] if str(answer.get("modality")) in MODALITIES else row["modality"]
    body_part = answer["body_part"] if str(answer.get("body_part")) in BODY_PARTS else row["body_part"]
    reason = "classified by the vision model"
    return row | {"medical": "yes", "modality": modality, "body_part": body_part, "reason": reason}
