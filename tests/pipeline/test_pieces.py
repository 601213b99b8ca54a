"""Numbered pieces: the same bytes in any order, nothing done twice, killed workers, other work refused."""

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
from test_curate import dataset, image, sample
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
    """Kills its own process: always for piece [13], once (a mark on disk says so) for piece [7]."""
    mark = log.with_suffix(".killed")
    if numbers == [13] or (numbers == [7] and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield from square(log, numbers)


class Backwards(Executor):
    """Runs what it is given last first."""

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


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_any_executor_gives_the_same_bytes(tmp_path: Path) -> None:
    work = partial(square, tmp_path / "log")
    counts = run_sharded(work, INPUTS, tmp_path / "here", {"step": "square"})
    assert counts == {"rows": 12, "dropped": 12, "dropped_reasons": {"odd": 12}}
    everybody = {
        "back": Workers(Backwards, 4), "threads": Workers(lambda: ThreadPoolExecutor(3), 5), "many": make_workers(2)
    }  # fmt: skip
    for name, workers in everybody.items():
        run_sharded(work, INPUTS, tmp_path / name, {"step": "square"}, workers)
        assert files(tmp_path / name) == files(tmp_path / "here")
    assert [row["n"] for row in read_shards(tmp_path / "back")] == list(range(0, 24, 2))


def test_a_finished_piece_is_not_done_again_and_other_work_is_refused(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    run_sharded(partial(square, log), INPUTS, out, {"step": "square"})
    whole = files(out)
    (out / "rows-00003.jsonl").unlink()
    (out / "step.json").unlink()
    with pytest.raises(UserError, match="interrupted"):
        list(read_shards(out))
    seen: list[int] = []
    run_sharded(partial(square, log), INPUTS, out, {"step": "square"}, on_shard=seen.append)
    assert len(log.read_text().splitlines()) == len(INPUTS) + 1
    assert sorted(seen) == list(range(len(INPUTS)))
    assert files(out) == whole
    with pytest.raises(UserError, match=r"other work \(step differ\)"):
        run_sharded(partial(square, log), INPUTS, out, {"step": "cube"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UserError, match="already holds something"):
        run_sharded(partial(square, log), INPUTS, tmp_path / "full", {})


def test_a_killed_worker_costs_its_piece_only(tmp_path: Path) -> None:
    inputs = [[n] for n in range(12)]
    counts = run_sharded(partial(fatal, tmp_path / "log"), inputs, tmp_path / "out", {}, make_workers(2))
    assert counts["rows"] == 6
    done = (tmp_path / "log").read_text().splitlines()
    # what was in other workers' hands when the pool broke may be done twice; what was finished is not
    assert set(done) == {f"[{n}]" for n in range(12)}
    assert len(done) <= 12 + 2 * (os.cpu_count() or 1)


def test_a_piece_that_always_kills_is_named(tmp_path: Path) -> None:
    inputs = [[n] for n in (2, 13, 4)]
    with pytest.raises(RunError, match="piece 1 has lost its worker again and again"):
        run_sharded(partial(fatal, tmp_path / "log"), inputs, tmp_path / "out", {}, make_workers(2))
    assert not (tmp_path / "out" / "step.json").exists()


def asleep(log: Path, numbers: list[int]) -> Iterator[dict[str, Any] | RejectedRow]:
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(60)
    yield {}


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for processes in /proc")
def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    work = f"partial(asleep, Path({str(log)!r})), [[1], [2]], Path({str(tmp_path / 'out')!r}), {{}}, workers_of(2)"
    script = f"if __name__ == '__main__':\n from test_pieces import *\n run_pieces({work})"
    paths = os.pathsep.join(sys.path)
    main_one = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths})
    until = time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < 2:
        assert main_one.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    workers = [int(line) for line in log.read_text().splitlines()]
    assert all(map(is_running, workers))
    main_one.kill()
    main_one.wait()
    while any(map(is_running, workers)):
        assert time.monotonic() < until, "workers outlive what started them"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers, each a process of its own that is started again when it is killed."""
    distributed = pytest.importorskip("distributed", reason="the cluster extra is not installed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as made:
        yield made
        connect_client(made.scheduler_address).close()  # before its scheduler goes


def test_a_cluster_gives_the_same_bytes_though_a_worker_is_killed(tmp_path: Path, cluster: Any) -> None:
    inputs = [[n] for n in range(12)]
    log = tmp_path / "log"
    run_sharded(partial(square, tmp_path / "other"), inputs, tmp_path / "here", {"step": "square"})
    told: list[int] = []
    workers = make_workers(0, cluster.scheduler_address)
    run_sharded(partial(fatal, log), inputs, tmp_path / "there", {"step": "square"}, workers, told.append)
    assert log.with_suffix(".killed").exists()
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert sorted(told) == list(range(12))
    done = log.read_text().splitlines()
    assert set(done) == {f"[{n}]" for n in range(12)}
    # one thread a worker: the killed one had one piece in its hands, and that piece wrote nothing before it was killed
    assert len(done) == 12
    run_sharded(partial(fatal, log), inputs, tmp_path / "there", {"step": "square"}, workers, told.append)
    assert log.read_text().splitlines() == done


def kill_a_worker(cluster: Any, patch: pytest.MonkeyPatch) -> list[int]:
    """Kill one, by its process, as soon as the first piece of an import is there. Its process is in the list then."""
    killed: list[int] = []

    def run(work: Any, inputs: Any, out: Any, made: Any, workers: Any, on_shard: Any) -> Any:
        def told(number: int) -> None:
            if not killed:
                killed.append(next(iter(connect_client(cluster.scheduler_address).run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)
            on_shard(number)

        return run_sharded(work, inputs, out, made, workers, told)

    patch.setattr("qilin.pipeline.importers.image_index.run_sharded", run)
    return killed


def test_commands_give_the_same_folders_by_a_cluster(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "articles").mkdir()
    for n in range(3):
        body = figure("F1", f"CT of the lung of case {n}.", "f1.jpg")
        (tmp_path / "articles" / f"{n}.xml").write_bytes(article(body, pmcid=f"PMC{n}"))
    table = table_of_images(tmp_path / "table")
    monkeypatch.setattr("qilin.pipeline.importers.image_decoding.FILES_PER_SHARD", 2)
    rows = [(sample(f"s{n}", shown := image(n), f"第{n}问？", "答"), shown) for n in range(6)]
    source = dataset(tmp_path / "data", rows)
    pairs = [(sample(f"t{n}", shown := image(n // 2), f"第{n}问？", "答"), shown) for n in range(6)]
    talk = dataset(tmp_path / "talk", pairs)
    said = [Decision(row.sample_id, sample_hash(row), "reject", "a", "1", "x") for row, _ in pairs[:1]]
    add_decision(decisions_path(talk), said[0])
    for name, how in (("here", ["--workers", "1"]), ("there", ["--cluster", cluster.scheduler_address])):
        at = tmp_path / name
        assert main(["data", "figures", str(tmp_path / "articles"), str(at / "figures"), *how]) == 0
        assert main(["data", "merge", str(at / "merged"), str(source), *how]) == 0
        assert main(["data", "curate", str(at / "merged"), str(at / "curated"), "--resplit", *how]) == 0
        assert main(["data", "make-conversations", str(talk), str(at / "chats"), *how]) == 0
        assert main(["data", "apply-review", str(talk), str(at / "applied"), *how]) == 0
        with monkeypatch.context() as patch:
            killed = kill_a_worker(cluster, patch) if name == "there" else []
            assert main(["data", "import", "folder", str(table), str(at / "imported"), *how]) == 0
    assert killed
    assert files(tmp_path / "here" / "figures") == files(tmp_path / "there" / "figures")
    counts = {"imported": 44, "merged": 6, "curated": 6, "chats": 3, "applied": 5}
    for name, count in counts.items():
        here, there = (open_dataset(tmp_path / where / name) for where in ("here", "there"))
        assert here.manifest == there.manifest
        assert sum(here.manifest["counts"]["samples"].values()) == count


def test_a_piece_that_always_kills_its_worker_is_named_by_a_cluster_too(tmp_path: Path, cluster: Any) -> None:
    workers = make_workers(0, cluster.scheduler_address)
    with pytest.raises(RunError, match="piece 1 has lost its worker again and again"):
        run_sharded(partial(fatal, tmp_path / "log"), [[2], [13], [4]], tmp_path / "out", {}, workers)
    assert not (tmp_path / "out" / "step.json").exists()


def test_a_cluster_that_cannot_be_used_is_refused(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="expected a scheduler's address"):
        make_workers(0, "localhost")
    with monkeypatch.context() as short:
        short.setattr("qilin.pipeline.execution.workers.WAIT", 1.0)
        with pytest.raises(RunError, match="no scheduler answers there"):
            make_workers(0, "tcp://127.0.0.1:1")
    there = make_workers(0, cluster.scheduler_address)
    assert there is not None
    there.check(tmp_path)
    with pytest.raises(UserError, match="does not see"):
        there.check(tmp_path / "nowhere")


def test_a_cluster_without_workers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="the cluster extra is not installed")
    monkeypatch.setattr("qilin.pipeline.execution.workers.COME", 1.0)
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as empty:
        with pytest.raises(RunError, match="no worker came in 1 s; start some"):
            make_workers(0, empty.scheduler_address)
        connect_client(empty.scheduler_address).close()


def test_an_error_in_a_step_stops_it(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        run_sharded(partial(square, tmp_path / "log"), [[1], [None]], tmp_path / "out", {}, make_workers(2))  # type: ignore[list-item]
    assert not (tmp_path / "out" / "step.json").exists()
