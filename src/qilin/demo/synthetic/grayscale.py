"""Draws the grayscale images: chest radiograph, head CT, abdominal ultrasound.

In: a Scene, a random generator, a size. Out: a float canvas (size, size). In chest and head the patient's left is on
the image's right; in the ultrasound, a transverse view, the left lobe of the liver is on the image's right.
"""

import numpy as np

from qilin.demo.synthetic.drawing import (
    Canvas,
    add_noise,
    blend,
    blob,
    ellipse,
    grid,
    jittered_grid,
    scatter_points,
    smooth_noise,
    soft_mask,
)
from qilin.demo.synthetic.scene import Finding, Scene

NODULE = {"小": (0.06, 0.066), "中": (0.105, 0.115), "大": (0.165, 0.18)}
LESION = {"小": (0.09, 0.10), "中": (0.145, 0.16), "大": (0.215, 0.235)}
STONE = {"小": (0.044, 0.048), "中": (0.075, 0.082), "大": (0.125, 0.14)}
CYST = {"小": (0.07, 0.08), "中": (0.125, 0.135), "大": (0.20, 0.22)}


def image_half(side: str | None) -> int:
    """The half of the image that shows a side of the patient: -1 (left half) or 1 (right half)."""
    return 1 if side == "左侧" else -1


def get_finding(scene: Scene, name: str) -> Finding | None:
    """The finding of that name, or None."""
    return next((finding for finding in scene.findings if finding.finding == name), None)


def draw_chest(rng: np.random.Generator, scene: Scene, size: int) -> Canvas:
    """A frontal chest radiograph."""
    x, y = grids = jittered_grid(rng, size)
    wide = rng.uniform(0.94, 1.06)  # body build
    body = soft_mask(np.abs(x) - (0.93 - 0.22 * np.clip(-y - 0.55, 0, 1) * 2) * wide, 0.1)
    canvas = 0.03 + body * np.float32(0.52)
    lungs = {half: lung_mask(x, y, half, wide) for half in (-1, 1)}
    fields = lungs[-1] + lungs[1]
    blend(canvas, fields, 0.15)
    # Ribs: posterior bands slope outward and down, anterior bands the other way.
    across = np.abs(x)
    back = np.clip(np.cos((y - 0.35 * across**2 + 0.1) * 25), 0, 1) ** 2
    front = np.clip(np.cos((y + 0.55 * across + 0.1) * 19), 0, 1) ** 2
    canvas += fields * (0.06 * back + 0.035 * front * front) + 0.03 * back * body
    # Vessels: streaks that fan out from the hila and fade.
    for half in (-1, 1):
        dx, dy = x - np.float32(half * 0.2), y - 0.02
        angle = np.arctan2(dy, dx * half)
        reach = np.sqrt(dx * dx + dy * dy)
        streaks = np.clip(np.cos(angle * 11 + np.float32(rng.uniform(0, 6)) + 2 * reach), 0, 1) ** 2
        canvas += lungs[half] * streaks * np.float32(0.13) * np.exp(-reach * 3.2)
        blend(canvas, 0.5 * ellipse(x, y, half * 0.2, 0.02, 0.1, 0.17, 0.16), 0.5)
        collar = (y + 0.80 - 0.16 * np.abs(x)) / 0.04  # clavicle
        canvas += 0.13 * np.exp(-collar * collar) * soft_mask(np.abs(np.abs(x) - 0.42) - 0.3, 0.1) * 0.5
    blend(canvas, soft_mask(np.abs(x) - np.float32(0.13), 0.08) * body, 0.66)  # spine and mediastinum
    canvas += 0.05 * soft_mask(np.abs(x) - 0.07, 0.05) * np.cos(y * 34)  # vertebrae
    blend(canvas, soft_mask(np.hypot(x, (y + 1.0) * 0.6) - 0.05, 0.05) * 0.5, 0.3)  # trachea
    big = get_finding(scene, "心影增大") is not None
    heart = rng.uniform(0.42, 0.47) if big else rng.uniform(0.24, 0.275)
    blend(canvas, ellipse(x, y, 0.10 + 0.05 * big, 0.33, heart, 0.27 + 0.05 * big, 0.06), 0.74)
    draw_chest_findings(rng, scene, canvas, grids, lungs, wide)
    canvas += 0.02 * smooth_noise(rng, size, 9)
    add_noise(rng, canvas, rng.uniform(0.012, 0.028))
    return canvas


def lung_mask(x: Canvas, y: Canvas, half: int, wide: float) -> Canvas:
    """One lung: a tall rounded shape, cut below by the dome of the diaphragm."""
    dome = np.float32(0.56 - (half < 0) * 0.05) + 1.1 * (x - half * 0.45 * wide) ** 2  # the liver raises the right dome
    return soft_mask((lung_shape(x, y, half, wide) - 1) * 0.34, 0.05) * soft_mask(y - dome, 0.05)


def lung_shape(x: Canvas, y: Canvas, half: int, wide: float) -> Canvas:
    """Below 1 within the outline of one side of the chest."""
    u, v = (x - half * 0.45 * wide) / (0.34 * wide), (y + 0.02) / 0.78
    u, v = u * u, v * v
    return np.sqrt(np.sqrt(u * u + v * v + 0.6 * u * v))


def draw_chest_findings(
    rng: np.random.Generator,
    scene: Scene,
    canvas: Canvas,
    grids: tuple[Canvas, Canvas],
    lungs: dict[int, Canvas],
    wide: float,
) -> None:
    x, y = grids
    fluid = get_finding(scene, "胸腔积液")
    if fluid:
        for half in (-1, 1) if fluid.side == "双侧" else (image_half(fluid.side),):
            level = np.float32(rng.uniform(0.16, 0.28)) - 1.5 * np.clip(half * x - 0.35, 0, 1) ** 2  # higher outside
            chest = soft_mask((lung_shape(x, y, half, wide) - 1) * 0.34, 0.05) + soft_mask(0.45 - y, 0.2)
            chest = np.clip(chest, 0, 1) * soft_mask(np.abs(x - half * 0.45 * wide) - 0.34 * wide, 0.05)
            blend(canvas, soft_mask(level - y, 0.07) * chest * soft_mask(y - 0.85, 0.3), 0.78)
    air = get_finding(scene, "气胸")
    if air:
        half = image_half(air.side)
        lung_left = ellipse(
            x, y, half * 0.25, 0.12, 0.24, rng.uniform(0.42, 0.5), 0.03
        )  # the collapsed lung at the hilum
        blend(canvas, lungs[half] * (1 - lung_left), 0.02)
        edge = ellipse(x, y, half * 0.25, 0.12, 0.265, 0.49, 0.03) - ellipse(x, y, half * 0.25, 0.12, 0.24, 0.46, 0.03)
        blend(canvas, lungs[half] * lung_left * 0.6, 0.42)
        blend(canvas, lungs[half] * np.clip(edge, 0, 1) * 0.5, 0.6)
    nodule = get_finding(scene, "结节")
    if nodule:
        top = {"上肺野": -0.58, "中肺野": -0.16, "下肺野": 0.24}[str(nodule.location)]
        radius = rng.uniform(*NODULE[str(nodule.size)])
        low, high = sorted((image_half(nodule.side) * 0.33 * wide, image_half(nodule.side) * 0.62 * wide))
        for center in scatter_points(rng, nodule.number or 1, (low, top), (high, top + 0.22), 2 * radius + 0.04):
            blob(rng, canvas, grids, center, radius, 0.93, softness=0.035, roughness=0.06)


def draw_head(rng: np.random.Generator, scene: Scene, size: int) -> Canvas:
    """An axial CT slice of the head, brain window, front of the head up."""
    x, y = grids = jittered_grid(rng, size)
    rx, ry = rng.uniform(0.66, 0.72), rng.uniform(0.84, 0.9)
    canvas = np.full((size, size), 0.01, np.float32)
    blend(canvas, soft_mask(np.abs(y - 0.93 - 0.35 * (1 - x * x) * 0.1) - 0.012, 0.02) * 0.3, 0.5)  # the table
    blend(canvas, ellipse(x, y, 0, 0, rx + 0.05, ry + 0.05, 0.03), 0.22)  # scalp
    blend(canvas, ellipse(x, y, 0, 0, rx, ry, 0.025), 0.97)  # skull
    brain = ellipse(x, y, 0, 0, rx - 0.07, ry - 0.07, 0.025)
    tissue = 0.52 + 0.03 * smooth_noise(rng, size, 14)
    radius = np.sqrt((x / (rx - 0.07)) ** 2 + (y / (ry - 0.07)) ** 2)
    angle = np.arctan2(y, x)
    folds = np.cos(angle * 26 + 5 * radius + np.float32(rng.uniform(0, 6)) + 1.5 * np.sin(angle * 7))
    tissue -= 0.16 * (np.clip(folds, 0, 1) ** 2) ** 2 * np.clip((radius - 0.74) / 0.26, 0, 1)
    tissue += 0.035 * soft_mask(radius - 0.8, 0.15) * -1 + 0.03  # white matter is a little darker than gray matter
    blend(canvas, brain, tissue)
    blend(canvas, brain * soft_mask(np.abs(x) - 0.012, 0.015) * soft_mask(0.42 - np.abs(y), 0.1), 0.62)  # falx
    wide = rng.uniform(1.9, 2.2) if get_finding(scene, "脑室扩大") else rng.uniform(0.85, 1.05)
    for half in (-1, 1):
        for end, lean in ((-1, 0.16), (1, 0.28)):  # anterior and posterior horns
            middle = np.float32(half) * (0.055 * wide + lean * (end * y - 0.02))
            along = (end * y + 0.02) / (0.24 + 0.05 * wide)  # 0 at the middle, 1 at the tip
            thick = np.float32(0.045 * wide) * np.sqrt(np.clip(1 - along * along, 0, 1))
            blend(canvas, soft_mask(np.abs(x - middle) - thick, 0.03) * (along > -0.1) * (along < 1), 0.20)
    for name, value in (("脑出血", 0.90), ("脑梗死", 0.08)):
        lesion = get_finding(scene, name)
        if lesion:
            half = image_half(lesion.side)
            cx, cy = {"额叶": (0.28, -0.47), "基底节区": (0.36, 0.0), "枕叶": (0.28, 0.47)}[str(lesion.location)]
            center = (half * (cx + rng.uniform(-0.03, 0.03)), cy + rng.uniform(-0.04, 0.04))
            spot = rng.uniform(*LESION[str(lesion.size)])
            if value > 0.5:  # edema: a dark rim around blood
                blob(rng, canvas, grids, center, spot + 0.045, 0.36, softness=0.07, roughness=0.06, strength=0.6)
            blob(rng, canvas, grids, center, spot, value, softness=0.035 if value > 0.5 else 0.05, roughness=0.09)
    add_noise(rng, canvas, rng.uniform(0.015, 0.03))
    return canvas


def draw_abdomen(rng: np.random.Generator, scene: Scene, size: int) -> Canvas:
    """A transverse ultrasound of the upper abdomen: liver with gallbladder, in the fan of the probe."""
    x, y = grid(size)
    top = -1.35
    depth = np.hypot(x, y - top)
    fan = (
        soft_mask(np.abs(np.arctan2(x, y - top)) - 0.66, 0.02)
        * soft_mask(depth - 2.27, 0.02)
        * soft_mask(0.45 - depth, 0.02)
    )
    mx, my = grids = jittered_grid(rng, size, 0.8)
    tissue = np.float32(rng.uniform(0.36, 0.42)) + 0.05 * smooth_noise(rng, size, 8)
    tissue = tissue * (1.12 - 0.22 * (depth - 0.45))  # attenuation with depth
    capsule = (my + 0.70 - 0.1 * mx * mx) / 0.02
    tissue += 0.25 * np.exp(-capsule * capsule)
    tissue = np.where(my < -0.72, tissue * 1.25 + 0.06 * np.cos(my * 60), tissue)  # layers of the abdominal wall
    midriff = (my - 0.72 + 0.35 * mx * mx) / 0.03
    tissue += 0.5 * np.exp(-midriff * midriff)
    canvas: Canvas = tissue.astype(np.float32)
    for _ in range(4):  # vessels, thin and dark with a bright wall
        cx, cy, lean = rng.uniform(-0.5, 0.5), rng.uniform(-0.45, 0.1), rng.uniform(-0.8, 0.8)
        across = np.abs((my - cy) - lean * (mx - cx)) - 0.008
        stretch = soft_mask(np.abs(mx - cx) - rng.uniform(0.08, 0.16), 0.06)
        blend(canvas, soft_mask(across - 0.014, 0.02) * stretch * 0.35, 0.6)
        blend(canvas, soft_mask(across, 0.02) * stretch * 0.35, 0.22)
    bx, by = rng.uniform(-0.05, 0.05), rng.uniform(0.36, 0.42)
    blend(canvas, ellipse(mx, my, bx, by, 0.43, 0.23, 0.03), 0.62)  # wall of the gallbladder
    bile = ellipse(mx, my, bx, by, 0.40, 0.20, 0.025)
    blend(canvas, bile, 0.03)
    behind = soft_mask(np.abs(mx - bx) - 0.32, 0.12) * soft_mask(by + 0.2 - my, 0.05)
    canvas += 0.12 * behind * soft_mask(my - 0.95, 0.4)
    draw_cyst(rng, get_finding(scene, "肝囊肿"), canvas, grids)
    stone = get_finding(scene, "胆囊结石")
    if stone:
        radius = rng.uniform(*STONE[str(stone.size)])
        room = 0.33 - 1.2 * radius
        for cx, _ in scatter_points(rng, stone.number or 1, (bx - room, 0), (bx + room, 0), 2 * radius + 0.05):
            cy = by + 0.175 * np.sqrt(max(0.0, 1 - ((cx - bx) / 0.40) ** 2)) - radius
            shade = soft_mask(np.abs(mx - cx) - np.float32(radius * 0.8), 0.03) * soft_mask(cy - my, 0.03)
            blend(canvas, shade * 0.85, 0.02)  # acoustic shadow
            blob(rng, canvas, grids, (cx, cy), radius, 1.0, softness=0.025)
    speckle: Canvas = rng.standard_normal((size, size), dtype=np.float32)
    speckle = (speckle + np.roll(speckle, 1, 1) + np.roll(speckle, -1, 1) + np.roll(speckle, 1, 0)) / 2
    canvas *= 1 + np.float32(rng.uniform(0.10, 0.15)) * speckle
    return canvas * fan + np.float32(0.01)


def draw_cyst(rng: np.random.Generator, cyst: Finding | None, canvas: Canvas, grids: tuple[Canvas, Canvas]) -> None:
    """A black round cyst in one lobe, with a bright wall and brighter tissue behind it."""
    if cyst is None:
        return
    x, y = grids
    radius = rng.uniform(*CYST[str(cyst.size)])
    half = 1 if cyst.location == "肝左叶" else -1
    cx, cy = half * rng.uniform(0.24, 0.42), rng.uniform(-0.38, -0.12)
    glow = soft_mask(np.abs(x - cx) - np.float32(radius * 0.8), 0.05) * soft_mask(cy + radius - y, 0.04)
    canvas += 0.16 * glow * soft_mask(y - np.float32(cy + radius + 0.2), 0.25)
    blob(rng, canvas, grids, (cx, cy), radius + 0.03, 0.85, softness=0.03)
    blob(rng, canvas, grids, (cx, cy), radius, 0.02, softness=0.02)
