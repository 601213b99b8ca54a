"""`qilin data generate-vqa`: questions about images from their Chinese captions, reports and case texts, by any service.

In: a dataset folder, an OpenAI-compatible service that writes questions, one that guesses without the image. Out: a
dataset folder with the questions beside the texts. A question that fails the checks is asked for again with the reason,
then refused; so is one that is guessed. Each says how it was made. A second run asks nothing.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from qilin.core.config import config_class, option
from qilin.core.llm_client import ChatReply, ChatRequest, Endpoint, complete_all, parse_json_reply
from qilin.core.llm_client_config import KEY_HELP
from qilin.core.progress import ProgressBars
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Sample, assistant, text_of, user
from qilin.pipeline.execution.dataset_map import RejectedRow, cumulative_sizes, map_dataset, reject
from qilin.pipeline.execution.llm_budget import TokenBudget, print_summary
from qilin.pipeline.questions.checks import ABOUT, Question, check_question, read_question
from qilin.pipeline.questions.text_only_filter import Guesses, guess_all, surplus, with_options
from qilin.text.normalize import has_chinese, plain

VERSION = "1"  # of the prompt: a change of its words is a new version, and a test holds its hash
PROMPT = """你为医学影像数据集出题。下面给你与图像配套的一段文字，
请只根据其中能从图像上直接看到的内容，给只看图、不看这段文字的人出题。
要求：
1. 不看图就答不出：题目不包含、也不暗示答案，不能只凭常识猜中。
2. 答案由文字直接支持；evidence 逐字抄录支持答案的那一句（或其中连续的一段）。数字、单位、左右、有无与文字一致。
3. 不问图像看不到的内容：年龄、病史、症状、化验、治疗、随访、病因，以及与以前的比较。
4. 题目、选项和答案只谈图像，不提“图注”“文中”“报告”“描述”等。
5. 用简体中文，简洁专业；缩写（CT、MRI、T2）照写。同一内容不重复出题。
题型：
- open：开放题，answer 为一个词或短句，最多 {open} 道；
- choice：单选题，options 为四个长度相近、互不包含的选项，只有一个正确，answer 抄写正确选项，最多 {choice} 道；
- yes_no：是非题（用“……吗？”或“是否……？”），answer 只写“是”或“否”，二者各占一半，最多 {yes_no} 道。
可问的内容不够就少出，没有就给空列表。只输出一个 JSON 对象：
{{"questions": [
  {{"type": "open", "about": "Position", "question": "……", "options": [], "answer": "……", "evidence": "……"}}
]}}
about 从 {about} 中选一个。"""
TEXTS_A_PIECE = 256  # among which answers are balanced; the same whatever the concurrency
Kind = Literal["caption", "context", "inline", "report"]


@config_class
class AskConfig:
    """Which texts to ask about, how many questions of each kind, and who asks and guesses."""

    source: Path = option(help="a dataset folder with Chinese captions, reports or case texts")
    out: Path = option(help="the dataset folder to make; must be new or empty, or this work interrupted")
    endpoint: str = option(help="the address of the service that writes questions, up to and including /v1")
    model: str = option(help="the model's name there")
    guess_endpoint: str | None = option(
        default=None, help="a service that guesses without the image; the key goes there too (default: the same)"
    )
    guess_model: str | None = option(default=None, help="the guesser's name there (default: the same model)")
    guesses: int = option(default=3, help="tries without the image for each question; 0: do not let it guess")
    kinds: tuple[Kind, ...] = option(
        default=("caption", "context", "inline", "report"), help="kinds of texts to ask about"
    )
    open: int = option(default=3, help="open questions of a text, at most")
    choice: int = option(default=1, help="choices of a text, at most")
    yes_no: int = option(default=2, help="questions of a text answered by 是 or 否, at most")
    only_questions: bool = option(default=False, help="leave the source's own samples out")
    asks: int = option(default=2, help="times a faulty question is asked for before it is refused")
    seed: int = option(default=0, help="decides the order of options, and which of too many questions stay")
    cache: Path = option(default=Path("questions.sqlite"), help="the file of replies: what is in it costs nothing")
    concurrency: int = option(default=16, help="requests at once, at most; fewer where the service asks to wait")
    budget: int | None = option(default=None, help="tokens, read and written, after which it stops; goes on later")
    price_in: float = option(default=0.0, help="price of a million tokens read, for the cost on the bar")
    price_out: float = option(default=0.0, help="price of a million tokens written")
    timeout: float = option(default=120.0, help="seconds for one reply")
    json: bool = option(default=False, help="print the summary as JSON")

    EPILOG = KEY_HELP

    def __post_init__(self) -> None:
        for name in ("open", "choice", "yes_no", "guesses"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not self.open + self.choice + self.yes_no:
            raise ValueError("open, choice and yes_no are all 0; there is nothing to ask")
        if self.asks < 1:
            raise ValueError(f"asks is {self.asks}; expected at least 1")


@dataclass(frozen=True)
class Work:
    """All that decides a question, and where replies are kept."""

    endpoint: Endpoint
    guesser: Endpoint
    guesses: int
    kinds: tuple[str, ...]
    mix: Mapping[str, int]  # kind -> how many of a text
    only_questions: bool
    asks: int
    seed: int


@dataclass
class Draft:
    """What came of one text: sound questions, faulty ones with their doubts, or why the reply is of no use."""

    sample: Sample
    text: str
    history: list[dict[str, str]]
    sound: list[Question] = field(default_factory=list)
    faulty: list[tuple[Any, dict[str, str]]] = field(default_factory=list)
    refused: list[tuple[Any, dict[str, str]]] = field(default_factory=list)
    doubt: str | None = None


def ask(given: AskConfig) -> None:
    """Make the folder with questions, or say that it is there. RunError where the budget is spent or no one answers."""
    there = Endpoint(
        given.endpoint, given.model, concurrency=given.concurrency, timeout=given.timeout, cache=given.cache
    )
    guesser = replace(there, url=given.guess_endpoint or there.url, model=given.guess_model or there.model)
    mix = {"open": given.open, "choice": given.choice, "yes_no": given.yes_no}
    work = Work(
        there, guesser, given.guesses, given.kinds, mix, given.only_questions, given.asks, given.seed,
    )  # fmt: skip
    made_by = {
        "step": "ask",
        "model": given.model,
        "guesser": guesser.model if given.guesses else None,
        "prompt": prompt_name(),
    }
    made_by |= {name: getattr(given, name) for name in ("guesses", "kinds", "only_questions", "asks", "seed")} | mix
    data = open_dataset(given.source)
    with ProgressBars(transient=True) as progress:
        total = sum(data.count(split) for split in data.splits())
        task = progress.add_task("asking", total=total)
        purse = TokenBudget("asking", given.budget, (given.price_in, given.price_out), given.cache, progress, task)
        ends = cumulative_sizes(data, TEXTS_A_PIECE)
        made, fresh = map_dataset(
            given.source, given.out, partial(asked, work, purse), made_by, None, lambda n: purse.set_progress(ends[n]),
            TEXTS_A_PIECE,
        )  # fmt: skip
    print_summary(given.out, made, fresh, purse, given.json)
    if not given.json:
        number = sum(made.manifest["counts"]["samples"].values()) - (0 if given.only_questions else total)
        why = "" if number else f": asked about is {' and '.join(given.kinds)} in Chinese with an image"
        Console(highlight=False, soft_wrap=True).print(f"questions in it: {number:,}{why}")


def prompt_name() -> str:
    return f"questions-{VERSION}-{hashlib.sha256(PROMPT.encode()).hexdigest()[:12]}"


def asked(work: Work, purse: TokenBudget, rows: list[tuple[str, Sample]]) -> Iterator[tuple[str, Sample] | RejectedRow]:
    """The step: the samples of a piece, and behind each text its questions, or why it has none."""
    split_of = {sample.sample_id: split for split, sample in rows}
    texts = [sample for _, sample in rows if sample.kind in work.kinds]
    drafts = {sample.sample_id: draft_of(work, sample) for sample in texts if not reason_against(sample)}
    answer_all(work, purse, list(drafts.values()))
    made = [(draft, question) for draft in drafts.values() for question in draft.sound]
    repeats = repeated(made)
    kept = [(draft, shuffled(question, work.seed)) for n, (draft, question) in enumerate(made) if n not in repeats]
    guesses = [Guesses()] * len(kept)
    if work.guesses:
        guesses = guess_all(work.guesser, work.guesses, [row for _, row in kept], purse.remaining, purse.record_usage)
    keys = [question_id(draft.sample, question) for draft, question in kept]
    gone = surplus(keys, [question for _, question in kept], guesses, work.mix, work.seed)
    for _, sample in rows:
        if not work.only_questions:
            yield split_of[sample.sample_id], sample
        if sample.kind in work.kinds and (reason := reason_against(sample)):
            yield reject(sample, reason)
    for draft in drafts.values():
        yield from refusals_of(draft)
    for n, reason in repeats.items():
        yield refused_question(made[n][0].sample, vars(made[n][1]), reason)
    for n, (draft, question) in enumerate(kept):
        marked = guesses[n]
        if n in gone:
            yield refused_question(draft.sample, vars(question) | {"guesses": vars(marked)}, gone[n])
        else:
            yield split_of[draft.sample.sample_id], sample_of(work, draft.sample, keys[n], question, marked)


def reason_against(sample: Sample) -> str | None:
    """Why nothing is asked about a text."""
    if not sample.image_ids:
        return "questions: the text has no image"
    return None if has_chinese(spoken(sample)) else "questions: the text is not Chinese, translate it first"


def spoken(sample: Sample) -> str:
    return "\n".join(text_of(message) for message in sample.messages if message["role"] == "assistant")


# --- asking and checking --------------------------------------------------------------------------------------------


def draft_of(work: Work, sample: Sample) -> Draft:
    prompt = PROMPT.format(**work.mix, about=", ".join(ABOUT))
    text = spoken(sample)
    return Draft(sample, text, [{"role": "system", "content": prompt}, {"role": "user", "content": text}])


def answer_all(work: Work, purse: TokenBudget, drafts: Sequence[Draft]) -> None:
    """Ask about each text, again with the reasons where questions are faulty; what came of it stands in the drafts."""
    left = list(drafts)
    room = 200 + 150 * sum(work.mix.values())  # tokens of the reply: question, answer, evidence, options
    for _ in range(work.asks):
        if not left:
            return
        there = replace(work.endpoint, budget=purse.remaining())
        replies = complete_all(there, [ChatRequest(draft.history, room, json=True) for draft in left], purse.on_reply())
        for draft, reply in zip(left, replies, strict=True):
            take(draft, reply, work.mix)
        left = [draft for draft in left if draft.doubt or draft.faulty]


def take(draft: Draft, reply: ChatReply, mix: Mapping[str, int]) -> None:
    """Sort the questions of a reply into sound and faulty ones, and prepare to ask again about those."""
    draft.doubt = None
    rows: list[Any] = []
    try:
        found = parse_json_reply(reply)
        if not isinstance(found, dict) or not isinstance(found.get("questions"), list):
            raise ValueError('the reply is no object {"questions": [...]}')
        rows = found["questions"]
    except ValueError as error:
        draft.doubt = str(error)
    draft.refused += draft.faulty[len(rows) :]  # what a second reply leaves out is not asked for any more
    draft.faulty = []
    for row in rows:
        made = read_question(row)
        if isinstance(made, str):
            draft.faulty.append((row, {"form": made}))
        elif doubts := check_question(draft.text, made):
            draft.faulty.append((row, doubts))
        elif sum(other.kind == made.kind for other in draft.sound) >= mix[made.kind]:
            draft.refused.append((row, {"surplus": "more than were asked for"}))
        else:
            draft.sound.append(made)
    draft.history = [*draft.history[:2], {"role": "assistant", "content": reply.text}, again(draft)]


def again(draft: Draft) -> dict[str, str]:
    if draft.doubt:
        return {"role": "user", "content": f"格式有误（{draft.doubt}）。请重新只输出规定的 JSON 对象。"}
    said = "\n".join(
        f"- {json.dumps(row, ensure_ascii=False)}：{'; '.join(f'{check}: {what}' for check, what in doubts.items())}"
        for row, doubts in draft.faulty
    )
    content = f"以下题目有误：\n{said}\n请只输出改正后的这些题目，格式同上；改不好的删去。"
    return {"role": "user", "content": content}


def refusals_of(draft: Draft) -> Iterator[RejectedRow]:
    for row, doubts in [*draft.refused, *draft.faulty]:
        asked_for = row if isinstance(row, dict) else {"row": row}
        yield refused_question(draft.sample, asked_for | {"doubts": doubts}, f"question: {', '.join(sorted(doubts))}")
    if draft.doubt:
        yield reject(draft.sample, "questions: the reply is of no use", doubts={"form": draft.doubt})
    elif not draft.sound and not draft.refused and not draft.faulty:
        yield reject(draft.sample, "questions: none, the service found nothing to ask")


def refused_question(sample: Sample, row: Mapping[str, Any], reason: str) -> RejectedRow:
    return RejectedRow({"text_of": sample.sample_id, "image_ids": list(sample.image_ids), **row}, reason)


# --- questions as samples -------------------------------------------------------------------------------------------


def repeated(made: Sequence[tuple[Draft, Question]]) -> dict[int, str]:
    """Place -> why: asked before about the same images; where the answers differ, none of them stays."""
    first: dict[tuple[Any, str], list[int]] = {}
    for n, (draft, question) in enumerate(made):
        first.setdefault((draft.sample.image_ids, plain(question.question)), []).append(n)
    gone: dict[int, str] = {}
    for places in first.values():
        if len({plain(made[n][1].answer) for n in places}) > 1:
            gone |= dict.fromkeys(places, "repeated: with another answer")
        else:
            gone |= dict.fromkeys(places[1:], "repeated: the same question about the same image")
    return gone


def shuffled(question: Question, seed: int) -> Question:
    """The question with its options in an order that the seed draws."""
    if not question.options:
        return question
    mixed = sorted(question.options)  # the service's order, right one first or not, does not matter
    random.Random(f"{seed} {question.question} {'|'.join(mixed)}").shuffle(mixed)
    return replace(question, options=tuple(mixed))


def question_id(sample: Sample, question: Question) -> str:
    """The same for the same question about the same images, so that the writer refuses it a second time."""
    what = json.dumps([sample.image_ids, plain(question.question), sorted(question.options)], ensure_ascii=False)
    return f"ask-{hashlib.sha256(what.encode()).hexdigest()[:20]}"


def sample_of(work: Work, source: Sample, name: str, question: Question, guesses: Guesses) -> Sample:
    tried = f"guessed {guesses.right} of {guesses.tries}" if guesses.tries else "not guessed"
    return Sample(
        name,
        "vqa",
        source.image_ids,
        (user(with_options(question), len(source.image_ids)), assistant(question.answer)),
        "closed" if question.kind == "yes_no" else question.kind,
        question.options,
        question.about,
        "zh",
        source.source,
        source.group,
        source.license_tier,
        {
            "model": work.endpoint.model,
            "prompt": prompt_name(),
            "checks": f"passed; {tried}; of {source.sample_id}: {question.evidence}",
        },
    )
