"""Messages -> token ids and the mask of what the assistant says, both from one chat template.

The templates are data: Jinja text in the form transformers renders, with `{% generation %}` around what the model is
to say; chat_template() sets `begin`, `image` and `lead` before them. The saved model carries its template, so plain
transformers, vLLM and others see the same conversation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qilin.core.errors import UserError

IMAGE = "<image>"

# Shared by every template: the text of a message, image parts as `<image>` and a line end (LLaVA puts one there).
SAY = """
{%- macro say(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- else -%}
    {%- for part in content -%}
      {%- if part['type'] == 'image' -%}{{- image + lead + '\\n' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
"""

# LLaVA's stage 1 (conversation.py, "plain"): image, caption and a line end; what the user says is dropped. The
# caption stands right behind the image, so the space before it is part of what is learnt.
PLAIN = """
{{- bos_token or '' -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' and message['content'] is not string -%}
    {%- for part in message['content'] if part['type'] == 'image' -%}{{- image -}}{%- endfor -%}
  {%- elif message['role'] == 'assistant' -%}
    {%- generation -%}{{- lead + say(message['content']) + '\\n' -}}{%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
"""

# Vicuna's format, LLaVA's "v1": a space joins the turns, the answer ends with the end-of-sequence token.
V1 = """
{%- set ns = namespace(system=default_system) -%}
{%- for message in messages if message['role'] == 'system' -%}
  {%- set ns.system = say(message['content']) -%}
{%- endfor -%}
{{- begin -}}
{%- if ns.system -%}{{- ns.system + ' ' -}}{%- endif -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}{{- 'USER: ' + say(message['content']) + ' ' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- 'ASSISTANT:' -}}
    {%- generation -%}{{- ' ' + say(message['content']) + eos_token -}}{%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""

# Llama 2's format as LLaVA writes it (conversation.py, SeparatorStyle.LLAMA_2): the system prompt stands inside the
# first question, a space on either side of an answer, and every later turn begins a sequence anew.
LLAMA_2 = """
{%- set ns = namespace(system=default_system, turn=0) -%}
{%- for message in messages if message['role'] == 'system' -%}
  {%- set ns.system = say(message['content']) -%}
{%- endfor -%}
{{- begin -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {%- if ns.turn -%}{{- again -}}{%- endif -%}
    {{- '[INST] ' -}}
    {%- if ns.system and not ns.turn -%}{{- '<<SYS>>\\n' + ns.system + '\\n<</SYS>>\\n\\n' -}}{%- endif -%}
    {{- say(message['content']) + ' [/INST]' -}}
    {%- set ns.turn = ns.turn + 1 -%}
  {%- elif message['role'] == 'assistant' -%}
    {%- generation -%}{{- ' ' + say(message['content']) + ' ' + eos_token -}}{%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
"""

# Mistral's in LLaVA is the same, except that a later turn does not begin a sequence.
MISTRAL = LLAMA_2.replace("{%- if ns.turn -%}{{- again -}}{%- endif -%}", "")

# ChatML as Qwen writes it; needs <|im_start|> and <|im_end|> in the vocabulary.
CHATML = """
{%- set ns = namespace(system=default_system) -%}
{%- for message in messages if message['role'] == 'system' -%}
  {%- set ns.system = say(message['content']) -%}
{%- endfor -%}
{%- if ns.system -%}{{- '<|im_start|>system\\n' + ns.system + '<|im_end|>\\n' -}}{%- endif -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}{{- '<|im_start|>user\\n' + say(message['content']) + '<|im_end|>\\n' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- generation -%}{{- say(message['content']) + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class Template:
    """A conversation style: its Jinja body, the system prompt it assumes, what ends an answer, tokens it needs."""

    body: str
    system: str = ""
    stop: str | None = None  # a token, or white space that tokens may end with; None: the end-of-sequence token
    marks: tuple[str, ...] = ()


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
    "chatml": Template(CHATML, stop="<|im_end|>", marks=("<|im_start|>", "<|im_end|>")),
}


def chat_template(name: str, system: str | None = None, image: str = IMAGE, lead: str = "") -> str:
    """The whole Jinja text of a template. `system` replaces the template's own system prompt ("" for none).

    `image` is what stands for an image (LLaVA may put marks around it), `lead` what is written where LLaVA begins a
    new piece of text: after the first special token and after an image (words.spoken_template finds both).
    """
    if name not in TEMPLATES:
        raise UserError(f"template is {name!r}; expected one of {', '.join(TEMPLATES)}")
    import json

    template = TEMPLATES[name]
    words = json.dumps(template.system if system is None else system, ensure_ascii=False)
    head = (
        f"{{%- set default_system = {words} -%}}{{%- set lead = '{lead}' -%}}{{%- set image = '{image}' -%}}"
        "{%- set again = bos_token or '' -%}{%- set begin = again + lead -%}"
    )
    return head + SAY.replace("\n", "").replace("  ", "") + tidy(template.body)


def tidy(body: str) -> str:
    """The template without the line ends and indents that only help its reader; every tag trims its sides anyway."""
    return "".join(line.strip() for line in body.splitlines())


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids, with which of them the model is to learn to say.

    `images` counts the images; each stands in `ids` as a run of image tokens.
    """

    ids: list[int]
    learn: list[bool]
    images: int


def encode(messages: Sequence[Mapping[str, Any]], tokenizer: Any, template: str, image_tokens: int) -> Encoded:
    """Messages -> ids and mask. `template` is Jinja text; each image becomes `image_tokens` image tokens.

    A token is learnt if any of its characters lies in what the assistant says, the end mark included: so ids and
    mask cannot disagree, whatever the tokenizer. Needs a fast tokenizer (character offsets).
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        conversations=[[dict(message) for message in messages]],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    (text,), (spans,) = rendered
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    learn = spoken(found["offset_mapping"], spans)
    return expand_images(found["input_ids"], learn, tokenizer.convert_tokens_to_ids(IMAGE), image_tokens)


def spoken(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """For each token (start, end in characters): does it hold a character of one of the spans?

    A byte-level token in the middle of a character has that character's offsets, so it counts as well.
    """
    flags = []
    rest = list(spans)
    for start, end in offsets:
        while rest and rest[0][1] <= start:
            rest.pop(0)
        flags.append(bool(rest) and end > rest[0][0] and end > start)
    return flags


def expand_images(ids: Sequence[int], learn: Sequence[bool], image_id: int, image_tokens: int) -> Encoded:
    """Each image token repeated to the number of features that an image has."""
    out_ids: list[int] = []
    out_learn: list[bool] = []
    images = 0
    for token, flag in zip(ids, learn, strict=True):
        times = image_tokens if token == image_id else 1
        images += token == image_id
        out_ids += [token] * times
        out_learn += [flag and token != image_id] * times
    return Encoded(out_ids, out_learn, images)
