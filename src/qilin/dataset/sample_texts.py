"""The texts of a sample by their place, and the sample with other texts in those places.

In: a Sample. Out: {"text 0.1": question, "text 1.0": answer, "choice 0": option, …}. An option stands once, not again
in the question's lines nor in the answer, so whoever changes it changes it everywhere.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from qilin.dataset.schema import Sample


def text_fields(sample: Sample) -> dict[str, str]:
    """Every text of a sample by its place."""
    found = {f"choice {n}": choice for n, choice in enumerate(sample.choices)}
    for m, message in enumerate(sample.messages):
        for p, part in enumerate(message["content"]):
            if part["type"] == "text" and not (sample.choices and message["role"] == "assistant"):
                found[f"text {m}.{p}"] = question_stem(part["text"]) if sample.choices else part["text"]
    return found


def question_stem(question: str) -> str:
    """A question less the lines of its choices."""
    return re.split(r"\n(?=[A-H]\. )", question)[0]


def with_texts(sample: Sample, made: Mapping[str, str]) -> Sample:
    """The sample with the texts of `made` in their places; the others stay."""
    choices = tuple(made.get(f"choice {n}", choice) for n, choice in enumerate(sample.choices))
    renamed = dict(zip(sample.choices, choices, strict=True))
    listed = "".join(f"\n{'ABCDEFGH'[n]}. {choice}" for n, choice in enumerate(choices))
    messages = []
    for m, message in enumerate(sample.messages):
        content = []
        for p, part in enumerate(message["content"]):
            text = part.get("text")
            if text is not None and sample.choices:
                is_answer = message["role"] == "assistant"
                text = renamed.get(text, text) if is_answer else made.get(f"text {m}.{p}", question_stem(text)) + listed
            elif text is not None:
                text = made.get(f"text {m}.{p}", text)
            content.append({"type": "image"} if text is None else {"type": "text", "text": text})
        messages.append({"role": message["role"], "content": content})
    return replace(sample, messages=tuple(messages), choices=choices)
