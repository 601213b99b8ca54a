"""The settings of the data commands, free of torch: what `qilin data import` is told."""

import dataclasses
from pathlib import Path
from typing import Literal

from qilin.core.config import config_class, option

# settings that only some layouts know; said for another one they would be passed over in silence, so they are refused
ONLY_FOR: dict[str, tuple[str, ...]] = dict.fromkeys(("captions",), ("slake",))
ONLY_FOR |= dict.fromkeys(("kind", "add_missing_marks"), ("llava",))
NAMED_BY_ARTICLE = ("chimed-vl", "pmc-oa", "pmc-case-report", "pmc-vqa", "pmc-inline", "llava-med", "pubmedvision")
WITHOUT_SPLITS = (*NAMED_BY_ARTICLE, "llava", "folder", "roco-v2", "figures")
ONLY_FOR |= dict.fromkeys(("validation", "test", "seed"), WITHOUT_SPLITS)
ONLY_FOR |= {"unsure": ("figures",), "pmc": (*NAMED_BY_ARTICLE, "roco")}
ONLY_FOR |= dict.fromkeys(
    ("image", "question", "answer", "caption", "ask", "id", "group", "split_column", "answer_type", "choices")
    + ("question_type", "modality", "body_part", "text_only"),
    ("folder",),
)


@config_class
class ImportConfig:
    """What to import, from where, to where, and how its columns and splits are to be read."""

    name: str = option(help="the layout of the source: slake, llava, folder, figures, pmc-oa, … (docs/data.md)")
    source: Path = option(help="its folder or file; llava: a JSON or JSONL file; folder: a CSV, JSON or JSONL table")
    out: Path = option(help="the dataset folder to make; must be new or empty")
    images: Path | None = option(
        default=None, help="the folder that image paths start from (default: where the source lies)"
    )
    pmc: Path | None = option(
        default=None, help="a folder of `qilin data pmc`, for images named by their article (PMC123_Fig1_2.jpg)"
    )
    unsure: bool = option(default=False, help="figures: take those whose captions do not say what they are, too")
    lang: Literal["zh", "en"] = option(
        default="zh",
        help="llava, folder: the language of the texts; slake: its questions in this one; others tell by the words",
    )
    captions: bool = option(default=True, help="slake: compose captions from each image's own questions and answers")
    kind: Literal["vqa", "caption"] = option(default="vqa", help="llava: what a row with a single exchange is")
    add_missing_marks: bool = option(
        default=False, help="llava: where a row has images but no <image> mark, put the marks first"
    )
    image: str | None = option(
        default=None, help="folder: the column of image paths, several divided by ';' (default: image)"
    )
    question: str | None = option(default=None, help="folder: the column of questions (default: question)")
    answer: str | None = option(
        default=None, help="folder: the column of answers, or a text with {columns} (default: answer)"
    )
    caption: str | None = option(
        default=None, help="folder: the column of captions, or a text with {columns} (default: caption)"
    )
    ask: str | None = option(default=None, help="folder: one question for every row; may hold {columns}")
    id: str | None = option(default=None, help="folder: the column of row names (default: the row's number)")
    group: str | None = option(
        default=None, help="folder: the column of patients or articles, never divided (default: group)"
    )
    split_column: str | None = option(
        default=None, help="folder: the column that says train, validation or test (default: split)"
    )
    answer_type: str | None = option(
        default=None, help="folder: the column that says open, closed or choice (default: answer_type)"
    )
    choices: str | None = option(default=None, help="folder: the column of choices, divided by ';' (default: choices)")
    question_type: str | None = option(
        default=None, help="folder: the column of question types (default: question_type)"
    )
    modality: str | None = option(default=None, help="folder: the column of modalities (default: modality)")
    body_part: str | None = option(default=None, help="folder: the column of body parts (default: body_part)")
    text_only: bool = option(
        default=False, help="folder: keep rows without an image as text to learn, instead of refusing them"
    )
    license: str | None = option(
        default=None, help="the licence of the source, where its rows do not say, such as 'CC BY 4.0'"
    )
    split: Literal["train", "validation", "test"] | None = option(default=None, help="put all rows into this split")
    validation: float = option(
        default=0.05, help="the share of images kept for validation, where the source has no splits"
    )
    test: float = option(default=0.05, help="the share of images kept for testing, where the source has no splits")
    seed: int = option(default=0, help="decides which images are kept; the same seed always keeps the same ones")
    workers: int = option(default=0, help="processes that decode images; 0 is one a core, 1 works in this one")
    cluster: str | None = option(default=None, help="a dask scheduler whose workers do it, such as tcp://10.0.0.1:8786")
    json: bool = option(default=False, help="print the summary as JSON")

    def __post_init__(self) -> None:
        if self.validation < 0 or self.test < 0 or self.validation + self.test >= 1:
            raise ValueError(
                f"validation is {self.validation} and test is {self.test}; expected shares of at least 0 "
                "that leave something to train on, such as 0.05 and 0.05"
            )
        for field in dataclasses.fields(self):
            known = ONLY_FOR.get(field.name, (self.name,))
            if getattr(self, field.name) != field.default and self.name not in known:
                flag = "--" + field.name.replace("_", "-")
                raise ValueError(f"{flag} is not for {self.name}, only for {' and '.join(known)}")
