"""The table of commands. Parses the words, calls one function a command, prints errors in one line; no logic.

A command names its settings class and its function as "module:name", so that `--help` loads neither torch nor
transformers: the settings modules are free of them and the function's module is imported only to run it.
"""

import argparse
import importlib
import os
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qilin import __version__
from qilin.core.config import add_flags, from_flags
from qilin.core.errors import QilinError


@dataclass(frozen=True)
class Command:
    """One command: what it does, its settings class, its function, which settings are positional, an example."""

    help: str
    config: str
    run: str
    positional: tuple[str, ...] = ()
    example: str = ""


COMMANDS = {
    "demo": Command(
        "the whole story on this machine: data, two small pre-trained parts, both stages, scores, a report",
        "qilin.demo.config:DemoConfig",
        "qilin.demo.run:demo",
        example="qilin demo --out qilin-demo\nqilin demo --quick\nqilin demo --data slake --recipes small",
    ),
    "data import": Command(
        "make a dataset folder from images and text that exist",
        "qilin.pipeline.importers.config:ImportConfig",
        "qilin.pipeline.importers.run:import_data",
        ("name", "source", "out"),
        "qilin data import slake SLAKE_DIR slake\nqilin data import llava data.json llava --images DIR\n"
        "qilin data import figures figures articles-en --images pmc/articles --workers 8\n"
        "qilin data import folder table.csv mine --question question --answer answer",
    ),
    "data pmc": Command(
        "fetch articles of PubMed Central's open store with the images of their figures",
        "qilin.pipeline.pubmed.download:PmcConfig",
        "qilin.pipeline.pubmed.download:pmc",
        ("out",),
        "qilin data pmc pmc --ids ids.txt\n"
        "qilin data pmc pmc --query 'case report[filter] AND chest CT' --license commercial --limit 1000\n"
        "qilin data pmc pmc --inventory --article-types case-report",
    ),
    "data figures": Command(
        "figures of JATS articles, with captions, mentions, context, licences and panels, as rows",
        "qilin.pipeline.pubmed.figures:FiguresConfig",
        "qilin.pipeline.pubmed.figures:figures",
        ("source", "out"),
        "qilin data figures articles figures\nqilin data figures articles figures --every --workers 8",
    ),
    "data look": Command(
        "a vision model looks at figures that captions leave unsure",
        "qilin.pipeline.pubmed.vision_filter:LookConfig",
        "qilin.pipeline.pubmed.vision_filter:look",
        ("source", "out"),
        "qilin data look figures seen --images pmc/articles --endpoint http://127.0.0.1:8000/v1 --model qwen3-vl-8b",
    ),
    "data translate": Command(
        "the English samples of a dataset folder into Chinese, checked, by any OpenAI-compatible service",
        "qilin.pipeline.translation.translate:TranslateConfig",
        "qilin.pipeline.translation.translate:translate",
        ("source", "out"),
        "qilin data translate articles-en articles-zh --endpoint http://127.0.0.1:8000/v1 --model qwen3-32b\n"
        "qilin data translate articles-en articles-zh --endpoint https://api.deepseek.com/v1 --model deepseek-chat "
        "--budget 20000000 --price-in 0.28 --price-out 0.42",
    ),
    "data ask": Command(
        "questions about images from their Chinese captions and reports, checked, none that is guessed without them",
        "qilin.pipeline.questions.generate:AskConfig",
        "qilin.pipeline.questions.generate:ask",
        ("source", "out"),
        "qilin data ask articles-zh asked --endpoint http://127.0.0.1:8000/v1 --model qwen3-32b\n"
        "qilin data ask articles-zh asked --endpoint https://api.deepseek.com/v1 --model deepseek-chat "
        "--guess-endpoint http://127.0.0.1:8000/v1 --guess-model qwen3-8b --budget 20000000",
    ),
    "data curate": Command(
        "a dataset folder less repetitions, leaks, personal data, bad images and licences that do not fit",
        "qilin.pipeline.curation.curate:CurateConfig",
        "qilin.pipeline.curation.curate:curate",
        ("source", "out"),
        "qilin data curate articles-zh chinese --benchmarks slake-test vqa-rad --resplit\n"
        "qilin data curate articles-zh to-sell --license commercial",
    ),
    "data review": Command(
        "samples for a person to accept, fix or reject, on a page of this machine",
        "qilin.serve.config:ReviewConfig",
        "qilin.serve.review:review",
        ("source",),
        "qilin data review articles-zh\nqilin data review articles-zh --rows 500 --reviewer 王敏\n"
        "qilin data review articles-zh --report",
    ),
    "data apply": Command(
        "a review's decisions applied to the dataset: fixed, rejected, marked as read",
        "qilin.pipeline.review.apply:ApplyConfig",
        "qilin.pipeline.review.apply:apply",
        ("source", "out"),
        "qilin data apply articles-zh reviewed\nqilin data apply articles-zh gold --only-read",
    ),
    "data merge": Command(
        "several dataset folders as one, with contexts in a wanted share",
        "qilin.pipeline.merge:MergeConfig",
        "qilin.pipeline.merge:merge",
        ("out", "sources"),
        "qilin data merge together articles-zh pmc-vqa-zh\nqilin data merge english articles vqa --context 0.726",
    ),
    "data chats": Command(
        "conversations composed of what is told and asked about one image",
        "qilin.pipeline.questions.conversations:ChatsConfig",
        "qilin.pipeline.questions.conversations:chats",
        ("source", "out"),
        "qilin data chats chinese chats\nqilin data chats chinese chats --least 3 --most 8",
    ),
    "data build": Command(
        "a whole dataset by a recipe: from PMC ids to one folder, each step done once",
        "qilin.pipeline.build:BuildConfig",
        "qilin.pipeline.build:build",
        ("recipe", "changes"),
        "qilin data build chimed-vl ids=ids.txt endpoint=http://127.0.0.1:8000/v1 model=qwen3-32b out=chimed-vl\n"
        "qilin data build miniature articles=DIR questions=slake_zh endpoint=URL model=any out=mini",
    ),
    "data stats": Command(
        "a dataset's counts and lengths, beside those of the paper",
        "qilin.pipeline.stats:StatsConfig",
        "qilin.pipeline.stats:stats",
        ("source",),
        "qilin data stats chinese\nqilin data stats chinese --tokenizer qwen3/tokenizer.json --json",
    ),
    "data to": Command(
        "a dataset folder as other trainers read it: LLaVA, ShareGPT, TRL, WebDataset",
        "qilin.pipeline.export:ExportConfig",
        "qilin.pipeline.export:export",
        ("form", "source", "out"),
        "qilin data to llava chinese for-llava\nqilin data to webdataset chinese shards",
    ),
    "data benchmarks": Command(
        "test sets by name: where to get them, their licences, how to import them",
        "qilin.dataset.benchmarks:BenchmarksConfig",
        "qilin.dataset.benchmarks:show_benchmarks",
        example="qilin data benchmarks\nqilin data import cmmmu CMMMU_FOLDER cmmmu-health",
    ),
    "train": Command(
        "train one stage from a recipe, by name or path",
        "qilin.train.config:TrainCommand",
        "qilin.train.stage:train_command",
        ("recipe", "changes"),
        "qilin train small/align data=slake vision=DIR/parts/vision language=DIR/parts/language out=runs/align\n"
        "qilin train small/instruct data=slake model=runs/align out=runs/instruct",
    ),
    "estimate": Command(
        "memory by cause, steps, hours and money of a recipe, before anything is downloaded",
        "qilin.train.config:EstimateCommand",
        "qilin.train.estimate:estimate_command",
        ("recipe", "changes"),
        "qilin estimate qilin-med-vl-13b/align --gpu h200 --samples 580014 --text 500 --answers 420\n"
        "qilin estimate small/align data=slake vision=parts/vision language=parts/language",
    ),
    "evaluate": Command(
        "answer a split's questions, score them with controls and intervals, write a report",
        "qilin.evaluate.config:EvaluateConfig",
        "qilin.evaluate.run:evaluate",
        ("model", "dataset"),
        "qilin evaluate runs/instruct slake --split validation --out runs/evaluation\n"
        "qilin evaluate NAME slake --endpoint http://127.0.0.1:8000/v1 --out runs/served\n"
        "qilin evaluate --reproduce runs/evaluation/scores.json --out runs/again",
    ),
    "score": Command(
        "score predictions that any system made",
        "qilin.evaluate.config:ScoreConfig",
        "qilin.evaluate.score:score_command",
        ("file",),
        "qilin score predictions.jsonl --rows judged.jsonl\nqilin score predictions.jsonl --compare",
    ),
    "compare": Command(
        "two systems on the same questions: which is better, and how sure that is",
        "qilin.evaluate.config:CompareConfig",
        "qilin.evaluate.compare:compare_command",
        ("a", "b"),
        "qilin compare evaluation-old evaluation-new --dataset slake --report compared.html",
    ),
    "chat": Command(
        "talk with a model about images, in the terminal",
        "qilin.serve.config:ChatConfig",
        "qilin.serve.terminal:chat",
        ("model", "images"),
        "qilin chat runs/instruct image.png",
    ),
    "convert": Command(
        "LLaVA's layout to Hugging Face's and back; merge LoRA; llama.cpp's mmproj",
        "qilin.model.config:ConvertConfig",
        "qilin.convert.run:convert",
        ("source", "out"),
        "qilin convert williamliu/Qilin-Med-VL-Chat qilin-chat --check\n"
        "qilin convert llava-lora merged --base vicuna-7b-v1.5\n"
        "qilin convert runs/instruct for-llava --to llava\n"
        "qilin convert runs/instruct for-llama-cpp --to gguf",
    ),
    "template": Command(
        "print a conversation as a model sees it, what it learns to say in colour",
        "qilin.model.config:TemplateConfig",
        "qilin.model.show_template:show_template",
        ("model",),
        "qilin template runs/instruct\nqilin template runs/instruct --template llama_2 --tokens",
    ),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0, 1 failure, 2 caller's mistake, 130 Ctrl-C)."""
    arguments = list(sys.argv[1:] if words is None else words)
    try:
        name, rest = find_command(arguments)
        if name is None:
            return show_commands(arguments)
        command = COMMANDS[name]
        config = load(command.config)
        given = from_flags(config, make_parser(name, command, config).parse_intermixed_args(rest))
        load(command.run)(given)
        return 0
    except QilinError as error:
        print(f"{speaker()}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nqilin: stopped; the same command continues where it can", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away (qilin … | head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, sqlite3.OperationalError) as error:
        print(f"{speaker()}: {explain_os_error(error)}", file=sys.stderr)
        return 1


def speaker() -> str:
    """Who says it: of many processes that torchrun started, each but the first by its number."""
    rank = os.environ.get("RANK", "0")
    return "qilin" if rank == "0" else f"qilin, process {rank}"


def find_command(words: list[str]) -> tuple[str | None, list[str]]:
    """The longest command that the words begin with, and the rest of the words."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length and name in COMMANDS:
            return name, words[length:]
    return None, words


def show_commands(words: list[str]) -> int:
    """The overview, or the part of it that `qilin data` asks for; 2 where an unknown command was named."""
    if words and words[0] in ("--version", "-V"):
        print(f"qilin {__version__}")
        return 0
    asked = [word for word in words if not word.startswith("-")]
    listed = {name: c for name, c in COMMANDS.items() if not asked or name.split()[0] == asked[0]}
    unknown = bool(asked) and (not listed or len(asked) > 1)
    if unknown:
        import difflib

        near = difflib.get_close_matches(" ".join(asked[:2]), COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; qilin --help lists them"
        print(f"qilin: unknown command {' '.join(asked[:2])!r}{hint}", file=sys.stderr)
        return 2
    width = max(map(len, listed))
    print(
        "Chinese medical vision-language models: data, two-stage training, evaluation, chat.\n\n"
        "usage: qilin COMMAND …\n"
    )
    print("\n".join(f"  {name:{width}}  {command.help}" for name, command in listed.items()))
    print("\nqilin COMMAND --help tells more. The models are for research, not for diagnosis.")
    return 0 if not asked or words[-1] in ("-h", "--help") else 2


def make_parser(name: str, command: Command, config: type) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"qilin {name}",
        description=command.help[0].upper() + command.help[1:] + ".",
        epilog=f"example:\n  {command.example.replace(chr(10), chr(10) + '  ')}" + getattr(config, "EPILOG", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(parser, config, command.positional)
    return parser


def load(place: str) -> Any:
    """'module:name' -> the thing itself."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def explain_os_error(error: OSError | sqlite3.OperationalError) -> str:
    """A failure of disk or network in one line, with what to do where that is known."""
    import errno

    named = isinstance(error, OSError) and error.filename
    words = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and named else str(error)
    # what sqlite and Arrow raise has no number, only words
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full or any(said in words for said in ("disk is full", "disk I/O error", "No space left", "File too large")):
        return f"{words}; free some space and run the same command again"
    return words


if __name__ == "__main__":
    sys.exit(main())
