"""The table of commands. Parses arguments, calls one function per command, prints errors in one line; no logic.

A command names its config class and its function as "module:name", so that `--help` loads neither torch nor
transformers: the modules of config classes are free of both, and the function's module is imported only to run it.
"""

import argparse
import contextlib
import importlib
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qilin import __version__
from qilin.core.config import add_flags, from_flags
from qilin.core.errors import QilinError, UserError, suggest
from qilin.core.terminal import print_question_marks, printable, quiet_libraries


@dataclass(frozen=True)
class Command:
    """One command: a line of help, its config class, its function, the positional keys of its config, examples."""

    help: str
    config: str
    run: str
    positional: tuple[str, ...] = ()
    example: str = ""


COMMANDS = {
    "demo": Command(
        "run the whole pipeline on this machine: data, two small base models, both training stages, evaluation, report",
        "qilin.demo.config:DemoConfig",
        "qilin.demo.run:demo",
        example="qilin demo --out qilin-demo\nqilin demo --quick\nqilin demo --data slake --recipes small",
    ),
    "data import": Command(
        "convert images and text into a dataset folder; the content tells the layout, unless it is named",
        "qilin.pipeline.importers.config:ImportConfig",
        "qilin.pipeline.importers.run:import_data",
        ("name", "source", "out"),
        "qilin data import table.xlsx my-data --license 'CC BY 4.0'\n"
        "qilin data import LLaMA-Factory/data chats\n"
        "qilin data import slake SLAKE_DIR slake\n"
        "qilin data import llava data.json llava --images DIR\n"
        "qilin data import figures figures articles-en --images pmc/articles --workers 8\n"
        "qilin data import folder table.csv my-data --question question --answer answer",
    ),
    "data import dicom": Command(
        "create a de-identified dataset from a folder of DICOM files and a table of reports",
        "qilin.pipeline.importers.dicom_config:ImportDicomConfig",
        "qilin.pipeline.importers.dicom_import:import_dicom",
        ("source", "out"),
        "qilin data import dicom PACS chest --reports reports.xlsx --license 'internal'\n"
        "qilin data import dicom PACS chest --window 肺窗 纵隔窗 骨窗 --slices 16\n"
        "qilin data import dicom PACS chest --reports reports.xlsx --slices axial:8 coronal:4 --prior",
    ),
    "data import nifti": Command(
        "create a dataset without names from a folder of NIfTI volumes and a table of reports",
        "qilin.pipeline.importers.nifti_config:ImportNiftiConfig",
        "qilin.pipeline.importers.nifti_import:import_nifti",
        ("source", "out"),
        "qilin data import nifti SCANS brain --reports reports.csv --slices axial:8 sagittal:2\n"
        "qilin data import nifti SCANS chest --modality CT --window 肺窗",
    ),
    "data pmc": Command(
        "download articles and their figure images from the PubMed Central open-access store",
        "qilin.pipeline.pubmed.download:PmcConfig",
        "qilin.pipeline.pubmed.download:download_articles",
        ("out",),
        "qilin data pmc pmc --ids ids.txt\n"
        "qilin data pmc pmc --query 'case report[filter] AND chest CT' --license commercial --limit 1000\n"
        "qilin data pmc pmc --inventory --article-types case-report",
    ),
    "data extract-figures": Command(
        "extract figures from JATS articles: captions, mentions, context, licenses and panels",
        "qilin.pipeline.pubmed.figures:ExtractFiguresConfig",
        "qilin.pipeline.pubmed.figures:extract_figures",
        ("source", "out"),
        "qilin data extract-figures pmc/articles figures\nqilin data extract-figures articles figures --workers 8",
    ),
    "data filter-figures": Command(
        "ask a vision-language model about the figures whose captions do not say whether they are medical",
        "qilin.pipeline.pubmed.vision_filter:FilterFiguresConfig",
        "qilin.pipeline.pubmed.vision_filter:filter_figures",
        ("source", "out"),
        "qilin data filter-figures figures filtered --images pmc/articles --endpoint http://127.0.0.1:8000/v1 "
        "--model qwen3-vl-8b",
    ),
    "data translate": Command(
        "translate the English samples of a dataset folder into Chinese and check every translation",
        "qilin.pipeline.translation.translate:TranslateConfig",
        "qilin.pipeline.translation.translate:translate",
        ("source", "out"),
        "qilin data translate articles-en articles-zh --endpoint http://127.0.0.1:8000/v1 --model qwen3-32b\n"
        "qilin data translate articles-en articles-zh --endpoint https://api.deepseek.com/v1 --model deepseek-chat "
        "--budget 20000000 --price-in 0.28 --price-out 0.42",
    ),
    "data generate-vqa": Command(
        "generate questions from Chinese captions and reports, check them, and drop those answerable without the image",
        "qilin.pipeline.questions.generate:GenerateVqaConfig",
        "qilin.pipeline.questions.generate:generate_vqa",
        ("source", "out"),
        "qilin data generate-vqa articles-zh articles-vqa --endpoint http://127.0.0.1:8000/v1 --model qwen3-32b\n"
        "qilin data generate-vqa articles-zh articles-vqa --endpoint https://api.deepseek.com/v1 --model "
        "deepseek-chat --guess-endpoint http://127.0.0.1:8000/v1 --guess-model qwen3-8b --budget 20000000",
    ),
    "data make-conversations": Command(
        "combine the texts and questions about one image into multi-turn conversations",
        "qilin.pipeline.questions.conversations:MakeConversationsConfig",
        "qilin.pipeline.questions.conversations:make_conversations",
        ("source", "out"),
        "qilin data make-conversations chinese chats\n"
        "qilin data make-conversations chinese chats --min-turns 3 --max-turns 8",
    ),
    "data curate": Command(
        "remove duplicates, test-set contamination, personal data, bad images and unsuitable licenses",
        "qilin.pipeline.curation.curate:CurateConfig",
        "qilin.pipeline.curation.curate:curate",
        ("source", "out"),
        "qilin data curate articles-zh chinese --benchmarks slake-test vqa-rad --resplit\n"
        "qilin data curate articles-zh commercial --license commercial",
    ),
    "data merge": Command(
        "merge dataset folders, optionally with a fixed share of context samples",
        "qilin.pipeline.merge:MergeConfig",
        "qilin.pipeline.merge:merge",
        ("out", "sources"),
        "qilin data merge together articles-zh pmc-vqa-zh\nqilin data merge english articles vqa --context 0.726",
    ),
    "data review": Command(
        "show samples on a local web page for a person to accept, fix or reject",
        "qilin.pipeline.review.config:ReviewConfig",
        "qilin.serve.review:review",
        ("source",),
        "qilin data review articles-zh\n"
        "qilin data review articles-zh --rows 500 --reviewer 王敏\n"
        "qilin data review articles-zh --report",
    ),
    "data apply-review": Command(
        "apply the decisions of a review to the dataset",
        "qilin.pipeline.review.config:ApplyReviewConfig",
        "qilin.pipeline.review.apply:apply_review",
        ("source", "out"),
        "qilin data apply-review articles-zh reviewed\nqilin data apply-review articles-zh gold --reviewed-only",
    ),
    "data build": Command(
        "run a dataset recipe: all steps from PMC ids to one dataset folder; finished steps are skipped",
        "qilin.pipeline.build:BuildConfig",
        "qilin.pipeline.build:build",
        ("recipe", "overrides"),
        "qilin data build chimed-vl ids=ids.txt endpoint=http://127.0.0.1:8000/v1 model=qwen3-32b out=chimed-vl\n"
        "qilin data build miniature articles=DIR questions=slake_zh endpoint=URL model=any out=mini",
    ),
    "data stats": Command(
        "print counts and text lengths of a dataset next to those of ChiMed-VL in the paper",
        "qilin.pipeline.stats:StatsConfig",
        "qilin.pipeline.stats:stats",
        ("source",),
        "qilin data stats chinese\nqilin data stats chinese --tokenizer qwen3/tokenizer.json --json",
    ),
    "data export": Command(
        "write a dataset folder in the layout of another trainer: LLaVA, ShareGPT, TRL or WebDataset",
        "qilin.pipeline.export:ExportConfig",
        "qilin.pipeline.export:export",
        ("layout", "source", "out"),
        "qilin data export llava chinese for-llava\nqilin data export webdataset chinese shards",
    ),
    "data benchmarks": Command(
        "list the known test sets: where to get them, their licenses, how to import them",
        "qilin.dataset.benchmarks:BenchmarksConfig",
        "qilin.dataset.benchmarks:show_benchmarks",
        example="qilin data benchmarks\nqilin data import cmmmu CMMMU_FOLDER cmmmu-health",
    ),
    "estimate": Command(
        "estimate memory, steps, hours and cost of a training recipe before anything is downloaded",
        "qilin.train.commands:EstimateCommand",
        "qilin.train.estimate_command:estimate_command",
        ("recipe", "overrides"),
        "qilin estimate qilin-med-vl-13b/align --gpu h200 --samples 580014 --text-tokens 500 --answer-tokens 420\n"
        "qilin estimate small/align data=slake vision=parts/vision language=parts/language",
    ),
    "train": Command(
        "train one stage from a recipe, with key=value overrides",
        "qilin.train.commands:TrainCommand",
        "qilin.evaluate.while_training:train_command",
        ("recipe", "overrides"),
        "qilin train small/align data=slake vision=DIR/parts/vision language=DIR/parts/language out=runs/align\n"
        "qilin train small/instruct data=slake model=runs/align out=runs/instruct",
    ),
    "evaluate": Command(
        "answer the questions of a split, score the answers with controls and confidence intervals, write a report",
        "qilin.evaluate.config:EvaluateConfig",
        "qilin.evaluate.commands:evaluate_command",
        ("model", "dataset"),
        "qilin evaluate runs/instruct slake --split validation --out runs/evaluation\n"
        "qilin evaluate NAME slake --endpoint http://127.0.0.1:8000/v1 --out runs/served\n"
        "qilin evaluate --reproduce runs/evaluation/scores.json --out runs/again",
    ),
    "score": Command(
        "score a predictions.jsonl of any system",
        "qilin.evaluate.config:ScoreConfig",
        "qilin.evaluate.commands:score_command",
        ("file",),
        "qilin score predictions.jsonl --rows judged.jsonl\n"
        "qilin score predictions.jsonl --scorer vlmevalkit\n"
        "qilin score predictions.jsonl --compare",
    ),
    "report": Command(
        "write a page from finished evaluations, with several runs or a baseline",
        "qilin.evaluate.config:ReportConfig",
        "qilin.evaluate.report.build:report_command",
        ("evaluations",),
        "qilin report evaluation --language zh --out report-zh.html\n"
        "qilin report seed-0 seed-1 seed-2 --baseline evaluation-llava",
    ),
    "compare": Command(
        "test which of two systems is better on the same questions",
        "qilin.evaluate.config:CompareConfig",
        "qilin.evaluate.compare:compare_command",
        ("a", "b"),
        "qilin compare evaluation-old evaluation-new --dataset slake --report compared.html",
    ),
    "chat": Command(
        "chat with a model about images in the terminal",
        "qilin.serve.config:ChatConfig",
        "qilin.serve.terminal:chat",
        ("model", "images"),
        "qilin chat runs/instruct image.png",
    ),
    "serve": Command(
        "serve a model through OpenAI's chat API on this machine",
        "qilin.serve.config:ServeConfig",
        "qilin.serve.server:serve",
        ("model",),
        "qilin serve runs/instruct\n"
        "qilin serve --new-key ward-3 --keys keys.txt\n"
        "qilin serve runs/instruct --host 0.0.0.0 --keys keys.txt --tls-certificate cert.pem --tls-key key.pem",
    ),
    "convert": Command(
        "convert checkpoints between the LLaVA, Hugging Face and llama.cpp layouts; merge LoRA adapters",
        "qilin.convert.config:ConvertConfig",
        "qilin.convert.run:convert",
        ("source", "out"),
        "qilin convert williamliu/Qilin-Med-VL-Chat qilin-chat --check\n"
        "qilin convert llava-lora merged --base vicuna-7b-v1.5\n"
        "qilin convert runs/instruct for-llava --to llava\n"
        "qilin convert runs/instruct for-llama-cpp --to gguf",
    ),
    "template": Command(
        "print a conversation as the model receives it, with the trained tokens in color",
        "qilin.model.show_template:TemplateConfig",
        "qilin.model.show_template:show_template",
        ("model",),
        "qilin template runs/instruct\nqilin template runs/instruct --template llama_2 --tokens",
    ),
    "push": Command(
        "publish a model with its card on the Hugging Face hub or ModelScope",
        "qilin.model.push:PushConfig",
        "qilin.model.push:push",
        ("model", "name"),
        "qilin push runs/instruct OWNER/NAME\n"
        "qilin push runs/instruct OWNER/NAME --yes\n"
        "qilin push runs/instruct OWNER/NAME --hub modelscope --public --yes",
    ),
}

# commands and flags that had another name before the first release: the error names the new one
RENAMED = {
    "data look": "data filter-figures",
    "data ask": "data generate-vqa",
    "data chats": "data make-conversations",
    "data apply": "data apply-review",
    "data to": "data export",
    "data figures": "data extract-figures",
    "--as": "--scorer",
    "--only-read": "--reviewed-only",
    "--every": "--include-nonmedical",
    "--unsure": "--include-unsure",
    "--allow-leaks": "--allow-contamination",
    "--asks": "--max-attempts",
    "--back": "--min-backtranslation-chrf",
    "--least": "--min-turns",
    "--most": "--max-turns",
    "--pictures": "--images",
    "--a-picture": "--samples-per-image",
    "--spread": "--device-map-auto",
    "--batch": "--batch-size",
    "--system": "--system-prompt",
    "--count": "--devices",
    "--text": "--text-tokens",
    "--answers": "--answer-tokens",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a failure, 2 for the caller's mistake, 128 + N for signal N."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    print_question_marks()
    quiet_libraries()
    with hangup_as_interrupt():
        return run_command(arguments)


def run_command(arguments: list[str]) -> int:
    """`main`, with the terminal and the signals set up."""
    try:
        name, flags = split_command(arguments)
        if name is None:
            return show_overview(arguments)
        command = COMMANDS[name]
        config = parse_config(name, command, flags)  # before the function's module is imported: --help stays fast
        load(command.run)(config)
        return 0
    except QilinError as error:
        print(f"{log_prefix()}: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        with contextlib.suppress(OSError):  # the terminal is gone after a hang-up
            print("\nqilin: interrupted; run the same command again to continue", file=sys.stderr)
        return 128 + (signal.SIGHUP if isinstance(error, HangUp) else signal.SIGINT)
    except BrokenPipeError:  # the reader of our output exited: qilin … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, sqlite3.OperationalError) as error:
        print(f"{log_prefix()}: {printable(explain_os_error(error))}", file=sys.stderr)
        return 1


class HangUp(KeyboardInterrupt):
    """SIGHUP: the terminal was closed, or the connection to it was lost."""


@contextlib.contextmanager
def hangup_as_interrupt() -> Iterator[None]:
    """Let SIGHUP unwind like Ctrl-C, so that staging folders and locks are removed; `nohup` still ignores it."""

    def handle(number: int, frame: Any) -> None:
        raise HangUp

    on_main_thread = threading.current_thread() is threading.main_thread()  # Python allows handlers only there
    if not on_main_thread or signal.getsignal(signal.SIGHUP) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGHUP, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def log_prefix() -> str:
    """What every error starts with: "qilin", and the rank in the processes that torchrun started after the first."""
    rank = os.environ.get("RANK", "0")
    return "qilin" if rank == "0" else f"qilin, rank {rank}"


def split_command(arguments: list[str]) -> tuple[str | None, list[str]]:
    """(the longest command that the arguments start with, the arguments after it); None for no known command."""
    for length in (3, 2, 1):
        name = " ".join(arguments[:length])
        if len(arguments) >= length and name in COMMANDS:
            return name, arguments[length:]
    return None, arguments


def show_overview(arguments: list[str]) -> int:
    """Print all commands, or those of `qilin data`; returns 2 unless the arguments ask for help."""
    if arguments and arguments[0] in ("--version", "-V"):
        print(f"qilin {__version__}")
        return 0
    names = [argument for argument in arguments if not argument.startswith("-")]
    commands = {name: command for name, command in COMMANDS.items() if not names or name.split()[0] == names[0]}
    if names and (not commands or len(names) > 1):
        name = " ".join(names[:2])
        new = RENAMED.get(name)
        hint = f"it is now {new!r}" if new else suggest(name, COMMANDS, otherwise="qilin --help lists all commands")
        raise UserError(f"unknown command {name!r}; {hint}")
    width = max(map(len, commands))
    print(
        "Chinese medical vision-language models: data, two-stage training, evaluation, chat.\n\n"
        "usage: qilin COMMAND …\n"
    )
    print("\n".join(f"  {name:{width}}  {command.help}" for name, command in commands.items()))
    print("\nqilin COMMAND --help shows options and examples. The models are for research, not for diagnosis.")
    return 0 if not names or arguments[-1] in ("-h", "--help") else 2


def parse_config(name: str, command: Command, arguments: Sequence[str]) -> Any:
    """The arguments after a command's name -> its config. Raises UserError for an unknown flag, with the closest."""
    config_class = load(command.config)
    parser = make_parser(name, command, config_class)
    namespace, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        if check_arguments := getattr(config_class, "check_arguments", None):
            check_arguments(arguments)  # raises for flags that the config class can explain itself
        flag = unknown[0].partition("=")[0]
        if not flag.startswith("-"):
            raise UserError(f"qilin {name} takes no argument {flag!r}; see qilin {name} --help")
        known = [option for action in parser._actions for option in action.option_strings]
        hint = (
            f"it is now {RENAMED[flag]}"
            if RENAMED.get(flag) in known
            else suggest(flag, known, f"see qilin {name} --help")
        )
        raise UserError(f"qilin {name} has no option {flag}; {hint}")
    return from_flags(config_class, namespace)


def make_parser(name: str, command: Command, config_class: type) -> argparse.ArgumentParser:
    """The argparse parser of one command, examples at the foot of its --help."""
    parser = argparse.ArgumentParser(
        prog=f"qilin {name}",
        description=command.help[0].upper() + command.help[1:] + ".",
        epilog="example:\n  " + command.example.replace("\n", "\n  ") + getattr(config_class, "EPILOG", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(parser, config_class, command.positional)
    return parser


def load(reference: str) -> Any:
    """'module:name' -> the object of that name."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


def explain_os_error(error: OSError | sqlite3.OperationalError) -> str:
    """A disk or network error in one line, with the cure if it is a full disk."""
    import errno

    has_name = isinstance(error, OSError) and error.filename
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and has_name else str(error)
    # errors of sqlite, Arrow and numpy's tofile have no errno, only a message
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    messages = ("disk is full", "disk I/O error", "No space left", "File too large", "requested and")
    if is_full or any(message in text for message in messages):
        return f"{text}; free some space and run the same command again"
    return text


if __name__ == "__main__":
    sys.exit(main())
