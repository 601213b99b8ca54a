"""The content of a chat request: texts and decoded images, in the form that the model's template takes.

In: checked messages. Out: a model Request. Images come as data URIs; an address is fetched only if the server's
allow-list names its host. Decoding checks sizes first and runs in a worker thread.
"""

import base64
import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

from qilin.imaging.content import ImageContent, image_content
from qilin.imaging.errors import ImageError
from qilin.imaging.medical import ShownImage, to_images
from qilin.imaging.volume import Selection, parse_selection
from qilin.model.generate import Request
from qilin.serve.api.chat_schema import ImagePart, Message
from qilin.serve.api.errors import ApiError
from qilin.serve.api.image_store import SCHEME, ImageStore
from qilin.serve.api.remote_images import RemoteImages
from qilin.serve.engine.lru_cache import LruCache
from qilin.serve.safeguards import ImageFacts

ROLES = {"developer": "system"}  # OpenAI's newer name
DECODED_BYTES = 256 << 20
DecodedImage = tuple[ShownImage, ImageContent | None]  # None: not computed, where images are not kept


class DecodedImages:
    """What data URIs decoded to, with its statistics: clients send all images of a conversation with each question.

    The key is a hash of the whole data URI and the owner. Nobody may change an image that comes from here.
    """

    def __init__(self, max_bytes: int = DECODED_BYTES) -> None:
        self.cache: LruCache[tuple[DecodedImage, ...]] = LruCache(max_bytes)
        self.lock = threading.Lock()

    def get(self, key: str) -> tuple[DecodedImage, ...] | None:
        with self.lock:
            return self.cache.get(key)

    def put(self, key: str, images: tuple[DecodedImage, ...]) -> None:
        size = sum(4 * shown.image.width * shown.image.height for shown, _ in images)  # Pillow stores RGB in 4 bytes
        with self.lock:
            self.cache.put(key, images, size)


@dataclass(frozen=True)
class ImageSources:
    """Where a request's images may come from: its own data URIs, allowed hosts, and what its owner uploaded."""

    remote: RemoteImages
    store: ImageStore
    owner: str
    decoded: DecodedImages = field(default_factory=DecodedImages)


def to_request(messages: Sequence[Message], sources: ImageSources, max_images: int) -> Request:
    """Messages with their images decoded. Raises ApiError 400."""
    return read_content(messages, sources, max_images)[0]


def read_content(
    messages: Sequence[Message], sources: ImageSources, max_images: int
) -> tuple[Request, list[ImageFacts]]:
    """Messages with their images decoded, and what is known about each image besides. Raises ApiError 400."""
    if messages[-1].role != "user":
        raise ApiError(400, "messages: the last message must be the user's", "messages")
    parts = [part for message in messages for part in message.content if isinstance(part, ImagePart)]
    if len(parts) > max_images:
        raise ApiError(400, f"messages: {len(parts)} images; expected at most {max_images}", "messages")
    for message in messages:
        if message.role != "user" and any(isinstance(part, ImagePart) for part in message.content):
            raise ApiError(400, f"messages: an image in a message of the {message.role}", "messages")
    groups = [load_images(part.image_url.url, sources, number) for number, part in enumerate(parts, start=1)]
    images = [shown.image for group in groups for shown, _ in group]
    if len(images) > max_images:
        raise ApiError(400, f"messages: {len(images)} images with slices; expected at most {max_images}", "messages")
    facts = [
        ImageFacts(shown.modality, is_part(part.image_url.url), content)
        for part, group in zip(parts, groups, strict=True)
        for shown, content in group
    ]
    shown_groups = iter([[shown for shown, _ in group] for group in groups])
    return Request([to_template_form(message, shown_groups) for message in messages], images), facts


def is_part(url: str) -> bool:
    """Whether an address names a region of an uploaded image."""
    return url.startswith(f"{SCHEME}:") and "crop" in dict(parse_qsl(url.partition("?")[2]))


def last_question(request: Request) -> str:
    """The text of a request's last message, without its images."""
    return "\n".join(part["text"] for part in request.messages[-1]["content"] if part["type"] == "text")


def to_template_form(message: Message, groups: Iterator[Sequence[ShownImage]]) -> dict[str, Any]:
    """A message as chat templates read it; `groups` are the images of all image parts that follow."""
    role = ROLES.get(message.role, message.role)
    if isinstance(message.content, str):
        return {"role": role, "content": [{"type": "text", "text": message.content}]}
    content: list[dict[str, str]] = []
    for part in message.content:
        if not isinstance(part, ImagePart):
            content.append({"type": "text", "text": part.text})
            continue
        for image in next(groups):
            content += [{"type": "text", "text": f"{image.label}\n"}] if image.label else []
            content.append({"type": "image"})
    return {"role": role, "content": content}


def load_images(url: str, sources: ImageSources, number: int) -> tuple[DecodedImage, ...]:
    """The upright RGB pixels of a data URI, an uploaded image or an allowed address. Raises ApiError, UserError.

    Of a file with several frames or slices the middle one, or those that the data URI names:
    data:application/dicom;slices=axial:8;base64,… (see qilin.imaging.volume.parse_selection).
    """
    param = f"image {number}"
    if not url.startswith("data:"):
        return tuple((shown, None) for shown in decode_images(url, sources, param))
    key = hashlib.sha256(f"{sources.owner}\n{url}".encode("utf-8", "surrogatepass")).hexdigest()
    images = sources.decoded.get(key)
    if images is None:
        images = tuple((shown, image_content(shown.image)) for shown in decode_images(url, sources, param))
        sources.decoded.put(key, images)
    return images


def decode_images(url: str, sources: ImageSources, param: str) -> list[ShownImage]:
    """The images behind an address. Raises ApiError, UserError."""
    try:
        if url.startswith(f"{SCHEME}:"):
            image = sources.store.render_url(url, sources.owner)
            name = url.removeprefix(f"{SCHEME}:").partition("?")[0]
            return [ShownImage(image, modality=sources.store.get(name, sources.owner).modality)]
        data = decode_data_uri(url, param) if url.startswith("data:") else sources.remote.fetch(url, param)
        return to_images(data, sources.store.windowing, slice_selections(url))
    except ImageError as error:
        raise ApiError(400, f"{param}: {error}", param) from None


def slice_selections(url: str) -> list[Selection]:
    """The slices that a data URI's parameter names; the middle one without it. Raises UserError."""
    parameters = url[: url.find(",")].split(";")[1:] if url.startswith("data:") else []
    texts = [unquote_plus(text.removeprefix("slices=")) for text in parameters if text.startswith("slices=")]
    return [parse_selection(part) for text in texts for part in text.split()] or [Selection(count=1)]


def decode_data_uri(url: str, param: str) -> bytes:
    """data:image/png;base64,… -> bytes. The media type is not trusted: the decoder looks at the content."""
    head, comma, payload = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ApiError(400, f"{param}: expected a data URI with base64 content (data:image/png;base64,…)", param)
    try:
        return base64.b64decode(payload, validate=True)
    except ValueError:  # letters that are not base64, or not ASCII
        raise ApiError(400, f"{param}: its base64 content is damaged", param) from None
