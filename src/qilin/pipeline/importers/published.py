"""Published data sets whose layout is no plain table: conversations under other names, reports, papers, figure rows.

In: the folder or file as it is downloaded. Out: rows. Whose reading of each layout this follows stands in LAYOUTS.
"""

import csv
import dataclasses
import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.import_rows import CAPTION_INSTRUCTION, ImageFile, ImportRow, RejectedRow
from qilin.dataset.schema import assistant, user
from qilin.imaging.archive_paths import crop_path, read_path_or_member
from qilin.imaging.decode import ImageError, to_rgb
from qilin.imaging.panel_captions import SplitCaption, panel_mismatch
from qilin.imaging.panels import split_image
from qilin.pipeline.execution.sharded_map import DONE, shard_path, read_shards, read_step_record
from qilin.pipeline.importers import llava
from qilin.pipeline.importers.column_maps import SPLITS, Map, article_of, bases_of, files_of, lang_of, samples
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.table_files import check_file, read_rows
from qilin.pipeline.pubmed.image_lookup import resolve

LAYOUTS = {
    "chimed-vl": "unverified: no public reader of the released files was found, so both usual forms are recognised",
    "pubmedvision": "unverified: LLaVA conversations with a list of images and no marks, as its users read it; the "
    "page of a re-export names its fields (id, image, conversations, modality, body_part)",
    "llava-med": "microsoft/LLaVA-Med, llava/data/download_images.py (pair_id.jpg), and readers of its conversations",
    "pmc-inline": "chaoyi-wu/RadFM, src/Dataset/dataset/paper_inline.py (sentences with text and img_ref)",
    "iu-xray": "public readers of R2Gen's annotation.json (id, report, image_path, split)",
    "mimic-cxr-jpg": "unverified: folders and tables as the project's own page describes them",
    "roco": "razorx89/roco-dataset: data/*/radiology with captions.txt, licences.txt, and scripts/fetch.py",
    "figures": "qilin data figures",
}


# --- conversations ---------------------------------------------------------------------------------------------------

TYPO = "conversatons"  # so it stands in LLaVA-Med's alignment file


def talk_inputs(config: ImportConfig) -> list[Path]:
    return [check_file(config.source, "the JSON or JSONL file of conversations")]


def pubmedvision(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Conversations whose images have no marks, in English or Chinese."""
    yield from talks(config, lambda row: (row.get("modality"), row.get("body_part")))


def llava_med(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Conversations with the domains that apply marked true."""

    def domain(row: Mapping[str, Any]) -> tuple[str | None, None]:
        domains = row.get("domain")
        named = [name for name, is_so in domains.items() if is_so] if isinstance(domains, dict) else []
        return (named[0] if len(named) == 1 else None), None

    yield from talks(config, domain)


def talks(config: ImportConfig, about: Any) -> Iterator[ImportRow | RejectedRow]:
    """LLaVA's conversations with what the row says of its images; marks that are missing go first."""
    (path,) = talk_inputs(config)
    with_marks = dataclasses.replace(config, name="llava", add_missing_marks=True)
    for number, found in read_rows(path):
        if isinstance(found, RejectedRow):
            yield found
            continue
        if TYPO in found:
            found = {"conversations": found[TYPO], **found}
        made = llava.conversation(found, number, with_marks)
        if isinstance(made, RejectedRow):
            yield made
            continue
        modality, part = about(found)
        images = tuple(
            dataclasses.replace(looked_for(file, path, config), modality=modality, body_part=part)
            for file in made.images
        )
        words = " ".join(str(turn.get("value")) for turn in found["conversations"])
        name = f"{path.stem}-{number}-{found.get('id', '')}".rstrip("-")
        group = article_of(images[0].name) if images else ""
        yield dataclasses.replace(made, sample_id=name, images=images, lang=lang_of(words), group=group)


def looked_for(file: ImageFile, table: Path, config: ImportConfig) -> ImageFile:
    where = resolve(file.name, bases_of(config, table.parent, ("", "images")), config.pmc)
    return dataclasses.replace(file, path=where.path, whole=where.whole)


# The names that an image, a caption, a question and an answer go by; the first that is there counts.
IMAGE = ("image", "images", "img", "image_path", "image_name", "picture", "图片")
PLAIN = {
    "caption": ("caption", "text", "description", "report", "描述"),
    "context": ("context", "背景"),
    "inline": ("inline", "inline_text"),
}
QUESTION = ("question", "instruction", "query", "prompt", "input", "问题")
ANSWER = ("answer", "response", "output", "回答", "答案")


def chimed_vl(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """The released files, in whichever usual form. Raises UserError, naming the fields found, for any other."""
    (path,) = talk_inputs(config)
    rows = (row for _, row in read_rows(path) if not isinstance(row, RejectedRow))
    first = next(rows, {})
    if "conversations" in first or TYPO in first:
        yield from talks(config, lambda row: (row.get("modality"), row.get("body_part")))
        return
    made = plain_map(set(first))
    if made is None:
        raise UserError(
            f"{path}: its rows have the fields {', '.join(map(str, first)) or 'none'}; expected `conversations`, or a "
            f"image ({', '.join(IMAGE)}) with a text ({', '.join(PLAIN['caption'])}) or a question and an answer; "
            "`qilin data import folder` takes any table whose columns you name"
        )
    told: set[tuple[str, ...]] = set()
    for number, found in read_rows(path):
        if isinstance(found, RejectedRow):
            yield found
        else:
            yield from samples(found, f"{path.stem}-{number}", path, made, config, told)


def plain_map(fields: set[str]) -> Map | None:
    """The map of rows with these fields, where they name an image and something to learn."""

    def named(names: tuple[str, ...]) -> str:
        return next((f"{{{name}}}" for name in names if name in fields), "")

    texts = {kind: named(names) for kind, names in PLAIN.items() if named(names)}
    question, answer = named(QUESTION), named(ANSWER)
    if not named(IMAGE) or not (texts or (question and answer)):
        return None
    asked = (question, answer) if question and answer else ("", "")
    return Map("", (), named(IMAGE), id=named(("id",)), texts=texts, question=asked[0], answer=asked[1])


# --- papers and figures ----------------------------------------------------------------------------------------------


def pmc_inline_inputs(config: ImportConfig) -> list[Path]:
    return files_of(config, ("PMC*.json", "*/PMC*.json"), "PMC-Inline's files, one a paper (PMC123.json)")


def pmc_inline(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Each sentence that names figures, with their images."""
    for path in pmc_inline_inputs(config):
        for number, found in read_rows(path):
            if isinstance(found, RejectedRow):
                yield found
            elif found.get("img_ref"):
                names = [f"{path.stem}_{reference}.jpg" for reference in found["img_ref"]]
                bases = bases_of(config, path.parent, ("", "../figures", "../images"))
                yield told_row("inline", f"{path.stem}-{number}", names, str(found.get("text") or ""), config, bases)


def told_row(
    kind: str, name: str, names: list[str], text: str, config: ImportConfig, bases: tuple[Path, ...], *,
    group: str = "", split: str | None = None, licence: str | None = None,
) -> ImportRow | RejectedRow:  # fmt: skip
    """A text about images that are named. `licence`: its own, where the source says one."""
    if not text.strip():
        return RejectedRow({"id": name, "images": names}, "empty text")
    said = licence or config.license
    where = [resolve(n, bases, config.pmc) for n in names]
    files = tuple(ImageFile(w.path, n, license=said, whole=w.whole) for n, w in zip(names, where, strict=True))
    return caption_row(kind, name, files, text, group or article_of(names[0]), said, split)


def caption_row(
    kind: str, name: str, images: tuple[ImageFile, ...], text: str, group: str, licence: str | None,
    split: str | None = None,
) -> ImportRow:  # fmt: skip
    messages = (user(CAPTION_INSTRUCTION, images=len(images)), assistant(text.strip()))
    known: Any = kind
    return ImportRow(name, known, images, messages, lang=lang_of(text), group=group, split=split, license=licence)


def figure_inputs(config: ImportConfig) -> list[Path]:
    """The pieces of `qilin data figures`."""
    pieces = read_step_record(config.source)["made_by"]["pieces"]
    return [config.source / DONE, *(shard_path(config.source, "rows", number) for number in range(pieces))]


def figures(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Rows of figures as captions, panels, mentions and contexts; unsure ones only where asked for."""
    if config.images is None:
        raise UserError("--images is needed: the folder of articles that the figures were read from")
    for row in read_shards(config.source):
        if row["medical"] == "unsure" and not config.unsure:
            yield RejectedRow(row, f"unsure whether it is medical (--unsure takes it): {row['reason']}")
        else:
            yield from figure_rows(row, config)


def figure_rows(row: Mapping[str, Any], config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    folder = (config.images or config.source) / Path(row["file"]).parent
    lent = row["license_tier"] == "restricted" and row["credit"]
    licence = f"restricted: {row['credit']}" if lent else row["license"] or config.license
    names = [forms[0] for forms in row["images"]]
    paths = [next((w.path for form in forms if (w := resolve(form, (folder,))).path.exists()), folder / forms[0])
             for forms in row["images"]]  # fmt: skip
    files = tuple(
        ImageFile(
            path, f"{row['article']}/{name}", row["modality"], row["body_part"], licence,
            url=f"https://doi.org/{row['doi']}" if row["doi"] else None,
            attribution=f"{row['title']}, {row['journal']}",
        )
        for path, name in zip(paths, names, strict=True)
    )  # fmt: skip
    made = 0
    texts = {"caption": [row["caption"]], "inline": [" ".join(row["mentions"])], "context": ["\n".join(row["context"])]}
    for kind, (text,) in texts.items():
        if text:
            made += 1
            yield caption_row(kind, f"{row['row_id']}-{kind}", files, text, row["article"], licence)
    for letter, words, file in panels_of(row, files):
        yield caption_row("caption", f"{row['row_id']}-{letter}", (file,), words, row["article"], licence)
    if not made:
        yield RejectedRow(row, "has neither caption nor mention")


def panels_of(row: Mapping[str, Any], files: tuple[ImageFile, ...]) -> Iterator[tuple[str, str, ImageFile]]:
    """(letter, words, part of the image) of each panel, where caption and image divide alike."""
    division = SplitCaption(row["panels"]["lead"], tuple(map(tuple, row["panels"]["parts"])), row["panels"]["doubt"])
    if division.reason_not_split or len(files) != 1:
        return
    try:
        boxes = split_image(to_rgb(read_path_or_member(files[0].path)))
    except ImageError:
        return  # the whole figure's rows are refused for it
    if panel_mismatch(division, boxes) is None:
        for (letter, words), box in zip(division.panels, boxes, strict=True):
            part = dataclasses.replace(files[0], path=crop_path(files[0].path, box), name=f"{files[0].name}#{letter}")
            yield letter, f"{division.lead} {words}".strip(), part


# --- reports and captions -------------------------------------------------------------------------------------------


def iu_inputs(config: ImportConfig) -> list[Path]:
    return files_of(config, ("annotation.json",), "annotation.json of IU X-ray, or the folder that holds it")


def iu_xray(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """{"train": [{"id", "report", "image_path": [...]}], "val": ..., "test": ...}"""
    (path,) = iu_inputs(config)[:1]
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
        rows = [(split, row) for split, items in splits.items() for row in items]
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: expected an object of lists, train, val and test ({error})") from None
    for split, row in rows:
        names = [str(name) for name in row.get("image_path") or ()] if isinstance(row, dict) else []
        if not names:
            yield RejectedRow(row if isinstance(row, dict) else {"found": row}, "row without an image")
            continue
        # CXR2384_IM-0942: the first part is the patient
        patient = str(row.get("subject_id") or row.get("id")).partition("_")[0]
        yield told_row(
            "report", str(row.get("id")), names, str(row.get("report") or ""), config,
            bases_of(config, path.parent, ("images", "")), group=patient, split=SPLITS.get(split),
        )  # fmt: skip


def mimic_inputs(config: ImportConfig) -> list[Path]:
    found = sorted(config.source.rglob("mimic-cxr-2.*-split.csv*"))
    if not found:
        raise UserError(f"{config.source}: no mimic-cxr-2.*-split.csv there; expected MIMIC-CXR-JPG's own folder")
    return found[:1]


def mimic_cxr(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """One report a study with all its images; reports are those of MIMIC-CXR (files/p10/p1.../s5....txt)."""
    (path,) = mimic_inputs(config)
    base = config.images or config.source
    studies: dict[tuple[str, str, str], list[str]] = {}
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            key = (row["subject_id"], row["study_id"], row["split"])
            studies.setdefault(key, []).append(row["dicom_id"])
    for (subject, study, split), dicoms in studies.items():
        folder = Path("files") / f"p{subject[:2]}" / f"p{subject}"
        report = next((p for root in (config.source, base) if (p := root / folder / f"s{study}.txt").is_file()), None)
        if report is None:
            yield RejectedRow({"subject": subject, "study": study}, "report is missing")
            continue
        names = [(folder / f"s{study}" / f"{name}.jpg").as_posix() for name in dicoms]
        text = findings_of(report.read_text(encoding="utf-8", errors="replace"))
        yield told_row(
            "report", f"s{study}", names, text, config, (base,),
            group=f"p{subject}", split=SPLITS.get(split), licence=config.license or "PhysioNet DUA",
        )  # fmt: skip


def findings_of(report: str) -> str:
    """Findings and impression of a report; all of it where neither is headed."""
    parts: dict[str, list[str]] = {}
    head = ""
    for line in report.splitlines():
        name, colon, rest = line.strip().partition(":")
        if colon and name.isupper():
            head, line = name, rest
        parts.setdefault(head, []).append(line.strip())
    wanted = [" ".join(parts[name]).strip() for name in ("FINDINGS", "IMPRESSION") if name in parts]
    return " ".join(" ".join(wanted or [" ".join(lines) for lines in parts.values()]).split())


def roco_inputs(config: ImportConfig) -> list[Path]:
    found = sorted(config.source.rglob("radiology/captions.txt"))
    found = [path for path in found if path.parent.name == "radiology"]
    if not found:
        raise UserError(f"{config.source}: no radiology/captions.txt below it; expected ROCO's data folder")
    return found + sorted(path for file in found for path in file.parent.glob("licences.txt"))


def roco(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """captions.txt (id, tab, caption) of each split; licences.txt names image, article and licence."""
    for path in roco_inputs(config):
        if path.name != "captions.txt":
            continue
        licences: dict[str, tuple[str, str]] = {}
        if (listed := path.with_name("licences.txt")).is_file():
            with listed.open(encoding="utf-8", newline="") as lines:
                licences = {row["ROCO_ID"]: (row["PMC_ID"], row["CC"]) for row in csv.DictReader(lines)}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            name, tab, caption = line.partition("\t")
            if not tab:
                if line.strip():
                    yield RejectedRow({"row": number, "text": line}, "line without a tab between id and caption")
                continue
            source, licence = licences.get(name.strip(), (f"{name.strip()}.jpg", ""))
            licence = "" if licence.startswith("NO-CC") else licence
            bases = bases_of(config, path.parent, ("images",))
            split = SPLITS.get(path.parent.parent.name)
            yield told_row("caption", name.strip(), [source], caption, config, bases, split=split, licence=licence)
