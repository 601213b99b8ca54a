"""The content of a chat request: texts and decoded images, in the form that the model's template takes.

In: checked messages. Out: a model Request. Images come as data URIs; an address is fetched only if the server's
allow-list names its host. Decoding checks sizes first and runs in a worker thread.
"""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

from qilin.imaging.errors import ImageError
from qilin.imaging.medical import ShownImage, to_images
from qilin.imaging.volume import Selection, parse_selection
from qilin.model.generate import Request
from qilin.serve.api.chat_schema import ImagePart, Message
from qilin.serve.api.errors import ApiError
from qilin.serve.api.image_store import SCHEME, ImageStore
from qilin.serve.api.remote_images import RemoteImages
from qilin.serve.safeguards import ImageFacts

ROLES = {"developer": "system"}  # OpenAI's newer name


@dataclass(frozen=True)
class ImageSources:
    """Where a request's images may come from: its own data URIs, allowed hosts, and what its owner uploaded."""

    remote: RemoteImages
    store: ImageStore
    owner: str


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
    shown = [load_images(part.image_url.url, sources, number) for number, part in enumerate(parts, start=1)]
    images = [image.image for group in shown for image in group]
    if len(images) > max_images:
        raise ApiError(400, f"messages: {len(images)} images with slices; expected at most {max_images}", "messages")
    facts = [
        ImageFacts(image.modality, is_part(part.image_url.url))
        for part, group in zip(parts, shown, strict=True)
        for image in group
    ]
    groups = iter(shown)
    return Request([to_template_form(message, groups) for message in messages], images), facts


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


def load_images(url: str, sources: ImageSources, number: int) -> list[ShownImage]:
    """The upright RGB pixels of a data URI, an uploaded image or an allowed address. Raises ApiError, UserError.

    Of a file with several frames or slices the middle one, or those that the data URI names:
    data:application/dicom;slices=axial:8;base64,… (see qilin.imaging.volume.parse_selection).
    """
    param = f"image {number}"
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
