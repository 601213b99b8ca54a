"""`qilin data review`: samples of a dataset on a page of this machine, accepted, fixed or rejected by a person.

In: a dataset folder. Out: a file of decisions beside it, which `qilin data apply-review` applies and the next session goes on
with. Nothing leaves the machine, and nobody without the token in the printed address sees anything.
"""

import getpass
import json
import secrets
import socket
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console

from qilin.core.errors import UserError
from qilin.core.progress import ProgressBars
from qilin.dataset.reader import open_dataset
from qilin.pipeline.review.apply import in_words, stale_rows
from qilin.pipeline.review.decisions import agreement, decisions_path, sample_hash, latest, read_decisions
from qilin.pipeline.review.sampling import draw, find_original
from qilin.serve.config import ReviewConfig


def review(given: ReviewConfig) -> None:
    """Serve the page until Ctrl-C, or print what was decided. UserError where it cannot be served."""
    decisions = given.decisions or decisions_path(given.source)
    if given.report:
        report(given, decisions)
        return
    try:
        import uvicorn

        from qilin.serve.review_app import review_app
    except ImportError:
        raise UserError("the review page needs starlette and uvicorn: pip install 'qilin-med[serve]'") from None
    data = open_dataset(given.source)
    read_decisions(decisions)  # a damaged file is told before anything is shown
    reviewer = given.reviewer.strip() or user_name()
    console = Console(highlight=False, soft_wrap=True)
    with ProgressBars(transient=True) as progress:
        progress.add_task("drawing samples", total=None)
        original = open_dataset(given.original) if given.original else find_original(data)
        drawn = draw(data, original, given.splits, given.rows, given.seed)
        if not drawn.samples:
            raise UserError(f"{given.source}: no sample to review in {', '.join(given.splits) or 'it'}")
        token = secrets.token_urlsafe(24)
        app = review_app(drawn, decisions, reviewer, token)
    listening = listen(given.host, given.port)
    port = listening.getsockname()[1]
    host = f"[{given.host}]" if ":" in given.host else given.host
    beside_it = f", {original.path} beside" if original else ""
    console.print(f"{len(drawn.samples):,} samples of {given.source}{beside_it}; {reviewer} decides in {decisions}")
    if given.host not in ("127.0.0.1", "localhost", "::1"):
        console.print("others on the network can reach this page; what goes there is not encrypted", style="yellow")
    console.print(f"http://{host}:{port}/?token={token}\nCtrl-C ends the session; nothing is lost", style="bold")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # the way to leave
        pass
    finally:
        listening.close()
    held = latest(read_decisions(decisions))
    done = sum(reviewer in held.get((sample.sample_id, sample_hash(sample)), ()) for sample in drawn.samples)
    console.print(f"\n{done:,} of {len(drawn.samples):,} samples decided; next: qilin data apply-review {given.source} OUT")


def user_name() -> str:
    """The name of this machine's user, who may have none in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "reviewer"


def listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port}: cannot listen there ({error}); choose another --port, 0 for any") from None


def report(given: ReviewConfig, decisions: Path) -> None:
    """What was decided by whom, how far they agree, and what is about rows that are not there any more."""
    held = latest(read_decisions(decisions))
    stale = stale_rows(open_dataset(given.source), held)
    by_reviewer: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    for own in held.values():
        for name, made in own.items():
            by_reviewer.setdefault(name, Counter())[made.decision] += 1
            reasons.update([made.reason] if made.reason else [])
    agreed = agreement(held)
    if given.json:
        said: dict[str, Any] = {"decisions": str(decisions), "rows": len(held), "stale": stale}
        said |= {"reviewers": {name: dict(count) for name, count in sorted(by_reviewer.items())}}
        print(json.dumps(said | {"reasons": dict(reasons.most_common()), "agreement": agreed}, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{decisions}: {len(held):,} rows decided, {stale:,} of them not there any more as they were seen")
    for name, count in sorted(by_reviewer.items()):
        console.print(f"{name}: " + ", ".join(f"{kind} {number:,}" for kind, number in sorted(count.items())))
    for reason, number in reasons.most_common():
        console.print(f"{number:,} for {reason}")
    for line in in_words(agreed):
        console.print(line)
