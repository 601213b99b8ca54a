"""The Arrow schemas of a dataset folder: the columns of images/*.parquet and samples/*.parquet.

Their names are the fields of ImageRecord and Sample. Apart from schema.py, because Arrow takes 30 MB that commands
without a dataset (`qilin score`) do not need.
"""

import pyarrow as pa

PROVENANCE_TYPE = pa.struct([(name, pa.string()) for name in ("source", "source_id", "url", "license", "attribution")])
IMAGE_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("bytes", pa.binary()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("phash", pa.string()),
        ("modality", pa.string()),
        ("body_part", pa.string()),
        ("provenance", pa.list_(PROVENANCE_TYPE)),
        ("license_tier", pa.string()),
        ("deidentified", pa.string()),
    ]
)
MESSAGE_TYPE = pa.struct(
    [("role", pa.string()), ("content", pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())])))]
)
TRANSLATION_TYPE = pa.struct([(name, pa.string()) for name in ("model", "prompt", "glossary", "checks")])
SAMPLE_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("kind", pa.string()),
        ("image_ids", pa.list_(pa.string())),
        ("messages", pa.list_(MESSAGE_TYPE)),
        ("answer_type", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("question_type", pa.string()),
        ("lang", pa.string()),
        ("source", pa.string()),
        ("group", pa.string()),
        ("license_tier", pa.string()),
        ("translation", TRANSLATION_TYPE),
    ]
)
