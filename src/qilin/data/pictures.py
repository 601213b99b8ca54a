"""Makes a `Picture` row of a file's bytes: pixels are judged by `qilin.imaging`, the row is ours.

In: encoded bytes, decoded or not yet, and where they came from. Out: a Picture with its content id, or BadPicture.
"""

import hashlib
from collections.abc import Sequence

from qilin.data.licences import strictest, tier
from qilin.data.records import Picture, Provenance
from qilin.imaging.pixels import Encoded, read_picture


def make_picture(
    data: bytes,
    provenance: Sequence[Provenance],
    modality: str | None = None,
    body_part: str | None = None,
    deidentified: str | None = None,
) -> Picture:
    """Bytes of a PNG, JPEG, TIFF, BMP, WebP or GIF -> a Picture; `image_id` is the sha256 of the bytes stored.

    The licence tier is the strictest of the provenance. Raises `qilin.imaging.pixels.BadPicture`.
    """
    return picture_of(read_picture(data), provenance, modality, body_part, deidentified)


def picture_of(
    encoded: Encoded,
    provenance: Sequence[Provenance],
    modality: str | None = None,
    body_part: str | None = None,
    deidentified: str | None = None,
) -> Picture:
    """A picture that was decoded before -> a Picture."""
    return Picture(
        image_id=hashlib.sha256(encoded.bytes).hexdigest(),
        bytes=encoded.bytes,
        format=encoded.format,
        width=encoded.width,
        height=encoded.height,
        phash=encoded.phash,
        modality=modality,
        body_part=body_part,
        provenance=tuple(provenance),
        license_tier=strictest(tier(item.license) for item in provenance),
        deidentified=deidentified,
    )
