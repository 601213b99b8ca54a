"""DICOM headers and codestreams that declare what they do not hold: refused or ignored, quickly, and in silence."""

import contextlib
import gzip
import io
import json
import random
import time
import warnings
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless

from builders.dicom import JPEG_XL, ct_pixels, dicom, item, make_dataset, nifti, to_bytes
from fuzz.mutate_images import mutate_segments
from qilin.imaging.coded_size import coded_size
from qilin.imaging.dicom import read_dicom
from qilin.imaging.errors import ImageError
from qilin.imaging.identity import header_values
from qilin.imaging.medical import open_medical
from qilin.imaging.nifti import read_nifti
from qilin.imaging.series import group_series
from qilin.serve.api.image_store import describe

SECRET = b"s" * 32


def with_text(keyword: str, text: str, **elements: Any) -> bytes:
    """A file whose element holds a text that pydicom would not write."""
    marker = "7" * len(text.encode("latin-1"))
    data = dicom(ct_pixels(), **({keyword: marker} | elements))
    assert data.count(marker.encode()) == 1
    return data.replace(marker.encode(), text.encode("latin-1"))


@pytest.mark.parametrize(
    ("keyword", "text"),
    [("InstanceNumber", "1e400"), ("InstanceNumber", "Huang5"), ("PatientAge", "²23Y"), ("StudyInstanceUID", "Huang6")],
)
def test_values_that_are_none(keyword: str, text: str, recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("always")
    image = read_dicom(with_text(keyword, text))
    assert header_values(image, SECRET, 1).instance == 0
    assert group_series([image])[0].count == 1
    assert not [warning for warning in recwarn if text in str(warning.message)]


@pytest.mark.parametrize("elements", [{"Rows": "Huang"}, {"SOPClassUID": "Huang", "PixelData": None}])
def test_refusals_do_not_quote_the_header(elements: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(ct_pixels(), {"SOPClassUID": "1.2"})
    monkeypatch.setattr("qilin.imaging.dicom.parse", lambda data: dataset)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    for keyword, value in elements.items():
        if value is None:
            del dataset[keyword]
        else:
            dataset.add_new(keyword, "LO", value)
    with pytest.raises(ImageError) as caught:
        read_dicom(b"")
    assert "Huang" not in str(caught.value)


@pytest.mark.parametrize(
    ("elements", "may_have_text"),
    [
        ({"Modality": "CT"}, False),
        ({"Modality": "DX", "ImageType": ["ORIGINAL", "PRIMARY"]}, False),
        ({"Modality": ""}, True),
        ({"Modality": ["CT", "US"]}, True),
        ({"Modality": "SOMETHING"}, True),
        ({"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"}, True),  # secondary capture in color
        ({"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"}, True),  # ultrasound
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, False),
    ],
)
def test_images_that_may_show_a_name(elements: dict[str, Any], may_have_text: bool) -> None:
    values = header_values(read_dicom(dicom(ct_pixels(), **elements)), SECRET, 1)
    assert (values.burned_in != "no") == may_have_text


def test_identifiers_without_a_value() -> None:
    def values(**elements: Any) -> Any:
        return header_values(read_dicom(dicom(ct_pixels(), **elements)), SECRET, 1)

    zero = values(PatientID="000", AccessionNumber="0", StudyInstanceUID="1.2")
    assert zero.patient
    assert zero.accession
    assert zero.patient != values(StudyInstanceUID="1.2").patient  # no number is not the number zero
    assert values(StudyInstanceUID="1.2").patient == values(StudyInstanceUID="1.2", PatientID=" ").patient
    assert values(StudyInstanceUID="1.2").patient != values(StudyInstanceUID="1.3").patient
    assert values(PatientID="00123").patient == values(PatientID="123").patient


def coded(pixels: np.ndarray, syntax: str, code: Any, rows: int) -> bytes:
    """A file whose header promises fewer rows than its codestream has."""
    dataset = make_dataset(pixels)
    dataset.Rows = rows
    return to_bytes(dataset, syntax, [code(pixels)])


@pytest.mark.parametrize(
    ("syntax", "code"),
    [
        (JPEGBaseline8Bit, imagecodecs.jpeg8_encode),
        (JPEGLSLossless, imagecodecs.jpegls_encode),
        (JPEG2000Lossless, lambda pixels: imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k")),
        (JPEG_XL, imagecodecs.jpegxl_encode),
    ],
)
@pytest.mark.parametrize("shape", [(32, 48), (37, 53)])
def test_codestreams_larger_than_the_header(syntax: str, code: Any, shape: tuple[int, int]) -> None:
    pixels = ct_pixels(0, *shape).astype(np.uint8)
    assert coded_size(bytes(code(pixels))) == shape[::-1]
    assert read_dicom(coded(pixels, syntax, code, shape[0])).frame(0).values.shape == shape
    with pytest.raises(ImageError, match="truncated or damaged"):
        read_dicom(coded(pixels, syntax, code, shape[0] - 1)).frame(0)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_truncated_jpeg_ls_is_refused_at_once(share: float) -> None:
    """CharLS took five seconds of reading zeros."""
    pixels = ct_pixels(2, 16, 24).astype(np.uint8)
    data = bytes(imagecodecs.jpegls_encode(pixels))
    file = to_bytes(make_dataset(pixels), JPEGLSLossless, [data[: int(share * len(data))]])
    begin = time.process_time()
    with pytest.raises(ImageError, match="truncated or damaged"):
        read_dicom(file).frame(0)
    assert time.process_time() - begin < 1
    assert np.array_equal(read_dicom(to_bytes(make_dataset(pixels), JPEGLSLossless, [data])).frame(0).values, pixels)


def test_damaged_lossless_jpeg_does_not_crash() -> None:
    """A second decoder, for what libjpeg-turbo refuses, wrote beyond its memory; a crash would end the test run."""
    pixels = ct_pixels(2, 16, 24).astype(np.uint8)
    draw = random.Random(0)
    data = bytes(imagecodecs.ljpeg_encode(pixels))
    for _ in range(60):
        damaged = mutate_segments(mutate_segments(data, draw), draw)
        file = to_bytes(make_dataset(pixels), "1.2.840.10008.1.2.4.70", [damaged])
        with contextlib.suppress(ImageError):
            read_dicom(file).frame(0)


def test_a_few_bytes_that_declare_many_pixels() -> None:
    """741 bytes of JPEG-LS took ten seconds."""
    rows, columns = 8192, 16384
    data = bytearray(imagecodecs.jpegls_encode(np.zeros((4, columns), np.uint8)))
    start = data.index(b"\xff\xf7")
    data[start + 5 : start + 7] = rows.to_bytes(2, "big")
    dataset = make_dataset(np.zeros((4, columns), np.uint8), {"Rows": rows})
    begin = time.perf_counter()
    with pytest.raises(ImageError, match="truncated or damaged"):
        read_dicom(to_bytes(dataset, JPEGLSLossless, [bytes(data)])).frame(0)
    assert time.perf_counter() - begin < 1
    blank = np.zeros((1024, 1024), np.uint8)  # an empty image of a usual size is read
    frame = to_bytes(make_dataset(blank), JPEGLSLossless, [imagecodecs.jpegls_encode(blank)])
    assert read_dicom(frame).frame(0).values.max() == 0


def test_deflated_bomb_behind_a_long_meta_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qilin.imaging.dicom.MAX_INFLATED", 1000)
    dataset = make_dataset(ct_pixels())
    file = pydicom.dcmread(io.BytesIO(to_bytes(dataset)))
    file.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    file.file_meta.ImplementationVersionName = "1"
    file.file_meta.PrivateInformationCreatorUID = "1.2"
    file.file_meta.PrivateInformation = b"\0" * 5000
    file.file_meta["PrivateInformation"].tag  # noqa: B018
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file)
    with pytest.raises(ImageError, match="too many pixels"):
        read_dicom(buffer.getvalue())


def test_one_uid_for_all_slices() -> None:
    """Some exports give every slice one UID; a second copy of a slice still counts once."""
    images = [
        read_dicom(dicom(ct_pixels(seed), SeriesInstanceUID="1.2", InstanceNumber=str(seed))) for seed in (1, 2, 2)
    ]
    assert [stack.count for stack in group_series(images)] == [2]


def test_volumes_larger_than_their_file(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(nifti(np.zeros((4, 5, 6), np.int16)))
    data[42:44] = (32000).to_bytes(2, "little")
    data[252:254] = (99).to_bytes(2, "little")  # an unknown qform code, which nibabel reports on stderr
    for changed in (bytes(data), gzip.compress(data)):
        with pytest.raises(ImageError, match="in 592 bytes"):
            read_nifti(changed)
    assert capfd.readouterr().err == ""
    series = np.arange(4 * 5 * 6 * 3 * 2, dtype=np.int16).reshape(4, 5, 6, 3, 2)
    assert np.array_equal(read_nifti(nifti(series)).values, series[..., 0, 0])


def test_the_largest_numbers_have_a_window() -> None:
    values = np.array([[-3e38, 3e38], [1.0, 2.0]], np.float32)
    described = describe(open_medical(nifti(values[..., None])))
    assert json.dumps(described, allow_nan=False)


PIXEL_DATA = b"\xe0\x7f\x10\0OW\0\0"  # its tag and VR; the length follows


def with_frames(text: bytes) -> bytes:
    data = to_bytes(make_dataset(np.stack([ct_pixels()] * 2)))
    return data.replace(b"\x28\0\x08\0IS\x02\x002 ", b"\x28\0\x08\0IS\x02\0" + text)


def with_pixel_length(length: int) -> bytes:
    data = dicom(ct_pixels())
    start = data.index(PIXEL_DATA) + len(PIXEL_DATA)
    return data[:start] + length.to_bytes(4, "little") + data[start + 4 :]


def with_syntax(uid: str) -> bytes:
    """A native file that declares another transfer syntax, in the same length or a shorter one."""
    data = to_bytes(make_dataset(ct_pixels()), "1.2.840.10008.1.2.1")
    start = data.index(b"\x02\0\x10\0UI") + 8
    value = uid.encode() + b"\0" * (len(uid) % 2)
    change = len(value) - data[start - 2]
    length = int.from_bytes(data[140:144], "little") + change
    head = data[:140] + length.to_bytes(4, "little") + data[144 : start - 2] + len(value).to_bytes(2, "little")
    return head + value + data[start + len(value) - change :]


def dicomdir() -> bytes:
    dataset = make_dataset(ct_pixels(), {"PixelData": None})
    dataset.SOPClassUID = "1.2.840.10008.1.3.10"
    dataset.DirectoryRecordSequence = [item(DirectoryRecordType="PATIENT", PatientName="Huang")]
    return to_bytes(dataset)


UNREADABLE = {
    "frames 1A": (with_frames(b"1A"), "NumberOfFrames"),
    "cut pixels": (dicom(ct_pixels())[:-500], "truncated or damaged"),
    "no pixels": (dicom(ct_pixels())[: -ct_pixels().nbytes], "truncated or damaged|no pixel data"),
    "compressed, declared native": (
        to_bytes(make_dataset(ct_pixels()), JPEG2000Lossless, [b"\xff\x4f" * 20]).replace(
            JPEG2000Lossless.encode(), b"1.2.840.10008.1.2.1".ljust(22, b"\0")
        ),
        "truncated or damaged",
    ),
    "native, declared compressed": (with_syntax(JPEGBaseline8Bit), "truncated or damaged"),
    "unknown transfer syntax": (with_syntax("1.2.3.4"), "not supported"),
    "3 GB of pixels": (with_pixel_length(3 << 30)[:-500], "truncated or damaged"),
    "DICOMDIR": (dicomdir(), "DICOMDIR"),
    "empty": (b"", "not an image|no DICOM"),
    "text": (b"DICM" * 200, "not an image|no DICOM|damaged|no pixel data"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files_are_refused_quickly(name: str) -> None:
    data, reason = UNREADABLE[name]
    begin = time.process_time()
    with pytest.raises(ImageError, match=reason) as caught:
        read_dicom(data).frame(0)
    assert time.process_time() - begin < 1
    assert "Huang" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_missing_and_can_be_done_without() -> None:
    """No spacing, no transfer syntax, a length of 3 GB before all pixels, text behind the end."""
    pixels = ct_pixels()
    plain = dicom(pixels)
    meta = plain.index(b"\x02\0\x10\0UI")
    without_syntax = plain[:meta] + plain[meta + 8 + plain[meta + 6] :]
    length = int.from_bytes(plain[140:144], "little") - 8 - plain[meta + 6]
    without_syntax = without_syntax[:140] + length.to_bytes(4, "little") + without_syntax[144:]
    no_spacing = dicom(pixels, PixelSpacing=["0", "0"])
    for data in (plain, without_syntax, no_spacing, with_pixel_length(3 << 30), plain + b"Huang"):
        frame = read_dicom(data).frame(0)
        assert np.array_equal(frame.values, pixels)
        assert frame.spacing is None


def test_mixed_sizes_in_one_series() -> None:
    images = [
        read_dicom(dicom(ct_pixels(n, height, 48), SeriesInstanceUID="1.2", InstanceNumber=str(n)))
        for n, height in enumerate((32, 32, 40), start=1)
    ]
    assert sorted(stack.count for stack in group_series(images)) == [1, 2]
