"""Reads DICOM images: one frame at a time, as physical values with what the file says about their display.

In: the bytes of a file. Out: a DicomImage, whose `frame(i)` decodes one frame. Nothing of the header but numbers and
coded strings is used. Whatever is not an image, or cannot be shown rightly, raises ImageError with the reason.

Rescale, window and spacing of multi-frame files stand in functional groups, per frame or shared; they are looked up
there before the top level (PS3.3 C.7.6.16).
"""

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from qilin.core.errors import UserError
from qilin.imaging.coded_size import check_coded_size
from qilin.imaging.dicom_decoder import DECODER_DEPENDENCIES, JPEG_XL, PLUGIN, decoder_for
from qilin.imaging.errors import ImageError
from qilin.imaging.windowing import Frame, LookupTable, Window

logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")

MAX_FRAME_BYTES = 1 << 30  # of one decoded frame
MAX_FRAMES = 100_000
MAX_INFLATED = 2 << 30  # bytes of a deflated dataset
# descriptors, tables and segmented tables of red, green and blue
PALETTE_TAGS = tuple(0x00281101 + group + color for group in (0, 0x100, 0x120) for color in range(3))
PIXEL_ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
IMPLICIT_LITTLE, EXPLICIT_LITTLE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
# what a file is instead of an image, by the modality that says so
NOT_IMAGES = {
    "SEG": "a segmentation, whose pixels are labels",
    "RTSTRUCT": "contours of a radiotherapy plan",
    "RTPLAN": "a radiotherapy plan",
    "RTDOSE": "a radiotherapy dose",
    "SR": "a structured report",
    "PR": "a presentation state",
    "KO": "a key object selection",
    "ECG": "a waveform",
    "REG": "a registration",
    "DOC": "a document",
}


@dataclass(frozen=True)
class DicomImage:
    """A DICOM file with its pixel data still encoded."""

    dataset: Dataset
    modality: str
    count: int

    def frame(self, index: int) -> Frame:
        """Decode one frame, counted from 0. Raises ImageError."""
        if not 0 <= index < self.count:
            raise ImageError("frame does not exist", f"{index + 1} of {self.count}")
        with damage_refused():
            pixels, photometric = decode_pixels(self.dataset, index)
            return make_frame(self, pixels, photometric, index)


def is_dicom(data: bytes) -> bool:
    """Whether bytes are DICOM: the prefix at 128, or, without a preamble, a first element of group 2 or 8."""
    if data[128:132] == b"DICM":
        return True
    if len(data) < 16:
        return False
    little = int.from_bytes(data[:2], "little")
    element = int.from_bytes(data[2:4], "little")
    if little not in (2, 8) or element > 0x1200:
        return False
    explicit = data[4:6].isalpha() and data[4:6].isupper()
    return explicit or int.from_bytes(data[4:8], "little") <= 256


def read_dicom(data: bytes) -> DicomImage:
    """The image of a DICOM file. Raises ImageError for everything else that DICOM files hold."""
    with damage_refused():
        dataset = parse(data)
        check_is_image(dataset)
        check_pixel_module(dataset)
        return DicomImage(dataset, str(dataset.get("Modality", "") or "").strip().upper(), frame_count(dataset))


def parse(data: bytes, stop_before_pixels: bool = False) -> Dataset:
    """The elements of a file, pixel data not decoded. Deflated files are bounded while they unpack."""
    if data[:4] == b"\x28\xb5\x2f\xfd" or not is_dicom(data):
        raise ImageError("not an image", "no DICOM prefix")
    check_deflated(data)
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=stop_before_pixels)
    except InvalidDicomError:
        raise ImageError("not an image", "no DICOM prefix") from None
    if "TransferSyntaxUID" not in dataset.file_meta:  # pydicom has found out how the elements are written
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = UID(IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE)
    return dataset


def check_deflated(data: bytes) -> None:
    """Refuse a deflated file that unpacks to more than MAX_INFLATED bytes, before pydicom unpacks it."""
    import zlib

    if data[128:132] != b"DICM" or DeflatedExplicitVRLittleEndian.encode() not in data:
        return
    file = io.BytesIO(data)
    file.seek(132)  # the meta group ends where pydicom finds its end, whatever length it declares
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if str(meta.get("TransferSyntaxUID")) != DeflatedExplicitVRLittleEndian:
        return
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    if len(unpacker.decompress(data[file.tell() :], MAX_INFLATED)) >= MAX_INFLATED and unpacker.unconsumed_tail:
        raise ImageError("image has too many pixels", f"unpacks to more than {MAX_INFLATED:,} bytes")


def check_is_image(dataset: Dataset) -> None:
    """Raise ImageError for objects without an image to show."""
    modality = str(dataset.get("Modality", "") or "").strip().upper()
    sop_class = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    name = known_name(str(sop_class or ""))
    if "DirectoryRecordSequence" in dataset:
        raise ImageError("DICOM without an image", "a DICOMDIR, the index of a disc")
    if modality in NOT_IMAGES:
        raise ImageError("DICOM without an image", f"{NOT_IMAGES[modality]} ({modality})")
    if "Segmentation Storage" in name:
        raise ImageError("DICOM without an image", NOT_IMAGES["SEG"])
    if not any(element in dataset for element in PIXEL_ELEMENTS):
        raise ImageError("DICOM without an image", f"no pixel data ({name})")
    if "VL Whole Slide" in name or modality == "SM":
        check_slide(dataset)


def known_name(uid: str) -> str:
    """The standard's name of a UID. Others are not quoted: imports record the reasons of refusals."""
    name = UID(uid).name
    return name if name and name != uid else "unknown class"


def check_slide(dataset: Dataset) -> None:
    """Of a whole slide only thumbnail and overview are one image; the label holds the patient's name."""
    kinds = {str(value).upper() for value in as_list(dataset.get("ImageType"))}
    if "LABEL" in kinds:
        raise ImageError("DICOM is a slide's label", "it shows who the patient is")
    if frame_count(dataset) > 1:
        raise ImageError("DICOM is a tiled whole-slide image", "import its thumbnail, or tiles saved as PNG")


def check_pixel_module(dataset: Dataset) -> None:
    """Raise ImageError where the elements that describe the pixels are missing, impossible or too large."""
    for keyword in ("Rows", "Columns", "BitsAllocated"):
        value = dataset.get(keyword)
        if not isinstance(value, int) or value < 1:
            description = value if isinstance(value, int) else "missing" if value is None else "no number"
            raise ImageError("DICOM header is damaged", f"{keyword} is {description}; expected a positive number")
    samples = dataset.get("SamplesPerPixel", 1) or 1
    frame_bytes = dataset.Rows * dataset.Columns * samples * max(1, dataset.BitsAllocated // 8)
    if frame_bytes > MAX_FRAME_BYTES:
        detail = f"{dataset.Columns:,} x {dataset.Rows:,}, {frame_bytes:,} bytes; the limit is {MAX_FRAME_BYTES:,}"
        raise ImageError("image has too many pixels", detail)
    if "PhotometricInterpretation" not in dataset:
        dataset.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    if "SamplesPerPixel" not in dataset:
        dataset.SamplesPerPixel = samples
    if "BitsStored" not in dataset:
        dataset.BitsStored = dataset.BitsAllocated
    if "PixelRepresentation" not in dataset:
        dataset.PixelRepresentation = 0


def frame_count(dataset: Dataset) -> int:
    """NumberOfFrames, 1 where it is missing. Raises ImageError where it is no number."""
    try:
        count = int(dataset.get("NumberOfFrames") or 1)
    except (TypeError, ValueError):
        raise ImageError("DICOM header is damaged", "NumberOfFrames is not a number") from None
    if not 1 <= count <= MAX_FRAMES:
        raise ImageError("DICOM header is damaged", f"NumberOfFrames is {count}; expected 1 to {MAX_FRAMES:,}")
    return count


def decode_pixels(dataset: Dataset, index: int) -> tuple[np.ndarray, str]:
    """(stored values of one frame, their photometric interpretation). YCbCr becomes RGB."""
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    if syntax in JPEG_XL:
        import imagecodecs

        coded = get_frame(dataset.PixelData, index, number_of_frames=frame_count(dataset))
        check_coded_size(coded, dataset.Rows, dataset.Columns)
        pixels = np.asarray(imagecodecs.jpegxl_decode(coded))
        return pixels, "RGB" if pixels.ndim == 3 else str(dataset.PhotometricInterpretation)
    try:
        decoder = decoder_for(syntax)
    except NotImplementedError:
        raise ImageError("DICOM transfer syntax is not supported", f"{UID(syntax).name} ({syntax})") from None
    options = {"decoding_plugin": PLUGIN} if syntax in DECODER_DEPENDENCIES else {}
    pixels, properties = decoder.as_array(dataset, index=index, **options)  # type: ignore[arg-type]
    return pixels, str(properties["photometric_interpretation"])


def make_frame(image: DicomImage, pixels: np.ndarray, photometric: str, index: int) -> Frame:
    """Stored values -> physical values, with padding, window, polarity and spacing."""
    dataset = image.dataset
    spacing = pixel_spacing(dataset, index)
    if photometric == "PALETTE COLOR":
        return Frame(palette_colors(pixels, dataset), image.modality, spacing=spacing)
    if pixels.ndim == 3:
        return Frame(to_8_bits(pixels, dataset), image.modality, spacing=spacing)
    presentation = str(dataset.get("PresentationLUTShape", "") or "")
    inverted = photometric == "MONOCHROME1" or (photometric == "MONOCHROME2" and presentation == "INVERSE")
    return Frame(
        rescale(pixels, dataset, index),
        image.modality,
        voi(dataset, index),
        inverted,
        padding_mask(pixels, dataset),
        spacing,
    )


def palette_colors(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """(H, W) indices -> (H, W, 3) uint8 through the file's palette."""
    palette = Dataset()
    palette.update({BaseTag(tag): dataset[tag] for tag in PALETTE_TAGS if tag in dataset})
    palette.set_original_encoding(False, byte_order(dataset) == "<", None)  # the order of segmented palettes
    if byte_order(dataset) == ">":  # pydicom takes the others for little-endian
        for data in (palette[tag] for tag in PALETTE_TAGS[3:6] if tag in palette):
            data.value = np.frombuffer(data.value, ">u2").astype("<u2").tobytes() if data.VR == "OW" else data.value
    colors = apply_color_lut(pixels, palette)
    if colors.dtype == np.uint8:
        return colors[..., :3]
    entries, first = palette.RedPaletteColorLookupTableDescriptor[:2]
    table = apply_color_lut(np.arange(first, first + (entries or 65536)), palette)
    shift = 8 if table.max() > 255 else 0  # 8-bit colors in entries of 16 bits
    return (colors[..., :3] >> shift).astype(np.uint8)


def byte_order(dataset: Dataset) -> str:
    """ "<" or ">" of the words in a file."""
    return ">" if str(dataset.file_meta.TransferSyntaxUID) == ExplicitVRBigEndian else "<"


def to_8_bits(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Colors of any depth -> (H, W, 3) uint8."""
    bits = int(dataset.BitsStored)
    if pixels.dtype != np.uint8:
        pixels = (pixels.astype(np.float32) * (255 / (2**bits - 1))).round().clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels[..., :3])


def rescale(pixels: np.ndarray, dataset: Dataset, index: int) -> np.ndarray:
    """The modality transform: stored values -> float32 in the units of the modality."""
    group = functional_group(dataset, index, "PixelValueTransformationSequence") or dataset
    if "ModalityLUTSequence" in group and group.ModalityLUTSequence:
        return np.asarray(apply_modality_lut(pixels, group), np.float32)
    slope, intercept = number(group.get("RescaleSlope"), 1.0), number(group.get("RescaleIntercept"), 0.0)
    if slope == 0:  # would make every pixel equal
        slope = 1.0
    return pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def voi(dataset: Dataset, index: int) -> Window | LookupTable | None:
    """The first window, else the first VOI LUT, of the frame; None without a usable one."""
    group = functional_group(dataset, index, "FrameVOILUTSequence") or dataset
    centers, widths = as_list(group.get("WindowCenter")), as_list(group.get("WindowWidth"))
    function = str(group.get("VOILUTFunction", "") or "LINEAR").strip().upper()
    if function == "LINEAR" and "PixelData" not in dataset:  # its -0.5 and -1 are for whole numbers, not for 0 to 1
        function = "LINEAR_EXACT"
    for center, width in zip(centers, widths, strict=False):
        window = Window(number(center, math.nan), number(width, math.nan), function)
        if (
            math.isfinite(window.center)
            and math.isfinite(window.width)
            and window.width >= (1 if function == "LINEAR" else 1e-9)
        ):
            return window
    for item in group.get("VOILUTSequence") or ():
        with contextlib.suppress(Exception):  # a damaged table is no reason to refuse the image
            return lookup_table(item, int(dataset.PixelRepresentation), byte_order(dataset))
    return None


def lookup_table(item: Dataset, signed: int, order: str) -> LookupTable:
    """A VOI LUT. The first mapped value is signed where the pixels are, whatever its VR says."""
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    entries = entries or 65536
    if signed and first >= 32768:
        first -= 65536
    data = item.LUTData
    if isinstance(data, bytes) and len(data) < 2 * entries:  # entries of 8 bits, two in a word
        levels = np.frombuffer(np.frombuffer(data, f"{order}u2").astype("<u2").tobytes(), np.uint8)
    else:
        levels = np.frombuffer(data, f"{order}u2") if isinstance(data, bytes) else np.asarray(data, np.float32)
    levels = levels[:entries].astype(np.float32)
    top = max(2.0**bits - 1, float(levels.max()))
    return LookupTable(first, levels / top)


def padding_mask(pixels: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """(H, W) True where a pixel is padding; None where none is."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int | float):
        return None
    bits = int(dataset.BitsAllocated)
    values = [number(value, 0.0), number(limit, number(value, 0.0))]
    if int(dataset.PixelRepresentation) and bits <= 16:  # written as unsigned by some makers
        values = [item - 2**bits if item >= 2 ** (bits - 1) else item for item in values]
    mask = (pixels >= min(values)) & (pixels <= max(values))
    return mask if mask.any() and not mask.all() else None


def pixel_spacing(dataset: Dataset, index: int) -> tuple[float, float] | None:
    """(mm between rows, mm between columns), or the pixels' aspect ratio as such a pair; None where neither stands."""
    group = functional_group(dataset, index, "PixelMeasuresSequence") or dataset
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        values = [number(value, 0.0) for value in as_list(group.get(keyword) or dataset.get(keyword))]
        if len(values) == 2 and all(math.isfinite(value) and value > 0 for value in values):
            return values[0], values[1]
    return None


def functional_group(dataset: Dataset, index: int, keyword: str) -> Dataset | None:
    """The item of one macro: of this frame, else shared by all; None where there is neither."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    for groups in (per_frame[index : index + 1], shared[:1]):
        for group in groups:
            if items := group.get(keyword):
                return items[0]
    return None


def number(value: Any, default: float) -> float:
    """A DICOM number as a float; `default` where it is missing or damaged."""
    values = as_list(value)
    try:
        return float(values[0]) if values else default
    except (TypeError, ValueError, OverflowError):
        return default


def element(dataset: Dataset, keyword: str) -> Any:
    """The value of an element; None where it is missing, or its bytes are no value of its kind."""
    try:
        return dataset.get(keyword)
    except Exception:  # pydicom converts an element when it is read, and raises some five types
        return None


def as_list(value: Any) -> list[Any]:
    """The values of an element of any multiplicity."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]


@contextmanager
def damage_refused() -> Iterator[None]:
    """The one boundary of DICOM code: whatever pydicom, numpy or a codec raise on a broken file becomes an ImageError.

    pydicom logs and warns about elements' values, which may be names; both are silenced here and, because threads share
    the filters, for the process.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:  # ImageError among them
        raise
    except MemoryError:
        raise ImageError("image needs more memory than there is") from None
    except Exception as error:  # pydicom raises some fifteen types on broken files; their texts may quote elements
        raise ImageError("image is truncated or damaged", f"DICOM: {type(error).__name__}") from None
