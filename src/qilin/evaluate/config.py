"""The options of `qilin evaluate`, `qilin score` and `qilin compare`; free of torch."""

from dataclasses import fields
from pathlib import Path
from typing import Literal

from qilin.core.config import config_class, option
from qilin.core.llm_client_config import EXTRA_HELP, parse_extra

FIELDS_HELP = "which column holds which field, such as prediction=answer reference=gt; a.b is field b of object a"
REFERENCES_HELP = "file with the questions and reference answers by id, where the predictions have none (LLaVA)"


@config_class
class EvaluateConfig:
    """Answer the questions of a split with a model, score the answers against controls, and write a report."""

    model: str | None = option(
        default=None,
        help="model folder or hub id; with --endpoint: the model's name there; with --reproduce: only if it moved",
    )
    dataset: Path | None = option(default=None, help="dataset folder; with --reproduce: only if it moved")
    split: str = option(default="test", help="split to evaluate")
    endpoint: str | None = option(
        default=None, help="base URL of an OpenAI-compatible service that runs MODEL, such as http://127.0.0.1:8000/v1"
    )
    concurrency: int = option(default=8, help="maximum number of concurrent requests to the endpoint")
    budget: int | None = option(
        default=None, help="stop after this many tokens at the endpoint, prompt and completion; run again to continue"
    )
    extra: str | None = option(default=None, help=EXTRA_HELP)
    reproduce: Path | None = option(
        default=None, help="repeat the evaluation of this scores.json and compare the scores"
    )
    out: Path = option(default=Path("evaluation"), help="folder for predictions.jsonl, scores.json and report.html")
    train: Path | None = option(
        default=None, help="dataset folder of the training data; default: the one that the model's qilin.json names"
    )
    batch_size: int = option(default=16, help="questions per batch")
    protocol: str = option(
        default="plain", help="prompt protocol of a test set (slake-zh, …); plain: the questions as in the dataset"
    )
    max_new_tokens: int | None = option(
        default=None, help="maximum answer length in tokens; default: the protocol's (64 for plain)"
    )
    caption_tokens: int = option(default=256, help="maximum caption length in tokens")
    caption_prompt: str | None = option(
        default=None, help="prompt for captions; default: the first training instruction, else the paper's"
    )
    shuffles: int = option(default=5, help="image derangements for the shuffled control; 0 disables it")
    controls: bool = option(default=True, help="also answer with mean, blank and shuffled images")
    resamples: int = option(
        default=2000, help="random draws for the calibration error that chance gives; intervals need none"
    )
    limit: int | None = option(default=None, help="evaluate only the first N samples; the report states the limit")
    seed: int = option(default=0, help="random seed of derangements and draws")
    device: str = option(default="auto", help="auto, cpu, cuda, …")
    dtype: Literal["auto", "fp32", "bf16"] = option(default="auto", help="auto: bf16 on an accelerator, else fp32")
    label: str | None = option(
        default=None, help="text of a banner at the top of the report, such as 'quick run'; default: the model's own"
    )
    language: Literal["en", "zh"] = option(default="en", help="language in which the report's labels are first shown")
    json: bool = option(default=False, help="print scores.json instead of a table")

    def __post_init__(self) -> None:
        if self.reproduce is None and (self.model is None or self.dataset is None):
            raise ValueError("model and dataset are required: qilin evaluate MODEL DATASET")
        if self.reproduce is not None and (names := self.ignored_options()):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in names)
            raise ValueError(
                f"--reproduce takes {flags} from scores.json; remove {'it' if len(names) == 1 else 'them'}"
            )
        for name in ("budget", "extra"):
            if self.endpoint is None and getattr(self, name) is not None:
                raise ValueError(f"--{name} applies only with --endpoint")
        parse_extra(self.extra)
        for name in ("batch_size", "max_new_tokens", "caption_tokens", "resamples", "concurrency", "limit"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("shuffles", self.shuffles, 0)

    def ignored_options(self) -> list[str]:
        """The options given beside --reproduce that the manifest decides."""
        return [
            field.name
            for field in fields(self)
            if field.name not in REPRODUCE_OPTIONS and getattr(self, field.name) != field.default
        ]


# what may differ in a repeated evaluation: where things are, and how fast it runs
REPRODUCE_OPTIONS = (
    "reproduce", "out", "json", "model", "dataset", "train", "batch_size", "device", "concurrency",
    "language",
)  # fmt: skip


@config_class
class ScoreConfig:
    """Score the predictions of any system."""

    file: Path = option(
        help="JSONL, JSON, CSV, TSV or xlsx with id, question, reference, prediction and optional fields per row; also "
        "the files of LLaVA, VLMEvalKit, lmms-eval, EvalScope and MedEvalKit, or an evaluation folder"
    )
    fields: tuple[str, ...] = option(default=(), help=FIELDS_HELP)
    references: Path | None = option(default=None, help=REFERENCES_HELP)
    train: Path | None = option(
        default=None,
        help="dataset folder of the system's training data, for the controls and subsets that need training answers",
    )
    dataset: Path | None = option(
        default=None,
        help="dataset folder of the questions, for near-duplicate clusters, caption facts and the nearest neighbor",
    )
    rows: Path | None = option(
        default=None, help="write the id, correct (true, false, null for unparsable) and rule of every row to this file"
    )
    scorer: Literal["medevalkit", "vlmevalkit", "evalscope", "lmms-eval"] | None = option(
        default=None,
        help="score as this toolkit would, including its mistakes; a random guess counts as its expected score",
    )
    compare: bool = option(default=False, help="print Qilin's score beside those of four toolkits")
    judge_model: str | None = option(
        default=None, help="language model at --endpoint that judges answers; its score stands beside that of the rules"
    )
    endpoint: str | None = option(default=None, help="base URL of the judge's OpenAI-compatible service")
    judge: Literal["unparsable", "all"] = option(
        default="unparsable", help="which answers the judge is asked about: those that the rules cannot read, or all"
    )
    judge_pairs: Path | None = option(
        default=None,
        help="JSONL of question, reference, prediction, expected (true or false) to measure the judge by; default: 80 "
        "pairs of Qilin's own",
    )
    budget: int | None = option(default=None, help="maximum number of tokens for the judge; run again to continue")
    extra: str | None = option(default=None, help=EXTRA_HELP)
    resamples: int = option(
        default=2000, help="random draws for the calibration error that chance gives; intervals need none"
    )
    seed: int = option(default=0, help="random seed of these draws")
    json: bool = option(default=False, help="print the scores as JSON")

    def __post_init__(self) -> None:
        if self.scorer and self.compare:
            raise ValueError("--scorer prints one toolkit's score and --compare all of them: choose one of the two")
        if self.scorer and (self.train or self.dataset):
            raise ValueError(
                "--scorer scores as that toolkit would, without training data: remove --train and --dataset"
            )
        if (self.judge_model is None) != (self.endpoint is None):
            raise ValueError("--judge-model (a name) and --endpoint (its URL) go together: give both or neither")
        judge_options = {"judge": self.judge == "all", "judge-pairs": self.judge_pairs is not None}
        judge_options |= {"budget": self.budget is not None, "extra": self.extra is not None}
        unused = [name for name, is_set in judge_options.items() if is_set and self.judge_model is None]
        if unused:
            raise ValueError(f"--{unused[0]} applies only with --judge-model NAME --endpoint URL")
        if self.judge_model is not None and (self.scorer or self.compare):
            raise ValueError("--judge-model judges Qilin's score; remove --scorer and --compare")
        parse_extra(self.extra)
        check_at_least("resamples", self.resamples, 1)
        check_at_least("budget", self.budget, 1)
        check_fields(self.fields)


@config_class
class CompareConfig:
    """Compare the answers of two systems to the same questions, with intervals and p-values."""

    a: Path = option(help="evaluation folder, or file of predictions as qilin score reads it")
    b: Path = option(help="the other one; the ids that both have are compared")
    fields: tuple[str, ...] = option(default=(), help=FIELDS_HELP)
    references: Path | None = option(default=None, help=REFERENCES_HELP)
    dataset: Path | None = option(
        default=None, help="dataset folder of the questions, for near-duplicate clusters, caption facts and images"
    )
    report: Path | None = option(default=None, help="write a page with the answers of both systems beside each image")
    judge: str | None = option(
        default=None, help="language model at --endpoint that also judges each pair of answers, in both orders"
    )
    endpoint: str | None = option(default=None, help="base URL of the judge's OpenAI-compatible service")
    budget: int | None = option(default=None, help="maximum number of tokens for the judge")
    extra: str | None = option(default=None, help=EXTRA_HELP)
    resamples: int = option(default=10_000, help="has no effect: intervals are computed, not resampled")
    seed: int = option(default=0, help="random seed that the judge receives")
    json: bool = option(default=False, help="print the result as JSON")

    def __post_init__(self) -> None:
        if self.report is not None and self.dataset is None:
            raise ValueError("--report shows the images: add --dataset")
        if (self.judge is None) != (self.endpoint is None):
            raise ValueError("--judge (model name) and --endpoint (its URL) go together: give both or neither")
        if self.judge is None and self.extra is not None:
            raise ValueError("--extra applies only with --judge")
        parse_extra(self.extra)
        check_at_least("resamples", self.resamples, 1)
        check_fields(self.fields)


@config_class
class ReportConfig:
    """Write a page from finished evaluations: one, several runs of it with their spread, and a baseline beside it."""

    evaluations: tuple[Path, ...] = option(help="evaluation folders; with several, the page has a table of the runs")
    baseline: Path | None = option(
        default=None, help="evaluation folder of another system, whose answers stand beside those of the first"
    )
    dataset: Path | None = option(default=None, help="dataset folder of the questions, if it moved")
    out: Path = option(default=Path("report.html"), help="the page to write")
    language: Literal["en", "zh"] = option(default="en", help="language in which the labels are first shown")


def check_fields(fields: tuple[str, ...]) -> None:
    """Raises ValueError for an assignment that is not FIELD=COLUMN."""
    if fields:
        from qilin.evaluate.foreign_rows import parse_fields

        parse_fields(fields)


def check_at_least(name: str, value: int | None, minimum: int) -> None:
    """Raises ValueError with the option's name where a value is below the minimum; None is allowed."""
    if value is not None and value < minimum:
        raise ValueError(f"{name} is {value}; expected at least {minimum}")
