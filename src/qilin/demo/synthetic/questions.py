"""Questions about drawn images, chosen so that a model that does not look gains nothing on the closed ones.

In: the truths of one split. Out: Questions. A closed question is asked in pairs: for every image where the answer
is 是 there is one of the same wording where it is 否 (for a choice: one of each side), and about a finding both
images are of the same kind. So the commonest answer to any wording is right half of the time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qilin.demo.synthetic.question_templates import CHOICE, HELD_OUT, OPEN, YES_NO, turned_round
from qilin.demo.synthetic.scene import KINDS, PLACES, Finding, Truth, pick

NOTHING = "未见异常"


@dataclass(frozen=True)
class Question:
    """One question about image number `image` of the split."""

    image: int
    question: str
    answer: str
    answer_type: str  # open, closed, choice
    question_type: str  # a key of OPEN, YES_NO or "choose_" + a key of CHOICE
    held_out: bool  # a wording that is never trained on
    choices: tuple[str, ...] = ()


# How often an open question that applies is asked.
OPEN_SHARE: Mapping[str, float] = {"modality": 0.35, "organ": 0.35, "finding": 0.75, "eye": 0.5, "number": 0.8}
# How much of the possible pairs of a closed question is asked.
PAIR_SHARE: Mapping[str, float] = {"is_modality": 0.25, "is_part": 0.25, "has": 0.8, "choose_side": 0.5}


def write_questions(rng: np.random.Generator, truths: Sequence[Truth], test: bool) -> list[Question]:
    """All questions of a split, about seven an image. `test` adds the held-out wordings to the others."""
    questions = [item for index, truth in enumerate(truths) for item in open_questions(rng, index, truth, test)]
    for kind, subject, yes, no in closed_pools(rng, truths):
        questions += paired(rng, kind, subject, yes, no, test)
    return sorted(questions, key=lambda item: item.image)


def allowed(phrasings: Sequence[str], test: bool) -> Sequence[str]:
    return phrasings if test else phrasings[:-HELD_OUT]


def is_held_out(phrasings: Sequence[str], phrasing: str) -> bool:
    return phrasing in phrasings[-HELD_OUT:]


def open_questions(rng: np.random.Generator, index: int, truth: Truth, test: bool) -> list[Question]:
    """The open questions of one image."""
    rows = [("modality", "", truth.modality), ("organ", "", truth.organ)]
    if not truth.normal or rng.random() < 0.4:  # otherwise 未见异常 would be half of all answers
        order = {name: place for place, name in enumerate(KINDS[truth.kind].findings)}
        names = sorted((item.finding for item in truth.findings), key=order.__getitem__)
        rows.append(("finding", "", "、".join(names) or NOTHING))
    if truth.eye:
        rows.append(("eye", "", truth.eye))
    if truth.white_cells is not None:
        rows.append(("number", "白细胞", str(truth.white_cells)))
    for item in truth.findings:
        for name, value in (("side", item.side), ("place", item.place), ("size", item.size), ("number", item.number)):
            if value is not None:
                rows.append((name, item.finding, str(value)))
    questions = []
    for name, finding, answer in rows:
        if rng.random() < OPEN_SHARE.get(name, 1.0):
            wording = pick(rng, tuple(allowed(OPEN[name], test)))
            held_out = is_held_out(OPEN[name], wording)
            questions.append(Question(index, wording.format(f=finding), answer, "open", name, held_out))
    return questions


Pool = tuple[str, dict[str, str], list[int], list[int]]  # type, words of the question, images for 是, for 否


def closed_pools(rng: np.random.Generator, truths: Sequence[Truth]) -> list[Pool]:
    """For every closed question that can be asked: the images where the answer is yes, and where it is no."""
    everyone = range(len(truths))
    pools: list[Pool] = [
        (
            "normal",
            {},
            [i for i in everyone if truths[i].normal and truths[i].kind == kind],
            [i for i in everyone if not truths[i].normal and truths[i].kind == kind],
        )
        for kind in KINDS
    ]
    for facts in KINDS.values():
        yes = [i for i in everyone if truths[i].modality == facts.modality]
        no = [i for i in everyone if truths[i].modality != facts.modality]
        pools.append(("is_modality", {"v": facts.modality}, yes, no))
        pools.append(("is_part", {"v": facts.body_part}, yes, no))
    for eye in ("左眼", "右眼"):
        eyes = [i for i in everyone if truths[i].eye]
        yes = [i for i in eyes if truths[i].eye == eye]
        pools.append(("is_eye", {"v": eye}, yes, [i for i in eyes if truths[i].eye != eye]))
    for kind, facts in KINDS.items():
        here = [i for i in everyone if truths[i].kind == kind]
        for name in facts.findings:
            pools += finding_pools(rng, truths, here, name)
    return pools


def finding_pools(rng: np.random.Generator, truths: Sequence[Truth], here: list[int], name: str) -> list[Pool]:
    """The closed questions about one finding, over the images of its kind."""
    has = {i: item for i in here for item in truths[i].findings if item.finding == name}
    sick = [i for i in here if i not in has and not truths[i].normal]  # something else is wrong with these
    well = [i for i in here if truths[i].normal]
    rng.shuffle(sick)
    rng.shuffle(well)
    half = len(has) // 2 + 1
    no = sick[:half] + well[: max(0, len(has) - len(sick[:half]))]
    pools: list[Pool] = [("has", {"f": name}, list(has), no)]
    one_sided: dict[int, Finding] = {i: item for i, item in has.items() if item.side in ("左侧", "右侧")}
    left = [i for i in one_sided if one_sided[i].side == "左侧"]
    right = [i for i in one_sided if one_sided[i].side == "右侧"]
    pools.append(("is_side", {"f": name, "v": "左侧"}, left, right))
    pools.append(("is_side", {"f": name, "v": "右侧"}, right, left))
    pools.append(("choose_side", {"f": name}, left, right))
    for place in PLACES.get(name, ()):
        yes = [i for i, item in has.items() if item.place == place]
        pools.append(("is_place", {"f": name, "v": place}, yes, [i for i in has if i not in yes]))
    return pools


def paired(
    rng: np.random.Generator, kind: str, words: dict[str, str], yes: list[int], no: list[int], test: bool
) -> list[Question]:
    """Equal numbers of both answers, every pair in one wording."""
    pairs = round(min(len(yes), len(no)) * PAIR_SHARE.get(kind, 1.0))
    left, right = rng.permutation(yes)[:pairs], rng.permutation(no)[:pairs]
    phrasings = CHOICE["side"] if kind == "choose_side" else YES_NO[kind]
    wordings = allowed(phrasings, test)
    start = int(rng.integers(len(wordings)))
    questions = []
    for number in range(pairs):
        wording = wordings[(start + number) % len(wordings)]
        answers = ("左侧", "右侧") if kind == "choose_side" else ("是", "否")
        if kind == "normal" and turned_round(wording):
            answers = ("否", "是")
        for image, answer in zip((int(left[number]), int(right[number])), answers, strict=True):
            questions.append(
                Question(
                    image,
                    wording.format(**words),
                    answer,
                    "choice" if kind == "choose_side" else "closed",
                    kind,
                    is_held_out(phrasings, wording),
                    ("左侧", "右侧") if kind == "choose_side" else (),
                )
            )
    return questions
