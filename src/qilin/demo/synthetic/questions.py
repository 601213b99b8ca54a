"""Questions about synthetic images, balanced so that guessing without the image scores 50 % on closed questions.

In: the scenes of one split. Out: Questions. Closed questions come in pairs: for every image with the answer 是 there is
one with the same wording and the answer 否 (for a choice: one of each side), and for a finding both images are of the
same kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qilin.demo.synthetic.question_templates import CHOICE, NUM_HELD_OUT, OPEN, YES_NO, is_negated
from qilin.demo.synthetic.scene import LOCATIONS, SCENE_KINDS, Finding, Scene, choose

NO_FINDING = "未见异常"


@dataclass(frozen=True)
class Question:
    """One question about image number `image` of the split."""

    image: int
    question: str
    answer: str
    answer_type: str  # open, closed, choice
    question_type: str  # a key of OPEN or YES_NO, or "choose_" + a key of CHOICE
    held_out: bool  # a wording that is never trained on
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuestionPool:
    """One closed question and the images that it can be asked about."""

    question_type: str
    slots: dict[str, str]  # values of {f} and {v} in the wording
    yes: list[int]  # images with the answer 是 (for a choice: 左侧)
    no: list[int]


# Share of the open questions that apply and are asked.
OPEN_SHARE: Mapping[str, float] = {"modality": 0.35, "organ": 0.35, "finding": 0.75, "eye": 0.5, "number": 0.8}
# Share of the possible pairs of a closed question that are asked.
PAIR_SHARE: Mapping[str, float] = {"is_modality": 0.25, "is_part": 0.25, "has": 0.8, "choose_side": 0.5}


def write_questions(rng: np.random.Generator, scenes: Sequence[Scene], test: bool) -> list[Question]:
    """All questions of a split, about seven per image. `test` adds the held-out wordings."""
    questions = [item for index, scene in enumerate(scenes) for item in open_questions(rng, index, scene, test)]
    for pool in closed_question_pools(rng, scenes):
        questions += pair_questions(rng, pool, test)
    return sorted(questions, key=lambda item: item.image)


def usable_wordings(wordings: Sequence[str], test: bool) -> Sequence[str]:
    return wordings if test else wordings[:-NUM_HELD_OUT]


def is_held_out(wordings: Sequence[str], wording: str) -> bool:
    return wording in wordings[-NUM_HELD_OUT:]


def open_questions(rng: np.random.Generator, index: int, scene: Scene, test: bool) -> list[Question]:
    """The open questions of one image."""
    rows = [("modality", "", scene.modality), ("organ", "", scene.organ)]
    if not scene.normal or rng.random() < 0.4:  # otherwise 未见异常 would be half of all answers
        order = {name: rank for rank, name in enumerate(SCENE_KINDS[scene.kind].findings)}
        names = sorted((item.finding for item in scene.findings), key=order.__getitem__)
        rows.append(("finding", "", "、".join(names) or NO_FINDING))
    if scene.eye:
        rows.append(("eye", "", scene.eye))
    if scene.white_cells is not None:
        rows.append(("number", "白细胞", str(scene.white_cells)))
    for item in scene.findings:
        values = (("side", item.side), ("place", item.location), ("size", item.size), ("number", item.number))
        rows += [(name, item.finding, str(value)) for name, value in values if value is not None]
    questions = []
    for name, finding, answer in rows:
        if rng.random() < OPEN_SHARE.get(name, 1.0):
            wording = choose(rng, tuple(usable_wordings(OPEN[name], test)))
            held_out = is_held_out(OPEN[name], wording)
            questions.append(Question(index, wording.format(f=finding), answer, "open", name, held_out))
    return questions


def closed_question_pools(rng: np.random.Generator, scenes: Sequence[Scene]) -> list[QuestionPool]:
    """Every closed question that can be asked, with the images where the answer is yes and where it is no."""
    indices = range(len(scenes))
    by_kind = {kind: [i for i in indices if scenes[i].kind == kind] for kind in SCENE_KINDS}
    pools = [
        QuestionPool("normal", {}, [i for i in images if scenes[i].normal], [i for i in images if not scenes[i].normal])
        for images in by_kind.values()
    ]
    for facts in SCENE_KINDS.values():
        yes = [i for i in indices if scenes[i].modality == facts.modality]
        no = [i for i in indices if scenes[i].modality != facts.modality]
        pools.append(QuestionPool("is_modality", {"v": facts.modality}, yes, no))
        pools.append(QuestionPool("is_part", {"v": facts.body_part}, yes, no))
    for eye in ("左眼", "右眼"):
        eyes = [i for i in indices if scenes[i].eye]
        yes, no = [i for i in eyes if scenes[i].eye == eye], [i for i in eyes if scenes[i].eye != eye]
        pools.append(QuestionPool("is_eye", {"v": eye}, yes, no))
    for kind, facts in SCENE_KINDS.items():
        for name in facts.findings:
            pools += finding_question_pools(rng, scenes, by_kind[kind], name)
    return pools


def finding_question_pools(
    rng: np.random.Generator, scenes: Sequence[Scene], images: list[int], name: str
) -> list[QuestionPool]:
    """The closed questions about one finding, over the images of its kind."""
    positive = {i: item for i in images for item in scenes[i].findings if item.finding == name}
    abnormal = [i for i in images if i not in positive and not scenes[i].normal]  # with another finding
    normal = [i for i in images if scenes[i].normal]
    rng.shuffle(abnormal)
    rng.shuffle(normal)
    half = len(positive) // 2 + 1
    negative = abnormal[:half] + normal[: max(0, len(positive) - len(abnormal[:half]))]
    pools = [QuestionPool("has", {"f": name}, list(positive), negative)]
    one_sided: dict[int, Finding] = {i: item for i, item in positive.items() if item.side in ("左侧", "右侧")}
    left = [i for i in one_sided if one_sided[i].side == "左侧"]
    right = [i for i in one_sided if one_sided[i].side == "右侧"]
    pools.append(QuestionPool("is_side", {"f": name, "v": "左侧"}, left, right))
    pools.append(QuestionPool("is_side", {"f": name, "v": "右侧"}, right, left))
    pools.append(QuestionPool("choose_side", {"f": name}, left, right))
    for location in LOCATIONS.get(name, ()):
        yes = [i for i, item in positive.items() if item.location == location]
        pools.append(QuestionPool("is_place", {"f": name, "v": location}, yes, [i for i in positive if i not in yes]))
    return pools


def pair_questions(rng: np.random.Generator, pool: QuestionPool, test: bool) -> list[Question]:
    """Equal numbers of both answers; both questions of a pair have the same wording."""
    name = pool.question_type
    is_choice = name == "choose_side"
    num_pairs = round(min(len(pool.yes), len(pool.no)) * PAIR_SHARE.get(name, 1.0))
    yes, no = rng.permutation(pool.yes)[:num_pairs], rng.permutation(pool.no)[:num_pairs]
    all_wordings = CHOICE["side"] if is_choice else YES_NO[name]
    wordings = usable_wordings(all_wordings, test)
    start = int(rng.integers(len(wordings)))
    questions = []
    for pair in range(num_pairs):
        wording = wordings[(start + pair) % len(wordings)]
        answers = ("左侧", "右侧") if is_choice else ("是", "否")
        if name == "normal" and is_negated(wording):
            answers = ("否", "是")
        for image, answer in zip((int(yes[pair]), int(no[pair])), answers, strict=True):
            questions.append(
                Question(
                    image,
                    wording.format(**pool.slots),
                    answer,
                    "choice" if is_choice else "closed",
                    name,
                    is_held_out(all_wordings, wording),
                    ("左侧", "右侧") if is_choice else (),
                )
            )
    return questions
