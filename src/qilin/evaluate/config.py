"""What `qilin evaluate` and `qilin score` can be told; free of torch."""

from pathlib import Path
from typing import Literal

from qilin.core.config import config_class, option

# What the published figure of Qilin-Med-VL asks before a caption.
CAPTION_PROMPT = "根据图中的信息，撰写一段描述性文本。"


@config_class
class EvaluateConfig:
    """Answer a split's questions with a model, score the answers with controls, write a report."""

    model: str | None = option(default=None, help="model folder, hub id, or the model's name at --endpoint")
    dataset: Path | None = option(default=None, help="dataset folder")
    split: str = option(default="test", help="which split to answer")
    endpoint: str | None = option(
        default=None, help="ask MODEL at this OpenAI-compatible address, such as http://127.0.0.1:8000/v1"
    )
    concurrency: int = option(default=8, help="endpoint: questions asked at once")
    budget: int | None = option(default=None, help="endpoint: tokens that may be spent in each pass over the questions")
    reproduce: Path | None = option(
        default=None, help="run the evaluation of this scores.json again, from nothing, and compare"
    )
    out: Path = option(default=Path("evaluation"), help="folder for predictions.jsonl, scores.json and report.html")
    train: Path | None = option(
        default=None, help="dataset folder the model learnt from; default: the one its qilin.json names"
    )
    batch: int = option(default=16, help="questions answered at once")
    protocol: str = option(
        default="plain", help="ask as for this test set (slake-zh, …); plain: the questions as the dataset has them"
    )
    max_new_tokens: int | None = option(default=None, help="longest answer, in tokens; default: the protocol's (64)")
    caption_tokens: int = option(default=256, help="longest caption, in tokens")
    caption_prompt: str | None = option(
        default=None, help="what is asked for a caption; default: as in training, else the paper's words"
    )
    shuffles: int = option(default=5, help="derangements of the images for the shuffled control; 0 leaves it out")
    controls: bool = option(default=True, help="also answer from the mean image and from shuffled images")
    resamples: int = option(default=2000, help="bootstrap resamples for the intervals")
    limit: int | None = option(default=None, help="only the first N samples of the split; the report says so")
    seed: int = option(default=0, help="of derangements and bootstrap")
    device: str = option(default="auto", help="auto, cpu, cuda, …")
    dtype: str = option(default="auto", help="auto, fp32, bf16")
    label: str | None = option(
        default=None, help="words for a banner over the report, such as 'quick run'; default: the model's own label"
    )
    json: bool = option(default=False, help="print scores.json instead of a table")

    def __post_init__(self) -> None:
        if self.reproduce is None and (self.model is None or self.dataset is None):
            raise ValueError("name a model and a dataset folder: qilin evaluate MODEL DATASET")
        if self.reproduce is not None and self.endpoint is not None:
            raise ValueError("--reproduce takes the endpoint from scores.json; leave --endpoint out")
        if self.endpoint is None and self.budget is not None:
            raise ValueError("--budget is for --endpoint")
        for name in ("batch", "max_new_tokens", "caption_tokens", "resamples", "concurrency"):
            if (getattr(self, name) or 1) < 1 or getattr(self, name) == 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.shuffles < 0 or (self.limit is not None and self.limit < 1):
            raise ValueError("shuffles and limit count something: expected shuffles >= 0 and limit >= 1")


@config_class
class ScoreConfig:
    """Score predictions that any system made."""

    file: Path = option(help="JSONL rows with id, question, reference, prediction and, where known, the other fields")
    train: Path | None = option(
        default=None,
        help="dataset folder the system learnt from, for the controls and parts that need training answers",
    )
    dataset: Path | None = option(
        default=None, help="dataset folder of the questions: near-duplicate clusters, caption facts, nearest neighbour"
    )
    rows: Path | None = option(
        default=None, help="write each row's id, correct (true, false, null for unparsable) and rule here"
    )
    scorer: Literal["medevalkit", "vlmevalkit", "evalscope", "lmms-eval"] | None = option(
        default=None, help="score as this kit would, its mistakes included; where it guesses, its mean guess counts"
    )
    compare: bool = option(default=False, help="print Qilin's score beside those of four kits")
    resamples: int = option(default=2000, help="bootstrap resamples for the intervals")
    seed: int = option(default=0, help="of the bootstrap")
    json: bool = option(default=False, help="print the scores as JSON")

    def __post_init__(self) -> None:
        if self.scorer and self.compare:
            raise ValueError("--scorer prints one kit's score and --compare all of them: give one of the two")
        if self.scorer and (self.train or self.dataset):
            raise ValueError("--scorer scores as that kit would, which knows no --train and no --dataset")
        if self.resamples < 1:
            raise ValueError(f"resamples is {self.resamples}; expected at least 1")


@config_class
class CompareConfig:
    """Two systems' answers to the same questions: which is better, and how sure that is."""

    a: Path = option(help="an evaluation's folder, or a JSONL file of predictions")
    b: Path = option(help="the other one: the same ids, questions and references")
    dataset: Path | None = option(
        default=None, help="dataset folder of the questions, for near-duplicate clusters, caption facts and images"
    )
    report: Path | None = option(default=None, help="write a page here with both answers beside each image")
    judge: str | None = option(
        default=None, help="a language model at --endpoint that also judges the pairs, in both orders"
    )
    endpoint: str | None = option(default=None, help="OpenAI-compatible address of the judge")
    budget: int | None = option(default=None, help="tokens that the judge may cost")
    resamples: int = option(default=10_000, help="bootstrap resamples and sign flips")
    seed: int = option(default=0, help="of bootstrap and sign flips")
    json: bool = option(default=False, help="print the result as JSON")

    def __post_init__(self) -> None:
        if self.report is not None and self.dataset is None:
            raise ValueError("--report shows the images: give --dataset too")
        if (self.judge is None) != (self.endpoint is None):
            raise ValueError("--judge and --endpoint go together: which model judges, and where it is served")
        if self.resamples < 1:
            raise ValueError(f"resamples is {self.resamples}; expected at least 1")
