"""The commands that make a dataset again, from what its manifest says of each step back to the first.

In: the settings of a manifest. Out: lines of a shell, the first step first, each with the hash of what it read. Where
things lay on the machine that made it is not in the manifest, so such places are words in capitals.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

# settings of each step that are flags of its command where they differ from the default; a step of other making
# (a script, an older version) has none and is told in words
FLAGS: Mapping[str, Mapping[str, Any]] = {
    "figures": {"every": False},
    "translate": {"asks": 3, "back": 0.0},
    "merge": {"context": None, "seed": 0},
    "chats": {"least": 2, "most": 6},
    "ask": {
        "guesses": 3, "kinds": ["caption", "context", "inline", "report"], "only_questions": False, "asks": 2,
        "seed": 0, "open": 3, "choice": 1, "yes_no": 2,
    },
    "curate": {
        "allow_leaks": False, "license": "any", "keep_personal": False, "keep_languages": False, "resplit": False,
        "validation": 0.05, "test": 0.05, "seed": 0,
    },
    "apply": {"only_read": False},
}  # fmt: skip

# the steps of a manifest whose command has another name
COMMANDS = {"ask": "generate-vqa", "chats": "make-conversations", "apply": "apply-review"}

GLOSSARY = "3ab0864e7451a0ca"  # the hash of the terms that come with Qilin: those need not be named


def commands(config: Mapping[str, Any], out: str) -> list[str]:
    """A line for each step that leads to the dataset `out`; a dataset that two steps read is made once."""
    lines: list[str] = []
    write(config, out, lines)
    return list(dict.fromkeys(lines))


def write(made: Mapping[str, Any], out: str, lines: list[str]) -> None:
    """Add the lines of all that a step read, then its own."""
    before = made.get("made_from")
    many = before if isinstance(before, list) else []
    if isinstance(before, Mapping):  # one source: its name and hash stand beside; rows of figures have no name
        many = [{"source": made.get("source", "figures"), "input": made.get("input"), "made_from": before}]
    for came in many:
        if isinstance(came.get("made_from"), Mapping):
            write(came["made_from"], str(came["source"]), lines)
    lines.append(line_of(made, out, many))


def line_of(made: Mapping[str, Any], out: str, many: Sequence[Mapping[str, Any]]) -> str:
    """One step as a command with a note of what it read."""
    sources = [str(came["source"]) for came in many] or ["ARTICLES"]
    read = ", ".join(str(came["input"])[:12] for came in many if came.get("input"))
    step = str(made.get("step", ""))
    if "importer" in made:
        words = ["import", str(made["importer"]), str(made.get("source", "SOURCE")), out]
        words += ["--images", "ARTICLES"] if made["importer"] == "figures" else []
        words += ["--pmc", "PMC"] if "pictures" in made else []
        return told([*words, *flags(made.get("arguments") or {})], str(made.get("input", ""))[:12])
    if step == "look":
        return told(["filter-figures", *sources, out, "--images", "ARTICLES", *service(made)], read)
    if step not in FLAGS:
        return f"# {out}: made by {step or 'a script'}"
    rules: Mapping[str, Any] = made.get("rules") or made
    chosen = {key: rules[key] for key, usual in FLAGS[step].items() if key in rules and rules[key] != usual}
    words = [COMMANDS.get(step, step), *([out, *sources] if step == "merge" else [*sources, out])]
    words += service(made) if "model" in made else []
    words += ["--glossary", "TSV"] if made.get("glossary", GLOSSARY) != GLOSSARY else []
    words += ["--benchmarks", *made["benchmarks"]] if made.get("benchmarks") else []
    words += ["--retracted", "IDS"] if made.get("retracted") else []
    return told([*words, *flags(chosen)], read or str(made.get("listing", ""))[:12])


def service(made: Mapping[str, Any]) -> list[str]:
    guesser = made.get("guesser")
    more = ["--guess-model", str(guesser)] if guesser and guesser != made["model"] else []
    return ["--endpoint", "URL", "--model", str(made["model"]), *more]


def flags(chosen: Mapping[str, Any]) -> list[str]:
    """Settings as the flags of a command."""
    words: list[str] = []
    for key, value in chosen.items():
        flag = "--" + key.rstrip("_").replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return words


def told(words: list[str], read: str) -> str:
    line = "qilin data " + " ".join(map(shlex.quote, words))
    return f"{line}  # read {read}" if read else line
