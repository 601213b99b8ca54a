"""Slices of a DICOM series in planes other than its own: coronal and sagittal ones of an axial series, and so on.

In: a stack of slices and the numbers of the wanted ones. Out: Frames in the orientation of a reading room, their rows
and columns spaced in mm. The planes are those of the stack nearest to the body's, so an oblique series gives oblique
planes at right angles. A tilted gantry is corrected; a series with missing slices is refused, because a reformat would
show anatomy that was not scanned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qilin.imaging.dicom import damage_refused
from qilin.imaging.errors import ImageError
from qilin.imaging.series import PLANE_BY_AXIS, SliceStack, corner_position, orientation, stack_normal
from qilin.imaging.volume import Selection, slice_label
from qilin.imaging.windowing import Frame

MIN_SLICES = 8  # of a series that is reformatted; fewer are localizers
GAP = 1.6  # distances of neighboring slices, in multiples of the median, above which a slice is missing
LEFT, BACK, HEAD = 0, 1, 2  # DICOM's axes, by where they point
# rows go down and columns to the right: the axis that each follows, and whether it does so backward
DISPLAY = {
    "axial": ((BACK, False), (LEFT, False)),
    "coronal": ((HEAD, True), (LEFT, False)),
    "sagittal": ((HEAD, True), (BACK, False)),
}


@dataclass(frozen=True)
class StackGeometry:
    """Where the pixels of a stack lie. Axes are numbers of DICOM's; a sign of -1 points against its axis."""

    slices: tuple[int, ...]  # indices into the stack, evenly spaced
    slice_axis: tuple[int, int]  # (axis, sign) of the order of slices
    row_axis: tuple[int, int]  # of increasing row index
    column_axis: tuple[int, int]  # of increasing column index
    spacing: tuple[float, float, float]  # mm between slices, rows and columns
    shifts: np.ndarray  # (slices, 2): rows and columns by which a slice is moved against the first


def reformat(stack: SliceStack, selections: Sequence[Selection]) -> list[list[Frame]]:
    """The labeled slices of each selection; decodes the stack once. Raises ImageError, UserError."""
    with damage_refused():
        geometry = stack_geometry(stack)
        axes = [reformat_axis(geometry, selection.plane) for selection in selections]
        first = stack.frame(geometry.slices[len(geometry.slices) // 2])
        if first.is_color:
            raise ImageError("series cannot be reformatted", "its slices are in color")
        shape = first.values.shape
        chosen = [selection.choose(shape[axis - 1]) for selection, axis in zip(selections, axes, strict=True)]
        lines = [np.empty((len(numbers), len(geometry.slices), shape[2 - axis]), np.float32)
                 for numbers, axis in zip(chosen, axes, strict=True)]  # fmt: skip
        for row, index in enumerate(geometry.slices):
            frame = stack.frame(index)
            if frame.values.shape != shape:
                raise ImageError("series cannot be reformatted", "its slices differ in size")
            values = frame.values if frame.padding is None else np.where(frame.padding, np.nan, frame.values)
            for axis, numbers, target in zip(axes, chosen, lines, strict=True):
                sign = (geometry.row_axis, geometry.column_axis)[axis - 1]
                target[:, row] = take_lines(
                    values, axis, in_order(numbers, shape[axis - 1], sign), geometry.shifts[row]
                )
        return [
            [
                upright(
                    section, axis, geometry, selection.plane, first, slice_label(selection.plane, number, len(target))
                )
                for number, section in enumerate(target, start=1)
            ]
            for selection, axis, target in zip(selections, axes, lines, strict=True)
        ]


def reformat_axis(geometry: StackGeometry, plane: str) -> int:
    """1 where the plane's slices are rows of the stack's, 2 where they are columns. Raises ImageError."""
    normal = PLANE_BY_AXIS.index(plane)
    if normal == geometry.row_axis[0]:
        return 1
    if normal == geometry.column_axis[0]:
        return 2
    raise ImageError("series cannot be reformatted", f"its own plane is the {plane} one")


def stack_geometry(stack: SliceStack) -> StackGeometry:
    """Raises ImageError where the slices are no volume: too few, unevenly spaced, or without positions."""
    indices = stack.volume_indices()
    if not stack.positions or len(indices) < MIN_SLICES:
        detail = f"{len(indices)} slices" if stack.positions else "its files do not say where the slices lie"
        raise ImageError("series cannot be reformatted", f"{detail}; expected at least {MIN_SLICES} with positions")
    normal, slice_axis = stack_normal(orientation(stack.images[0]))
    cosines = np.array(orientation(stack.images[0]))
    rows, columns = axis_of(cosines[3:]), axis_of(cosines[:3])
    if len({slice_axis, rows[0], columns[0]}) < 3:
        raise ImageError("series cannot be reformatted", "its planes lie between those of the body")
    positions = np.array([stack.positions[index] for index in indices])
    distances = np.diff(positions)
    step = float(np.median(distances))
    if distances.max() > GAP * step:
        gaps = int((distances > GAP * step).sum())
        raise ImageError("series cannot be reformatted", f"slices are missing at {gaps} of {len(indices)} positions")
    even = np.arange(positions[0], positions[-1] + step / 2, step)
    nearest = np.abs(positions[:, None] - even).argmin(axis=0)
    slices = tuple(indices[number] for number in nearest)
    spacing = stack.frame(indices[0]).spacing or (1.0, 1.0)
    corners = np.array([corner_position(stack.images[stack.slots[i][0]], stack.slots[i][1]) for i in slices])
    moved = corners - corners[0]
    shifts = np.stack([moved @ cosines[3:] / spacing[0], moved @ cosines[:3] / spacing[1]], axis=1)
    toward = 1 if slice_axis == HEAD else -1
    return StackGeometry(slices, (slice_axis, toward), rows, columns, (step, *spacing), np.rint(shifts).astype(int))


def axis_of(direction: np.ndarray) -> tuple[int, int]:
    """(axis nearest to a direction, 1 or -1 where it points against it)."""
    axis = int(np.argmax(np.abs(direction)))
    return axis, 1 if direction[axis] > 0 else -1


def in_order(numbers: Sequence[int], count: int, axis: tuple[int, int]) -> np.ndarray:
    """Numbers counted from the feet, the back or the left side -> indices of rows or columns."""
    forward = (axis[1] > 0) == (axis[0] == HEAD)
    return np.array(numbers) if forward else count - 1 - np.array(numbers)


def take_lines(values: np.ndarray, axis: int, indices: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Rows (axis 1) or columns (axis 2) of a slice that is moved by `shift`; not a number where it has none."""
    along, across = (values, shift) if axis == 1 else (values.T, shift[::-1])
    if not shift.any():
        return along[indices]
    wanted = indices - across[0]
    lines = along[np.clip(wanted, 0, len(along) - 1)].astype(np.float32)
    lines[(wanted < 0) | (wanted >= len(along))] = np.nan
    lines = np.roll(lines, across[1], axis=1)
    if across[1] > 0:
        lines[:, : across[1]] = np.nan
    elif across[1] < 0:
        lines[:, across[1] :] = np.nan
    return lines


def upright(section: np.ndarray, axis: int, geometry: StackGeometry, plane: str, first: Frame, label: str) -> Frame:
    """(slices, pixels) of one plane, turned as a reading room shows it."""
    line_axis = geometry.column_axis if axis == 1 else geometry.row_axis
    axes = {geometry.slice_axis[0]: (0, geometry.slice_axis[1]), line_axis[0]: (1, line_axis[1])}
    spacings = (geometry.spacing[0], geometry.spacing[2] if axis == 1 else geometry.spacing[1])
    (row, row_backward), (column, column_backward) = DISPLAY[plane]
    values = section if axes[row][0] == 0 else section.T
    values = values[:: -1 if (axes[row][1] < 0) != row_backward else 1]
    values = values[:, :: -1 if (axes[column][1] < 0) != column_backward else 1]
    padding = np.isnan(values)
    return Frame(
        np.where(padding, np.nanmin(values) if not padding.all() else 0, values).astype(np.float32),
        first.modality,
        first.voi,
        first.inverted,
        padding if padding.any() else None,
        (spacings[axes[row][0]], spacings[axes[column][0]]),
        label,
    )
