"""What `qilin evaluate` and `qilin score` can be told; free of torch."""

from pathlib import Path

from qilin.settings import setting, settings

# What the published figure of Qilin-Med-VL asks before a caption.
CAPTION_PROMPT = "根据图中的信息，撰写一段描述性文本。"


@settings
class EvaluateSettings:
    """Answer a split's questions with a model, score the answers with controls, write a report."""

    model: str = setting(help="model folder (or hub id)")
    dataset: Path = setting(help="dataset folder")
    split: str = setting("test", "which split to answer")
    out: Path = setting(Path("evaluation"), "folder for predictions.jsonl, scores.json and report.html")
    train: Path | None = setting(None, "dataset folder the model learnt from; default: the one its qilin.json names")
    batch: int = setting(16, "questions answered at once")
    max_new_tokens: int = setting(64, "longest answer, in tokens")
    caption_tokens: int = setting(256, "longest caption, in tokens")
    caption_prompt: str | None = setting(
        None, "what is asked for a caption; default: as in training, else the paper's words"
    )
    shuffles: int = setting(5, "derangements of the pictures for the shuffled control; 0 leaves it out")
    controls: bool = setting(True, "also answer from the mean picture and from shuffled pictures")
    resamples: int = setting(2000, "bootstrap resamples for the intervals")
    limit: int | None = setting(None, "only the first N samples of the split; the report says so")
    seed: int = setting(0, "of derangements and bootstrap")
    device: str = setting("auto", "auto, cpu, cuda, …")
    dtype: str = setting("auto", "auto, fp32, bf16")
    label: str | None = setting(
        None, "words for a banner over the report, such as 'quick run'; default: the model's own label"
    )
    json: bool = setting(False, "print scores.json instead of a table")

    def __post_init__(self) -> None:
        for name in ("batch", "max_new_tokens", "caption_tokens", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.shuffles < 0 or (self.limit is not None and self.limit < 1):
            raise ValueError("shuffles and limit count something: expected shuffles >= 0 and limit >= 1")


@settings
class ScoreSettings:
    """Score predictions that any system made."""

    file: Path = setting(help="JSONL rows with id, question, reference, prediction and, where known, the other fields")
    train: Path | None = setting(None, "dataset folder with training answers, for the commonest-answer control")
    dataset: Path | None = setting(
        None, "dataset folder of the questions, for near-duplicate clusters and caption facts"
    )
    rows: Path | None = setting(None, "write each row's id, correct (true, false, null for unparsable) and rule here")
    resamples: int = setting(2000, "bootstrap resamples for the intervals")
    seed: int = setting(0, "of the bootstrap")
    json: bool = setting(False, "print the scores as JSON")
