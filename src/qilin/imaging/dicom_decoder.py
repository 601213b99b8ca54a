"""imagecodecs as pydicom's decoder of compressed pixel data.

In: the coded bytes of one frame and pydicom's runner. Out: its pixels as bytes, samples interleaved. pydicom finds the
frames, corrects signs and shapes arrays; imagecodecs (libjpeg-turbo, CharLS, OpenJPEG, OpenJPH) decodes.
"""

import re
from functools import cache

import imagecodecs
import numpy as np
from pydicom import uid
from pydicom.pixels.decoders.base import Decoder, DecodeRunner, get_decoder

from qilin.imaging.coded_size import check_coded_size

PLUGIN = "imagecodecs"
JPEG_XL = ("1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.112")  # newer than pydicom 3.0
LOSSY_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
LOSSLESS_JPEG = (uid.JPEGLossless, uid.JPEGLosslessSV1)
HTJ2K = (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
SUPPORTED = (
    *LOSSY_JPEG,
    *LOSSLESS_JPEG,
    *(uid.JPEGLSLossless, uid.JPEGLSNearLossless, uid.JPEG2000Lossless, uid.JPEG2000),
    *HTJ2K,
    uid.RLELossless,
)
DECODER_DEPENDENCIES = dict.fromkeys(SUPPORTED, ("imagecodecs>=2024.6",))  # pydicom reads this name
ADOBE = re.compile(rb"\xff\xee(..)Adobe", re.DOTALL)  # the last byte of the segment is the color transform
FRAME_HEADER = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]..(.)....(.)(.*)", re.DOTALL)
END_OF_IMAGE = b"\xff\xd9"  # cannot stand in the coded pixels: after FF comes a bit 0
HEAD_BYTES = 65536  # of a codestream, in which its headers stand


def is_available(transfer_syntax: str) -> bool:
    """pydicom asks this of every plugin."""
    return transfer_syntax in DECODER_DEPENDENCIES


@cache
def decoder_for(transfer_syntax: str) -> Decoder:
    """pydicom's decoder of a transfer syntax; imagecodecs does the decoding of compressed ones.

    Raises NotImplementedError for a transfer syntax without a decoder (MPEG, deflated frames, …).
    """
    decoder = get_decoder(transfer_syntax)
    if transfer_syntax in DECODER_DEPENDENCIES and PLUGIN not in decoder.available_plugins:
        decoder.add_plugin(PLUGIN, (__name__, "decode_frame"))
    return decoder


def decode_frame(data: bytes, runner: DecodeRunner) -> bytes:
    """The pixels of one frame; tells the runner their type, color space and order."""
    syntax = runner.transfer_syntax
    if syntax == uid.RLELossless:
        runner.set_option("planar_configuration", 1)
        return bytes(imagecodecs.dicomrle_decode(data, dtype=f"<u{runner.bits_allocated // 8}"))
    check_coded_size(data, runner.rows, runner.columns)
    pixels = decode_jpeg(data, runner) if syntax in (*LOSSY_JPEG, *LOSSLESS_JPEG) else decode_other(data, syntax)
    if pixels.dtype == bool:
        pixels = pixels.view(np.uint8)
    if pixels.size != runner.frame_length(unit="pixels"):
        height, width = pixels.shape[:2]
        raise ValueError(f"the coded frame has {width} x {height} pixels; expected {runner.columns} x {runner.rows}")
    runner.set_option("bits_allocated", 8 * pixels.itemsize)
    runner.set_option("planar_configuration", 0)
    if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):  # the codecs return RGB
        runner.set_option("photometric_interpretation", "RGB")
    return np.ascontiguousarray(pixels).tobytes()


def decode_other(data: bytes, syntax: str) -> np.ndarray:
    """JPEG-LS, JPEG 2000 and HTJ2K."""
    if syntax in (uid.JPEGLSLossless, uid.JPEGLSNearLossless):
        if END_OF_IMAGE not in data:  # CharLS reads zeros behind the data for seconds before it says so
            raise ValueError("JPEG-LS without the end of its data")
        return imagecodecs.jpegls_decode(data)
    return imagecodecs.jpeg2k_decode(data)


def decode_jpeg(data: bytes, runner: DecodeRunner) -> np.ndarray:
    """JPEG of 8 to 16 bits, lossy or lossless; color as RGB where it was coded as YCbCr."""
    if runner.samples_per_pixel == 1:
        return imagecodecs.jpeg8_decode(data)  # ljpeg_decode writes beyond its memory on damaged streams
    if runner.transfer_syntax in LOSSLESS_JPEG:  # coded without a color transform; pydicom applies the declared one
        return imagecodecs.jpeg8_decode(data, colorspace="RGB", outcolorspace="RGB")
    is_ycc = coded_as_ycc(data, runner.photometric_interpretation)
    runner.set_option("photometric_interpretation", "RGB")
    return imagecodecs.jpeg8_decode(data, colorspace="YCBCR" if is_ycc else "RGB", outcolorspace="RGB")


def coded_as_ycc(data: bytes, photometric: str) -> bool:
    """Whether three components are YCbCr. The codestream's own markers decide before DICOM's attribute, which is often
    wrong; it decides where the codestream says nothing."""
    head = data[:HEAD_BYTES]
    if match := ADOBE.search(head):
        end = match.start() + 2 + int.from_bytes(match.group(1), "big")
        return head[end - 1 : end] != b"\0"
    if b"JFIF\0" in head[:32]:
        return True
    header = FRAME_HEADER.search(head)
    if header is not None and header.group(3)[0:7:3].lower() == b"rgb":
        return False
    return photometric != "RGB"
