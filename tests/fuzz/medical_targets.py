"""Targets of the readers of DICOM, NIfTI and JPEG 2000, and of the import of a folder of DICOM files.

In: a folder. Out: name -> files, how they are mutated, who reads them. A refusal that quotes the patient's name, and a
file that takes more than SLOW seconds of one core, count as finds.
"""

import gzip
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from pydicom.uid import RLELossless

from builders.dicom import JPEG_XL, ct_pixels, dicom, item, make_dataset, nifti, to_bytes
from qilin.imaging.burned_in_text import views
from qilin.imaging.dicom import DicomImage, is_dicom, read_dicom
from qilin.imaging.errors import ImageError
from qilin.imaging.identity import header_values, identities
from qilin.imaging.medical import open_medical, to_images
from qilin.imaging.series import group_series
from qilin.imaging.windowing import Windowing, render
from qilin.pipeline.importers.dicom_config import ImportDicomConfig
from qilin.pipeline.importers.dicom_import import import_dicom

SLOW = 15  # seconds for one file, which a mutation can turn into a sound image of 50 megapixels
NAME = "Quxzname"  # no word of the code's
PATIENT = {"PatientName": f"{NAME}^A", "PatientID": f"{NAME}7", "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2"}


def dicom_files() -> dict[str, bytes]:
    """One small file of each kind that is read by code of its own."""
    gray, byte = ct_pixels(1, 16, 24), ct_pixels(2, 16, 24).astype(np.uint8)
    color = np.stack([byte, byte.T.reshape(16, 24), 255 - byte], axis=-1)
    ct = PATIENT | {
        "RescaleSlope": "1", "RescaleIntercept": "-1024", "WindowCenter": "40", "WindowWidth": "400",
        "PixelSpacing": ["1", "2"], "ImagePositionPatient": ["0", "0", "1"], "PatientAge": "045Y",
        "StudyDate": "20200101",
        "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"], "InstanceNumber": "3", "PixelPaddingValue": 0,
    }  # fmt: skip
    lut = item(LUTDescriptor=[256, 0, 8], LUTData=np.arange(256, dtype="<u2").tobytes())
    enhanced = make_dataset(np.stack([gray] * 3), PATIENT)
    enhanced.SharedFunctionalGroupsSequence = [
        item(PixelValueTransformationSequence=[item(RescaleSlope="2", RescaleIntercept="-5")],
             PixelMeasuresSequence=[item(PixelSpacing=["1", "1"])])
    ]  # fmt: skip
    enhanced.PerFrameFunctionalGroupsSequence = [
        item(FrameVOILUTSequence=[item(WindowCenter="5", WindowWidth="9")]) for _ in range(3)
    ]
    palette = make_dataset(byte, PATIENT | {"PhotometricInterpretation": "PALETTE COLOR"})
    for name in ("Red", "Green", "Blue"):
        setattr(palette, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(palette, f"{name}PaletteColorLookupTableData", np.arange(256, dtype="<u2").tobytes())
    coded = {
        "1.2.840.10008.1.2.4.50": imagecodecs.jpeg8_encode(byte),
        "1.2.840.10008.1.2.4.70": imagecodecs.ljpeg_encode(byte),
        "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_encode(byte),
        "1.2.840.10008.1.2.4.90": imagecodecs.jpeg2k_encode(byte, level=0, codecformat="j2k"),
        "1.2.840.10008.1.2.4.201": imagecodecs.htj2k_encode(byte, reversible=True),
        JPEG_XL: imagecodecs.jpegxl_encode(byte, lossless=True),
    }
    rle_head = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56)
    rle = rle_head + imagecodecs.packbits_encode(byte.tobytes())
    return {
        "ct": dicom(gray, **ct),
        "implicit": to_bytes(make_dataset(gray, ct), "1.2.840.10008.1.2"),
        "deflated": to_bytes(make_dataset(gray, ct), "1.2.840.10008.1.2.1.99"),
        "voi": dicom(byte, **PATIENT | {"VOILUTSequence": [lut], "PhotometricInterpretation": "MONOCHROME1"}),
        "color": dicom(color, **PATIENT),
        "palette": to_bytes(palette),
        "enhanced": to_bytes(enhanced),
        "frames": to_bytes(make_dataset(np.stack([byte] * 2), PATIENT), "1.2.840.10008.1.2.4.50",
                           [imagecodecs.jpeg8_encode(byte)] * 2),
        "rle": to_bytes(make_dataset(byte, PATIENT), RLELossless, [rle]),
        **{syntax: to_bytes(make_dataset(byte, PATIENT), syntax, [bytes(code)]) for syntax, code in coded.items()},
    }  # fmt: skip


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def medical_files(root: Path) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
    """name -> (folder of valid files, what reads the folder)."""
    rows, columns, slices = np.mgrid[:6, :7, :5]
    volume = (rows + 10 * columns + 100 * slices).astype(np.int16)
    byte = ct_pixels(2, 16, 24).astype(np.uint8)
    volumes = {"a.nii": nifti(volume), "b.nii.gz": gzip.compress(nifti(volume.astype(np.float32))),
               "c.nii": nifti(np.stack([volume] * 2, axis=-1))}  # fmt: skip
    codestreams = {
        "a.jp2": bytes(imagecodecs.jpeg2k_encode(np.stack([byte] * 3, axis=-1), reversible=True, level=0)),
        "b.j2k": bytes(imagecodecs.jpeg2k_encode(byte.astype(np.uint16) * 9, level=0, codecformat="j2k")),
    }
    pacs = {name: dicom_files()[name] for name in ("ct", "color", "enhanced")}
    return {
        "dicom": (write_files(root / "dicom", dicom_files()), partial(read_changed, dicom_files())),
        "nifti": (write_files(root / "nifti", volumes), partial(read_changed, volumes)),
        "jpeg2000": (write_files(root / "jpeg2000", codestreams), partial(read_changed, codestreams)),
        "pacs": (write_files(root / "pacs", pacs), import_all),
    }


def read_changed(valid: dict[str, bytes], folder: Path) -> None:
    """The mutated file as the chat, the page and the import read it."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        if data == valid[path.name]:
            continue
        start = time.process_time()
        try:
            read_file(data)
        except ImageError as error:
            if NAME in str(error):
                raise AssertionError(f"the refusal quotes the header: {error}") from error
            raise
        finally:
            assert time.process_time() - start < SLOW, f"slow: {path.name}"


def read_file(data: bytes) -> None:
    image = open_medical(data)
    to_images(data)
    for index in {0, image.count - 1}:
        frame = image.frame(index)
        views(render(frame, Windowing(("lung", "percentile", "40,400"))), frame)
    if is_dicom(data):
        assert isinstance(image.source, DicomImage)
        values = header_values(read_dicom(data), b"s" * 32, 1)
        assert NAME not in str(values)
        identities(image.source.dataset)
        group_series([image.source, image.source])


def import_all(folder: Path) -> None:
    out = folder.parent / "pacs-dataset"
    for path in (out, out.with_name(f".{out.name}.import")):
        shutil.rmtree(path, ignore_errors=True)
    import_dicom(ImportDicomConfig(source=folder, out=out, burned_in="keep", validation=0, test=0, **one_process()))
    for path in out.rglob("*"):
        assert not path.is_file() or NAME.encode() not in path.read_bytes(), f"a name in {path.name}"


def one_process() -> dict[str, Any]:
    from qilin.pipeline.execution.config import ExecutionConfig

    return {"execution": ExecutionConfig(workers=1)}
