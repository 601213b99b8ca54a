"""Long work in numbered pieces: a step is a function from what it reads to rows, run by any executor.

In: a function, the inputs of each piece, an output folder. Out: `rows-00000.jsonl` and `dropped-00000.jsonl` for each
piece and `step.json`, written last. A finished piece is never done again; the files are the same whatever the order and
the number of workers. The folder is bound to what it was made from: other settings or inputs are refused.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qilin.core.errors import RunError, UserError
from qilin.core.files import write_atomic
from qilin.dataset.import_rows import RejectedRow
from qilin.pipeline.execution.workers import Workers

ROWS_PER_BUCKET = 20_000  # about so many; a row of a long context has some 5 KB
MOST = 512  # files open at once


def write_buckets(folder: Path, rows: Iterable[tuple[int, Any]], total: int) -> list[str]:
    """The files of a folder, made of (key, row) pairs; `total` says about how many rows will come."""
    folder.mkdir(parents=True, exist_ok=True)
    heaps = [folder / f"heap-{n:04d}.jsonl" for n in range(min(MOST, 1 + total // ROWS_PER_BUCKET))]
    files = []
    try:
        files = [heap.open("wb") for heap in heaps]
        for key, row in rows:
            files[key % len(files)].write(line(row))
    finally:
        for file in files:
            file.close()
    return [str(heap) for heap in heaps]


def line(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def read_bucket(heap: str) -> Iterable[Any]:
    with open(heap, encoding="utf-8", errors="surrogatepass") as lines:
        yield from map(json.loads, lines)


Work = Callable[[Any], Iterable[Mapping[str, Any] | RejectedRow]]  # reads one piece's inputs; top-level, so it pickles
BEGUN, DONE = "begun.json", "step.json"


def run_sharded(
    work: Work,
    inputs: Sequence[Any],
    out: Path,
    made_by: Mapping[str, Any],
    workers: Workers | None = None,
    on_shard: Callable[[int], None] = lambda number: None,
) -> dict[str, Any]:
    """Do every piece that is not done yet and return the counts that step.json keeps.

    `workers` do the pieces; None does the work here. `on_piece(number)` is told each piece as it is there, those of an
    earlier run included.
    Raises UserError where `out` holds something else, RunError where a piece kills its worker again and again.
    """
    made = json.loads(json.dumps({**made_by, "pieces": len(inputs)}, default=str))
    out = out.resolve()  # workers may stand in other folders
    begin(out, made)
    left = []
    for number in range(len(inputs)):
        if shard_path(out, "rows", number).exists():
            on_shard(number)
        else:
            left.append(number)
    if workers is None:
        for number in left:
            write_shard(work, inputs[number], out, number)
            on_shard(number)
    elif left:
        workers.check(out)
        run_on_workers(workers, work, inputs, out, left, on_shard)
    return finish(out, made)


def begin(out: Path, made: Mapping[str, Any]) -> None:
    """Bind an empty folder to the work, or make sure that it is already bound to the same."""
    if (out / BEGUN).is_file():
        found = json.loads((out / BEGUN).read_text(encoding="utf-8"))
        differ = [key for key in dict.fromkeys([*made, *found]) if made.get(key) != found.get(key)]
        if differ:
            raise UserError(
                f"{out}: holds the pieces of other work ({', '.join(differ)} differ); name a new folder, or remove this"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already holds something; name an empty or new folder, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / BEGUN, json.dumps(made, ensure_ascii=False, indent=2) + "\n")


def run_on_workers(
    workers: Workers,
    work: Work,
    inputs: Sequence[Any],
    out: Path,
    left: Sequence[int],
    on_shard: Callable[[int], None],
) -> None:
    """Hand pieces to workers, few at a time, so that a killed worker costs only what was in its hands."""
    waiting = list(reversed(left))
    tries: Counter[int] = Counter()
    while waiting:
        running: dict[Future[None], int] = {}
        with cancel_on_error(workers.make(), running) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < workers.at_once:
                        number = waiting[-1]
                        running[pool.submit(write_shard, work, inputs[number], out, number)] = waiting.pop()
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                        on_shard(running.pop(future))
            except workers.killed:
                lost = [n for n in running.values() if not shard_path(out, "rows", n).exists()]
                for number in sorted(set(running.values()) - set(lost)):
                    on_shard(number)
                tries.update(n for future, n in running.items() if n in lost and was_killed(future, workers))
                worst = max(lost, key=lambda n: tries[n], default=-1)
                if tries[worst] >= workers.tries:
                    raise RunError(
                        f"{out}: piece {worst} has lost its worker again and again (killed: out of memory?); the other "
                        "pieces are kept, the same command goes on"
                    ) from None
                waiting += sorted(lost, reverse=True)


def was_killed(future: Future[None], workers: Workers) -> bool:
    return future.done() and isinstance(future.exception(), workers.killed)


@contextmanager
def cancel_on_error(pool: Executor, running: Mapping[Future[None], int]) -> Iterator[Executor]:
    """An executor that, on an error or Ctrl-C, drops what has not begun and lets running pieces end."""
    try:
        yield pool
    except BaseException:
        for future in running:
            future.cancel()
        raise
    finally:
        pool.shutdown()


def write_shard(work: Work, given: Any, out: Path, number: int) -> None:
    """Do one piece. Its rows get their name last: a piece with rows is whole, and is not done again even where a
    cluster asks for it twice (it does where it lost the worker that did it)."""
    if shard_path(out, "rows", number).exists():
        return
    rows, dropped = [], []
    for row in work(given):
        if isinstance(row, RejectedRow):
            dropped.append(json.dumps({"reason": row.reason, "row": row.row}, ensure_ascii=False, default=str) + "\n")
        else:
            rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomic(shard_path(out, "dropped", number), "".join(dropped))
    write_atomic(shard_path(out, "rows", number), "".join(rows))


def shard_path(out: Path, kind: str, number: int) -> Path:
    return out / f"{kind}-{number:05d}.jsonl"


def finish(out: Path, made: Mapping[str, Any]) -> dict[str, Any]:
    """Count rows and refusals over all pieces and write step.json."""
    kept, reasons = 0, Counter[str]()
    for number in range(made["pieces"]):
        with shard_path(out, "rows", number).open(encoding="utf-8") as lines:
            kept += sum(1 for _ in lines)
        with shard_path(out, "dropped", number).open(encoding="utf-8") as lines:
            reasons.update(json.loads(line)["reason"] for line in lines)
    ordered = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    counts = {"rows": kept, "dropped": sum(reasons.values()), "dropped_reasons": ordered}
    write_atomic(out / DONE, json.dumps({"counts": counts, "made_by": made}, ensure_ascii=False, indent=2) + "\n")
    return counts


def read_step_record(folder: Path) -> dict[str, Any]:
    """step.json of a finished folder. Raises UserError where it is missing or unfinished."""
    if not (folder / DONE).is_file():
        begun = (folder / BEGUN).is_file()
        what = "its work was interrupted; run its command again" if begun else "not a folder of `qilin data figures`"
        raise UserError(f"{folder}: no {DONE} in it: {what}")
    found: dict[str, Any] = json.loads((folder / DONE).read_text(encoding="utf-8"))
    return found


def read_shards(folder: Path) -> Iterator[dict[str, Any]]:
    """Every row of a finished folder, in order, one in memory at a time."""
    for number in range(read_step_record(folder)["made_by"]["pieces"]):
        with shard_path(folder, "rows", number).open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)
