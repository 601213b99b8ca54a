"""Files with planted identities: a name, an id, a telephone number, a date and a hospital wherever there can be text.

In: a character set. Out: the bytes of DICOM files, of ordinary images, and `assert_nobody`, which searches any bytes.
Texts are planted as letters of the same length first and replaced in the finished file, so that they also stand in
encodings that the file does not declare.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset

from builders.dicom import ct_pixels, item, make_dataset, to_bytes

NAME, HOSPITAL = "欧阳锦绣", "青藤市第九人民医院"
LATIN, PATIENT_ID, PHONE, BIRTH = "Quxzhou", "ZY7739201", "13912345678", "19630417"
PLANTED = (NAME, "锦绣", HOSPITAL, "青藤", LATIN, "QUXZHOU", PATIENT_ID, PHONE, BIRTH, "1963-04-17", "1963年4月17日")
ENCODINGS = {"GB18030": "gb18030", "ISO_IR 192": "utf-8", "ISO_IR 100": "gbk", "": "gbk"}  # declared, real
TEXT_VRS = {"LO", "SH", "ST", "LT", "UC", "UT", "PN"}
DIGIT_VRS = {"DS": PHONE, "IS": PHONE, "DA": BIRTH, "DT": BIRTH + "101112", "UI": f"1.2.{PHONE}.{BIRTH}"}
BYTE_VRS = {"OB", "OW", "UN", "OF", "OD", "OL", "OV", "OB or OW"}
# what decides how the pixels are read, or which images belong together
NEEDED_GROUPS = (0x0000, 0x0002, 0x0004, 0x0028, 0x7FE0, 0xFFFC)
NEEDED = {
    "SOPClassUID", "SOPInstanceUID", "Modality", "SpecificCharacterSet", "ImageType", "BurnedInAnnotation",
    "StudyInstanceUID", "SeriesInstanceUID", "AccessionNumber", "PatientAge", "ImageOrientationPatient",
    "ImagePositionPatient", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "LengthToEnd",
}  # fmt: skip


def letters(text: str, encoding: str, mark: str) -> str:
    """As many equal letters as the text has bytes."""
    return mark * len(text.encode(encoding))


def planted_dicom(charset: str, study: int, pixels: np.ndarray | None = None) -> bytes:
    """A CT image whose every element that may hold text, number, date or bytes names somebody."""
    encoding = ENCODINGS[charset]
    name, hospital = letters(NAME, encoding, "N"), letters(HOSPITAL, encoding, "H")
    secret = f"{name} {hospital} {LATIN} {PATIENT_ID} {PHONE}"
    inner = item(PatientName=f"{name}^{LATIN}", PatientID=PATIENT_ID, ImageComments=secret, PatientBirthDate=BIRTH)
    inner.private_block(0x0029, "QUXZ", create=True).add_new(0x01, "LO", secret[:60])
    inner.RequestAttributesSequence = [item(ImageComments=secret, ReferencedSOPInstanceUID=f"1.2.{PHONE}")]
    dataset = make_dataset(ct_pixels(study) if pixels is None else pixels)
    for tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
        if tag >> 16 in NEEDED_GROUPS or keyword in NEEDED or retired or not keyword:
            continue
        plant(dataset, tag, vr, secret, name, inner)
    dataset.SpecificCharacterSet = charset or None
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.{PHONE}.{study}", f"1.2.{PHONE}.{study}.1"
    dataset.AccessionNumber, dataset.PatientAge = f"{PATIENT_ID}{study}", "061Y"
    dataset.IconImageSequence = [item(Rows=2, Columns=8, BitsAllocated=8, PixelData=secret.encode()[:16])]
    for group in (0x6000, 0x601E):
        for number, vr in ((0x0022, "LO"), (0x1500, "LO"), (0x3000, "OW"), (0x4000, "LT")):
            plant(dataset, group << 16 | number, vr, secret, name, inner)
    for group in range(0x0009, 0x0031, 2):
        block = dataset.private_block(group, f"{LATIN} {group}", create=True)
        for number, vr in enumerate((*sorted(TEXT_VRS), "OB", "UN", "SQ", "DA")):
            plant(dataset, block.get_tag(number), vr, secret, name, inner)
    dataset.add_new(0xFFFCFFFC, "OB", secret.encode())
    data = to_bytes(dataset)
    start = data.index(b"DICM") + 4 + 12 + int.from_bytes(data[140:144], "little")
    meta = element(0x0016, b"AE", LATIN.encode()) + element(0x0100, b"UI", f"1.2.{PHONE}".encode())
    meta += element(0x0102, b"OB", secret.encode())
    length = (start - 144 + len(meta)).to_bytes(4, "little")
    preamble = f"{secret} {BIRTH}".encode()[:128].ljust(128, b"\0")
    data = preamble + data[128:140] + length + data[144:start] + meta + data[start:] + secret.encode() + bytes(64)
    data = data.replace(name.encode(), NAME.encode(encoding)).replace(hospital.encode(), HOSPITAL.encode(encoding))
    assert data.count(NAME.encode(encoding)) > 1000  # the control: it does stand there
    return data


def element(number: int, vr: bytes, value: bytes) -> bytes:
    """An element of the file meta group."""
    value += b"\0" * (len(value) % 2)
    size = b"\0\0" + len(value).to_bytes(4, "little") if vr == b"OB" else len(value).to_bytes(2, "little")
    return b"\x02\0" + number.to_bytes(2, "little") + vr + size + value


def plant(dataset: Dataset, tag: int, vr: str, secret: str, name: str, inner: Dataset) -> None:
    if vr == "SQ":
        dataset.add_new(tag, vr, [inner])
    elif vr == "PN":
        dataset.add_new(tag, vr, f"{name}^{LATIN}={name}")
    elif vr == "UR":
        dataset.add_new(tag, vr, f"http://{LATIN}/{PHONE}")
    elif vr in ("CS", "AE"):
        dataset.add_new(tag, vr, "QUXZHOU")
    elif vr in TEXT_VRS:
        dataset.add_new(tag, vr, secret[: 16 if vr == "SH" else 64 if vr == "LO" else 200])
    elif vr in DIGIT_VRS:
        dataset.add_new(tag, vr, DIGIT_VRS[vr])
    elif vr in BYTE_VRS:
        content = secret.encode()
        dataset.add_new(tag, "OB" if " or " in vr else vr, content[: len(content) // 8 * 8])


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def planted_images() -> dict[str, bytes]:
    """Ordinary image files with identities in every place for text: name -> bytes; each shows another image."""
    secret = f"{NAME} {HOSPITAL} {LATIN} {PATIENT_ID} {PHONE} 1963-04-17"
    images = [Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 30, 3), np.uint8)) for seed in range(8)]
    text = PngInfo()
    for keyword in ("Author", "Comment", "Description", "Raw profile type exif"):
        text.add_text(keyword, secret.encode("gbk").decode("latin-1"))
        text.add_text(keyword, LATIN * 40, zip=True)
        text.add_itxt(keyword, secret, zip=keyword == "Comment")
    text.add_itxt("XML:com.adobe.xmp", f"<x:xmpmeta>{secret}</x:xmpmeta>")
    text.add(b"prVt", secret.encode())
    return {
        "a.png": encode(images[0], "PNG", pnginfo=text, exif=planted_exif(secret, 6)) + secret.encode(),
        "b.jpg": planted_jpeg(images[1], secret, 8),
        "c.jpg": planted_jpeg(images[2], secret, 1),
        "d.tif": encode(images[3], "TIFF", tiffinfo={270: secret, 305: secret, 315: LATIN, 316: PATIENT_ID},
                        exif=planted_exif(secret, 1), save_all=True, append_images=[images[4]]),
        "e.webp": encode(images[5], "WEBP", lossless=True, exif=planted_exif(secret, 1), xmp=secret.encode()),
        "f.bmp": encode(images[6], "BMP") + secret.encode(),
        "g.gif": encode(images[7], "GIF", comment=secret.encode()) + secret.encode(),
    }  # fmt: skip


def planted_exif(secret: str, orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x013B] = orientation, LATIN, LATIN
    exif[0x9C9D] = NAME.encode("utf-16-le")  # XPAuthor
    exif[0xA430] = LATIN  # owner of the camera
    exif.get_ifd(0x8825).update({1: "N", 2: (39.0, 9.0, 9.0), 29: "1963:04:17"})  # GPS
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + secret.encode("utf-16-be")
    return exif


def planted_jpeg(image: Image.Image, secret: str, orientation: int) -> bytes:
    data = encode(image, "JPEG", quality=90, exif=planted_exif(secret, orientation), comment=secret.encode("gb18030"))
    segments = b""
    for marker, head in (
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
        (0xED, b"Photoshop 3.0\0"),
        (0xE5, b""),
        (0xEC, b"Ducky"),
    ):
        content = head + secret.encode()
        segments += bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content
    return data[:2] + data[2:20] + segments + data[20:] + secret.encode()


def every_content(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """The bytes of every file below a folder, names included; tables, archives and compressed texts unpacked."""
    for path in sorted(folder.rglob("*")):
        yield path, str(path.relative_to(folder)).encode()
        if path.is_file():
            data = path.read_bytes()
            yield path, data
            if path.suffix == ".parquet":
                yield (
                    path,
                    json.dumps(pq.read_table(path).to_pylist(), default=bytes_as_text, ensure_ascii=False).encode(),
                )
            if path.suffix == ".gz":
                yield path, gzip.decompress(data)
            for start in find_all(data, b"IDAT"):
                length = int.from_bytes(data[start - 4 : start], "big")
                unpacked = zlib.decompressobj().decompress(data[start + 4 : start + 4 + length])
                yield path, unpacked


def bytes_as_text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else repr(value)


def find_all(data: bytes, part: bytes) -> Iterator[int]:
    start = data.find(part)
    while start >= 0:
        yield start
        start = data.find(part, start + 1)


def assert_nobody(content: bytes, where: object) -> None:
    """No planted text in any encoding, nor as JSON escapes or base64."""
    for text in PLANTED:
        for encoding in ("utf-8", "gb18030", "utf-16-le", "utf-16-be"):
            assert text.encode(encoding) not in content, (where, text, encoding)
        assert json.dumps(text)[1:-1].encode() not in content, (where, text, "JSON")
        assert text.encode("gb18030").decode("latin-1").encode() not in content, (where, text, "latin-1")
