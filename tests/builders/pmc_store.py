"""A folder as `qilin data pmc` writes it, and a compound figure."""

import io
import json
from pathlib import Path

from PIL import Image, ImageDraw

from builders.import_sources import jpeg_bytes
from builders.jats import article, figure


def compound_figure() -> bytes:
    page = Image.new("RGB", (310, 150), "white")
    for column in range(2):
        tile = Image.new("RGB", (150, 150), (90 + 40 * column,) * 3)
        ImageDraw.Draw(tile).ellipse((30, 30, 80, 80), fill="white")
        page.paste(tile, (column * 160, 0))
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


def write_pmc_store(root: Path) -> Path:
    """A folder as `qilin data pmc` writes it, with two articles."""
    for number, image in ((11, "f1.png"), (12, "f1.jpg")):
        folder = root / "articles" / f"{number:03d}" / f"PMC{number}.1"
        folder.mkdir(parents=True)
        caption = "Chest CT. (A) Axial view. (B) Coronal view." if number == 11 else "Knee MRI."
        body = figure("F1", caption, image.partition(".")[0], "Fig. 1") + figure("F2", "The view.", "f2.jpg", "Fig. 2")
        (folder / f"PMC{number}.1.xml").write_bytes(article(body, pmcid=f"PMC{number}"))
        (folder / f"PMC{number}.1.json").write_text(json.dumps({"pmcid": f"PMC{number}", "pmid": 9000 + number}))
        (folder / image).write_bytes(compound_figure() if number == 11 else jpeg_bytes(3))
    return root
