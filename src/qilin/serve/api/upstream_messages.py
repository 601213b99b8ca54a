"""A request's messages as an upstream server gets them: images as bounded PNG data URIs, control tokens as plain text.

In: a Request with decoded images. Out: messages in OpenAI's form, and hashes for the audit log.
"""

import hashlib
import io
import json
import re
from collections.abc import Sequence
from typing import Any

from PIL import Image

from qilin.model.generate import Request
from qilin.serve.api.audit import PromptHashes
from qilin.serve.api.upstream import png_uri
from qilin.serve.engine.prompt import pixel_hash

# forms of control tokens in common chat templates: an upstream server tokenizes them as such wherever they stand
CONTROL = (
    r"<\|[^\s|<>]{1,64}\|>",
    r"<｜[^\s｜<>]{1,64}｜>",
    r"</?s>",
    r"<(?:bos|eos|pad|unk|image|img|video|audio|image_pad|image_soft_token|IMG_CONTEXT)>",
    r"</?(?:img|start_of_turn|end_of_turn|start_of_image|end_of_image)>",
    r"\[/?INST\]",
    r"<</?SYS>>",
    r"\[/?(?:SYSTEM_PROMPT|IMG|IMG_END|IMG_BREAK|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS)\]",
)
BREAK = "\u200b"  # a zero-width space behind a token's first character makes plain text of it


def control_pattern(tokens: Sequence[str]) -> re.Pattern[str]:
    """What matches a control token: the common forms, and a vocabulary's own tokens."""
    vocabulary = sorted((re.escape(token) for token in tokens if token.strip()), key=len, reverse=True)
    return re.compile("|".join([*vocabulary, *CONTROL]))


def as_plain_text(text: str, pattern: re.Pattern[str]) -> str:
    """The text with its control tokens broken up, so that none of them forges a turn."""
    return pattern.sub(lambda match: match[0][0] + BREAK + match[0][1:], text)


def to_upstream_messages(
    request: Request, image_side: int, pattern: re.Pattern[str]
) -> tuple[list[dict[str, Any]], PromptHashes]:
    """(messages, hashes) of a request whose images are decoded."""
    urls = iter([bounded_png(image, image_side) for image in request.images])
    messages = []
    for message in request.messages:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": next(urls)}}
            if part["type"] == "image"
            else {"type": "text", "text": as_plain_text(part["text"], pattern)}
            for part in message["content"]
        ]
        # one text as a string: some templates take nothing else from the system and the assistant
        is_text = len(parts) == 1 and parts[0]["type"] == "text"
        messages.append({"role": message["role"], "content": parts[0]["text"] if is_text else parts})
    texts = json.dumps(request.messages, ensure_ascii=False, sort_keys=True)
    digest = hashlib.sha256(texts.encode("utf-8", "surrogatepass")).hexdigest()
    return messages, PromptHashes(digest, tuple(map(pixel_hash, request.images)))


def bounded_png(image: Image.Image, side: int) -> str:
    """The image as a PNG data URI, reduced to at most `side` pixels a side."""
    scale = side / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return png_uri(buffer.getvalue())
