"""What is mutated, and who reads it: one target per reader.

In: a folder. Out: name -> Target, whose valid files lie in the folder. `read` runs the same code as a command.
"""

import io
import random
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
from PIL import Image

from builders.datasets import gradient_png, mixed_dataset
from builders.import_sources import jpeg_bytes, turns, write_csv, write_jsonl
from builders.jats import article, figure, link
from builders.tiny import tiny_language, tiny_llava, tiny_vision
from fuzz.medical_targets import medical_files
from fuzz.mutate import mutate_bytes, mutate_json
from fuzz.mutate_images import mutate_dicom, mutate_nifti, mutate_segments
from qilin.core.config import read_yaml
from qilin.core.errors import UserError
from qilin.core.files import read_json_object, to_json
from qilin.core.llm_errors import error_in_completion
from qilin.core.llm_reply import parse_json_reply, read_completion
from qilin.dataset.reader import open_dataset, verify_files
from qilin.evaluate.config import ScoreConfig
from qilin.evaluate.score import score_file
from qilin.imaging.archive_paths import read_path_or_member
from qilin.imaging.decode import read_image, to_rgb
from qilin.model.llava import compose, load_model
from qilin.model.saving import save_model
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.run import import_data
from qilin.pipeline.pubmed.jats import ArticleError, read_articles
from qilin.pipeline.review.decisions import read_decisions
from qilin.train.config import read_recipe

Mutation = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """Valid files, how they are mutated (one at a time), and what reads them."""

    files: dict[Path, bytes]
    mutation: Mutation
    run: Callable[[Path], Any]
    folder: Path  # of the files; a fresh copy for each input

    def mutated(self, draw: random.Random) -> tuple[Path, bytes]:
        """Write all files, one of them mutated. Returns it with its bytes."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for path, data in self.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        path = draw.choice(list(self.files)[: self.mutable])
        is_json = path.suffix in (".json", ".jsonl")
        data = (mutate_json if is_json else self.mutation)(self.files[path], draw)
        path.write_bytes(data)
        return path, data

    mutable: int = 1  # the first so many files are mutated

    def read(self) -> None:
        self.run(self.folder)


def files_of(folder: Path, *patterns: str) -> dict[Path, bytes]:
    """The files of a folder, those that match a pattern first."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    first = [path for pattern in patterns for path in paths if path.match(pattern)]
    return {path: path.read_bytes() for path in dict.fromkeys([*first, *paths])}


def target(folder: Path, run: Callable[[Path], Any], *patterns: str, mutation: Mutation = mutate_bytes) -> Target:
    files = files_of(folder, *patterns)
    mutable = sum(any(path.match(pattern) for pattern in patterns) for path in files)
    return Target(files, mutation, run, folder, mutable)


def make_targets(root: Path) -> dict[str, Target]:
    """All targets, with their files below `root`."""
    return {
        **tables(root),
        **images(root),
        **medical_images(root),
        **texts(root),
        **datasets(root),
        **models(root),
    }


def import_from(name: str, source: str, **options: Any) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        out = folder.parent / "imported"
        shutil.rmtree(out, ignore_errors=True)
        import_data(ImportConfig(name=name, source=folder / source, out=out, **options))

    return read


def tables(root: Path) -> dict[str, Target]:
    rows = [{"image": f"{n}.jpg", "question": f"图{n}是什么？", "answer": "左肺结节", "group": n} for n in range(4)]
    chats = [{"id": f"{n}", "image": f"{n}.jpg", "conversations": turns("<image>\n什么？", "左肺。")} for n in range(3)]
    for name in ("csv", "jsonl", "json", "llava"):
        folder = root / name
        folder.mkdir()
        for n in range(4):
            (folder / f"{n}.jpg").write_bytes(jpeg_bytes(n))
    write_csv(root / "csv" / "t.csv", rows)
    write_jsonl(root / "jsonl" / "t.jsonl", rows)
    (root / "json" / "t.json").write_text(to_json(rows), encoding="utf-8")
    (root / "llava" / "t.json").write_text(to_json(chats), encoding="utf-8")
    for name in ("parquet", "arrow", "xlsx", "tar"):
        shutil.copytree(root / "csv", root / name)
        (root / name / "t.csv").unlink()
    table = pa.Table.from_pylist(
        [row | {"image": {"bytes": jpeg_bytes(n), "path": None}} for n, row in enumerate(rows)]
    )
    pq.write_table(table, root / "parquet" / "t.parquet")
    feather.write_feather(table, root / "arrow" / "t.arrow")
    book = openpyxl.Workbook()
    for row in [list(rows[0]), *(list(row.values()) for row in rows)]:
        book.active.append(row)
    book.save(root / "xlsx" / "t.xlsx")
    with tarfile.open(root / "tar" / "t.tar", "w") as archive:
        for n in range(3):
            for suffix, data in (("jpg", jpeg_bytes(n)), ("txt", "左肺结节。".encode())):
                member = tarfile.TarInfo(f"{n}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return {
        **{n: target(root / n, import_from("folder", f"t.{n}"), "*." + n) for n in ("parquet", "arrow", "xlsx")},
        "tar": target(root / "tar", import_from("webdataset", "t.tar"), "*.tar"),
        "csv": target(root / "csv", import_from("folder", "t.csv"), "*.csv"),
        "jsonl": target(root / "jsonl", import_from("folder", "t.jsonl"), "*.jsonl"),
        "json": target(root / "json", import_from("folder", "t.json"), "*.json"),
        "llava": target(root / "llava", import_from("llava", "t.json"), "*.json"),
    }


def images(root: Path) -> dict[str, Target]:
    folder = root / "images"
    folder.mkdir()
    picture = Image.open(io.BytesIO(gradient_png(3, 40)))
    for name in ("png", "jpeg", "gif", "bmp", "webp", "tiff"):
        picture.save(folder / f"a.{name}")
    picture.convert("I;16").save(folder / "deep.tiff")
    archive = root / "zip"
    archive.mkdir()
    shutil.make_archive(str(archive / "images"), "zip", folder)

    def read(folder: Path) -> None:
        for path in folder.iterdir():
            read_image(path)
            to_rgb(path.read_bytes())

    return {
        "images": target(folder, read, "a.*", "deep.*"),
        "zip": target(archive, lambda folder: read_path_or_member(folder / "images.zip" / "a.png"), "*.zip"),
    }


def medical_images(root: Path) -> dict[str, Target]:
    mutations = {"dicom": mutate_dicom, "pacs": mutate_dicom, "nifti": mutate_nifti, "jpeg2000": mutate_segments}
    files = medical_files(root)
    return {name: target(folder, read, "*", mutation=mutations[name]) for name, (folder, read) in files.items()}


def texts(root: Path) -> dict[str, Target]:
    for name in ("jats", "recipe", "predictions", "decisions", "reply", "yaml"):
        (root / name).mkdir()
    body = (
        f"<sec><p>See {link('F1', 'Figure 1')} and H<sub>2</sub>O.</p>{figure('F1', 'CT.', 'a.jpg', 'Figure 1')}</sec>"
    )
    (root / "jats" / "a.xml").write_bytes(article(body))
    (root / "recipe" / "a.yaml").write_text("vision: a\nlanguage: b\ndata: [{path: d, weight: 0.5}]\nlora: {rank: 4}\n")
    rows = [
        {
            "id": f"{n}",
            "question": "几个?",
            "reference": "2",
            "prediction": "两个",
            "answer_type": "open",
            "image_ids": ["a"],
        }
        for n in range(3)
    ]
    write_jsonl(root / "predictions" / "p.jsonl", rows)
    decision = {
        "dataset": "h",
        "sample_id": "s",
        "decision": "fix",
        "reviewer": "a",
        "time": "1",
        "texts": {"text 1.0": "新"},
    }
    write_jsonl(root / "decisions" / "d.jsonl", [decision] * 2)
    message = {"role": "assistant", "content": '<think>x</think>{"1": "左肺"}'}
    completion = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}], "usage": {"total_tokens": 3}}
    (root / "reply" / "r.json").write_text(to_json(completion), encoding="utf-8")

    def read_article_file(folder: Path) -> None:
        for item in read_articles((folder / "a.xml").read_bytes()):
            if isinstance(item, ArticleError) and "\n" in str(item.reason):
                raise UserError(str(item))

    def read_reply(folder: Path) -> None:
        completion = read_json_object(folder / "r.json")
        if error := error_in_completion(completion):
            raise UserError(str(error))
        try:
            parse_json_reply(read_completion(completion))
        except ValueError as error:  # a reason that is counted
            raise UserError(str(error)) from None

    return {
        "jats": target(root / "jats", read_article_file, "*.xml"),
        "recipe": target(root / "recipe", lambda folder: read_recipe(str(folder / "a.yaml"), ["out=x"]), "*.yaml"),
        "yaml": target(root / "recipe", lambda folder: read_yaml(folder / "a.yaml"), "*.yaml"),
        "predictions": target(
            root / "predictions",
            lambda folder: score_file(ScoreConfig(file=folder / "p.jsonl", resamples=20)),
            "*.jsonl",
        ),
        "decisions": target(root / "decisions", lambda folder: read_decisions(folder / "d.jsonl"), "*.jsonl"),
        "reply": target(root / "reply", read_reply, "*.json"),
    }


def datasets(root: Path) -> dict[str, Target]:
    folder = mixed_dataset(root / "dataset")

    def read(folder: Path) -> None:
        dataset = open_dataset(folder)
        for split in dataset.splits():
            list(dataset.samples(split))
        list(dataset.images())
        verify_files(dataset, always=True)

    return {"dataset": target(folder, read, "*.json", "*.parquet")}


def models(root: Path) -> dict[str, Target]:
    parts = root / "parts"
    tiny_vision(parts / "clip")
    tiny_language(parts / "llama")
    loaded = tiny_llava(parts)
    (root / "model").mkdir()
    save_model(root / "model", loaded.model, loaded.processor)

    def compose_parts(folder: Path) -> None:
        compose(str(folder / "clip"), str(folder / "llama"), template="v1", system="", pad_square=True)

    patterns = ("*.json", "*.safetensors")
    return {
        "model": target(root / "model", lambda folder: load_model(folder, "cpu"), *patterns),
        "parts": target(parts, compose_parts, *patterns),
    }
