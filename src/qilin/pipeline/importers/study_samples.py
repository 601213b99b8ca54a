"""From a study's images and report to a sample: labels, question, answer, and the patient's previous study before it.

In: the stored images of studies with their labels and report texts. Out: samples. The images of a previous study come
first, labeled with the days between (既往（90天前）轴位 1/4), then those of the study itself (本次 轴位 1/4).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from qilin.dataset.licenses import license_tier
from qilin.dataset.schema import Sample, assistant, user_with_labels
from qilin.imaging.volume import choose_slices

REPORT_QUESTION = "请根据以上图像书写检查所见和诊断意见。"
FINDINGS_QUESTION, IMPRESSION_QUESTION = "请根据以上图像书写检查所见。", "请根据以上图像给出诊断意见。"
COMPARISON = "请对照既往图像，"
MODALITY_QUESTION = "这是什么检查的图像？"
MODALITY_ANSWERS = {
    "CT": "CT", "MRI": "磁共振（MRI）", "X-Ray": "X线", "Mammography": "乳腺钼靶", "Ultrasound": "超声", "PET": "PET",
    "Nuclear Medicine": "核医学", "Angiography": "血管造影", "Fluoroscopy": "透视", "OCT": "光学相干断层扫描",
    "Endoscopy": "内镜", "Pathology": "病理", "Dental X-Ray": "口腔X线",
}  # fmt: skip


@dataclass(frozen=True)
class StudyImages:
    """One study: the ids of its images with their labels, and (findings, impression), None without a table of reports.

    `day` counts from an origin of the patient's own; None where the date is unknown.
    """

    study: str
    patient: str
    modality: str
    body_part: str | None
    day: int | None
    images: tuple[str, ...]
    labels: tuple[str, ...]
    texts: tuple[str, str] | None


def find_previous(studies: Sequence[StudyImages]) -> dict[str, StudyImages]:
    """Study -> the same patient's latest earlier one of the same modality and, where known, body part."""
    by_patient: dict[str, list[StudyImages]] = defaultdict(list)
    for study in studies:
        by_patient[study.patient].append(study)
    previous: dict[str, StudyImages] = {}
    for studies_of_patient in by_patient.values():
        for study in studies_of_patient:
            earlier = [other for other in studies_of_patient if is_earlier(other, study)]
            if earlier:
                previous[study.study] = max(earlier, key=lambda other: (other.day or 0, other.study))
    return previous


def is_earlier(other: StudyImages, study: StudyImages) -> bool:
    """Whether another study of the patient can be compared with this one, and was made on an earlier day."""
    same_part = None in (other.body_part, study.body_part) or other.body_part == study.body_part
    if other.day is None or study.day is None or other.modality != study.modality or not same_part:
        return False
    return other.day < study.day


def make_sample(
    study: StudyImages, previous: StudyImages | None, max_images: int, source: str, license: str | None
) -> Sample:
    """Images with their labels, then the question: for the report, or, without one, for the modality."""
    images, labels = (study.images, study.labels) if previous is None else with_previous(study, previous, max_images)
    prefix = "请" if previous is None else COMPARISON
    if study.texts is None:
        question, answer = MODALITY_QUESTION, MODALITY_ANSWERS.get(study.modality, "其他检查")
    elif study.texts[0] and study.texts[1]:
        question, answer = REPORT_QUESTION, f"检查所见：{study.texts[0]}\n诊断意见：{study.texts[1]}"
    else:
        question, answer = (
            (FINDINGS_QUESTION, study.texts[0]) if study.texts[0] else (IMPRESSION_QUESTION, study.texts[1])
        )
    return Sample(
        sample_id=f"study-{study.study}",
        kind="report" if study.texts else "vqa",
        image_ids=images,
        messages=(user_with_labels(labels, question.replace("请", prefix, 1)), assistant(answer)),
        answer_type=None if study.texts else "open",
        question_type=None if study.texts else "modality",
        lang="zh",
        source=source,
        group=study.patient,
        license_tier=license_tier(license),
    )


def with_previous(
    study: StudyImages, previous: StudyImages, max_images: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(images, labels) of the previous study, then of this one; each gets half of the images, if both need as many."""
    assert study.day is not None, "is_earlier compares known days"
    assert previous.day is not None, "is_earlier compares known days"
    num_previous = min(len(previous.images), max(max_images // 2, max_images - len(study.images), 1))
    num_current = min(len(study.images), max(max_images - num_previous, 1))
    images: list[str] = []
    labels: list[str] = []
    for part, count, time in (
        (previous, num_previous, f"既往（{study.day - previous.day}天前）"),
        (study, num_current, "本次 "),
    ):
        for index in choose_slices(len(part.images), count):
            images.append(part.images[index])
            labels.append((time + part.labels[index]).strip())
    return tuple(images), tuple(labels)
