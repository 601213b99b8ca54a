"""The editable texts of a sample by field, and the sample with some of them replaced.

In: a Sample. Out: {"text 0.1": question, "text 1.0": answer, "choice 0": option, …}. An option occurs once, not again
in the lines of the question or in the answer, so a change to it applies everywhere.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from qilin.dataset.schema import Sample

LETTERS = "ABCDEFGH"


def text_fields(sample: Sample) -> dict[str, str]:
    """Every text of a sample by field: `text MESSAGE.PART` or `choice N`."""
    fields = {f"choice {n}": choice for n, choice in enumerate(sample.choices)}
    for m, message in enumerate(sample.messages):
        for p, part in enumerate(message["content"]):
            if part["type"] == "text" and not (sample.choices and message["role"] == "assistant"):
                fields[f"text {m}.{p}"] = question_stem(part["text"]) if sample.choices else part["text"]
    return fields


def question_stem(question: str) -> str:
    """A multiple-choice question without the lines of its choices."""
    return re.split(r"\n(?=[A-H]\. )", question)[0]


def with_texts(sample: Sample, texts: Mapping[str, str]) -> Sample:
    """The sample with the fields of `texts` replaced; the others stay."""
    choices = tuple(texts.get(f"choice {n}", choice) for n, choice in enumerate(sample.choices))
    new_choice = dict(zip(sample.choices, choices, strict=True))
    choice_lines = "".join(f"\n{LETTERS[n]}. {choice}" for n, choice in enumerate(choices))
    messages = []
    for m, message in enumerate(sample.messages):
        content = []
        for p, part in enumerate(message["content"]):
            text = part.get("text")
            if text is not None and sample.choices:
                if message["role"] == "assistant":
                    text = new_choice.get(text, text)
                else:
                    text = texts.get(f"text {m}.{p}", question_stem(text)) + choice_lines
            elif text is not None:
                text = texts.get(f"text {m}.{p}", text)
            content.append({"type": "image"} if text is None else {"type": "text", "text": text})
        messages.append({"role": message["role"], "content": content})
    return replace(sample, messages=tuple(messages), choices=choices)
