"""A killed import of a parquet file with images in it leaves no images in the temporary folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from builders.datasets import gradient_png, noise_png
from qilin.cli import main
from qilin.dataset.reader import open_dataset


def test_a_killed_import_is_taken_up_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    images = [noise_png(1), noise_png(2), gradient_png(3), gradient_png(4)]
    rows = [
        {"image": {"bytes": image, "path": None}, "question": f"第{n}幅是什么？", "answer": "肺"}
        for n, image in enumerate(images)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "source" / "train-00000.parquet")
    (tmp_path / "tmp").mkdir()
    command = ["data", "import", "parquet-vqa", str(tmp_path / "source"), "OUT", "--split", "train", "--workers", "1"]
    killed, whole = (
        [out if word == "OUT" else word for word in command] for out in map(str, (tmp_path / "out", tmp_path / "whole"))
    )
    script = f"""
import os, signal
from qilin.pipeline.importers import image_decoding
from qilin.cli import main
image_decoding.read_image = lambda data: os.kill(os.getpid(), signal.SIGKILL)
main({killed!r})
"""
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert list((tmp_path / "tmp").rglob("*")) == []
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / ".out.import").rglob("*"))) > len(images)  # the control: it had begun
    assert main(killed) == main(whole) == 0
    assert open_dataset(tmp_path / "out").hash == open_dataset(tmp_path / "whole").hash
    assert not list(tmp_path.glob(".*"))
