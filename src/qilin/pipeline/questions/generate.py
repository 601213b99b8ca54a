"""`qilin data generate-vqa`: questions about images from their Chinese captions, reports and case texts.

In: a dataset folder, an OpenAI-compatible service that writes questions, and one that guesses their answers without the
image. Out: a dataset folder with the texts and the questions. A question that fails the checks is requested again with
the reason, then rejected; a guessable one is rejected. Each question records how it was made. Replies are cached.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from qilin.core.config import config_class, option
from qilin.core.llm_client import ChatReply, ChatRequest, Endpoint, make_endpoint
from qilin.core.llm_client_config import KEY_HELP, ServiceConfig, parse_extra
from qilin.core.llm_reply import parse_json_reply
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Sample, assistant, text_of, user
from qilin.pipeline.execution.dataset_map import RejectedRow, reject
from qilin.pipeline.execution.llm_budget import TokenBudget, map_with_budget
from qilin.pipeline.execution.step_output import command_line, print_summary
from qilin.pipeline.questions.checks import ABOUT, Question, check_question, read_question
from qilin.pipeline.questions.text_only_filter import Guesses, guess_answers, rejections_for_balance, with_options
from qilin.text.normalize import has_chinese, normalize_text

PROMPT_VERSION = "1"  # a changed prompt needs a new version; a test compares the prompt's hash
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
TEXTS_PER_SHARD = 256  # answers are balanced within a shard, so the result does not depend on the concurrency
TextKind = Literal["caption", "context", "inline", "report"]


@config_class
class GenerateVqaConfig:
    """Which texts to make questions from, how many of each kind, and the models that write and guess."""

    source: Path = option(help="dataset folder with Chinese captions, reports or case texts")
    out: Path = option(help="dataset folder to write; new, empty, or an interrupted run of the same command")
    service: ServiceConfig = option(default={"cache": Path("questions.sqlite")}, flatten=True)
    guess_endpoint: str | None = option(
        default=None,
        help="endpoint of the model that guesses without the image; gets the same API key (default: --endpoint)",
    )
    guess_model: str | None = option(default=None, help="name of the model that guesses (default: --model)")
    guess_extra: str | None = option(
        default=None, help="as --extra, for the model that guesses (default: --extra, unless its endpoint differs)"
    )
    guesses: int = option(default=3, help="attempts to answer each question without the image; 0: skip this filter")
    kinds: tuple[TextKind, ...] = option(
        default=("caption", "context", "inline", "report"), help="kinds of texts to make questions from"
    )
    open: int = option(default=3, help="maximum number of open questions per text")
    choice: int = option(default=1, help="maximum number of multiple-choice questions per text")
    yes_no: int = option(default=2, help="maximum number of yes/no questions per text")
    only_questions: bool = option(default=False, help="omit the source's own samples")
    max_attempts: int = option(default=2, help="times a faulty question is requested before it is rejected")
    seed: int = option(default=0, help="decides the order of options, and which of too many questions stay")
    json: bool = option(default=False, help="print the summary as JSON")

    EPILOG = KEY_HELP

    def __post_init__(self) -> None:
        parse_extra(self.guess_extra, "guess_extra")
        for name in ("open", "choice", "yes_no", "guesses"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not self.open + self.choice + self.yes_no:
            raise ValueError("open, choice and yes_no are all 0; expected at least one of them above 0")
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts is {self.max_attempts}; expected at least 1")

    @property
    def mix(self) -> dict[str, int]:
        """Question kind -> maximum number per text."""
        return {"open": self.open, "choice": self.choice, "yes_no": self.yes_no}


@dataclass(frozen=True)
class Generator:
    """What decides the questions: the options, the endpoints that write and guess."""

    config: GenerateVqaConfig
    writer: Endpoint
    guesser: Endpoint


Faulty = tuple[Any, dict[str, str]]  # a row of a reply, and check -> what it found


@dataclass
class Draft:
    """The state of one text: accepted questions, faulty ones to request again, rejected ones.

    `form_error`: why the last reply could not be read, and `beginning`: how it began. `refused_by`: what refuses the
    text, such as a content filter, so that a retry is pointless.
    """

    sample: Sample
    text: str
    messages: list[dict[str, str]]
    accepted: list[Question] = field(default_factory=list)
    faulty: list[Faulty] = field(default_factory=list)
    rejected: list[Faulty] = field(default_factory=list)
    form_error: str | None = None
    beginning: str = ""
    refused_by: str = ""


def generate_vqa(config: GenerateVqaConfig) -> None:
    """Write the dataset, unless it exists. Raises RunError if the budget is spent or the service fails."""
    writer = make_endpoint(config.service)
    guesser = make_guesser(config, writer)
    settings = {
        "step": "generate-vqa",
        "command": command_line("data generate-vqa", config, ("source", "out")),
        "model": writer.model,
        "guesser": guesser.model if config.guesses else None,
        "prompt": prompt_name(),
        **{name: getattr(config, name) for name in ("guesses", "kinds", "only_questions", "max_attempts", "seed")},
        **config.mix,
    }
    step = partial(generate_shard, Generator(config, writer, guesser))
    dataset, is_new, budget = map_with_budget(
        config.source, config.out, step, settings, config.service, "generating questions", TEXTS_PER_SHARD
    )
    source = open_dataset(config.source)
    count = sum(map(dataset.count, dataset.splits()))
    count -= 0 if config.only_questions else sum(map(source.count, source.splits()))
    needed = "" if count else f" (questions need a Chinese text with an image, of kind {' or '.join(config.kinds)})"
    lines = [*([budget.usage_summary()] if is_new else []), f"questions: {count:,}{needed}"]
    print_summary(config.out, dataset, is_new, config.json, budget.usage_json(), lines)


def make_guesser(config: GenerateVqaConfig, writer: Endpoint) -> Endpoint:
    """The endpoint that guesses. Extra fields are those of one service: another one gets its own or none."""
    url = config.guess_endpoint or writer.url
    extra = writer.extra if url == writer.url and config.guess_extra is None else parse_extra(config.guess_extra)
    return replace(writer, url=url, model=config.guess_model or writer.model, extra=extra)


def prompt_name() -> str:
    return f"questions-{PROMPT_VERSION}-{hashlib.sha256(PROMPT.encode()).hexdigest()[:12]}"


def generate_shard(
    generator: Generator, budget: TokenBudget, rows: list[tuple[str, Sample]]
) -> Iterator[tuple[str, Sample] | RejectedRow]:
    """The samples of a shard, then the questions made from its texts, and the rejected texts and questions."""
    config = generator.config
    split_of = {sample.sample_id: split for split, sample in rows}
    texts = [sample for _, sample in rows if sample.kind in config.kinds]
    drafts = [make_draft(config, sample) for sample in texts if not text_problem(sample)]
    request_questions(generator, budget, drafts)
    accepted = [(draft, question) for draft in drafts for question in draft.accepted]
    repeats = find_repeats(accepted)
    unique = [
        (d, shuffle_options(question, config.seed)) for n, (d, question) in enumerate(accepted) if n not in repeats
    ]
    questions = [question for _, question in unique]
    guesses = guess_answers(budget, generator.guesser, config.guesses, questions)
    ids = [question_id(draft.sample, question) for draft, question in unique]
    unbalanced = rejections_for_balance(ids, questions, guesses, config.mix, config.seed)
    for _, sample in rows:
        if not config.only_questions:
            yield split_of[sample.sample_id], sample
        if sample.kind in config.kinds and (reason := text_problem(sample)):
            yield reject(sample, reason)
    for draft in drafts:
        yield from rejected_rows(draft)
    for n, reason in repeats.items():
        draft, question = accepted[n]
        yield reject_question(draft.sample, vars(question), reason)
    for n, (draft, question) in enumerate(unique):
        if n in unbalanced:
            scores = {"right": guesses[n].right, "tries": guesses[n].tries, "leaning": guesses[n].majority_answer}
            yield reject_question(draft.sample, vars(question) | {"guesses": scores}, unbalanced[n])
        else:
            sample = question_sample(generator, draft.sample, ids[n], question, guesses[n])
            yield split_of[draft.sample.sample_id], sample


def text_problem(sample: Sample) -> str | None:
    """Why no questions are made from a text; None if they are."""
    if not sample.image_ids:
        return "questions: the text has no image"
    return None if has_chinese(assistant_text(sample)) else "questions: the text is not Chinese, translate it first"


def assistant_text(sample: Sample) -> str:
    return "\n".join(text_of(message) for message in sample.messages if message["role"] == "assistant")


# --- requests and replies -------------------------------------------------------------------------------------------


def make_draft(config: GenerateVqaConfig, sample: Sample) -> Draft:
    prompt = PROMPT.format(**config.mix, about=", ".join(ABOUT))
    text = assistant_text(sample)
    return Draft(sample, text, [{"role": "system", "content": prompt}, {"role": "user", "content": text}])


def request_questions(generator: Generator, budget: TokenBudget, drafts: Sequence[Draft]) -> None:
    """Request questions for each text and again, with the reasons, while some are faulty; fills in the drafts."""
    mix = generator.config.mix
    max_tokens = 200 + 150 * sum(mix.values())  # per question: its text, answer, evidence and options
    pending = list(drafts)
    for _ in range(generator.config.max_attempts):
        requests = [ChatRequest(draft.messages, max_tokens, json=True) for draft in pending]
        for draft, reply in zip(pending, budget.complete(generator.writer, requests), strict=True):
            sort_reply(draft, reply, mix)
        pending = [draft for draft in pending if (draft.form_error or draft.faulty) and not draft.refused_by]


def sort_reply(draft: Draft, reply: ChatReply, mix: Mapping[str, int]) -> None:
    """Sort the questions of a reply into accepted, faulty and rejected ones, and append the retry message."""
    draft.form_error = None
    rows: list[Any] = []
    try:
        value = parse_json_reply(reply)
        if not isinstance(value, dict) or not isinstance(value.get("questions"), list):
            raise ValueError('the reply is not an object {"questions": [...]}')
        rows = value["questions"]
    except ValueError as error:
        draft.form_error, draft.beginning = str(error), reply.beginning
        draft.refused_by = reply.refused_by if reply.refusal else ""
    draft.rejected += draft.faulty[len(rows) :]  # a second reply may omit questions: those are not requested again
    draft.faulty = []
    for row in rows:
        question = read_question(row)
        if isinstance(question, str):
            draft.faulty.append((row, {"form": question}))
        elif doubts := find_doubts(draft.text, question):
            draft.faulty.append((row, doubts))
        elif sum(other.kind == question.kind for other in draft.accepted) >= mix[question.kind]:
            draft.rejected.append((row, {"surplus": "more than were asked for"}))
        else:
            draft.accepted.append(question)
    draft.messages = [*draft.messages[:2], {"role": "assistant", "content": reply.text}, retry_message(draft)]


def find_doubts(text: str, question: Question) -> dict[str, str]:
    """`check_question`; a question that the checks cannot read, such as a number of 400 digits, fails by its form."""
    try:
        return check_question(text, question)
    except (ValueError, ArithmeticError, RecursionError) as error:
        return {"form": f"it cannot be checked: {str(error)[:80]}"}


def retry_message(draft: Draft) -> dict[str, str]:
    if draft.form_error:
        return {"role": "user", "content": f"格式有误（{draft.form_error}）。请重新只输出规定的 JSON 对象。"}
    faults = "\n".join(
        f"- {json.dumps(row, ensure_ascii=False)}：{'; '.join(f'{check}: {doubt}' for check, doubt in doubts.items())}"
        for row, doubts in draft.faulty
    )
    content = f"以下题目有误：\n{faults}\n请只输出改正后的这些题目，格式同上；改不好的删去。"
    return {"role": "user", "content": content}


def rejected_rows(draft: Draft) -> Iterator[RejectedRow]:
    for row, doubts in [*draft.rejected, *draft.faulty]:
        question = row if isinstance(row, dict) else {"row": row}
        yield reject_question(draft.sample, question | {"doubts": doubts}, f"question: {', '.join(sorted(doubts))}")
    if draft.form_error:
        reason = "unreadable" if draft.refused_by in ("", "form") else f"refused by the {draft.refused_by}"
        details = {"doubts": {"form": draft.form_error}, "reply_began": draft.beginning}
        yield reject(draft.sample, f"questions: the reply is {reason}", **details)
    elif not draft.accepted and not draft.rejected and not draft.faulty:
        yield reject(draft.sample, "questions: none, the service found nothing to ask")


def reject_question(sample: Sample, row: Mapping[str, Any], reason: str) -> RejectedRow:
    return RejectedRow({"text_of": sample.sample_id, "image_ids": list(sample.image_ids), **row}, reason)


# --- questions as samples -------------------------------------------------------------------------------------------


def find_repeats(accepted: Sequence[tuple[Draft, Question]]) -> dict[int, str]:
    """Index -> reason of each repeated question about the same images; if the answers differ, all are rejected."""
    indices: dict[tuple[Any, str], list[int]] = {}
    for n, (draft, question) in enumerate(accepted):
        indices.setdefault((draft.sample.image_ids, normalize_text(question.question)), []).append(n)
    repeats: dict[int, str] = {}
    for same in indices.values():
        if len({normalize_text(accepted[n][1].answer) for n in same}) > 1:
            repeats |= dict.fromkeys(same, "repeated: with another answer")
        else:
            repeats |= dict.fromkeys(same[1:], "repeated: the same question about the same image")
    return repeats


def shuffle_options(question: Question, seed: int) -> Question:
    """The question with its options in a seeded random order, independent of the order in the reply."""
    if not question.options:
        return question
    options = sorted(question.options)
    random.Random(f"{seed} {question.question} {'|'.join(options)}").shuffle(options)
    return replace(question, options=tuple(options))


def question_id(sample: Sample, question: Question) -> str:
    """The same id for the same question about the same images, so that the dataset writer rejects a repetition."""
    content = [sample.image_ids, normalize_text(question.question), sorted(question.options)]
    return f"ask-{hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:20]}"


def question_sample(
    generator: Generator, source: Sample, sample_id: str, question: Question, guesses: Guesses
) -> Sample:
    """A question as a sample; `translation` records the model, the prompt, the guesses and the evidence."""
    guessed = f"guessed {guesses.right} of {guesses.tries}" if guesses.tries else "not guessed"
    return Sample(
        sample_id,
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
            "model": generator.writer.model,
            "prompt": prompt_name(),
            "checks": f"passed; {guessed}; of {source.sample_id}: {question.evidence}",
        },
    )
