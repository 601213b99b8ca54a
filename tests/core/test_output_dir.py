"""Two processes never write one folder: the second names the first, a dead owner's lock is taken over."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qilin.core.errors import UserError
from qilin.core.output_dir import lock_dir, lock_path, staged_dir, this_process

HOLD = """
import sys, time
from pathlib import Path
from qilin.core.output_dir import staged_dir
with staged_dir(Path(sys.argv[1])) as staging:
    (staging / "part").touch()
    print("locked", flush=True)
    time.sleep(60)
"""


def start_holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "locked\n"
    return process


def test_the_second_process_names_the_first(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start_holder(out)
    try:
        with pytest.raises(UserError, match=rf"{out}: in use by process {process.pid} on .+ since 20"), lock_dir(out):
            pass
        with pytest.raises(UserError, match="in use"), staged_dir(tmp_path / "x" / ".." / "out"):
            pass  # another spelling of the same folder
        with lock_dir(tmp_path / "other"):
            pass  # the control
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) in ([], ["x"])  # Ctrl-C leaves neither lock nor folder


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start_holder(out)
    process.kill()
    process.wait()
    assert lock_path(out).is_file()
    with staged_dir(out) as staging:
        assert not (staging / "part").exists()  # what the killed process left is gone
        (staging / "complete").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["complete"]


def write_owner(folder: Path, **changes: object) -> Path:
    lock = lock_path(folder)
    lock.write_text(json.dumps({**this_process(), "since": "2026-01-02 03:04:05", **changes}))
    return lock


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"started": "1"}])
def test_a_pid_that_is_gone_or_given_again(tmp_path: Path, changes: dict[str, object]) -> None:
    write_owner(tmp_path / "out", **changes)
    with lock_dir(tmp_path / "out"):
        assert json.loads(lock_path(tmp_path / "out").read_text())["pid"] == os.getpid()
    assert not lock_path(tmp_path / "out").exists()


def test_a_lock_of_another_machine_is_removed_by_hand(tmp_path: Path) -> None:
    lock = write_owner(tmp_path / "out", host="gpu-7", pid=12)
    with (
        pytest.raises(UserError, match=f"process 12 on gpu-7 since 2026-01-02.*remove {lock}"),
        lock_dir(tmp_path / "out"),
    ):
        pass
    assert lock.is_file()


@pytest.mark.parametrize(("content", "message"), [("", None), ("{}", "damaged"), ("[[[", "damaged"), ("\0\0", None)])
def test_a_damaged_lock(tmp_path: Path, content: str, message: str | None) -> None:
    lock_path(tmp_path / "out").write_text(content)
    if message is None:  # its process was killed before it wrote
        with lock_dir(tmp_path / "out"):
            pass
        return
    with pytest.raises(UserError, match=message), lock_dir(tmp_path / "out"):
        pass


def test_a_process_may_lock_a_folder_twice(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with lock_dir(out):
        with lock_dir(out):
            pass
        assert lock_path(out).is_file()  # the inner block does not release it
        assert not out.exists()
    assert not lock_path(out).exists()
