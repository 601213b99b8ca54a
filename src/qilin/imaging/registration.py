"""The second look at two images that resemble each other: is one an edited copy of the other?

In: frames of both images (imaging/thumbnails.py). Out: their similarity, the correlation of fine detail after
registration. It is near 1 for copies that were cropped, padded, mirrored, inverted, rotated, annotated, re-encoded or
changed in brightness; two patients in the same view share the outlines but not the detail. y and x count pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Pixels = NDArray[np.float32]

SAME_IMAGE = 0.85  # similarity of copies: 98 % of edited copies reach it (bench/results/near_duplicates.json)
SAME_SCAN = 0.7  # also of neighboring slices; pairs of patients in the same view stay below

COARSE_SIDE, MEDIUM_SIDE = 32, 64
MAX_SHIFT = 6  # of COARSE_SIDE
SCALES = (0.8, 0.9, 1.0, 1 / 0.9, 1 / 0.8)
COARSE_BAND, MEDIUM_BAND, FINE_BAND = (0.7, 2.5), (0.8, 3.0), (0.8, 2.5)  # standard deviations in pixels
ALIGNMENT_BAND = (1.2, 4.0)  # wider than FINE_BAND: converges from further away
STEPS = 6  # of Gauss-Newton at each resolution
MIN_MEDIUM = 0.6  # similarity at MEDIUM_SIDE below which the fine look cannot reach SAME_SCAN
MIN_OVERLAP = 0.4  # of a frame


@dataclass(frozen=True)
class Alignment:
    """Pixel p of one frame is pixel `matrix` @ p + `offset` of the other."""

    matrix: NDArray[np.float64]  # (2, 2)
    offset: NDArray[np.float64]  # (2,)
    correlation: float = -1.0

    def doubled(self) -> "Alignment":
        """The same alignment of frames with twice as many pixels per side."""
        half_pixel = np.array([0.5, 0.5])
        return Alignment(self.matrix, 2 * self.offset + half_pixel - self.matrix @ half_pixel)


def similarity(a: Sequence[NDArray[np.uint8]], b: Sequence[NDArray[np.uint8]]) -> float:
    """-1 to 1: the higher one of the contents and of the whole images, where they differ."""
    best = -1.0
    for index in range(max(len(a), len(b))):
        frame_a, frame_b = (views[min(index, len(views) - 1)].astype(np.float32) for views in (a, b))
        best = max(best, frame_similarity(frame_a, frame_b))
        if best >= SAME_IMAGE:
            break
    return best


def frame_similarity(a: Pixels, b: Pixels) -> float:
    """Register b to a, coarse to fine, and correlate their detail where they overlap."""
    if min(a.std(), b.std()) < 1:
        return -1.0
    orientation, sign, alignment = align_coarse(shrink(a, COARSE_SIDE), shrink(b, COARSE_SIDE))
    b = sign * np.ascontiguousarray(list(orientations(b))[orientation])
    medium_a, medium_b = shrink(a, MEDIUM_SIDE), shrink(b, MEDIUM_SIDE)
    alignment = align(medium_a, medium_b, alignment.doubled(), MEDIUM_BAND)
    if alignment.correlation < MIN_MEDIUM:
        return alignment.correlation
    alignment = align(a, b, alignment.doubled(), ALIGNMENT_BAND)
    warped, overlap = warp(b, alignment)
    if overlap.mean() < MIN_OVERLAP:
        return -1.0
    # clipped at one standard deviation, so that outlines and annotations count no more than other detail
    return correlation(clip(band_pass(a, FINE_BAND), overlap, 1.0), clip(band_pass(warped, FINE_BAND), overlap, 1.0))


def orientations(frame: Pixels) -> Iterator[Pixels]:
    """The eight ways to mirror and rotate by 90 degrees."""
    for transposed in (frame, frame.T):
        for flipped in (transposed, transposed[::-1]):
            yield flipped
            yield flipped[:, ::-1]


def align_coarse(a: Pixels, b: Pixels) -> tuple[int, float, Alignment]:
    """(index in `orientations`, sign, alignment): where a scaled, oriented, shifted b correlates most with a."""
    center = (COARSE_SIDE - 1) / 2
    details = [
        coarse_detail(ndimage.affine_transform(b, [scale, scale], center * (1 - scale), order=1, mode="nearest"))
        for scale in SCALES
    ]
    variants = np.stack([variant for detail in details for variant in orientations(detail)])
    spectra = np.fft.rfft2(variants)
    peaks = np.fft.irfft2(spectra * np.conj(np.fft.rfft2(coarse_detail(a))), s=a.shape)  # (variants, y, x)
    shifts = np.fft.fftfreq(COARSE_SIDE, 1 / COARSE_SIDE).astype(int)
    peaks[:, np.abs(shifts) > MAX_SHIFT] = 0
    peaks[:, :, np.abs(shifts) > MAX_SHIFT] = 0
    variant, y, x = np.unravel_index(np.abs(peaks).argmax(), peaks.shape)
    scale_index, orientation = divmod(int(variant), len(variants) // len(SCALES))
    scale = SCALES[scale_index]
    offset = center * (1 - scale) + scale * np.array([shifts[y], shifts[x]])
    return orientation, float(np.sign(peaks[variant, y, x]) or 1.0), Alignment(scale * np.eye(2), offset)


def coarse_detail(frame: Pixels) -> Pixels:
    """The band of a frame that decides its orientation, faded out to the edges, of norm 1."""
    window = np.hanning(COARSE_SIDE + 2)[1:-1].astype(np.float32)
    detail = band_pass(frame, COARSE_BAND)
    faded = np.clip(detail, -2.5 * detail.std(), 2.5 * detail.std()) * np.outer(window, window)
    faded -= faded.mean()
    return np.asarray(faded / (np.linalg.norm(faded) + 1e-6), dtype=np.float32)


def align(a: Pixels, b: Pixels, start: Alignment, band: tuple[float, float]) -> Alignment:
    """The affine alignment of b to a that maximizes the correlation of their bands, by Gauss-Newton from `start`."""
    side = len(a)
    y, x = np.mgrid[:side, :side].astype(np.float32) - (side - 1) / 2
    detail_a, detail_b = (np.clip(d, -2.5 * d.std(), 2.5 * d.std()) for d in (band_pass(a, band), band_pass(b, band)))
    best, current = start, start
    for step in range(STEPS + 1):
        warped, overlap = warp(detail_b, current)
        if overlap.mean() < MIN_OVERLAP:
            break
        target, moved = detail_a[overlap], warped[overlap]
        target, moved = target - target.mean(), moved - moved.mean()
        norm_target, norm_moved = np.linalg.norm(target) + 1e-6, np.linalg.norm(moved) + 1e-6
        value = float(target @ moved / (norm_target * norm_moved))
        if value > best.correlation:
            best = Alignment(current.matrix, current.offset, value)
        if step == STEPS:
            break
        gradient_y, gradient_x = (np.gradient(warped, axis=axis)[overlap] for axis in (0, 1))
        inner_y, inner_x = y[overlap], x[overlap]
        jacobian = np.stack(
            [gradient_y * inner_y, gradient_y * inner_x, gradient_y, gradient_x * inner_y, gradient_x * inner_x,
             gradient_x]
        ) / norm_moved  # fmt: skip
        normal = jacobian @ jacobian.T + 1e-9 * np.eye(6)
        update = np.linalg.solve(normal, jacobian @ (target / norm_target - moved / norm_moved))
        linear, shift = update[[0, 1, 3, 4]].reshape(2, 2), update[[2, 5]]
        center = np.full(2, (side - 1) / 2)
        offset = current.offset + current.matrix @ (shift - linear @ center)
        current = Alignment(current.matrix @ (np.eye(2) + linear), offset)
        if not np.isfinite(current.matrix).all() or abs(np.linalg.det(current.matrix)) < 0.1:
            break
    return best


def warp(frame: Pixels, alignment: Alignment) -> tuple[Pixels, NDArray[np.bool_]]:
    """The frame in the other one's coordinates, and where it has pixels there."""
    side = len(frame)
    warped = ndimage.affine_transform(frame, alignment.matrix, alignment.offset, order=1, mode="nearest")
    y, x = np.tensordot(alignment.matrix, np.mgrid[:side, :side], axes=1) + alignment.offset[:, None, None]
    return warped, (y >= 0) & (y <= side - 1) & (x >= 0) & (x <= side - 1)


def shrink(frame: Pixels, side: int) -> Pixels:
    factor = len(frame) // side
    return frame.reshape(side, factor, side, factor).mean(axis=(1, 3))


def band_pass(frame: Pixels, band: tuple[float, float]) -> Pixels:
    fine, coarse = (ndimage.gaussian_filter(frame, sigma, mode="nearest") for sigma in band)
    return np.asarray(fine - coarse, dtype=np.float32)


def clip(detail: Pixels, overlap: NDArray[np.bool_], deviations: float) -> Pixels:
    """The detail in the overlap, (pixels,), clipped to some standard deviations."""
    inner = detail[overlap]
    limit = deviations * inner.std()
    return np.clip(inner, -limit, limit)


def correlation(a: Pixels, b: Pixels) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-6))
