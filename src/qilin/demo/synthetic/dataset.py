"""Writes a dataset folder of synthetic images, captions and questions; nothing is downloaded.

In: a folder, a number of images, a seed. Out: the dataset folder of qilin.dataset.reader, with truth.jsonl (one row per
image: image_id, split, scene, facts) and facts.json (the vocabulary of those facts, for caption scores). The same
arguments give the same bytes.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from qilin.core.errors import UserError
from qilin.core.files import to_json
from qilin.dataset.schema import ImageRecord, Provenance, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter
from qilin.demo.synthetic.captions import VOCABULARY, scene_facts, write_caption
from qilin.demo.synthetic.color import draw_sample
from qilin.demo.synthetic.questions import Question, write_questions
from qilin.demo.synthetic.scene import Scene, scene_from_row, scene_to_row
from qilin.evaluate.scoring.captions import TRUTH_FILE, VOCABULARY_FILE
from qilin.imaging.decode import perceptual_hash
from qilin.pipeline.execution.workers import make_workers

NOTICE = (
    "Drawn by Qilin's own code, not taken from any patient; every image bears the mark DRAWN. "
    "Good for trying the software, worthless for medicine. Sides are the patient's: in chest radiographs and head CT "
    "the patient's left is on the image's right."
)
LICENSE = "CC0-1.0"
MIN_IMAGES_PER_SPLIT = 12  # one cycle of kinds
MIN_SIZE = 96  # pixels; below that the watermark is unreadable
IMAGES_PER_TASK = 20  # that a worker process draws at a time

SceneAndImage = tuple[Scene, ImageRecord]


def write_synthetic(
    folder: Path,
    images: int = 4000,
    seed: int = 0,
    size: int = 224,
    validation: float = 0.05,
    test: float = 0.075,
    on_image: Callable[[int], None] | None = None,
    workers: int = 1,
) -> None:
    """Draw `images` images of `size` x `size` pixels and write them as a dataset folder with three splits.

    `validation` and `test` are shares of the images; each split has at least 12. Every image has a caption and about
    six questions. `on_image(1)` is called after each image; `workers` processes draw (0: one per core). Raises
    UserError for counts or sizes too small, and where `folder` is not empty.
    """
    counts = {
        name: max(MIN_IMAGES_PER_SPLIT, round(images * share))
        for name, share in (("validation", validation), ("test", test))
    }
    counts = {"train": images - sum(counts.values())} | counts
    if counts["train"] < MIN_IMAGES_PER_SPLIT:
        raise UserError(
            f"images is {images}, which leaves {counts['train']} for training; expected at least "
            f"{3 * MIN_IMAGES_PER_SPLIT}"
        )
    if size < MIN_SIZE:
        raise UserError(f"size is {size} pixels; expected at least {MIN_SIZE}, for the watermark to be readable")
    arguments = {"images": images, "seed": seed, "size": size, "validation": validation, "test": test}
    settings = {"importer": "drawn", **arguments, "notice": NOTICE, "license": LICENSE}
    with (
        ordered_map(partial(draw_record, seed, size), workers) as draw_range,
        DatasetWriter(Path(folder), settings, title="Drawn medical-looking images (not patients)") as writer,
        (writer.staging / TRUTH_FILE).open("w", encoding="utf-8") as truth_file,
    ):
        (writer.staging / VOCABULARY_FILE).write_text(to_json(VOCABULARY, indent=1), encoding="utf-8")
        first = 0
        for split, count in counts.items():
            ids, scenes = [], []
            for scene, image in draw_range(range(first, first + count)):
                writer.add_image(image)
                row = {"image_id": image.image_id, "split": split, "source": "drawn", **scene_to_row(scene)}
                row["facts"] = sorted(scene_facts(scene))
                truth_file.write(to_json(row, indent=None))
                ids.append(image.image_id)
                scenes.append(scene)
                if on_image:
                    on_image(1)
            write_samples(writer, split, seed, first, ids, scenes)
            first += count


@contextmanager
def ordered_map(
    draw: Callable[[int], SceneAndImage], workers: int
) -> Iterator[Callable[[range], Iterator[SceneAndImage]]]:
    """A function that draws the images of a range in order, in this process or in others."""
    pool_factory = make_workers(workers)
    if pool_factory is None:
        yield partial(map, draw)
        return
    pool = pool_factory.make_executor()
    try:
        yield partial(pool.map, draw, chunksize=IMAGES_PER_TASK)
    finally:
        pool.shutdown(cancel_futures=True)


def draw_record(seed: int, size: int, index: int) -> SceneAndImage:
    scene, image = draw_sample(seed, index, size)
    return scene, to_record(scene, image, f"{seed}-{index}")


def write_samples(
    writer: DatasetWriter, split: str, seed: int, first: int, ids: list[str], scenes: list[Scene]
) -> None:
    """Write the caption and the questions of every image of a split, image by image."""
    rng = np.random.default_rng([seed, first, len(scenes)])
    questions: dict[int, list[Question]] = {}
    for question in write_questions(rng, scenes, test=split == "test"):
        questions.setdefault(question.image, []).append(question)
    for index, (image_id, scene) in enumerate(zip(ids, scenes, strict=True)):
        group = f"drawn-{seed}-{first + index}"
        messages = (user(images=1), assistant(write_caption(rng, scene)))
        samples = [
            Sample(
                f"{group}-caption", "caption", (image_id,), messages, source="drawn", group=group, license_tier="public"
            )
        ]
        samples += [
            to_sample(question, f"{group}-q{number}", group, image_id)
            for number, question in enumerate(questions.get(index, []))
        ]
        for sample in samples:
            assert writer.add_sample(split, sample), f"{sample.sample_id} was rejected; see dropped.jsonl"


def to_sample(question: Question, sample_id: str, group: str, image_id: str) -> Sample:
    return Sample(
        sample_id,
        "vqa",
        (image_id,),
        (user(question.question, images=1), assistant(question.answer)),
        answer_type=question.answer_type,  # type: ignore[arg-type]
        choices=question.choices,
        question_type=question.question_type,
        source="drawn",
        group=group,
        license_tier="public",
    )


def to_record(scene: Scene, image: Image.Image, source_id: str) -> ImageRecord:
    """A synthetic image as the row to store: PNG with provenance."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    data = buffer.getvalue()
    attribution = "Drawn by Qilin; not a patient's image"
    return ImageRecord(
        hashlib.sha256(data).hexdigest(),
        data,
        "png",
        image.width,
        image.height,
        perceptual_hash(image),
        scene.modality,
        scene.body_part,
        (Provenance("drawn", source_id, None, LICENSE, attribution),),
        "public",
        "drawn: there is no patient",
    )


def read_scenes(folder: Path) -> dict[str, Scene]:
    """image_id -> Scene for every image of a synthetic dataset folder. Raises UserError without a truth.jsonl."""
    path = Path(folder) / TRUTH_FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file; only dataset folders of synthetic images have a {TRUTH_FILE}")
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["image_id"]: scene_from_row(row) for row in rows}
