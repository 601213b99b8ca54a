"""Compound figures: captions split at panel letters, images at gutters; both stay whole where that is not certain."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from qilin.imaging.panel_captions import panel_mismatch, split_caption
from qilin.imaging.panels import split_image

SPLIT = [
    ("Chest CT. (A) Axial view. (B) Coronal view.", "Chest CT.", ["A", "B"]),
    ("(a) Axial view; (b) coronal view; and (c) sagittal view.", "", ["A", "B", "C"]),
    ("Liver. A, SDS-PAGE profile. B, Western blot result.", "Liver.", ["A", "B"]),
    ("Knee. (A, B) MRI before surgery. (C) MRI after surgery.", "Knee.", ["A", "B", "C"]),
    ("Knee. (A–C) MRI before surgery. (D) MRI after surgery.", "Knee.", ["A", "B", "C", "D"]),
    ("Brain. A) First slice shown. B) Second slice shown.", "Brain.", ["A", "B"]),
    ("胸部CT。（A）轴位图像显示结节。（B）冠状位图像显示结节。", "胸部CT。", ["A", "B"]),
]


@pytest.mark.parametrize(("caption", "lead", "names"), SPLIT)
def test_captions_that_split(caption: str, lead: str, names: list[str]) -> None:
    split = split_caption(caption)
    assert split.reason_not_split is None
    assert (split.lead, [name for name, _ in split.panels]) == (lead, names)


AS_WRITTEN = [
    ("Fig. 2. (A-C) Axial CT of the hip and (D) coronal view.", "Fig. 2.",
     ["A Axial CT of the hip", "B Axial CT of the hip", "C Axial CT of the hip", "D coronal view."]),
    ("(A through C) Axial CT slices. (D) Sagittal slice.", "",
     ["A Axial CT slices.", "B Axial CT slices.", "C Axial CT slices.", "D Sagittal slice."]),
    ("A and B, Axial CT of the pelvis. C, Coronal MRI.", "",
     ["A Axial CT of the pelvis.", "B Axial CT of the pelvis.", "C Coronal MRI."]),
    ("A. Axial T2-weighted MRI. B. Sagittal MRI.", "", ["A Axial T2-weighted MRI.", "B Sagittal MRI."]),
    ("Ankle MRI. a, b axial images; c coronal image", "Ankle MRI.",
     ["A axial images", "B axial images", "C coronal image"]),
    ("Panel A: chest radiograph. Panel B: chest CT.", "", ["A chest radiograph.", "B chest CT."]),
    ("(1A) CT of the orbit. (1B) MRI of the orbit.", "", ["A CT of the orbit.", "B MRI of the orbit."]),
    ("图3 肾脏CT。A：平扫；B：皮质期；C：排泄期", "图3 肾脏CT。", ["A 平扫", "B 皮质期", "C 排泄期"]),
    ("A、B为矢状位MRI，C为冠状位重建", "", ["A 矢状位MRI", "B 矢状位MRI", "C 冠状位重建"]),
    ("注：A为术前；B为术后", "", ["A 术前", "B 术后"]),
    ("图A示胸椎骨折，图B示椎管狭窄", "", ["A 胸椎骨折", "B 椎管狭窄"]),
    ("1A～1C：CT平扫示低密度影；1D：增强扫描", "",
     ["A CT平扫示低密度影", "B CT平扫示低密度影", "C CT平扫示低密度影", "D 增强扫描"]),
    ("轴位（a）和矢状位（b）MRI图像", "", ["A 轴位MRI图像", "B 矢状位MRI图像"]),
    ("脾脏CT（A）和MR（B、C）", "脾脏", ["A CT", "B MR", "C MR"]),
    ("左图：术前CT；右图：术后CT", "", ["left 术前CT", "right 术后CT"]),
    ("Thigh CT (A) and MR (B, C).", "Thigh", ["A CT", "B MR", "C MR"]),
    ("MRI of the knee with a cyst, sagittal (a) and axial (b). Arrow: cyst.", "MRI of the knee with a cyst,",
     ["A sagittal", "B axial"]),
    ("Coronal (A) and sagittal (B) MRI of the wrist.", "",
     ["A Coronal MRI of the wrist.", "B sagittal MRI of the wrist."]),
    ("CT of the neck (a), and MRI of the spine (b).", "", ["A CT of the neck", "B MRI of the spine"]),
    ("(A, C) Axial CT. (B, D) Coronal CT.", "", ["A Axial CT.", "B Coronal CT.", "C Axial CT.", "D Coronal CT."]),
    ("A: frontal radiograph B: lateral radiograph", "", ["A frontal radiograph", "B lateral radiograph"]),
    ("Chest. Left: CT before surgery. Right: CT after surgery.", "Chest.",
     ["left CT before surgery.", "right CT after surgery."]),
]  # fmt: skip


@pytest.mark.parametrize(("caption", "lead", "panels"), AS_WRITTEN)
def test_captions_as_authors_write_them(caption: str, lead: str, panels: list[str]) -> None:
    split = split_caption(caption)
    assert (split.lead, [f"{name} {text}" for name, text in split.panels]) == (lead, panels)


@pytest.mark.parametrize(
    "caption",
    [
        "CT (A) and MRI (B) show a mass.",  # the verb is about both
        "CT (A, B) of the neck and histology (C).",
        "Axial CT (A) shows a nodule (B).",
        "Thigh CT (A) and swelling (B).",
        "Left: OCT of the left eye. Right: OCT of the right eye.",  # sides of the body, perhaps
        "(A, C) Axial CT here. (B, D) Coronal CT here. (C) Again the first.",
        "(A) Axial CT here. (C) Coronal CT here.",
        "A 60-year-old woman with a mass. B cells were seen on histology.",
        "Vitamin A: low in the serum. Hepatitis B: positive in the serum.",
        "Patient A: no lesion on CT. Patient B: large lesion on CT.",
        "(A) Axial CT. The nodule of (B) is seen. (C) Coronal CT.",
        "A组为对照组，B组为治疗组",
        "B超显示结节，A型血",
        "左图：左肾CT；右图：右肾CT",
    ],
)
def test_captions_whose_panels_are_not_certain_stay_whole(caption: str) -> None:
    split = split_caption(caption)
    assert not split.panels
    assert split.reason_not_split


def test_left_and_right_must_be_side_by_side() -> None:
    caption = split_caption("Left: CT before surgery. Right: CT after surgery.")
    assert panel_mismatch(caption, [(0, 0, 50, 50), (60, 0, 110, 50)]) is None
    assert panel_mismatch(caption, [(0, 0, 50, 50), (0, 60, 50, 110)]) == "the tiles are not left and right"


NOT_SPLIT = [
    ("An axial CT.", "no panel letters"),
    ("Levels for TSH (A) and GPH (B) in the gland.", "letters do not start the text of a panel"),
    ("Masses of A, LipH; B, LipN and C, LipY. D, spectra before and after.", "letters are not A, B, C in order"),
    ("CT. (B) Axial view here. (C) Coronal view here.", "letters are not A, B, C in order"),
    ("CT. (A) Axial view. (B) Coronal view with the vein (C).", "a letter is mentioned that starts no text"),
    ("CT. (A) Axial view. (B) no.", "a panel has no text of its own"),
]


@pytest.mark.parametrize(("caption", "reason"), NOT_SPLIT)
def test_captions_that_stay_whole(caption: str, reason: str) -> None:
    assert split_caption(caption).reason_not_split == reason


def scan(side: int) -> Image.Image:
    """A grey square with a bright disc: a filled tile."""
    tile = Image.new("RGB", (side, side), (90, 90, 90))
    ImageDraw.Draw(tile).ellipse((side // 4, side // 4, side // 2, side // 2), fill=(220, 220, 220))
    return tile


def grid(rows: int, columns: int, gutter: int, ground: str, side: int = 120) -> Image.Image:
    page = Image.new("RGB", (columns * (side + gutter) - gutter, rows * (side + gutter) - gutter), ground)
    for place in range(rows * columns):
        page.paste(scan(side), ((place % columns) * (side + gutter), (place // columns) * (side + gutter)))
    return page


@pytest.mark.parametrize("ground", ["white", "black"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (2, 1), (2, 3)])
def test_images_split_at_gutters_in_reading_order(rows: int, columns: int, ground: str) -> None:
    boxes = split_image(grid(rows, columns, 6, ground))
    assert boxes == [(c * 126, r * 126, c * 126 + 120, r * 126 + 120) for r in range(rows) for c in range(columns)]


def textured(width: int, height: int, seed: int) -> Image.Image:
    """A filled tile with structure up to its edges, as a radiograph or a smear."""
    pattern = np.random.default_rng(seed).integers(20, 235, (6, 6), dtype=np.uint8)
    return Image.fromarray(pattern).resize((width, height), Image.Resampling.BICUBIC).convert("RGB")


@pytest.mark.parametrize(("gutter", "ground"), [(0, "white"), (1, "white"), (2, "black"), (6, "gray"), (6, "white")])
def test_tiles_that_abut_and_thin_or_gray_gutters(gutter: int, ground: str) -> None:
    """A tall tile beside two, and letters inside the tiles."""
    page = Image.new("RGB", (300 + gutter, 240 + gutter), ground)
    half, right = 120, 160 + gutter
    tiles = [
        (0, 0, 160, 240 + gutter),
        (right, 0, 300 + gutter, half),
        (right, half + gutter, 300 + gutter, 240 + gutter),
    ]
    for seed, (x0, y0, x1, y1) in enumerate(tiles):
        tile = textured(x1 - x0, y1 - y0, seed)
        ImageDraw.Draw(tile).text((5, 3), "ABC"[seed], fill="white", font_size=18)
        page.paste(tile, (x0, y0))
    boxes = split_image(page)
    assert len(boxes) == 3
    offsets = [abs(a - b) for box, tile in zip(boxes, tiles, strict=True) for a, b in zip(box, tile, strict=True)]
    assert max(offsets) <= 2
    assert len(split_image(textured(300, 240, 9))) == 1  # control


def test_a_table_and_a_margin_are_not_boundaries() -> None:
    table = Image.new("RGB", (300, 300))
    table.paste(textured(220, 160, 1), (40, 20))
    ImageDraw.Draw(table).line((0, 200, 299, 200), fill=(200, 200, 200), width=3)
    assert len(split_image(table)) == 1
    film = Image.new("RGB", (300, 300), (230, 230, 230))  # the edge of a collimator
    film.paste(textured(270, 300, 2), (0, 0))
    assert len(split_image(film)) == 1


def test_images_without_a_certain_gutter_stay_whole() -> None:
    assert split_image(scan(200)) == [(0, 0, 200, 200)]
    dark = Image.new("RGB", (300, 200))  # two bright organs on the empty ground of a radiograph
    for left in (20, 180):
        ImageDraw.Draw(dark).ellipse((left, 20, left + 100, 180), fill="white")
    assert len(split_image(dark)) == 1
    chart = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(chart).line((20, 180, 280, 180), fill="black")
    ImageDraw.Draw(chart).line((20, 20, 20, 180), fill="black")
    assert len(split_image(chart)) == 1
    assert len(split_image(Image.new("L", (1, 1)))) == 1


def dark(side: int) -> Image.Image:
    """A bright disc on black: an image without an edge."""
    tile = Image.new("RGB", (side, side))
    ImageDraw.Draw(tile).ellipse((side // 4, side // 5, side // 2, side // 2), fill=(220, 220, 220))
    return tile


def test_dark_tiles_are_found_by_the_edges_of_the_others() -> None:
    page = Image.new("RGB", (3 * 120 + 2 * 10, 250))
    for place, tile in enumerate((scan(120), dark(120), dark(120), dark(120), dark(120), scan(120))):
        page.paste(tile, ((place % 3) * 130, (place // 3) * 130))
    grid_of_six = [(c * 130, r * 130, c * 130 + 120, r * 130 + 120) for r in range(2) for c in range(3)]
    assert split_image(page) == grid_of_six
    alone = Image.new("RGB", (250, 120))
    alone.paste(dark(120), (0, 0))
    alone.paste(dark(120), (130, 0))
    assert len(split_image(alone)) == 1  # no edge at all: it could be one image of two things


def test_unequal_dark_tiles_and_screens_stay_whole() -> None:
    uneven = Image.new("RGB", (120 + 10 + 200, 120))  # where the dark one begins cannot be known
    uneven.paste(scan(120), (0, 0))
    uneven.paste(dark(120), (210, 0))
    assert len(split_image(uneven)) == 1
    knees = Image.new("RGB", (400, 300))
    for left in (0, 210):
        ImageDraw.Draw(knees).ellipse((left, 5, left + 189, 295), fill=(120, 120, 120))
    assert len(split_image(knees)) == 1
    screen = Image.new("RGB", (400, 400))
    ImageDraw.Draw(screen).rectangle((0, 0, 399, 60), fill=(90, 90, 90))
    screen.paste(scan(300).resize((400, 300)), (0, 80))
    assert len(split_image(screen)) == 1


def body(side: int) -> Image.Image:
    """A dark image with wide black margins, as a CT's."""
    tile = Image.new("RGB", (side, side))
    ImageDraw.Draw(tile).ellipse((side // 5, side // 4, 4 * side // 5, 3 * side // 4), fill=(120, 120, 120))
    return tile


def test_a_dark_image_beside_an_edge_is_a_tile_of_any_width() -> None:
    page = Image.new("RGB", (120 + 10 + 160 + 10 + 90, 160))
    page.paste(scan(160).resize((120, 160)), (0, 0))
    page.paste(body(160), (130, 0))
    page.paste(scan(160).resize((90, 160)), (300, 0))
    first, dark_one, last = split_image(page)
    assert (first, last) == ((0, 0, 120, 160), (300, 0, 390, 160))
    assert first[2] < dark_one[0] <= 130 + 160 // 5  # its own margin or the gutter: undecidable, and nothing is cut off
    assert 130 + 4 * 160 // 5 <= dark_one[2] < last[0]


def test_text_and_scales_beside_an_edge_are_not_tiles() -> None:
    words = Image.new("RGB", (400, 300))
    words.paste(scan(300).resize((280, 300)), (0, 0))
    for row in range(4):
        ImageDraw.Draw(words).text((300, 20 + 70 * row), "W 350 L 40", fill="white", font_size=14)
    assert len(split_image(words)) == 1
    scale = Image.new("RGB", (400, 300))
    scale.paste(scan(300).resize((280, 300)), (120, 0))
    ImageDraw.Draw(scale).rectangle((20, 10, 34, 290), fill="white")
    assert len(split_image(scale)) == 1
    two = Image.new("RGB", (130 + 300, 150))  # a tile and two dark ones, or one image of two things
    two.paste(scan(150).resize((120, 150)), (0, 0))
    two.paste(body(150), (130, 0))
    two.paste(body(150), (280, 0))
    assert len(split_image(two)) == 1
    page = Image.new("RGB", (320, 170), "white")  # a dark image's margin on a white page
    page.paste(scan(150), (5, 10))
    page.paste(body(150), (165, 10))
    assert split_image(page)[1][0] == 165


def test_panels_and_tiles_must_agree() -> None:
    caption = split_caption("CT. (A) Axial view. (B) Coronal view.")
    assert panel_mismatch(caption, split_image(grid(1, 2, 6, "white"))) is None
    assert panel_mismatch(caption, split_image(grid(1, 3, 6, "white"))) == "the caption has 2 panels, the image 3 tiles"
    assert panel_mismatch(split_caption("CT."), [(0, 0, 1, 1)]) == "no panel letters"
