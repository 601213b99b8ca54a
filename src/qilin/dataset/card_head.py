"""The YAML head of a dataset card, which the Hugging Face hub and `datasets` read.

In: the files of the folder, its languages, licenses and kinds of samples. Out: the head as a mapping: license, size,
tasks, the two configurations, and the type of each column of images, so that the hub shows the images themselves.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from qilin.dataset.arrow_schema import IMAGE_SCHEMA
from qilin.dataset.schema import CAPTION_KINDS, SPLITS

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
         (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"))  # fmt: skip
# the hub's identifiers of licenses other than Creative Commons, by how their texts begin
HUB_LICENSES = {
    "mit": "mit", "apache": "apache-2.0", "bsd 3": "bsd-3-clause", "bsd 2": "bsd-2-clause", "gpl 3": "gpl-3.0",
    "odc by": "odc-by", "odbl": "odbl", "pddl": "pddl", "unlicense": "unlicense",
}  # fmt: skip


def card_head(
    title: str,
    files: Mapping[str, list[Path]],
    num_samples: int,
    num_images: int,
    languages: list[str],
    licenses: Collection[str],
    kinds: Collection[str],
) -> dict[str, Any]:
    """The head of the card. A configuration without a file is left out: `datasets` opens no empty one."""
    splits = [{"split": split, "path": f"samples/{split}-*.parquet"} for split in SPLITS if files[split]]
    configs: list[dict[str, Any]] = [{"config_name": "samples", "data_files": splits, "default": True}]
    head: dict[str, Any] = {
        "pretty_name": title,
        "language": languages,
        **license_fields(licenses),
        "size_categories": [size_category(num_samples)],
        "task_categories": task_categories(num_images, kinds),
        "tags": ["medical"],
        "configs": configs,
    }
    if num_images:
        configs.append({"config_name": "images", "data_files": [{"split": "train", "path": "images/*.parquet"}]})
        head["dataset_info"] = [{"config_name": "images", "features": image_features()}]
    return head


def task_categories(num_images: int, kinds: Collection[str]) -> list[str]:
    if not num_images:
        return ["question-answering", "text-generation"]
    tasks = ["visual-question-answering"] if set(kinds) - {*CAPTION_KINDS} else []
    return tasks + (["image-to-text"] if set(kinds) & {*CAPTION_KINDS} else [])


def size_category(count: int) -> str:
    """The hub's name of a number of rows."""
    return next((name for limit, name in SIZES if count < limit), "n>100M")


def license_fields(licenses: Collection[str]) -> dict[str, str]:
    """The license in the hub's terms: an identifier, `unknown` where one is missing, `other` with its name."""
    identifiers = {hub_license(text) for text in licenses} or {"unknown"}
    if "unknown" in identifiers:
        return {"license": "unknown"}
    if len(identifiers) == 1 and "other" not in identifiers:
        return {"license": identifiers.pop()}
    name = next(iter(licenses)) if len(licenses) == 1 else "several; see the sources in the card and of each image"
    return {"license": "other", "license_name": name}


def hub_license(text: str) -> str:
    """The hub's identifier of a license text: CC BY-NC 4.0 -> cc-by-nc-4.0."""
    plain = re.sub(r"[^a-z0-9.]+", " ", text.lower()).strip()
    if plain in ("", "unknown", "none"):
        return "unknown"
    if re.search(r"\bcc ?0\b|\bpublic domain\b|publicdomain", plain):
        return "cc0-1.0"
    plain = re.sub(r"creative ?commons(\.org licenses)?|\bcc ?by\b", "cc by", plain).replace("attribution", "by")
    plain = re.sub(r"non ?commercial", "nc", re.sub(r"share ?alike", "sa", plain)).replace("no derivatives", "nd")
    if plain.startswith("cc") or "cc by" in plain:
        version = re.search(r"\b([1-4]\.\d|[1-4]$)\b", plain)
        parts = [part for part in ("nc", "nd", "sa") if re.search(rf"\b{part}\b", plain)]
        number = f"{float(version[1]):.1f}" if version else "4.0"
        return "-".join(["cc-by", *parts, number])
    return next((name for start, name in HUB_LICENSES.items() if plain.startswith(start)), "other")


def image_features() -> list[dict[str, Any]]:
    """The columns of images/*.parquet in the notation of a card, `bytes` as an image that viewers show."""
    return [
        {"name": "bytes", "dtype": "image"} if field.name == "bytes" else feature(field.name, field.type)
        for field in IMAGE_SCHEMA
    ]


def feature(name: str, data_type: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(data_type):
        return {"name": name, "list": fields_of(data_type.value_type)}
    return {"name": name, "dtype": str(data_type)}


def fields_of(data_type: pa.DataType) -> Any:
    if pa.types.is_struct(data_type):
        return [feature(field.name, field.type) for field in data_type]
    return str(data_type)


def example_rows(messages: Sequence[Mapping[str, Any]]) -> str:
    """A sample as one line of text: who says what, an image as [image]."""
    texts = []
    for message in messages:
        parts = ("[image]" if part["type"] == "image" else part["text"] for part in message["content"])
        text = " ".join(" ".join(parts).split())
        texts.append(f"{message['role']}: {text[:160]}{'…' if len(text) > 160 else ''}")
    return " / ".join(texts)[:600]
