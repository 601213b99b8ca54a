"""What a site wants to be said with its answers: the research-use line, and a hospital's own rules.

In: a YAML file of rules, or `module:function`. Out: a Policy, checked when the server starts. Rules see the question
before the model does, and the answer before the user does; they add a notice, put a text before the answer, or refuse.
A rule that fails is logged, and the answer says that the rules could not be checked; what failed is never told.

    def rules(exchange: Exchange) -> list[Decision]: ...   # called with answer=None, then with the answer
"""

import asyncio
import contextlib
import importlib
import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qilin.core.config import read_yaml
from qilin.core.errors import UserError, suggest

log = logging.getLogger(__name__)
RULE_SECONDS = 5.0  # for the rules of one exchange
MAX_STUCK = 16  # rules that never return, after which no more are started
MAX_RULE_TEXT = 20_000  # characters of a question or an answer that patterns are searched in
ACTIONS = ("notice", "prefix", "refuse")
CODE = re.compile(r"[a-z][a-z0-9_]{0,39}")
RESERVED_CODES = (
    "blank", "document", "screenshot", "photo", "other_modality", "unevaluated_modality", "low_confidence",
    "policy_failed", "research_use", "disclaimer",
)  # fmt: skip


@dataclass(frozen=True)
class Notice:
    """What is said with an answer. `code` is for programs."""

    code: str
    text_zh: str
    text_en: str

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "text_zh": self.text_zh, "text_en": self.text_en}


RESEARCH_USE = Notice(
    "research_use",
    "仅供科研使用，不能用于诊断或治疗：回答可能有误。",
    "For research only. Not for diagnosis or treatment: answers may be wrong.",
)
FAILED = Notice("policy_failed", "本站的规则未能检查这次问答。", "The rules of this site could not be checked here.")


@dataclass(frozen=True)
class Exchange:
    """What a rule decides about: the user's last question, what is known about its images, who asks, and the answer.

    `answer` is None before the model answers. `image_notices` are the codes of what was noticed about the images.
    """

    question: str
    answer: str | None = None
    modalities: tuple[str, ...] = ()  # DICOM's codes, "" if unknown, one for each image
    image_notices: tuple[str, ...] = ()
    owner: str = ""  # the name of the API key


@dataclass(frozen=True)
class Decision:
    """One rule's decision. `zh` and `en` are what is said; the answer's own text begins with them for `prefix`, and
    consists of them for `refuse`, in `language`."""

    action: str
    code: str
    zh: str
    en: str

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"action is {self.action!r}; expected {', '.join(ACTIONS)}")
        if not isinstance(self.code, str) or CODE.fullmatch(self.code) is None or self.code in RESERVED_CODES:
            raise ValueError(f"code is {self.code!r}; expected small letters, digits and _, and no code of Qilin's own")
        if not all(isinstance(text, str) and text.strip() for text in (self.zh, self.en)):
            raise ValueError(f"{self.code}: zh or en is empty; expected a text in both languages")

    @property
    def notice(self) -> Notice:
        return Notice(self.code, self.zh, self.en)


RuleFunction = Callable[[Exchange], Iterable[Decision]]


@dataclass(frozen=True)
class Rule:
    """A rule of a YAML file: where its pattern occurs in the question (or the answer), its decision applies."""

    decision: Decision
    pattern: re.Pattern[str]
    on_answer: bool = False

    def __call__(self, exchange: Exchange) -> Iterable[Decision]:
        if self.on_answer != (exchange.answer is not None):
            return []
        text = exchange.question if exchange.answer is None else exchange.answer
        return [self.decision] if self.pattern.search(text[:MAX_RULE_TEXT]) else []


@dataclass(frozen=True)
class Policy:
    """The policy of a server. `holds_answers`: a rule may refuse a finished answer, so streams wait for its end."""

    disclaimer: Notice = RESEARCH_USE
    in_answer: bool = False  # the disclaimer also begins the text of every answer
    language: str = "zh"  # of texts that become part of an answer
    low_confidence: float = 0.5  # calibrated probability below which an answer is marked
    rules: tuple[RuleFunction, ...] = ()
    holds_answers: bool = False

    def text(self, notice: Notice) -> str:
        """A notice as a part of an answer."""
        return notice.text_zh if self.language == "zh" else notice.text_en

    def decide(self, exchange: Exchange) -> list[Decision]:
        """The decisions of all rules, in their order. Raises whatever a rule raises."""
        return [check_decision(decision) for rule in self.rules for decision in rule(exchange) or ()]


stuck_threads: set[threading.Thread] = set()


async def apply_rules(policy: Policy, exchange: Exchange) -> list[Decision] | None:
    """The decisions about an exchange; None where a rule failed or took longer than RULE_SECONDS.

    Rules run in a thread of their own: a slow one delays its own request, and one that never returns not even the
    server's end.
    """
    if not policy.rules:
        return []
    stuck_threads.difference_update([thread for thread in stuck_threads if not thread.is_alive()])
    if len(stuck_threads) >= MAX_STUCK:
        log.error("policy: %d calls of rules have not returned; no more are started", len(stuck_threads))
        return None
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[Decision] | None] = loop.create_future()

    def set_result(decisions: list[Decision] | None) -> None:
        if not future.done():
            future.set_result(decisions)

    def run() -> None:
        decisions = None
        try:
            decisions = policy.decide(exchange)
        except BaseException as error:  # a site's function may raise anything; its message may hold a patient's words
            frame = traceback.extract_tb(error.__traceback__)[-1]
            log.error("policy: a rule failed: %s at %s:%s", type(error).__name__, frame.filename, frame.lineno)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(set_result, decisions)

    thread = threading.Thread(target=run, name="policy", daemon=True)
    thread.start()
    try:
        return await asyncio.wait_for(future, RULE_SECONDS)
    except TimeoutError:
        stuck_threads.add(thread)
        log.error("policy: the rules took longer than %g s", RULE_SECONDS)
        return None


def check_decision(value: Any) -> Decision:
    if not isinstance(value, Decision):
        raise TypeError(f"a rule returned {type(value).__name__}; expected a list of Decision")
    return value


def read_policy(source: str | None) -> Policy:
    """The policy that `--policy` names: a YAML file, `module:function`, or the default. Raises UserError."""
    if source is None:
        return Policy()
    if source.endswith((".yaml", ".yml")):
        return policy_from_yaml(Path(source))
    module, colon, name = source.partition(":")
    if not colon or not module or not name.isidentifier():
        raise UserError(f"--policy is {source!r}; expected a file *.yaml, or module:function")
    return Policy(rules=(load_function(module, name),), holds_answers=True)


def load_function(module: str, name: str) -> RuleFunction:
    """A rule function, tried once. Raises UserError where it cannot be loaded or fails."""
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        function = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever the site's module raises
        raise UserError(f"--policy: cannot import {module}: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(str(Path.cwd()))
    if not callable(function):
        raise UserError(f"--policy: {module} has no function {name!r}")
    try:
        for answer in (None, "未见异常。"):
            for decision in function(Exchange("图中有异常吗？", answer)) or ():
                check_decision(decision)
    except Exception as error:
        raise UserError(f"--policy: {module}:{name} failed on a sample: {type(error).__name__}: {error}") from None
    rule: RuleFunction = function
    return rule


POLICY_KEYS = ("disclaimer", "in_answer", "language", "low_confidence", "rules")
RULE_KEYS = ("code", "when", "pattern", "action", "zh", "en")


def policy_from_yaml(path: Path) -> Policy:
    """A policy from a YAML file. Raises UserError with the key at fault."""
    values = read_yaml(path)
    check_keys(values, POLICY_KEYS, str(path))
    disclaimer = values.get("disclaimer")
    if disclaimer is None:
        notice = RESEARCH_USE
    else:
        check_keys(disclaimer, ("zh", "en"), f"{path}: disclaimer")
        if not all(isinstance(disclaimer.get(key), str) and disclaimer[key].strip() for key in ("zh", "en")):
            raise UserError(f"{path}: disclaimer: zh or en is missing; expected a text in both languages")
        notice = Notice("disclaimer", disclaimer["zh"].strip(), disclaimer["en"].strip())
    in_answer, language, low = (values.get(key) for key in ("in_answer", "language", "low_confidence"))
    if not isinstance(in_answer, bool | None):
        raise UserError(f"{path}: in_answer is {in_answer!r}; expected true or false")
    if language not in (None, "zh", "en"):
        raise UserError(f"{path}: language is {language!r}; expected zh or en")
    if low is not None and (isinstance(low, bool) or not isinstance(low, int | float) or not 0 <= low <= 1):
        raise UserError(f"{path}: low_confidence is {low!r}; expected a number from 0 to 1")
    rows = [] if values.get("rules") is None else values["rules"]
    if not isinstance(rows, list):
        raise UserError(f"{path}: rules is {rows!r}; expected a list")
    rules = tuple(parse_rule(row, f"{path}: rule {number}") for number, row in enumerate(rows, start=1))
    return Policy(
        notice,
        in_answer or False,
        language or "zh",
        0.5 if low is None else float(low),
        rules,
        any(rule.on_answer and rule.decision.action != "notice" for rule in rules),
    )


def parse_rule(row: Any, where: str) -> Rule:
    """One rule. Raises UserError."""
    check_keys(row, RULE_KEYS, where)
    missing = [key for key in RULE_KEYS if key not in row and key != "when"]
    if missing:
        raise UserError(f"{where}: {missing[0]} is missing; a rule has {', '.join(RULE_KEYS)}")
    when = row.get("when", "question")
    if when not in ("question", "answer"):
        raise UserError(f"{where}: when is {when!r}; expected question or answer")
    try:
        pattern = re.compile(str(row["pattern"]), re.IGNORECASE)
        decision = Decision(row["action"], row["code"], row["zh"], row["en"])
    except re.error as error:
        raise UserError(f"{where}: pattern is no regular expression: {error}") from None
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if pattern.search(""):
        raise UserError(f"{where}: pattern {row['pattern']!r} matches every text")
    return Rule(decision, pattern, when == "answer")


def check_keys(value: Any, known: Sequence[str], where: str) -> None:
    """Raise UserError for what is no mapping, or has another key."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected {', '.join(known)}")
    for key in value:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; {suggest(str(key), known)}")
