"""`qilin data review`: shows samples of a dataset on a local web page, where a person accepts, fixes or rejects them.

In: a dataset folder. Out: a file of decisions next to it, which `qilin data apply-review` applies and the next session
continues. On this machine the printed address holds a key for the session. Any other address needs --keys, and the
reviewer is then the name of the key.
"""

import getpass
import secrets
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
from qilin.serve.address import check_address, listen


def review(config: ReviewConfig) -> None:
    """Serve the page until Ctrl-C, or print the report. Raises UserError if the page cannot be served."""
    path = config.decisions or decisions_path(config.source)
    if config.report:
        print_report(config, path)
        return
    try:
        import uvicorn

        from qilin.serve.review_app import MAX_REQUEST_BYTES, review_app
    except ImportError:
        raise UserError("the review page needs starlette and uvicorn: pip install 'qilin-med[serve]'") from None
    from qilin.serve.api.keys import Keys, hash_key, read_keys
    from qilin.serve.api.security import LOCAL_HOSTS, Access

    check_address(config.host, config.keys is not None, config.tls_certificate, config.tls_key)
    data = open_dataset(config.source)
    read_decisions(path)  # a damaged file is an error before the page is served
    token = secrets.token_urlsafe(24)
    reviewer = config.reviewer.strip() or user_name()
    keys = read_keys(config.keys) if config.keys else Keys(((reviewer, hash_key(token)),))
    console = make_console()
    with ProgressBars(transient=True) as progress:
        progress.add_task("drawing samples", total=None)
        original = open_dataset(config.original) if config.original else find_original(data)
        session = draw_samples(data, original, config.splits, config.rows, config.seed)
    if not session.samples:
        raise UserError(f"{config.source}: no sample to review in {', '.join(config.splits) or 'any split'}")
    hosts = tuple(dict.fromkeys((*LOCAL_HOSTS, config.host, *config.allow_host)))
    app = review_app(session, path, Access(keys, hosts, MAX_REQUEST_BYTES))
    listener = listen(config.host, config.port)
    port = listener.getsockname()[1]
    host = f"[{config.host}]" if ":" in config.host else config.host
    compared = f", compared with {original.path}" if original else ""
    console.print(f"{len(session.samples):,} samples of {config.source}{compared}")
    names = [name for name, _ in keys.hashes]
    console.print(f"decisions of {', '.join(names)} are saved in {path}", markup=False)
    scheme = "https" if config.tls_certificate else "http"
    if config.keys and not config.tls_certificate:
        console.print("the traffic is not encrypted; --tls-certificate and --tls-key encrypt it", style="yellow")
    address = f"{scheme}://{host}:{port}/" + ("" if config.keys else f"#{token}")
    console.print(f"{address}\nCtrl-C ends the session; all decisions are saved", style="bold", markup=False)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ssl_certfile=config.tls_certificate,
            ssl_keyfile=config.tls_key,
        )
    )
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # the normal end of a session
        pass
    finally:
        listener.close()
    current = current_decisions(read_decisions(path))
    decided = sum(
        any(name in current.get((sample.sample_id, sample_hash(sample)), ()) for name in names)
        for sample in session.samples
    )
    console.print(
        f"\n{decided:,} of {len(session.samples):,} samples decided; next: qilin data apply-review {config.source} OUT"
    )


def user_name() -> str:
    """The name of this machine's user; "reviewer" if it has none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "reviewer"


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
