"""Worker processes import nothing from the current folder."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from qilin.pipeline.execution.workers import make_workers

if __name__ == "__main__":
    if sys.argv[1] == "unsafe":
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context
        executor = ProcessPoolExecutor(2, get_context("spawn"))
    else:
        executor = make_workers(2).make_executor()
    with executor:
        print(executor.submit(abs, -7).result())
"""


def run(tmp_path: Path, mode: str) -> tuple[str, list[str]]:
    program, data = tmp_path / "program.py", tmp_path / "downloaded"
    program.write_text(PROGRAM)
    data.mkdir(exist_ok=True)
    for name in ("pickle", "signal", "socket", "struct"):
        (data / f"{name}.py").write_text(f"open({str(tmp_path / (name + '.ran'))!r}, 'w')\nraise SystemExit(3)\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    command = [sys.executable, str(program), mode]
    result = subprocess.run(command, cwd=data, env=environment, capture_output=True, text=True, timeout=60)
    return result.stdout.strip(), sorted(path.name for path in tmp_path.glob("*.ran"))


def test_workers_do_not_import_from_the_current_folder(tmp_path: Path) -> None:
    assert run(tmp_path, "safe") == ("7", [])
    answer, planted = run(tmp_path, "unsafe")  # control: without it the planted module runs
    assert answer != "7"
    assert planted
