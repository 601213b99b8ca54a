"""Sharded maps: the same bytes on any executor, no shard computed twice, killed workers, other settings refused."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from builders.datasets import file_contents, image_record, question_sample, write_dataset
from builders.import_sources import table_of_images
from builders.jats import article, figure
from qilin.cli import main
from qilin.core.errors import RunError, UserError
from qilin.dataset.import_rows import RejectedRow
from qilin.dataset.reader import open_dataset
from qilin.pipeline.execution.sharded_map import read_shards, run_sharded
from qilin.pipeline.execution.workers import Workers, connect_client, make_workers
from qilin.pipeline.review.decisions import Decision, add_decision, decisions_path, sample_hash


def square(log: Path, numbers: list[int]) -> Iterator[dict[str, Any] | RejectedRow]:
    with log.open("a") as file:
        file.write(f"{numbers}\n")
    for n in numbers:
        yield RejectedRow({"n": n}, "odd") if n % 2 else {"n": n, "square": n * n, "words": "中文"}


def fatal(log: Path, numbers: list[int]) -> Iterator[dict[str, Any] | RejectedRow]:
    """Kills its own process: always for shard [13], once for shard [7], recorded by a file on disk."""
    mark = log.with_suffix(".killed")
    if numbers == [13] or (numbers == [7] and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield from square(log, numbers)


class ReversedExecutor(Executor):
    """Runs the last submitted call first."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: fn(*args, **kwargs)))
        if len(self.waiting) >= 2:
            while self.waiting:
                last, call = self.waiting.pop()
                last.set_result(call())
        return future


INPUTS = [[n, n + 1] for n in range(0, 24, 2)]


def test_any_executor_gives_the_same_bytes(tmp_path: Path) -> None:
    function = partial(square, tmp_path / "log")
    counts = run_sharded(function, INPUTS, tmp_path / "here", {"step": "square"})
    assert counts == {"rows": 12, "dropped": 12, "dropped_reasons": {"odd": 12}}
    all_workers = {
        "reversed": Workers(ReversedExecutor, 4),
        "threads": Workers(lambda: ThreadPoolExecutor(3), 5),
        "processes": make_workers(2),
    }
    for name, workers in all_workers.items():
        run_sharded(function, INPUTS, tmp_path / name, {"step": "square"}, workers)
        assert file_contents(tmp_path / name) == file_contents(tmp_path / "here")
    assert [row["n"] for row in read_shards(tmp_path / "reversed")] == list(range(0, 24, 2))


def test_a_finished_shard_is_not_computed_again_and_other_settings_are_refused(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    run_sharded(partial(square, log), INPUTS, out, {"step": "square"})
    complete = file_contents(out)
    (out / "rows-00003.jsonl").unlink()
    (out / "step.json").unlink()
    with pytest.raises(UserError, match="interrupted"):
        list(read_shards(out))
    finished: list[int] = []
    run_sharded(partial(square, log), INPUTS, out, {"step": "square"}, on_shard=finished.append)
    assert len(log.read_text().splitlines()) == len(INPUTS) + 1
    assert sorted(finished) == list(range(len(INPUTS)))
    assert file_contents(out) == complete
    with pytest.raises(UserError, match=r"\(step differ\)"):
        run_sharded(partial(square, log), INPUTS, out, {"step": "cube"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="already holds something"):
        run_sharded(partial(square, log), INPUTS, tmp_path / "full", {})


def test_a_killed_worker_costs_only_its_shard(tmp_path: Path) -> None:
    inputs = [[n] for n in range(12)]
    counts = run_sharded(partial(fatal, tmp_path / "log"), inputs, tmp_path / "out", {}, make_workers(2))
    assert counts["rows"] == 6
    done = (tmp_path / "log").read_text().splitlines()
    # shards that other workers were computing when the pool broke may run twice; finished ones do not
    assert set(done) == {f"[{n}]" for n in range(12)}
    assert len(done) <= 12 + 2 * (os.cpu_count() or 1)


def test_a_shard_that_always_kills_its_worker_is_named(tmp_path: Path) -> None:
    inputs = [[n] for n in (2, 13, 4)]
    with pytest.raises(RunError, match="shard 1 killed its worker"):
        run_sharded(partial(fatal, tmp_path / "log"), inputs, tmp_path / "out", {}, make_workers(2))
    assert not (tmp_path / "out" / "step.json").exists()


def sleep_long(log: Path, numbers: list[int]) -> Iterator[dict[str, Any] | RejectedRow]:
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(60)
    yield {}


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_workers_exit_when_their_parent_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    work = (
        f"partial(sleep_long, Path({str(log)!r})), [[1], [2]], Path({str(tmp_path / 'out')!r}), {{}}, make_workers(2)"
    )
    script = f"if __name__ == '__main__':\n from test_sharded_map import *\n run_sharded({work})"
    paths = os.pathsep.join(sys.path)
    parent = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths})
    deadline = time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < 2:
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = [int(line) for line in log.read_text().splitlines()]
    assert all(map(is_running, workers))
    parent.kill()
    parent.wait()
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers, each a process that is restarted when it is killed."""
    distributed = pytest.importorskip("distributed", reason="the cluster extra is not installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as local_cluster:
        yield local_cluster
        connect_client(local_cluster.scheduler_address).close()  # before the scheduler stops


def test_a_cluster_gives_the_same_bytes_though_a_worker_is_killed(tmp_path: Path, cluster: Any) -> None:
    inputs = [[n] for n in range(12)]
    log = tmp_path / "log"
    run_sharded(partial(square, tmp_path / "other"), inputs, tmp_path / "here", {"step": "square"})
    finished: list[int] = []
    workers = make_workers(0, cluster.scheduler_address)
    run_sharded(partial(fatal, log), inputs, tmp_path / "there", {"step": "square"}, workers, finished.append)
    assert log.with_suffix(".killed").exists()
    assert file_contents(tmp_path / "there") == file_contents(tmp_path / "here")
    assert sorted(finished) == list(range(12))
    done = log.read_text().splitlines()
    assert set(done) == {f"[{n}]" for n in range(12)}
    # one thread per worker: the killed one was computing one shard, which had written nothing
    assert len(done) == 12
    run_sharded(partial(fatal, log), inputs, tmp_path / "there", {"step": "square"}, workers, finished.append)
    assert log.read_text().splitlines() == done


def kill_one_worker(cluster: Any, patch: pytest.MonkeyPatch) -> list[int]:
    """Kill one worker process as soon as the first shard of an import is finished; the list then holds its pid."""
    killed: list[int] = []

    def run(function: Any, inputs: Any, out: Any, settings: Any, workers: Any, on_shard: Any) -> Any:
        def kill_then_report(number: int) -> None:
            if not killed:
                killed.append(next(iter(connect_client(cluster.scheduler_address).run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)
            on_shard(number)

        return run_sharded(function, inputs, out, settings, workers, kill_then_report)

    patch.setattr("qilin.pipeline.importers.image_index.run_sharded", run)
    return killed


@pytest.mark.long
def test_commands_write_the_same_folders_on_a_cluster(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "articles").mkdir()
    for n in range(3):
        body = figure("F1", f"CT of the lung of case {n}.", "f1.jpg")
        (tmp_path / "articles" / f"{n}.xml").write_bytes(article(body, pmcid=f"PMC{n}"))
    table = table_of_images(tmp_path / "table")
    monkeypatch.setattr("qilin.pipeline.importers.image_decoding.FILES_PER_SHARD", 2)
    rows = [(question_sample(f"s{n}", image := image_record(n), f"第{n}问？", "答"), image) for n in range(6)]
    source = write_dataset(tmp_path / "data", rows)
    pairs = [(question_sample(f"t{n}", image := image_record(n // 2), f"第{n}问？", "答"), image) for n in range(6)]
    reviewed = write_dataset(tmp_path / "reviewed", pairs)
    decisions = [Decision(row.sample_id, sample_hash(row), "reject", "a", "1", "x") for row, _ in pairs[:1]]
    add_decision(decisions_path(reviewed), decisions[0])
    for name, flags in (("here", ["--workers", "1"]), ("there", ["--cluster", cluster.scheduler_address])):
        at = tmp_path / name
        assert main(["data", "extract-figures", str(tmp_path / "articles"), str(at / "figures"), *flags]) == 0
        assert main(["data", "merge", str(at / "merged"), str(source), *flags]) == 0
        assert main(["data", "curate", str(at / "merged"), str(at / "curated"), "--resplit", *flags]) == 0
        assert main(["data", "make-conversations", str(reviewed), str(at / "conversations"), *flags]) == 0
        assert main(["data", "apply-review", str(reviewed), str(at / "applied"), *flags]) == 0
        with monkeypatch.context() as patch:
            killed = kill_one_worker(cluster, patch) if name == "there" else []
            assert main(["data", "import", "folder", str(table), str(at / "imported"), *flags]) == 0
    assert killed
    assert file_contents(tmp_path / "here" / "figures") == file_contents(tmp_path / "there" / "figures")
    counts = {"imported": 44, "merged": 6, "curated": 6, "conversations": 3, "applied": 5}
    for name, count in counts.items():
        here, there = (open_dataset(tmp_path / side / name) for side in ("here", "there"))
        assert here.manifest == there.manifest
        assert sum(here.manifest["counts"]["samples"].values()) == count


@pytest.mark.long
def test_a_shard_that_always_kills_its_worker_is_named_on_a_cluster_too(tmp_path: Path, cluster: Any) -> None:
    workers = make_workers(0, cluster.scheduler_address)
    with pytest.raises(RunError, match="shard 1 killed its worker"):
        run_sharded(partial(fatal, tmp_path / "log"), [[2], [13], [4]], tmp_path / "out", {}, workers)
    assert not (tmp_path / "out" / "step.json").exists()


def test_a_cluster_that_cannot_be_used_is_refused(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="expected a scheduler's address"):
        make_workers(0, "localhost")
    with monkeypatch.context() as short:
        short.setattr("qilin.pipeline.execution.workers.SCHEDULER_TIMEOUT", 1.0)
        with pytest.raises(RunError, match="no scheduler answers"):
            make_workers(0, "tcp://127.0.0.1:1")
    workers = make_workers(0, cluster.scheduler_address)
    assert workers is not None
    workers.check(tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        workers.check(tmp_path / "nowhere")


def test_a_cluster_without_workers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="the cluster extra is not installed")
    monkeypatch.setattr("qilin.pipeline.execution.workers.WORKER_TIMEOUT", 1.0)
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as empty:
        with pytest.raises(RunError, match="in 1 s; start some: dask worker"):
            make_workers(0, empty.scheduler_address)
        connect_client(empty.scheduler_address).close()


def test_an_error_in_a_shard_stops_the_map(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        run_sharded(partial(square, tmp_path / "log"), [[1], [None]], tmp_path / "out", {}, make_workers(2))  # type: ignore[list-item]
    assert not (tmp_path / "out" / "step.json").exists()
