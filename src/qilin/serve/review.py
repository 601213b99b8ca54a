"""`qilin data review`: shows samples of a dataset on a local web page, where a person accepts, fixes or rejects them.

In: a dataset folder. Out: a file of decisions next to it, which `qilin data apply-review` applies and the next session
continues. Nothing leaves the machine, and the page requires the token in the printed address.
"""

import getpass
import secrets
import socket
from collections import Counter
from pathlib import Path

from qilin.core.errors import UserError
from qilin.core.progress import ProgressBars
from qilin.core.terminal import make_console, print_json
from qilin.dataset.reader import open_dataset
from qilin.pipeline.review.apply import count_stale
from qilin.pipeline.review.config import ReviewConfig
from qilin.pipeline.review.decisions import (
    current_decisions,
    decisions_path,
    format_agreement,
    read_decisions,
    reviewer_agreement,
    sample_hash,
)
from qilin.pipeline.review.sampling import draw_samples, find_original


def review(config: ReviewConfig) -> None:
    """Serve the page until Ctrl-C, or print the report. Raises UserError if the page cannot be served."""
    path = config.decisions or decisions_path(config.source)
    if config.report:
        print_report(config, path)
        return
    try:
        import uvicorn

        from qilin.serve.review_app import review_app
    except ImportError:
        raise UserError("the review page needs starlette and uvicorn: pip install 'qilin-med[serve]'") from None
    data = open_dataset(config.source)
    read_decisions(path)  # a damaged file is an error before the page is served
    reviewer = config.reviewer.strip() or user_name()
    console = make_console()
    with ProgressBars(transient=True) as progress:
        progress.add_task("drawing samples", total=None)
        original = open_dataset(config.original) if config.original else find_original(data)
        session = draw_samples(data, original, config.splits, config.rows, config.seed)
    if not session.samples:
        raise UserError(f"{config.source}: no sample to review in {', '.join(config.splits) or 'any split'}")
    token = secrets.token_urlsafe(24)
    app = review_app(session, path, reviewer, token)
    listener = listen(config.host, config.port)
    port = listener.getsockname()[1]
    host = f"[{config.host}]" if ":" in config.host else config.host
    compared = f", compared with {original.path}" if original else ""
    console.print(f"{len(session.samples):,} samples of {config.source}{compared}")
    console.print(f"decisions of {reviewer} are saved in {path}")
    if config.host not in ("127.0.0.1", "localhost", "::1"):
        console.print("other machines on the network can reach this page; the traffic is not encrypted", style="yellow")
    console.print(
        f"http://{host}:{port}/?token={token}\nCtrl-C ends the session; all decisions are saved", style="bold"
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # the normal end of a session
        pass
    finally:
        listener.close()
    current = current_decisions(read_decisions(path))
    decided = sum(reviewer in current.get((sample.sample_id, sample_hash(sample)), ()) for sample in session.samples)
    console.print(
        f"\n{decided:,} of {len(session.samples):,} samples decided; next: qilin data apply-review {config.source} OUT"
    )


def user_name() -> str:
    """The name of this machine's user; "reviewer" if it has none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "reviewer"


def listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port}: cannot listen there ({error}); choose another --port, 0 for any") from None


def print_report(config: ReviewConfig, path: Path) -> None:
    """Print the decisions by reviewer and reason, the agreement, and the number of decisions that no longer apply."""
    current = current_decisions(read_decisions(path))
    stale = count_stale(open_dataset(config.source), current)
    by_reviewer: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    for decisions in current.values():
        for reviewer, decision in decisions.items():
            by_reviewer.setdefault(reviewer, Counter())[decision.decision] += 1
            reasons.update([decision.reason] if decision.reason else [])
    agreements = reviewer_agreement(current)
    if config.json:
        report = {
            "decisions": str(path),
            "rows": len(current),
            "stale": stale,
            "reviewers": {reviewer: dict(counts) for reviewer, counts in sorted(by_reviewer.items())},
            "reasons": dict(reasons.most_common()),
            "agreement": agreements,
        }
        print_json(report, indent=None)
        return
    console = make_console()
    console.print(f"{path}: {len(current):,} samples decided, {stale:,} of them missing or changed since")
    for reviewer, counts in sorted(by_reviewer.items()):
        console.print(f"{reviewer}: " + ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())))
    for reason, count in reasons.most_common():
        console.print(f"{reason}: {count:,}")
    for line in format_agreement(agreements):
        console.print(line)
