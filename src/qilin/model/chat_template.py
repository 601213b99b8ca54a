"""Chat templates: messages -> token ids and loss mask, both from one Jinja text.

The templates use the form that transformers renders, with `{% generation %}` around the assistant's text;
chat_template() defines `bos`, `sequence_start`, `image` and `prefix_space` before them. A saved model carries its
template, so transformers, vLLM and other servers build the same prompt.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qilin.core.errors import UserError

IMAGE = "<image>"

# Shared by all templates: a message's text, with `<image>` and a line end (as in LLaVA) for each image part.
RENDER_MACRO = """
{%- macro render(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- else -%}
    {%- for part in content -%}
      {%- if part['type'] == 'image' -%}{{- image + prefix_space + '\\n' -}}
      {%- else -%}{{- part['text'] -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
"""

# LLaVA's stage 1 (conversation.py, "plain"): image, caption and a line end; user text is dropped. The caption follows
# the image directly, so the space before it belongs to the supervised text.
PLAIN = """
{{- bos_token or '' -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' and message['content'] is not string -%}
    {%- for part in message['content'] if part['type'] == 'image' -%}{{- image -}}{%- endfor -%}
  {%- elif message['role'] == 'assistant' -%}
    {%- generation -%}{{- prefix_space + render(message['content']) + '\\n' -}}{%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
"""

# Vicuna's format, LLaVA's "v1": turns are joined by a space, an answer ends with the end-of-sequence token.
V1 = """
{%- set ns = namespace(system=default_system) -%}
{%- for message in messages if message['role'] == 'system' -%}
  {%- set ns.system = render(message['content']) -%}
{%- endfor -%}
{{- sequence_start -}}
{%- if ns.system -%}{{- ns.system + ' ' -}}{%- endif -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}{{- 'USER: ' + render(message['content']) + ' ' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- 'ASSISTANT:' -}}
    {%- generation -%}{{- ' ' + render(message['content']) + eos_token -}}{%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""

# Llama 2's format as LLaVA writes it (conversation.py, SeparatorStyle.LLAMA_2): the system prompt is part of the first
# question, an answer has a space on both sides, and every later turn starts with the beginning-of-sequence token.
LLAMA_2 = """
{%- set ns = namespace(system=default_system, turn=0) -%}
{%- for message in messages if message['role'] == 'system' -%}
  {%- set ns.system = render(message['content']) -%}
{%- endfor -%}
{{- sequence_start -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {%- if ns.turn -%}{{- bos -}}{%- endif -%}
    {{- '[INST] ' -}}
    {%- if ns.system and not ns.turn -%}{{- '<<SYS>>\\n' + ns.system + '\\n<</SYS>>\\n\\n' -}}{%- endif -%}
    {{- render(message['content']) + ' [/INST]' -}}
    {%- set ns.turn = ns.turn + 1 -%}
  {%- elif message['role'] == 'assistant' -%}
    {%- generation -%}{{- ' ' + render(message['content']) + ' ' + eos_token -}}{%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
"""

# LLaVA's Mistral format is the same without the beginning-of-sequence token of later turns.
MISTRAL = LLAMA_2.replace("{%- if ns.turn -%}{{- bos -}}{%- endif -%}", "")

# ChatML as Qwen writes it; requires <|im_start|> and <|im_end|> in the vocabulary.
CHATML = """
{%- set ns = namespace(system=default_system) -%}
{%- for message in messages if message['role'] == 'system' -%}
  {%- set ns.system = render(message['content']) -%}
{%- endfor -%}
{%- if ns.system -%}{{- '<|im_start|>system\\n' + ns.system + '<|im_end|>\\n' -}}{%- endif -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}{{- '<|im_start|>user\\n' + render(message['content']) + '<|im_end|>\\n' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- generation -%}{{- render(message['content']) + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class Template:
    """A conversation format: its Jinja body, default system prompt, end of an answer, and the tokens it requires."""

    body: str
    system: str = ""
    stop: str | None = None  # a token, or white space that tokens may end with; None: the end-of-sequence token
    required_tokens: tuple[str, ...] = ()


TEMPLATES = {
    "plain": Template(PLAIN, stop="\n"),
    "v1": Template(
        V1,
        # The prompt that Vicuna and LLaVA-1.5 were trained with (FastChat and LLaVA, conversation.py, "vicuna_v1").
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    ),
    "llama_2": Template(
        LLAMA_2,
        # Chinese-LLaMA-Alpaca-2's (its scripts/inference/inference_hf.py, DEFAULT_SYSTEM_PROMPT).
        system="You are a helpful assistant. 你是一个乐于助人的助手。",
    ),
    "mistral": Template(MISTRAL),  # LLaVA 1.6 and LLaVA-Med 1.5 (conversation.py, "mistral_instruct"): no system prompt
    "chatml": Template(CHATML, stop="<|im_end|>", required_tokens=("<|im_start|>", "<|im_end|>")),
}


def chat_template(name: str, system: str | None = None, image: str = IMAGE, prefix_space: str = "") -> str:
    """The complete Jinja text of a template. `system` replaces the template's own system prompt ("" for none).

    `image` is the text of an image (LLaVA may put markers around it); `prefix_space` is written after the first special
    token and after an image, where LLaVA starts a new piece of text (see tokenizer.chat_template_for). Raises UserError
    for an unknown name.
    """
    if name not in TEMPLATES:
        raise UserError(f"template is {name!r}; expected one of {', '.join(TEMPLATES)}")
    template = TEMPLATES[name]
    system_json = json.dumps(template.system if system is None else system, ensure_ascii=False)
    definitions = (
        f"{{%- set default_system = {system_json} -%}}{{%- set prefix_space = '{prefix_space}' -%}}"
        f"{{%- set image = '{image}' -%}}{{%- set bos = bos_token or '' -%}}"
        "{%- set sequence_start = bos + prefix_space -%}"
    )
    return definitions + RENDER_MACRO.replace("\n", "").replace("  ", "") + remove_indents(template.body)


def remove_indents(body: str) -> str:
    """The template without line ends and indents, which are for readers only; every tag trims its sides anyway."""
    return "".join(line.strip() for line in body.splitlines())


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids, with the mask of supervised tokens (the assistant's text and its end token).

    `num_images` counts the images, whose tokens are runs of image tokens in `ids`; `grids` are their (rows, columns),
    for models whose positions need them.
    """

    ids: list[int]
    loss_mask: list[bool]
    num_images: int
    grids: tuple[tuple[int, int], ...] = ()


def encode(messages: Sequence[Mapping[str, Any]], tokenizer: Any, template: str, image_tokens: int) -> Encoded:
    """Messages -> ids and loss mask. `template` is Jinja text; each image becomes `image_tokens` image tokens.

    A token is supervised if any of its characters is in the assistant's text, the end token included, so ids and mask
    agree for every tokenizer. Requires a fast tokenizer (character offsets).
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        conversations=[escape_control_tokens(messages, tokenizer)],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    (text,), (spans,) = rendered
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = assistant_token_mask(encoding["offset_mapping"], spans)
    return expand_images(encoding["input_ids"], mask, tokenizer.convert_tokens_to_ids(IMAGE), image_tokens)


def escape_control_tokens(messages: Sequence[Mapping[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    """The messages with a space after the first character of each control token in their texts: `</s>` -> `< /s>`.

    A tokenizer makes a control token of its text wherever it stands, so a text with `<|im_end|>` would end its turn.
    `<image>` stays: callers refuse it.
    """
    pattern = control_token_pattern(tokenizer)
    escaped = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            content = escape(content, pattern)
        else:
            content = [{**part, "text": escape(part["text"], pattern)} if "text" in part else part for part in content]
        escaped.append({**message, "content": content})
    return escaped


def escape(text: str, pattern: re.Pattern[str] | None) -> str:
    return text if pattern is None else pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


@lru_cache(maxsize=8)
def control_token_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """Matches the control tokens of a tokenizer, the longest first; None without any."""
    added = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    templates = [token for template in TEMPLATES.values() for token in template.required_tokens]
    known = tokenizer.get_vocab()
    tokens = {*added, *tokenizer.all_special_tokens, *(token for token in templates if token in known)} - {IMAGE}
    ordered = sorted((token for token in tokens if len(token) > 1), key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def assistant_token_mask(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """For each token, given as (start, end) in characters: whether it overlaps one of the sorted spans.

    A byte-level token inside a character has that character's offsets, so it is included.
    """
    mask = []
    remaining = list(spans)
    for start, end in offsets:
        while remaining and remaining[0][1] <= start:
            remaining.pop(0)
        mask.append(bool(remaining) and end > remaining[0][0] and end > start)
    return mask


def expand_images(ids: Sequence[int], mask: Sequence[bool], image_id: int, image_tokens: int) -> Encoded:
    """Repeat each image token `image_tokens` times; image tokens are never supervised."""
    expanded_ids: list[int] = []
    expanded_mask: list[bool] = []
    num_images = 0
    for token, supervised in zip(ids, mask, strict=True):
        is_image = token == image_id
        count = image_tokens if is_image else 1
        num_images += is_image
        expanded_ids += [token] * count
        expanded_mask += [supervised and not is_image] * count
    return Encoded(expanded_ids, expanded_mask, num_images)
