"""The drawn source: images with known truth become a dataset folder, no downloads.

In: a folder to make, a number of images, a seed. Out: the dataset folder of qilin.dataset.reader, and in it truth.jsonl
(a row an image: image_id, split, truth record, facts) and facts.json (the words that state those facts, for scoring
captions). The same arguments give the same bytes.
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
from qilin.dataset.schema import ImageRecord, Provenance, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter
from qilin.demo.synthetic.captions import VOCABULARY, facts_of_truth, write_caption
from qilin.demo.synthetic.color import draw_one
from qilin.demo.synthetic.questions import Question, write_questions
from qilin.demo.synthetic.scene import Truth, truth_from_row, truth_row
from qilin.evaluate.scoring.captions import TRUTH_FILE, VOCABULARY_FILE
from qilin.imaging.decode import phash
from qilin.pipeline.execution.workers import workers_of

NOTICE = (
    "Drawn by Qilin's own code, not taken from any patient; every image bears the mark DRAWN. "
    "Good for trying the software, worthless for medicine. Sides are the patient's: in chest radiographs and head CT "
    "the patient's left is on the image's right."
)
LICENSE = "CC0-1.0"
SMALLEST = 12  # images a split: a whole round of kinds
CHUNK = 20  # images that a process draws at a time

Drawn = tuple[Truth, ImageRecord]


def write_drawn(
    folder: Path,
    images: int = 4000,
    seed: int = 0,
    size: int = 224,
    validation: float = 0.05,
    test: float = 0.075,
    tick: Callable[[int], None] | None = None,
    workers: int = 1,
) -> None:
    """Draw `images` images of `size` x `size` pixels and write them as a dataset folder with three splits.

    `validation` and `test` are shares of the images; each split has at least 12. Every image has one caption and
    some six questions. `tick` is called with 1 after each image; `workers` processes draw (0: one a core). Raises
    UserError for counts or sizes too small and where `folder` already holds something.
    """
    counts = {
        name: max(SMALLEST, round(images * share)) for name, share in (("validation", validation), ("test", test))
    }
    counts = {"train": images - sum(counts.values())} | counts
    if counts["train"] < SMALLEST:
        raise UserError(f"images is {images}: leaves {counts['train']} to train on; at least {3 * SMALLEST} are needed")
    if size < 96:
        raise UserError(f"size is {size} pixels; at least 96 are needed for the mark to be read")
    arguments = {"pictures": images, "seed": seed, "size": size, "validation": validation, "test": test}
    config = {"importer": "drawn", **arguments, "notice": NOTICE, "license": LICENSE}
    with (
        drawing(partial(draw_image, seed, size), workers) as drawn,
        DatasetWriter(Path(folder), config, title="Drawn medical-looking images (not patients)") as writer,
        (writer.work / TRUTH_FILE).open("w", encoding="utf-8") as truths,
    ):
        words = json.dumps(VOCABULARY, ensure_ascii=False, indent=1)
        (writer.work / VOCABULARY_FILE).write_text(words + "\n", encoding="utf-8")
        first = 0
        for split, count in counts.items():
            ids, records = [], []
            for truth, image in drawn(range(first, first + count)):
                writer.add_image(image)
                row = {"image_id": image.image_id, "split": split, "source": "drawn", **truth_row(truth)}
                row["facts"] = sorted(facts_of_truth(truth))
                truths.write(json.dumps(row, ensure_ascii=False) + "\n")
                ids.append(image.image_id)
                records.append(truth)
                if tick:
                    tick(1)
            write_samples(writer, split, seed, first, ids, records)
            first += count


@contextmanager
def drawing(draw: Callable[[int], Drawn], workers: int) -> Iterator[Callable[[range], Iterator[Drawn]]]:
    """Something that draws the images of a range in order, here or in other processes."""
    found = workers_of(workers)
    if found is None:
        yield partial(map, draw)
        return
    pool = found.make()
    try:
        yield partial(pool.map, draw, chunksize=CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)


def draw_image(seed: int, size: int, index: int) -> Drawn:
    truth, image = draw_one(seed, index, size)
    return truth, image_of(truth, image, f"{seed}-{index}")


def write_samples(
    writer: DatasetWriter, split: str, seed: int, first: int, ids: list[str], truths: list[Truth]
) -> None:
    """The caption and the questions of every image of a split, image by image."""
    rng = np.random.default_rng([seed, first, len(truths)])
    questions: dict[int, list[Question]] = {}
    for question in write_questions(rng, truths, test=split == "test"):
        questions.setdefault(question.image, []).append(question)
    for place, (image_id, truth) in enumerate(zip(ids, truths, strict=True)):
        name = f"drawn-{seed}-{first + place}"
        caption = (user(images=1), assistant(write_caption(rng, truth)))
        kept = writer.add_sample(
            split,
            Sample(
                f"{name}-caption", "caption", (image_id,), caption, source="drawn", group=name, license_tier="public"
            ),
        )
        for number, question in enumerate(questions.get(place, [])):
            kept &= writer.add_sample(split, sample_of(question, f"{name}-q{number}", name, image_id))
        assert kept, f"{name}: one of our own samples was refused; see dropped.jsonl"


def sample_of(question: Question, sample_id: str, group: str, image_id: str) -> Sample:
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


def image_of(truth: Truth, image: Image.Image, source_id: str) -> ImageRecord:
    """A drawn image as the row that is stored: PNG, with where it comes from."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=4)
    data = file.getvalue()
    attribution = "Drawn by Qilin; not a patient's image"
    return ImageRecord(
        hashlib.sha256(data).hexdigest(),
        data,
        "png",
        image.width,
        image.height,
        phash(image),
        truth.modality,
        truth.body_part,
        (Provenance("drawn", source_id, None, LICENSE, attribution),),
        "public",
        "drawn: there is no patient",
    )


def read_truths(folder: Path) -> dict[str, Truth]:
    """image_id -> Truth for every image of a drawn dataset folder. Raises UserError if it holds no truth.jsonl."""
    path = Path(folder) / TRUTH_FILE
    if not path.is_file():
        raise UserError(f"{path}: not there; only dataset folders of drawn images have a truth record")
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["image_id"]: truth_from_row(row) for row in rows}
