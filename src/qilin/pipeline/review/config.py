"""Options of `qilin data review` and `qilin data apply-review`. Free of torch."""

from pathlib import Path
from typing import Literal

from qilin.core.config import config_class, option
from qilin.pipeline.execution.config import ExecutionConfig


@config_class
class ReviewConfig:
    """Show samples of a dataset folder to a person on a local web page, and record the decisions."""

    source: Path = option(help="a dataset folder")
    original: Path | None = option(
        default=None, help="dataset folder before translation (default: searched for next to SOURCE)"
    )
    decisions: Path | None = option(default=None, help="file of decisions (default: SOURCE.decisions.jsonl)")
    reviewer: str = option(default="", help="name of the reviewer (default: the user of this machine; not with --keys)")
    rows: int = option(
        default=200, help="number of samples, stratified by source, kind and failed checks; 0: all samples"
    )
    splits: tuple[Literal["train", "validation", "test"], ...] = option(default=(), help="only samples of these splits")
    seed: int = option(default=0, help="random seed of the sampling; reviewers to be compared need the same seed")
    host: str = option(default="127.0.0.1", help="address to listen on; any but this machine's needs --keys")
    port: int = option(default=8010, help="port to listen on; 0: any free port")
    keys: Path | None = option(
        default=None, help="file of API keys' hashes (qilin serve --new-key); the reviewer is the name of the key"
    )
    allow_host: tuple[str, ...] = option(default=(), help="further names of this server that requests may use")
    tls_certificate: Path | None = option(default=None, help="certificate (PEM) for https")
    tls_key: Path | None = option(default=None, help="private key (PEM) for https")
    report: bool = option(default=False, help="print the decisions and the reviewers' agreement; show no page")
    json: bool = option(default=False, help="with --report: print it as JSON")

    EPILOG = (
        "\n\nThe same command continues where the last session stopped. For a page on a remote machine:\n"
        "  ssh -L 8010:127.0.0.1:8010 HOST, then open the printed address locally"
    )

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise ValueError(f"rows is {self.rows}; expected 0 or more")
        if self.json and not self.report:
            raise ValueError("--json needs --report")
        if self.reviewer and self.keys:
            raise ValueError("reviewer: with --keys the reviewer is the name of the key; leave --reviewer out")


@config_class
class ApplyReviewConfig:
    """Apply the decisions of a review to the dataset that was reviewed."""

    source: Path = option(help="the dataset folder that was reviewed")
    out: Path = option(help="dataset folder to create; must be new or empty")
    decisions: Path | None = option(default=None, help="file of decisions (default: SOURCE.decisions.jsonl)")
    reviewed_only: bool = option(default=False, help="keep only samples that were accepted or fixed")
    execution: ExecutionConfig = option(default=ExecutionConfig(), flatten=True)
