"""What becomes of every file of public test collections: an image on a contact sheet to look at, or a reason.

In: folders, as NAME=FOLDER (those of the packages pydicom and nibabel are always among them), and a folder for the
sheets. Out: bench/results/dicom_outcomes.json, a line per file, and PNG sheets of numbered thumbnails: of each file
the first, middle and last frame, through the window that an import uses.

    python bench/imaging/outcomes.py SHEETS shared=FOLDER pydicom-data=FOLDER
"""

import argparse
import hashlib
import io
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import pydicom
from PIL import Image, ImageDraw

from qilin.imaging.dicom import DicomImage
from qilin.imaging.errors import ImageError
from qilin.imaging.medical import open_medical
from qilin.imaging.windowing import render

SIDE, COLUMNS, ROWS = 180, 9, 6
NOT_READ = {".py", ".pyc", ".m", ".md", ".txt", ".rst", ".json", ".csv", ".cfg", ".html", ".dic"}


def sources(arguments: list[str]) -> Iterator[tuple[str, Path, Path]]:
    """(name of the source, its folder, a file)."""
    folders = dict(argument.split("=", 1) for argument in arguments)
    folders["pydicom"] = str(Path(pydicom.__file__).parent / "data")
    folders["nibabel"] = str(Path(nibabel.__file__).parent)
    for name, folder in sorted(folders.items()):
        for path in sorted(Path(folder).rglob("*")):
            is_volume = path.suffix == ".nii" or path.name.endswith(".nii.gz")
            if not path.is_file() or path.suffix.lower() in NOT_READ or "__pycache__" in path.parts:
                continue
            if name != "nibabel" or is_volume or "dicom" in str(path):
                yield name, Path(folder), path


def outcome(data: bytes) -> tuple[dict[str, Any], list[Image.Image]]:
    """(the row of a file, its frames as images)."""
    try:
        image = open_medical(data)
        indices = sorted({0, image.count // 2, image.count - 1})
        frames = [image.frame(index) for index in indices]
        images = [render(frame).convert("RGB") for frame in frames]
    except ImageError as error:
        return {"refused": str(error)}, []
    row: dict[str, Any] = {"kind": image.kind, "modality": image.modality, "frames": image.count}
    row["size"] = "x".join(map(str, images[0].size))
    if isinstance(image.source, DicomImage):
        dataset = image.source.dataset
        row["syntax"] = str(dataset.file_meta.TransferSyntaxUID)
        row["pixels"] = f"{dataset.get('PhotometricInterpretation')} {dataset.get('BitsStored')} bits"
    return row, images


def write_sheets(cells: list[tuple[str, Image.Image]], folder: Path) -> int:
    """Sheets of COLUMNS x ROWS thumbnails with their numbers; returns how many."""
    per_sheet = COLUMNS * ROWS
    for start in range(0, len(cells), per_sheet):
        sheet = Image.new("RGB", (COLUMNS * SIDE, ROWS * (SIDE + 12)), (40, 40, 70))
        draw = ImageDraw.Draw(sheet)
        for index, (label, image) in enumerate(cells[start : start + per_sheet]):
            left, top = index % COLUMNS * SIDE, index // COLUMNS * (SIDE + 12)
            image.thumbnail((SIDE - 4, SIDE - 4))
            sheet.paste(image, (left, top + 12))
            draw.text((left + 1, top), label, fill=(255, 255, 0))
        sheet.save(folder / f"sheet-{start // per_sheet:02d}.png")
    return -(-len(cells) // per_sheet)


def main() -> None:
    from write_result import write_result

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sheets", type=Path)
    parser.add_argument("folders", nargs="*")
    options = parser.parse_args()
    options.sheets.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    cells: list[tuple[str, Image.Image]] = []
    seen: dict[str, str] = {}
    for name, folder, path in sources(options.folders):
        data = path.read_bytes()
        row: dict[str, Any] = {"n": len(rows), "source": name, "file": str(path.relative_to(folder))}
        digest = hashlib.sha256(data).hexdigest()
        if digest in seen:
            rows.append(row | {"same_as": seen[digest]})
            continue
        seen[digest] = row["file"]
        result, images = outcome(data)
        rows.append(row | result)
        for image in images:
            buffer = io.BytesIO()  # thumbnails of large images only
            image.thumbnail((SIDE, SIDE))
            image.save(buffer, "PNG")
            cells.append((f"{row['n']} {row['source'][:3]} {result['modality']} {row['file'][-16:]}", image))
    num_sheets = write_sheets(cells, options.sheets)
    refused = Counter(row["refused"] for row in rows if "refused" in row)
    result = {
        "files": len(rows),
        "copies": sum("same_as" in row for row in rows),
        "images": sum("kind" in row for row in rows),
        "refused": dict(refused.most_common()),
        "sheets": num_sheets,
        "rows": [" | ".join(f"{key} {value}" for key, value in row.items() if key != "n") for row in rows],
    }
    write_result("dicom_outcomes", "python bench/imaging/outcomes.py SHEETS shared=FOLDER pydicom-data=FOLDER", result)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
