"""What is said about a question, its images and its answer, beside the answer: notices and the calibrated confidence.

In: a decoded chat request, then each answer with its confidence. Out: the object `qilin` of each choice:
{"confidence": 0.87 | null, "disclaimer": {...}, "notices": [{"code", "text_zh", "text_en"}]}. Only the site's own rules
refuse anything.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from qilin.core.errors import UserError
from qilin.evaluate.answer_probability import Calibration, check_weights, find_calibration, read_calibration
from qilin.evaluate.results import asks_for_caption
from qilin.imaging.content import ImageContent, image_content
from qilin.serve.policy import FAILED, Decision, Exchange, Notice, Policy, apply_rules
from qilin.text.modality import FAMILIES, image_kind, named_kind, other_modality

IMAGE_TEXTS = {
    "blank": ("几乎没有内容：只有一种颜色，或只有噪声", "shows almost nothing: one color, or noise"),
    "document": ("像是文字页面，而不是医学图像", "looks like a page of text, not like a medical image"),
    "screenshot": (
        "像是屏幕截图或图表，而不是医学图像",
        "looks like a screenshot or a chart, not like a medical image",
    ),
    "photo": ("像是日常照片，而不是医学图像", "looks like an everyday photograph, not like a medical image"),
}
COLOR_QUESTION = 0.6  # share of pixels in color from which an image is certainly no CT, MRI or X-ray
GRAY_KINDS = ("CT", "MRI", "X光")


@dataclass(frozen=True)
class ImageFacts:
    """What is known about an image of a request besides its pixels. A part of an image is not judged by its content."""

    modality: str = ""  # DICOM's code, "" if unknown
    is_part: bool = False
    content: ImageContent | None = None  # its statistics, if they were computed before


@dataclass(frozen=True)
class CheckedQuestion:
    """What was found before the model answers. `refusal` is said instead of an answer, `prefix` before it."""

    exchange: Exchange
    notices: tuple[Notice, ...] = ()
    refusal: str = ""
    prefix: str = ""


@dataclass(frozen=True)
class CheckedAnswer:
    """An answer as it is given, and the object `qilin` beside it."""

    text: str
    info: dict[str, Any]
    refused: bool = False


@dataclass(frozen=True)
class Safeguards:
    """The server's policy, and what is known about its model from its evaluation."""

    policy: Policy = Policy()
    calibration: Calibration | None = None

    async def check_question(
        self, question: str, images: Sequence[Image.Image], facts: Sequence[ImageFacts], owner: str
    ) -> CheckedQuestion:
        """Look at the images and apply the rules to a question."""
        notices = await asyncio.to_thread(image_notices, question, images, facts, self.evaluated_kinds)
        codes = tuple(notice.code for notice in notices)
        exchange = Exchange(question, None, tuple(fact.modality for fact in facts), codes, owner)
        decisions = await apply_rules(self.policy, exchange)
        checked = CheckedQuestion(exchange, tuple(notices) + notices_of(decisions))
        refusal = self.text_of(decisions, "refuse")
        prefix = self.text_of(decisions, "prefix")
        if self.policy.in_answer:
            prefix = "\n".join(filter(None, (self.policy.text(self.policy.disclaimer), prefix)))
        return replace(checked, refusal=refusal, prefix=f"{prefix}\n\n" if prefix and not refusal else "")

    async def check_answer(self, checked: CheckedQuestion, text: str, confidence: float | None) -> CheckedAnswer:
        """Apply the rules to an answer, and say how likely it is right. `confidence` is None where it says nothing,
        because the answer was sampled."""
        decisions = None
        refused = bool(checked.refusal)
        notices = list(checked.notices)
        if not refused:
            decisions = await apply_rules(self.policy, replace(checked.exchange, answer=text))
            notices += [notice for notice in notices_of(decisions) if notice not in notices]
            if refusal := self.text_of(decisions, "refuse"):
                text, refused = refusal, True
            elif prefix := self.text_of(decisions, "prefix"):
                text = f"{prefix}\n\n{text}"
        probability = None if refused else self.probability(checked.exchange, text, confidence)
        if probability is not None and probability < self.policy.low_confidence:
            notices.append(low_confidence(probability))
        info = {
            "confidence": None if probability is None else round(probability, 4),
            "disclaimer": self.policy.disclaimer.to_json(),
            "notices": [notice.to_json() for notice in notices],
        }
        return CheckedAnswer(text, info, refused)

    def text_of(self, decisions: Sequence[Decision] | None, action: str) -> str:
        """The texts of the decisions with an action, as parts of an answer."""
        return "\n".join(self.policy.text(d.notice) for d in decisions or () if d.action == action)

    def probability(self, exchange: Exchange, answer: str, confidence: float | None) -> float | None:
        """The probability that an answer is right; None for what the evaluation says nothing about: descriptions,
        longer answers than any that was judged, questions without an image."""
        calibration = self.calibration
        if calibration is None or confidence is None or not exchange.modalities:
            return None
        if len(answer) > calibration.max_characters or asks_for_caption(exchange.question):
            return None
        return calibration.probability(confidence)

    @property
    def evaluated_kinds(self) -> tuple[str, ...]:
        return self.calibration.kinds if self.calibration else ()


def notices_of(decisions: Sequence[Decision] | None) -> tuple[Notice, ...]:
    """What is said of the rules' decisions; of None, that the rules failed."""
    return (FAILED,) if decisions is None else tuple(decision.notice for decision in decisions)


def low_confidence(probability: float) -> Notice:
    share = f"{probability:.0%}"
    return Notice(
        "low_confidence",
        f"模型对此回答没有把握：评测中这样的回答约有 {share} 是正确的。",
        f"The model is not sure: about {share} of such answers were right in its evaluation.",
    )


def image_notices(
    question: str, images: Sequence[Image.Image], facts: Sequence[ImageFacts], evaluated_kinds: Sequence[str] = ()
) -> list[Notice]:
    """What is noticed about the images of a question. `evaluated_kinds`: those of the model's evaluation, if known."""
    notices = []
    contents = [
        None if fact.is_part else fact.content or image_content(image)
        for image, fact in zip(images, facts, strict=True)
    ]
    for number, (content, fact) in enumerate(zip(contents, facts, strict=True), start=1):
        if content is not None and content.problem:
            zh, en = IMAGE_TEXTS[content.problem]
            notices.append(Notice(content.problem, f"第 {number} 张图像{zh}。", f"Image {number} {en}."))
        elif content is not None and (shown := unevaluated_kind(content, fact, evaluated_kinds)):
            kinds = "、".join(evaluated_kinds)
            zh = f"第 {number} 张图像是{shown[0]}，而模型只用{kinds}图像评测过。"
            en = f"Image {number} is {shown[1]}; the model was evaluated with {kinds} only."
            notices.append(Notice("unevaluated_modality", zh, en))
    return notices + kind_conflict(question, [content for content in contents if content], facts)


def unevaluated_kind(content: ImageContent, fact: ImageFacts, evaluated_kinds: Sequence[str]) -> tuple[str, str] | None:
    """What an image is, in Chinese and English, where the model was evaluated with other kinds only."""
    if not evaluated_kinds:
        return None
    kind = image_kind(fact.modality)
    if kind is not None:
        return None if kind in evaluated_kinds else (kind, kind)
    return ("彩色的", "in color") if content.is_color and set(evaluated_kinds) <= set(FAMILIES) else None


def kind_conflict(question: str, contents: Sequence[ImageContent], facts: Sequence[ImageFacts]) -> list[Notice]:
    """A notice where the question takes another kind of image for granted than those that are shown."""
    if kind := other_modality(question, [fact.modality for fact in facts]):
        shown = "、".join(sorted({str(image_kind(fact.modality)) for fact in facts}))
    elif contents and all(content.color_share > COLOR_QUESTION for content in contents):
        kind, shown = named_kind(question), "彩色的"
        kind = kind if kind in GRAY_KINDS else None
    if kind is None:
        return []
    english = "in color" if shown == "彩色的" else shown
    zh = f"问题说的是{kind}图像，而图像是{shown}{'' if shown == '彩色的' else '图像'}。"
    return [Notice("other_modality", zh, f"The question speaks of {kind}; the image is {english}.")]


def load_safeguards(policy: Policy, model: str | None, file: Path | None) -> tuple[Safeguards, str]:
    """The safeguards of a server, and what is to be said of its calibration, "" if all is well.

    `model`: the folder or hub id; None for an upstream server. `file`: a calibration.json outside the model's folder.
    Raises UserError for a damaged one.
    """
    folder = Path(model or "")
    if file is not None:
        calibration = read_calibration(file)
        result = calibration if model is None else check_weights(calibration, folder)
        if isinstance(result, str):
            raise UserError(f"{file}: {result}; evaluate {model} again")
    else:
        result = find_calibration(folder) if model and folder.is_dir() else "the model was not evaluated here"
    if isinstance(result, str):
        return Safeguards(policy), f"Answers have no calibrated confidence: {result} (qilin evaluate)."
    return Safeguards(policy, result), ""
