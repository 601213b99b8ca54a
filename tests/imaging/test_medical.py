"""DICOM and NIfTI as images: right values, the standard's gray levels, right orientation, or a reason."""

import gzip
import io
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from builders.dicom import ct_pixels, dicom, item, make_dataset, nifti, to_bytes
from qilin.core.errors import UserError
from qilin.imaging.dicom import is_dicom
from qilin.imaging.errors import ImageError
from qilin.imaging.medical import open_medical, to_images
from qilin.imaging.volume import Selection, choose_slices
from qilin.imaging.windowing import (
    Frame,
    Window,
    Windowing,
    model_windowing,
    parse_window,
    recorded_windowings,
    render,
    through_window,
    windowing_from,
    windowing_mismatch,
)


def frame(data: bytes, index: int = 0) -> Frame:
    return open_medical(data).frame(index)


def levels(data: bytes, *names: str, index: int = 0) -> np.ndarray:
    return np.asarray(render(frame(data, index), Windowing(names or ("auto",))))


def coded(syntax: str, pixels: np.ndarray) -> bytes:
    """The pixels in a compressed transfer syntax."""
    encode: dict[str, Any] = {
        "1.2.840.10008.1.2.4.57": lambda: imagecodecs.ljpeg_encode(pixels),
        "1.2.840.10008.1.2.4.70": lambda: imagecodecs.ljpeg_encode(pixels),
        "1.2.840.10008.1.2.4.80": lambda: imagecodecs.jpegls_encode(pixels),
        "1.2.840.10008.1.2.4.81": lambda: imagecodecs.jpegls_encode(pixels, level=0),  # near-lossless, at most 0 off
        "1.2.840.10008.1.2.4.90": lambda: imagecodecs.jpeg2k_encode(
            pixels, codecformat="j2k", reversible=True, level=0
        ),
        "1.2.840.10008.1.2.4.91": lambda: imagecodecs.jpeg2k_encode(
            pixels, codecformat="j2k", reversible=True, level=0
        ),
        "1.2.840.10008.1.2.4.110": lambda: imagecodecs.jpegxl_encode(pixels, lossless=True),
        "1.2.840.10008.1.2.4.112": lambda: imagecodecs.jpegxl_encode(pixels, lossless=True),
        "1.2.840.10008.1.2.4.201": lambda: imagecodecs.htj2k_encode(pixels, reversible=True),
        "1.2.840.10008.1.2.4.202": lambda: imagecodecs.htj2k_encode(pixels, reversible=True),
        "1.2.840.10008.1.2.4.203": lambda: imagecodecs.htj2k_encode(pixels, reversible=True),
        "1.2.840.10008.1.2.5": lambda: rle(pixels),
    }
    return encode[syntax]()


def rle(pixels: np.ndarray) -> bytes:
    """DICOM's run-length coding, by pydicom."""
    from pydicom.pixels import get_encoder

    options = {"rows": pixels.shape[0], "columns": pixels.shape[1], "samples_per_pixel": 1, "number_of_frames": 1}
    options |= {"bits_allocated": 16, "bits_stored": 12, "pixel_representation": 0}
    return get_encoder("1.2.840.10008.1.2.5").encode(
        pixels.tobytes(), encoding_plugin="pydicom", photometric_interpretation="MONOCHROME2", **options
    )


NATIVE = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", ExplicitVRBigEndian]
CODED = [f"1.2.840.10008.1.2.4.{number}" for number in (57, 70, 80, 81, 90, 91, 110, 112, 201, 202, 203)]
SYNTAXES = [*NATIVE, *CODED, "1.2.840.10008.1.2.5"]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_transfer_syntaxes_agree(syntax: str) -> None:
    pixels = ct_pixels().astype(np.uint16)
    stored = pixels.astype(">u2") if syntax == ExplicitVRBigEndian else pixels
    dataset = make_dataset(stored, {"RescaleIntercept": -1024, "RescaleSlope": 1}, bits=12)
    native = syntax in NATIVE
    data = to_bytes(dataset, syntax, None if native else [coded(syntax, pixels)])
    assert np.array_equal(frame(data).values, pixels.astype(np.float32) - 1024)


@pytest.mark.parametrize("quality", [90])
@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB", "YBR_FULL"])
def test_baseline_jpeg_in_color(photometric: str, quality: int) -> None:
    """The codestream says how it is coded, whatever the header declares."""
    colors = np.zeros((16, 24, 3), np.uint8)
    colors[:, :8], colors[:, 8:16], colors[:, 16:] = (220, 30, 40), (30, 200, 60), (20, 40, 210)
    buffer = io.BytesIO()
    Image.fromarray(colors).save(buffer, "JPEG", quality=quality, subsampling=0)
    dataset = make_dataset(colors, {"PhotometricInterpretation": photometric})
    values = frame(to_bytes(dataset, "1.2.840.10008.1.2.4.50", [buffer.getvalue()])).values
    assert np.abs(values.astype(int) - colors).max() < 12


@pytest.mark.parametrize(
    ("window", "values", "expected"),
    [
        (Window(40, 400), [-128, 66, 194, -2000, 2000], [20, 144, 226, 0, 255]),  # DICOM PS3.3 C.11.2.1.2
        (Window(2048, 4096), [0, 2047.5, 4095], [0, 128, 255]),
        (Window(10, 1), [9, 9.5, 10], [0, 128, 255]),  # width 1 is a threshold at center - 0.5
        (Window(40, 400, "LINEAR_EXACT"), [-160, 40, 240], [0, 128, 255]),
        (Window(40, 400, "SIGMOID"), [40, 140, -360], [128, 186, 5]),
    ],
)
def test_window_functions(window: Window, values: list[float], expected: list[int]) -> None:
    result = through_window(np.array([values]), window)[0]
    assert np.abs(result.astype(int) - expected).max() <= 1 if window.width == 1 else list(result) == expected


def test_rescale_and_header_window() -> None:
    pixels = np.array([[896, 1090], [1218, 0]], np.uint16)
    data = dicom(
        pixels, bits=12, RescaleIntercept=-1024, RescaleSlope=1, WindowCenter=[40, -600], WindowWidth=[400, 1500]
    )
    assert levels(data).tolist() == [[20, 144], [226, 0]]
    assert levels(data, "lung").tolist() == levels(data, "肺窗").tolist() == levels(data, "-600,1500").tolist()
    assert levels(data, "lung").tolist() != levels(data).tolist()
    assert np.asarray(render(frame(data), Windowing(("肺窗", "纵隔窗", "骨窗")))).shape == (2, 2, 3)


def test_presets_are_for_ct_only() -> None:
    data = dicom(ct_pixels(), Modality="MR", WindowCenter=2000, WindowWidth=1000)
    assert np.array_equal(levels(data, "lung"), levels(data))
    assert not np.array_equal(levels(data, "percentile"), levels(data))


@pytest.mark.parametrize("shared", [True, False])
def test_functional_groups(shared: bool) -> None:
    """Enhanced CT has its rescale, window and spacing in groups; frame 2 has a window of its own."""
    pixels = np.stack([ct_pixels(0), ct_pixels(1)]).astype(np.uint16)
    rescale = [item(RescaleIntercept=-1024, RescaleSlope=1)]
    spacing = [item(PixelSpacing=[1, 0.5])]
    windows = [[item(WindowCenter=center, WindowWidth=400)] for center in (40, 300)]
    per_frame = [item(FrameVOILUTSequence=window) for window in windows]
    common = item(PixelMeasuresSequence=spacing)
    for group in [common] if shared else per_frame:
        group.PixelValueTransformationSequence = rescale
    data = dicom(pixels, PerFrameFunctionalGroupsSequence=per_frame, SharedFunctionalGroupsSequence=[common])
    image = open_medical(data)
    assert image.count == 2
    for index, center in enumerate((40, 300)):
        decoded = image.frame(index)
        assert np.array_equal(decoded.values, pixels[index].astype(np.float32) - 1024)
        assert decoded.voi == Window(center, 400)
        assert decoded.spacing == (1, 0.5)
    assert render(image.frame(0)).size == (48, 64)  # rows are twice as far apart


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("bits", "scale", "dtype"), [(16, 257, "u2"), (8, 1, "u1"), (16, 1, "u2"), (8, 1, "u2")])
def test_palettes(bits: int, scale: int, dtype: str, order: str) -> None:
    """Entries of 16 bits, of 8 bits, and of 8 bits in 16; in files of either byte order."""
    indices = np.array([[0, 1, 2, 3]], np.uint8)
    colors = np.array([[0, 255, 10, 200], [5, 0, 255, 30], [255, 90, 0, 60]])
    dataset = make_dataset(indices, {"PhotometricInterpretation": "PALETTE COLOR"})
    for name, entries in zip(("Red", "Green", "Blue"), colors * scale, strict=True):
        table = entries.astype(f"<{dtype}").tobytes()
        dataset[f"{name}PaletteColorLookupTableDescriptor"] = DataElement(
            f"{name}PaletteColorLookupTableDescriptor", "US", [4, 0, bits]
        )
        setattr(dataset, f"{name}PaletteColorLookupTableData", swapped(table, order))
    dataset.PixelData = swapped(indices.tobytes(), order)
    dataset["PixelData"].VR = "OW"
    values = frame(to_bytes(dataset, ExplicitVRBigEndian if order == ">" else ExplicitVRLittleEndian)).values
    assert np.array_equal(values[0], colors.T)


def swapped(data: bytes, order: str) -> bytes:
    """Words of a little-endian file as a file of another order holds them."""
    return np.frombuffer(data, "<u2").astype(f"{order}u2").tobytes()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("bits", "dtype"), [(8, "u1"), (12, "u2"), (16, "u2")])
def test_voi_tables(bits: int, dtype: str, order: str) -> None:
    pixels = np.array([[0, 1, 2, 3]], np.uint16)
    levels_of = np.array([0, 2**bits - 1, 2 ** (bits - 1), 0]).astype(f"<{dtype}")
    table = item(LUTData=swapped(levels_of.tobytes(), order))
    table["LUTData"].VR = "OW"
    table["LUTDescriptor"] = DataElement("LUTDescriptor", "US", [4, 0, bits])
    dataset = make_dataset(pixels.astype(f"{order}u2"), {"VOILUTSequence": [table]})
    data = to_bytes(dataset, ExplicitVRBigEndian if order == ">" else ExplicitVRLittleEndian)
    assert levels(data).tolist() == [[0, 255, 128, 0]]


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")])
def test_windows_of_floats(keyword: str, dtype: str) -> None:
    """A width of 1 over values from 0 to 1 is no threshold."""
    pixels = np.array([[0, 0.25, 0.5, 1]], dtype)
    elements = {"PixelData": None, keyword: pixels.tobytes(), "WindowCenter": 0.5, "WindowWidth": 1}
    assert levels(to_bytes(make_dataset(pixels, elements))).tolist() == [[0, 64, 128, 255]]


def test_air_is_black() -> None:
    assert not levels(dicom(np.full((4, 4), -1000, np.int16))).any()


@pytest.mark.parametrize("element", ["PhotometricInterpretation", "PresentationLUTShape"])
def test_inverted(element: str) -> None:
    value = "MONOCHROME1" if element == "PhotometricInterpretation" else "INVERSE"
    data = dicom(np.array([[0, 100, 200]], np.uint8), WindowCenter=100, WindowWidth=201, **{element: value})
    assert levels(data).tolist() == [[254, 127, 0]]


def test_padding_is_black_and_outside_the_percentiles() -> None:
    pixels = np.full((20, 20), -2000, np.int16)
    pixels[5:15, 5:15] = np.arange(100).reshape(10, 10)
    for extra in ({"PixelPaddingValue": -2000}, {"PixelPaddingValue": -2048, "PixelPaddingRangeLimit": -1999}):
        for photometric in ("MONOCHROME2", "MONOCHROME1"):
            gray = levels(dicom(pixels, PhotometricInterpretation=photometric, **extra))
            assert gray[0, 0] == 0
            assert gray[5:15, 5:15].std() > 60
    assert levels(dicom(pixels)).max() == 255


def test_signed_and_unsigned_depths() -> None:
    for dtype, bits in ((np.int16, 16), (np.int16, 12), (np.uint16, 10), (np.uint8, 8), (np.int8, 8), (np.uint32, 32)):
        pixels = np.array([[0, 1], [2, 3]], dtype)
        if pixels.dtype.kind == "i":
            pixels[0, 0] = -4
        assert np.array_equal(frame(dicom(pixels, bits=bits)).values, pixels.astype(np.float32))
    one_bit = make_dataset(np.zeros((1, 8), np.uint8), {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0})
    one_bit.PixelData = b"\x05\x00"
    assert frame(to_bytes(one_bit)).values.tolist() == [[1, 0, 1, 0, 0, 0, 0, 0]]


def test_voi_lookup_table() -> None:
    table = item(LUTDescriptor=[4, 10, 8], LUTData=np.array([0, 100, 200, 255], "<u2").tobytes())
    data = dicom(np.array([[0, 10, 11, 12, 13, 99]], np.uint8), VOILUTSequence=[table])
    assert levels(data).tolist() == [[0, 0, 100, 200, 255, 255]]


def test_palette_and_planar_color() -> None:
    ramp = np.arange(256, dtype=np.uint16) * 257
    tables = {}
    for name, values in (("Red", ramp), ("Green", ramp[::-1]), ("Blue", ramp)):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tables[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    data = dicom(np.array([[0, 255]], np.uint8), PhotometricInterpretation="PALETTE COLOR", **tables)
    assert frame(data).values.tolist() == [[[0, 255, 0], [255, 0, 255]]]
    colors = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    planar = make_dataset(colors, {"PlanarConfiguration": 1, "PixelData": colors.transpose(2, 0, 1).tobytes()})
    assert np.array_equal(frame(to_bytes(planar)).values, colors)


def refused(data: bytes) -> str:
    def decode_last() -> None:
        image = open_medical(data)
        image.frame(image.count - 1)

    with pytest.raises(ImageError) as info:
        decode_last()
    return str(info.value)


@pytest.mark.parametrize(
    ("elements", "text"),
    [
        ({"PixelData": None}, "no pixel data"),
        ({"Modality": "SEG"}, "segmentation"),
        ({"Modality": "SR"}, "structured report"),
        ({"Rows": None}, "Rows"),
        ({"BitsAllocated": None}, "BitsAllocated"),
        ({"Rows": 60000, "Columns": 60000}, "too many pixels"),
        ({"Rows": 500}, "truncated or damaged"),
        ({"NumberOfFrames": 999_999}, "NumberOfFrames"),
        ({"Modality": "SM", "NumberOfFrames": 4}, "whole-slide"),
        ({"Modality": "SM", "ImageType": ["ORIGINAL", "PRIMARY", "LABEL"]}, "label"),
    ],
)
def test_refused(elements: dict[str, Any], text: str) -> None:
    assert text in refused(dicom(ct_pixels(), **elements))


def test_damaged_bytes() -> None:
    data = dicom(ct_pixels())
    for cut in (140, 200, 400, len(data) - 100):
        assert refused(data[:cut])
    assert "transfer syntax" in refused(to_bytes(make_dataset(ct_pixels()), "1.2.840.10008.1.2.4.100", [b"\0" * 64]))
    assert "truncated" in refused(to_bytes(make_dataset(ct_pixels()), "1.2.840.10008.1.2.4.90", [b"\xff\x4f" * 20]))
    small = coded("1.2.840.10008.1.2.4.80", ct_pixels(0, 8, 8).astype(np.uint16))  # another size than the header says
    assert "damaged" in refused(to_bytes(make_dataset(ct_pixels()), "1.2.840.10008.1.2.4.80", [small]))


def test_errors_do_not_quote_the_header() -> None:
    data = dicom(ct_pixels(), PatientName="王小明", PixelData=None, StudyDescription="王小明")
    assert "王" not in refused(data)


def test_without_preamble_or_meta() -> None:
    data = dicom(ct_pixels())
    assert is_dicom(data[132:])
    assert np.array_equal(frame(data[132:]).values, ct_pixels().astype(np.float32))
    assert not is_dicom(b"hello world, this is no DICOM file")
    assert not is_dicom(b"\x89PNG\r\n\x1a\n" + bytes(200))


@pytest.mark.parametrize("order", ["RAS", "LPS", "ASL", "SRA"])
def test_nifti_orientation(order: str) -> None:
    """A bright voxel at the patient's right, front and top; in each plane it must appear where a radiologist looks."""
    import nibabel

    values = np.zeros((6, 8, 10), np.float32)
    values[5, 7, 9] = 100
    image = nibabel.Nifti1Image(values, np.diag([1, 1, 2, 1.0]))
    target = nibabel.orientations.axcodes2ornt(tuple(order))
    turned = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), target))
    for data in (turned.to_bytes(), gzip.compress(turned.to_bytes())):
        volume = open_medical(data).source
        axial, coronal, sagittal = (volume.slice(plane, count - 1) for plane, count in
                                    (("axial", 10), ("coronal", 8), ("sagittal", 6)))  # fmt: skip
        assert np.argwhere(axial.values).tolist() == [[0, 0]]  # front at the top, right side on the left
        assert np.argwhere(coronal.values).tolist() == [[0, 0]]  # head at the top, right side on the left
        assert np.argwhere(sagittal.values).tolist() == [[0, 0]]  # head at the top, front on the left
        assert (axial.values.shape, coronal.values.shape, sagittal.values.shape) == ((8, 6), (10, 6), (10, 8))
        assert coronal.spacing == sagittal.spacing == (2, 1)


def test_volume_as_labeled_images() -> None:
    images = to_images(nifti(np.arange(24000, dtype=np.float32).reshape(20, 30, 40)), selections=[Selection(count=3)])
    assert [image.label for image in images] == ["轴位 1/3", "轴位 2/3", "轴位 3/3"]
    assert images[0].image.mode == "RGB"
    assert choose_slices(40, 3) == [6, 20, 33]
    with pytest.raises(UserError, match="slices"):
        choose_slices(40, 0)


DAMAGED_NIFTI = (nifti(np.zeros((9, 9, 9), np.float32))[:400], gzip.compress(b"\x5c\x01\0\0" + bytes(800)))


@pytest.mark.parametrize("data", DAMAGED_NIFTI, ids=["truncated", "no header"])
def test_damaged_nifti(data: bytes) -> None:
    assert refused(data)


def test_ordinary_images_are_frames_too() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (7, 5), (1, 2, 3)).save(buffer, "PNG")
    assert frame(buffer.getvalue()).values[0, 0].tolist() == [1, 2, 3]
    jp2 = imagecodecs.jpeg2k_encode(np.full((5, 7), 3000, np.uint16), reversible=True, level=0)
    assert frame(jp2).values[0, 0] == 3000
    assert "too many" in refused(jp2[: jp2.find(b"\xff\x4f\xff\x51") + 8] + b"\0\x10\0\0" * 2 + bytes(40))


@pytest.mark.parametrize("name", ["lungs", "40", "40,0", "nan,400", "40,-5", ""])
def test_unknown_windows(name: str) -> None:
    with pytest.raises(UserError, match="window"):
        parse_window(name)


def test_windowing_of_a_model() -> None:
    """From the dataset's manifest, through steps made from it, to what a model's images look like."""
    merged = {
        "step": "merge",
        "made_from": [{"made_from": {"windowing": ["lung"]}}, {"made_from": {"importer": "slake"}}],
    }
    assert recorded_windowings(merged) == [["lung"]]
    assert recorded_windowings(None) == recorded_windowings({"importer": "slake"}) == []
    lung = {"windowings": [["lung"]]}
    assert model_windowing(lung) == (Windowing(("lung",)), "window of CT: lung, as in training")
    assert model_windowing({}) == model_windowing({"windowings": [["auto"]]}) == (Windowing(), "")
    chosen, note = model_windowing(lung, ["bone"])
    assert (chosen, "trained with lung" in note) == (Windowing(("bone",)), True)
    assert model_windowing(lung, ["lung"])[1] == ""
    several, note = model_windowing({"windowings": [["lung"], ["auto"]]})
    assert (several, "lung; auto" in note) == (Windowing(), True)
    for metadata, names in (({"windowings": ["lung"]}, []), (lung, ["lungs"])):
        with pytest.raises(UserError):
            model_windowing(metadata, names)
    assert windowing_mismatch(lung, {"windowing": ["auto"]})
    assert not windowing_mismatch(lung, {"windowing": ["lung"]})
    assert not windowing_mismatch({}, {"windowing": ["lung"]})


def test_windowing_is_stored_as_names() -> None:
    windowing = Windowing(("lung", "纵隔窗", "400,1800"))
    assert windowing_from(windowing.to_json()) == windowing
    assert windowing_from(None) == Windowing()
    for wrong in ("lung", ["a", "b"], [1]):
        with pytest.raises(UserError):
            windowing_from(wrong)
