"""Draws the color images (fundus photograph, blood smear, dermoscopy), and any scene by its kind.

In: a Scene, a random generator, a size. Out: a float canvas (size, size, 3); `draw_image` gives a Pillow image. In the
fundus the optic disc is on the image's right in a right eye and on its left in a left eye.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from qilin.demo.synthetic.drawing import (
    Canvas,
    add_noise,
    blend,
    blob,
    ellipse,
    finish,
    grid,
    jittered_grid,
    scatter_points,
    smooth_noise,
    soft_mask,
)
from qilin.demo.synthetic.grayscale import draw_abdomen, draw_chest, draw_head, get_finding
from qilin.demo.synthetic.scene import KIND_CYCLE, Scene, sample_scene

LESION = {"小": (0.13, 0.16), "中": (0.26, 0.30), "大": (0.43, 0.50)}


def blank(size: int, color: tuple[float, float, float]) -> Canvas:
    return np.broadcast_to(np.asarray(color, np.float32), (size, size, 3)).copy()


def draw_fundus(rng: np.random.Generator, scene: Scene, size: int) -> Canvas:
    """A fundus photograph, the macula near the middle."""
    x, y = grids = jittered_grid(rng, size, 0.7)
    half = 1 if scene.eye == "右眼" else -1
    tone = rng.uniform(-0.03, 0.03)
    canvas = blank(size, (0.86 + tone, 0.46 + tone * 0.6, 0.22))
    canvas *= (1.05 - 0.38 * (x * x + y * y) + 0.03 * smooth_noise(rng, size, 7))[..., None]
    disc_x, disc_y = half * 0.45, rng.uniform(-0.03, 0.03)
    blend(canvas, 0.42 * np.exp(-(((x + half * 0.12) ** 2 + y * y) / 0.035)), (0.52, 0.24, 0.12))  # macula
    blend(canvas, vessels(rng, size, half, disc_y), (0.58, 0.13, 0.10))
    blend(canvas, ellipse(x, y, disc_x, disc_y, 0.175, 0.195, 0.03), (0.97, 0.72, 0.40))
    cup = rng.uniform(0.76, 0.84) if get_finding(scene, "视盘凹陷扩大") else rng.uniform(0.28, 0.36)
    blend(canvas, ellipse(x, y, disc_x, disc_y, 0.175 * cup, 0.195 * cup, 0.025), (1.0, 0.97, 0.86))
    for name in ("硬性渗出", "视网膜出血"):
        spot = get_finding(scene, name)
        if spot:
            up = -1 if spot.location == "上方" else 1
            low, high = sorted((up * 0.24, up * 0.60))
            if name == "视网膜出血":
                for center in scatter_points(rng, spot.number or 1, (-0.46, low), (0.46, high), 0.34):
                    blob(rng, canvas, grids, center, rng.uniform(0.105, 0.12), (0.42, 0.0, 0.05), 0.025, roughness=0.12)
            else:
                cx, cy = rng.uniform(-0.35, 0.1) * half, up * rng.uniform(0.34, 0.5)
                for angle in rng.uniform(0, 6.28, 16):
                    at = (cx + np.cos(angle) * rng.uniform(0.03, 0.17), cy + np.sin(angle) * rng.uniform(0.03, 0.13))
                    blob(rng, canvas, grids, at, rng.uniform(0.02, 0.035), (1.0, 0.93, 0.42), 0.02)
    add_noise(rng, canvas, rng.uniform(0.01, 0.02))
    ox, oy = grid(size)
    return canvas * soft_mask(np.hypot(ox, oy) - 0.95, 0.03)[..., None]


def vessels(rng: np.random.Generator, size: int, half: int, disc_y: float) -> Canvas:
    """Four arcades that leave the disc, each with branches, as a mask (size, size)."""
    sheet = Image.new("L", (size, size), 0)
    brush = ImageDraw.Draw(sheet)

    def line(points: np.ndarray, width: float) -> None:
        pixels = (points + 1) / 2 * size
        brush.line(
            [(float(px), float(py)) for px, py in pixels], fill=255, width=max(1, round(width * size)), joint="curve"
        )

    t = np.linspace(0, 1, 14)
    for up in (-1, 1):
        for outward, reach, lift in ((-1, 1.25, 0.62), (1, 0.5, 0.75)):
            lift = lift * rng.uniform(0.9, 1.1)
            px = half * (0.45 + outward * reach * t)
            py = disc_y + up * lift * np.sqrt(t) * (1.0 - 0.25 * (outward < 0) * t)
            arc = np.stack([px, py], 1)
            line(arc, 0.017)
            for at in (3, 6, 9):
                lean = rng.uniform(0.2, 0.4)
                start = arc[at]
                tip = start + np.array([half * outward * lean, up * rng.uniform(-0.22, 0.35)])
                bend = (start + tip) / 2 + np.array([0, up * 0.04])
                line(np.stack([start, bend, tip]), 0.009)
    mask = np.asarray(sheet.filter(ImageFilter.GaussianBlur(size / 320)), np.float32)
    return mask / 255 * np.float32(0.6)


def draw_smear(rng: np.random.Generator, scene: Scene, size: int) -> Canvas:
    """A stained blood film under the microscope."""
    grids = grid(size)
    tone = rng.uniform(-0.03, 0.03)
    canvas = blank(size, (0.97 + tone, 0.93 + tone, 0.91))
    canvas += (0.012 * smooth_noise(rng, size, 6))[..., None]
    white = scatter_points(rng, scene.white_cells or 0, (-0.78, -0.78), (0.78, 0.70), 0.46)
    sickle = get_finding(scene, "镰状红细胞") is not None
    red = (0.88 + tone, 0.56 + tone, 0.56)
    for row in range(8):  # a loose lattice: a film of even thickness
        for col in range(8):
            cx = (col + 0.5 + 0.5 * (row % 2) - 0.25) / 4 - 1 + rng.uniform(-0.05, 0.05)
            cy = (row + 0.5) / 4 - 1 + rng.uniform(-0.05, 0.05)
            shape = rng.random()
            if any(np.hypot(cx - wx, cy - wy) < 0.30 for wx, wy in white) or rng.random() < 0.10:
                continue
            if sickle and shape < 0.5:
                crescent(rng, canvas, grids, (cx, cy))
                continue
            radius = rng.uniform(0.095, 0.11)
            blob(rng, canvas, grids, (cx, cy), radius, red, 0.02, roughness=0.03)
            blob(rng, canvas, grids, (cx, cy), radius * 0.42, (0.96, 0.80, 0.78), 0.07, strength=0.8)
    for wx, wy in white:
        blob(rng, canvas, grids, (wx, wy), 0.185, (0.80, 0.76, 0.90), 0.02, roughness=0.03)
        turn = rng.uniform(0, 6.28)
        for lobe in range(3):
            angle = turn + lobe * 1.6
            at = (wx + 0.07 * np.cos(angle), wy + 0.07 * np.sin(angle))
            blob(rng, canvas, grids, at, 0.078, (0.34, 0.16, 0.55), 0.02, roughness=0.05)
    many = get_finding(scene, "血小板增多") is not None
    for _ in range(int(rng.integers(45, 60) if many else rng.integers(2, 6))):
        at = (float(rng.uniform(-0.96, 0.96)), float(rng.uniform(-0.96, 0.96)))
        if all(np.hypot(at[0] - wx, at[1] - wy) > 0.22 for wx, wy in white):
            blob(rng, canvas, grids, at, rng.uniform(0.034, 0.044), (0.50, 0.26, 0.62), 0.02)
    add_noise(rng, canvas, rng.uniform(0.01, 0.02))
    return canvas


def crescent(
    rng: np.random.Generator, canvas: Canvas, grids: tuple[Canvas, Canvas], center: tuple[float, float]
) -> None:
    """Draw a sickle cell: a long thin arc."""
    x, y = grids
    size = x.shape[0]
    low_x, low_y = (int((v - 0.2 + 1) / 2 * size) for v in center)
    span = int(0.2 * size) + 2
    where = (slice(max(0, low_y), max(0, low_y + span)), slice(max(0, low_x), max(0, low_x + span)))
    turn = rng.uniform(0, 6.28)
    dx, dy = x[where] - np.float32(center[0]), y[where] - np.float32(center[1])
    u = np.cos(turn) * dx + np.sin(turn) * dy
    v = np.cos(turn) * dy - np.sin(turn) * dx - 2.6 * u * u + 0.03
    thick = np.float32(0.036) * np.sqrt(np.clip(1 - (u / 0.16) ** 2, 0, 1))
    blend(canvas[where], soft_mask(np.abs(v) - thick, 0.015) * (np.abs(u) < 0.16), (0.74, 0.30, 0.36))


def draw_skin(rng: np.random.Generator, scene: Scene, size: int) -> Canvas:
    """Skin under the dermoscope."""
    x, y = grids = grid(size)
    tone = rng.uniform(-0.05, 0.05)
    canvas = blank(size, (0.90 + tone, 0.71 + tone, 0.61 + tone))
    canvas += (0.022 * smooth_noise(rng, size, 40) + 0.02 * smooth_noise(rng, size, 5))[..., None]
    mole, cancer = get_finding(scene, "色素痣"), get_finding(scene, "黑色素瘤")
    if mole:
        radius = rng.uniform(*LESION[str(mole.size)])
        room = 0.62 if (mole.number or 1) > 1 else 0.12
        for center in scatter_points(rng, mole.number or 1, (-room, -room), (room, room), 2 * radius + 0.16):
            blob(rng, canvas, grids, center, radius, (0.58, 0.35, 0.21), 0.06, roughness=0.03)
            blob(rng, canvas, grids, center, radius * 0.6, (0.46, 0.26, 0.15), radius, roughness=0.02, strength=0.8)
    if cancer:
        radius = rng.uniform(*LESION[str(cancer.size)])
        at = (float(rng.uniform(-0.12, 0.12)), float(rng.uniform(-0.12, 0.12)))
        blob(rng, canvas, grids, at, radius, (0.33, 0.19, 0.14), 0.03, roughness=0.26)
        for color in ((0.08, 0.06, 0.07), (0.30, 0.33, 0.42), (0.55, 0.22, 0.20), (0.08, 0.06, 0.07)):
            turn, out = rng.uniform(0, 6.28), radius * rng.uniform(0.3, 0.6)
            patch = (at[0] + out * np.cos(turn), at[1] + out * np.sin(turn))
            blob(rng, canvas, grids, patch, radius * rng.uniform(0.3, 0.45), color, 0.05, roughness=0.2, strength=0.9)
    sheet = Image.new("L", (size, size), 0)
    brush = ImageDraw.Draw(sheet)
    for _ in range(int(rng.integers(0, 6))):  # hairs
        ends = rng.uniform(-0.2, 1.2, (2, 2)) * size
        bend = ends.mean(0) + rng.uniform(-0.1, 0.1, 2) * size
        brush.line([tuple(ends[0]), tuple(bend), tuple(ends[1])], fill=170, width=max(1, size // 160))
    blend(canvas, np.asarray(sheet, np.float32) / 255, (0.22, 0.15, 0.12))
    canvas *= (1.03 - 0.25 * np.clip(np.hypot(x, y) - 0.55, 0, 1))[..., None]
    add_noise(rng, canvas, rng.uniform(0.01, 0.02))
    return canvas


DRAW_FUNCTIONS = {
    "chest": draw_chest,
    "head": draw_head,
    "abdomen": draw_abdomen,
    "fundus": draw_fundus,
    "smear": draw_smear,
    "skin": draw_skin,
}


def draw_image(rng: np.random.Generator, scene: Scene, size: int = 224) -> Image.Image:
    """The image of a scene, size x size pixels, mode L or RGB. `size` is at least 96, for the watermark."""
    assert size >= 96, f"size is {size}; at least 96 is needed"
    return finish(rng, DRAW_FUNCTIONS[scene.kind](rng, scene, size))


def draw_sample(seed: int, index: int, size: int = 224) -> tuple[Scene, Image.Image]:
    """Scene and image number `index` of a seed."""
    rng = np.random.default_rng([seed, index])
    scene = sample_scene(rng, KIND_CYCLE[index % len(KIND_CYCLE)])
    return scene, draw_image(rng, scene, size)
