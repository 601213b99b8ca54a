"""Options of `qilin data import`. Free of torch."""

import dataclasses
from pathlib import Path
from typing import Literal

from qilin.core.config import config_class, option
from qilin.pipeline.execution.config import ExecutionConfig, check_shares

PMC_LAYOUTS = ("chimed-vl", "pmc-oa", "pmc-case-report", "pmc-vqa", "pmc-inline", "llava-med", "pubmedvision")
# conversations, instructions and tables of other programs, recognized by their content
DIALOG_LAYOUTS = (
    "messages", "sharegpt", "alpaca", "ms-swift", "trl", "llama-factory", "huggingface", "webdataset", "export",
)  # fmt: skip
LAYOUTS_WITH_TABLES = ("folder", "llama-factory", "huggingface", "webdataset")
LAYOUTS_WITHOUT_SPLITS = (*PMC_LAYOUTS, *DIALOG_LAYOUTS, "llava", "folder", "roco-v2", "figures")
AUTO = "auto"  # the name until the source's content has told its layout
FOLDER_OPTIONS = (
    "image", "question", "answer", "caption", "ask", "id", "group", "split_column", "answer_type", "choices",
    "question_type", "modality", "body_part", "text_only",
)  # fmt: skip
# option -> the layouts that use it; for any other layout it would have no effect, so it is an error
LAYOUTS_OF_OPTION: dict[str, tuple[str, ...]] = {
    "captions": ("slake",),
    "kind": ("llava", *DIALOG_LAYOUTS),
    "subset": ("llama-factory", "huggingface"),
    "add_image_tokens": ("llava",),
    "include_unsure": ("figures",),
    "pmc": (*PMC_LAYOUTS, "roco"),
    **dict.fromkeys(("validation", "test", "seed"), LAYOUTS_WITHOUT_SPLITS),
    **dict.fromkeys(FOLDER_OPTIONS, LAYOUTS_WITH_TABLES),
}


@config_class
class ImportConfig:
    """What to import, from where, to where, and how to read its columns and splits."""

    name: str = option(
        help="layout of the source: slake, llava, messages, sharegpt, alpaca, llama-factory, ms-swift, trl, "
        "huggingface, folder (a table), figures, pmc-oa, … (docs/data.md); may be left out: the content tells it"
    )
    source: Path = option(help="its folder or file: JSON, JSONL, CSV, Excel, Parquet, Arrow, tar")
    out: Path = option(default=Path(), help="dataset folder to create; must be new or empty")
    images: Path | None = option(
        default=None,
        help="folder that image paths are relative to (default: the folder of the source); figures: the folder of the "
        "articles that the figures were extracted from (required)",
    )
    pmc: Path | None = option(
        default=None, help="folder of `qilin data pmc`, for images named by their article (PMC123_Fig1_2.jpg)"
    )
    include_unsure: bool = option(
        default=False, help="figures: include those whose caption does not say whether they are medical"
    )
    lang: Literal["zh", "en"] = option(
        default="zh",
        help="llava, folder: language of the texts; slake: language of the questions to read; others detect it",
    )
    captions: bool = option(default=True, help="slake: compose captions from each image's own questions and answers")
    kind: Literal["vqa", "caption"] = option(default="vqa", help="llava: the kind of a row with a single exchange")
    add_image_tokens: bool = option(
        default=False, help="llava: prepend <image> tokens to the first question of a row that has images but no token"
    )
    image: str | None = option(
        default=None, help="folder: column of image paths, several separated by ';' (default: image)"
    )
    question: str | None = option(default=None, help="folder: column of questions (default: question)")
    answer: str | None = option(
        default=None, help="folder: column of answers, or a text with {columns} (default: answer)"
    )
    caption: str | None = option(
        default=None, help="folder: column of captions, or a text with {columns} (default: caption)"
    )
    ask: str | None = option(default=None, help="folder: one question for every row; may contain {columns}")
    id: str | None = option(default=None, help="folder: column of row ids (default: the row's number)")
    group: str | None = option(
        default=None, help="folder: column of patients or articles, which stay in one split (default: group)"
    )
    split_column: str | None = option(
        default=None, help="folder: column with train, validation or test (default: split)"
    )
    answer_type: str | None = option(
        default=None, help="folder: column with open, closed or choice (default: answer_type)"
    )
    choices: str | None = option(default=None, help="folder: column of choices, separated by ';' (default: choices)")
    question_type: str | None = option(default=None, help="folder: column of question types (default: question_type)")
    modality: str | None = option(default=None, help="folder: column of modalities (default: modality)")
    body_part: str | None = option(default=None, help="folder: column of body parts (default: body_part)")
    text_only: bool = option(
        default=False, help="folder: import rows without an image as text samples, instead of rejecting them"
    )
    encoding: str | None = option(
        default=None, help="encoding of the tables, such as gb18030, big5 or cp1252 (default: found by their content)"
    )
    burned_in: Literal["keep", "refuse", "mask"] = option(
        default="keep",
        help="text drawn into the pixels: keep it, reject images in which it is found, or mask it (both need rapidocr)",
    )
    allow_outside: bool = option(
        default=False, help="read images outside the folder of the source: absolute paths, ../ and links that leave it"
    )
    subset: tuple[str, ...] = option(
        default=(), help="llama-factory, huggingface: names of the datasets or of the configuration to read"
    )
    attribution: str | None = option(default=None, help="whom to credit for the images, if the source does not say it")
    url: str | None = option(default=None, help="where the images are from, if the source does not say it")
    license: str | None = option(default=None, help="license of the source, if its rows name none, such as 'CC BY 4.0'")
    split: Literal["train", "validation", "test"] | None = option(default=None, help="put all rows into this split")
    validation: float = option(
        default=0.05, help="share of the images for the validation split, if the source has no splits"
    )
    test: float = option(default=0.05, help="share of the images for the test split, if the source has no splits")
    seed: int = option(default=0, help="seed of the split; the same seed gives the same split")
    execution: ExecutionConfig = option(default=ExecutionConfig(), flatten=True)

    EPILOG = (
        "\n\nThe layout may be left out: qilin data import SOURCE OUT. The summary says what the source was taken\n"
        "for; a layout that is named wins."
    )

    def __post_init__(self) -> None:
        if self.out == Path():  # SOURCE OUT, without a layout
            object.__setattr__(self, "out", self.source)
            object.__setattr__(self, "source", Path(self.name))
            object.__setattr__(self, "name", AUTO)
        if self.encoding:
            try:
                is_text = "text".encode(self.encoding).decode(self.encoding) == "text"
            except (LookupError, ValueError, TypeError):
                is_text = False
            if not is_text:
                raise ValueError(
                    f"--encoding {self.encoding}: unknown encoding; expected one such as utf-8, gb18030, big5, "
                    "shift_jis or cp1252"
                )
        check_shares(self.validation, self.test, "images")
        for field in dataclasses.fields(self):
            layouts = LAYOUTS_OF_OPTION.get(field.name, (self.name,))
            if getattr(self, field.name) != field.default and self.name not in (*layouts, AUTO):
                flag = "--" + field.name.replace("_", "-")
                raise ValueError(f"{flag} is not for {self.name}, only for {' and '.join(layouts)}")
