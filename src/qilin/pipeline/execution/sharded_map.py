"""Maps a function over the numbered shards of an input, on any executor, resumable.

In: a function, the input of each shard, an output folder. Out: `rows-00000.jsonl` and `dropped-00000.jsonl` per shard
and `step.json`, written last. A finished shard is never computed again, and the files do not depend on the order or
the number of workers. The folder is bound to its settings (`begun.json`): a run with others is refused.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qilin.core.errors import RunError, UserError
from qilin.core.files import check_regular_file, parse_json, read_json, to_json, write_atomic
from qilin.core.output_dir import bind_dir, lock_dir
from qilin.dataset.import_rows import RejectedRow
from qilin.pipeline.execution.workers import Workers

ROWS_PER_BUCKET = 20_000  # on average; a row with a long context has some 5 KB
MAX_BUCKETS = 512  # files open at once
BEGUN_FILE, STEP_FILE = "begun.json", "step.json"
# reads the input of one shard and yields rows; a top-level function or a partial of one, so that it pickles
ShardFunction = Callable[[Any], Iterable[Mapping[str, Any] | RejectedRow]]


def run_sharded(
    function: ShardFunction,
    inputs: Sequence[Any],
    out: Path,
    settings: Mapping[str, Any],
    workers: Workers | None = None,
    on_shard: Callable[[int], None] = lambda number: None,
) -> dict[str, Any]:
    """Compute every shard that is not finished and return the counts that step.json records.

    Without `workers` this process computes them. `on_shard(number)` is called for each finished shard, those of an
    earlier run included. Raises UserError where `out` is occupied or bound to other settings, RunError where a shard
    kills its worker repeatedly.
    """
    settings = json.loads(json.dumps({**settings, "shards": len(inputs)}, default=str))
    out = out.resolve()  # workers may have other current folders
    with lock_dir(out):
        return run_pending(function, inputs, out, settings, workers, on_shard)


def run_pending(
    function: ShardFunction,
    inputs: Sequence[Any],
    out: Path,
    settings: Mapping[str, Any],
    workers: Workers | None,
    on_shard: Callable[[int], None],
) -> dict[str, Any]:
    """`run_sharded` in a folder that this process has locked."""
    bind_dir(out, BEGUN_FILE, settings)
    pending = []
    for number in range(len(inputs)):
        if shard_path(out, "rows", number).exists():
            on_shard(number)
        else:
            pending.append(number)
    if workers is None:
        for number in pending:
            write_shard(function, inputs[number], out, number)
            on_shard(number)
    elif pending:
        workers.check(out)
        run_on_workers(workers, function, inputs, out, pending, on_shard)
    return write_step_record(out, settings)


def run_on_workers(
    workers: Workers,
    function: ShardFunction,
    inputs: Sequence[Any],
    out: Path,
    pending: Sequence[int],
    on_shard: Callable[[int], None],
) -> None:
    """Submit few shards at a time, so that a killed worker costs only those that were running."""
    waiting = list(reversed(pending))
    attempts: Counter[int] = Counter()
    while waiting:
        running: dict[Future[None], int] = {}
        with cancel_on_error(workers.make_executor(), running) as executor:
            try:
                while waiting or running:
                    while waiting and len(running) < workers.max_running:
                        number = waiting[-1]
                        running[executor.submit(write_shard, function, inputs[number], out, number)] = waiting.pop()
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        future.result()
                        on_shard(running.pop(future))
            except workers.killed_errors:
                lost = [number for number in running.values() if not shard_path(out, "rows", number).exists()]
                for number in sorted(set(running.values()) - set(lost)):
                    on_shard(number)
                attempts.update(n for future, n in running.items() if n in lost and was_killed(future, workers))
                worst = max(lost, key=lambda number: attempts[number], default=-1)
                if attempts[worst] >= workers.max_attempts:
                    raise RunError(
                        f"{out}: shard {worst} killed its worker {attempts[worst]} times (out of memory?); finished "
                        "shards are kept, run the same command to continue"
                    ) from None
                waiting += sorted(lost, reverse=True)


def was_killed(future: Future[None], workers: Workers) -> bool:
    return future.done() and isinstance(future.exception(), workers.killed_errors)


@contextmanager
def cancel_on_error(executor: Executor, running: Mapping[Future[None], int]) -> Iterator[Executor]:
    """On an error or Ctrl-C, cancel the shards that have not started and let the running ones finish."""
    try:
        yield executor
    except BaseException:
        for future in running:
            future.cancel()
        raise
    finally:
        executor.shutdown()


# --- files of shards ------------------------------------------------------------------------------------------------


def write_shard(function: ShardFunction, shard_input: Any, out: Path, number: int) -> None:
    """Compute one shard. The rows file is written last, so a shard that has one is complete; it is not computed again
    even if a cluster asks for it twice, which it does after losing the worker that computed it."""
    if shard_path(out, "rows", number).exists():
        return
    rows, dropped = [], []
    for row in function(shard_input):
        if isinstance(row, RejectedRow):
            dropped.append(to_json({"reason": row.reason, "row": row.row}, indent=None))
        else:
            rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomic(shard_path(out, "dropped", number), "".join(dropped))
    write_atomic(shard_path(out, "rows", number), "".join(rows))


def shard_path(out: Path, content: str, number: int) -> Path:
    """The file of a shard; `content` is "rows" or "dropped"."""
    return out / f"{content}-{number:05d}.jsonl"


def write_step_record(out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Count rows and rejections over all shards and write step.json."""
    num_rows, reasons = 0, Counter[str]()
    for number in range(settings["shards"]):
        with shard_path(out, "rows", number).open(encoding="utf-8") as lines:
            num_rows += sum(1 for _ in lines)
        with shard_path(out, "dropped", number).open(encoding="utf-8") as lines:
            reasons.update(json.loads(line)["reason"] for line in lines)
    by_count = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    counts = {"rows": num_rows, "dropped": sum(reasons.values()), "dropped_reasons": by_count}
    write_atomic(out / STEP_FILE, to_json({"counts": counts, "made_by": settings}))
    return counts


def read_step_record(folder: Path) -> dict[str, Any]:
    """step.json of a finished folder: {"counts", "made_by": settings}. Raises UserError where it is missing."""
    if not (folder / STEP_FILE).is_file():
        interrupted = (folder / BEGUN_FILE).is_file()
        problem = (
            "interrupted; run its command again" if interrupted else "not a folder of `qilin data extract-figures`"
        )
        raise UserError(f"{folder}: no {STEP_FILE} in it: {problem}")
    record: dict[str, Any] = read_json(folder / STEP_FILE)
    return record


def read_shards(folder: Path, content: str = "rows") -> Iterator[dict[str, Any]]:
    """Every row (or, with "dropped", every rejected row) of a finished folder in order, one in memory at a time."""
    for path in shard_paths(folder, content):
        check_regular_file(path, "rows of a finished shard")
        with path.open(encoding="utf-8", errors="surrogatepass") as lines:
            for number, line in enumerate(lines, start=1):
                yield parse_json(line, f"{path}, line {number}")


def shard_paths(folder: Path, content: str = "rows") -> list[Path]:
    """The files of a finished folder in order."""
    return [shard_path(folder, content, number) for number in range(read_step_record(folder)["made_by"]["shards"])]


# --- hash-partitioned rows ------------------------------------------------------------------------------------------


def write_buckets(folder: Path, rows: Iterable[tuple[int, Any]], num_rows: int) -> list[str]:
    """Distribute (key, row) pairs over JSON-lines files by key, equal keys into one file; returns the paths.

    `num_rows` is the approximate number of rows. Each file is small enough to be processed in memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"bucket-{n:04d}.jsonl" for n in range(min(MAX_BUCKETS, 1 + num_rows // ROWS_PER_BUCKET))]
    files = []
    try:
        files = [path.open("wb") for path in paths]
        for key, row in rows:
            files[key % len(files)].write(json_line(row))
    finally:
        for file in files:
            file.close()
    return [str(path) for path in paths]


def read_bucket(path: str) -> Iterable[Any]:
    with open(path, encoding="utf-8", errors="surrogatepass") as lines:
        yield from map(json.loads, lines)


def json_line(row: Any) -> bytes:
    """One line of a JSON-lines file; lone surrogates are kept."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
