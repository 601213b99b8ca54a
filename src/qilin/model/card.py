"""README.md of a model folder: a Hugging Face model card in Chinese and English.

In: the content of qilin.json, and later the scores of evaluations. Out: README.md with a YAML head (base models,
language, license, training data with hashes, results), how the model was trained, its scores and limits. Free of torch.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from qilin.core.errors import UserError
from qilin.core.files import read_json, write_atomic
from qilin.core.provenance import public_name
from qilin.dataset.card_head import hub_license
from qilin.dataset.licenses import license_tier

README, QILIN_JSON = "README.md", "qilin.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
START, END = "<!-- evaluation {} -->", "<!-- end of evaluation {} -->"
NOT_EVALUATED = "<!-- not evaluated -->\nNot evaluated yet: `qilin evaluate MODEL DATASET`. 尚未评测。\n"
# what a reader wants to know of a recipe, in this order
SHOWN_KEYS = ("trainable", "lora", "learning_rate", "learning_rates", "batch_size", "num_epochs", "max_steps",
              "max_length", "precision", "frozen_weights", "optimizer", "lr_scheduler_type", "warmup_ratio",
              "weight_decay", "seed")  # fmt: skip
NOTICE = """> **Not a medical device.** This model is for research. It was not tested on patients, invents findings, and
> must not be used for diagnosis, triage or treatment. A score on a test set says nothing about safety in a clinic.
>
> **本模型不是医疗器械。** 仅供研究使用，未经临床验证，可能编造所见，不得用于诊断、分诊或治疗。
> 测试集得分不能说明临床使用的安全性。"""
LIMITS = """- It describes findings that an image does not show, and omits others that it shows: check every statement.
  会描述图像中不存在的所见，也会遗漏存在的所见，每一句都须核对。
- Left and right, sizes, counts and negations are frequent errors. 左右、大小、数量和否定容易出错。
- It saw images of its training data only; other devices, protocols, body parts, ages and hospitals are untested.
  只见过训练数据中的图像；其他设备、扫描方案、部位、年龄段和医院均未测试。
- It answers questions that the image cannot answer. 图像不足以回答的问题，它也会作答。
- Its confidence is no probability that an answer is right, unless calibrated. 未经校准的置信度不代表正确的概率。"""
USAGE = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("THIS_MODEL")
model = AutoModelForImageTextToText.from_pretrained("THIS_MODEL", dtype="auto", device_map="auto")
messages = [{"role": "user", "content": [{"type": "image", "url": "image.png"},
                                         {"type": "text", "text": "图中可见什么异常？"}]}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device, model.dtype)
output = model.generate(**inputs, max_new_tokens=256)
print(processor.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

Or `qilin chat THIS_MODEL image.png`, `qilin serve THIS_MODEL`, `vllm serve THIS_MODEL`."""


def read_head(folder: str | Path) -> dict[str, Any]:
    """The YAML head of a folder's README.md; {} without one."""
    file = Path(folder) / README
    if not file.is_file():
        return {}
    match = re.match(r"---\r?\n(.*?\n)---\r?\n", file.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        head = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        return {}
    return head if isinstance(head, dict) else {}


def license_of(name: str | Path) -> str:
    """The license in the head of the README.md of a folder, or of a Hugging Face id in the cache, which holds it once
    the model was loaded; "unknown" without one."""
    head = read_head(name)
    if not head and HUB_ID.fullmatch(str(name)) and not Path(name).exists():
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(str(name), README)
        head = read_head(Path(file).parent) if isinstance(file, str) else {}
    return str(head.get("license_name") or head.get("license") or "unknown")


def describe_bases(names: Sequence[str]) -> list[dict[str, str]]:
    """The models that a run started from: the released ones that its parent was made of, if Qilin trained that.

    Each has the name to publish (a hub id, or the last part of a path) and its license.
    """
    bases: list[dict[str, str]] = []
    for name in names:
        file = Path(name) / QILIN_JSON
        parent = read_json(file) if file.is_file() else {}
        bases += parent.get("bases") or [{"name": public_name(name), "license": license_of(name)}]
    return bases


def describe_data(path: Path, hash_: str, is_synthetic: bool) -> dict[str, Any]:
    """A dataset as qilin.json and the card name it."""
    return {"path": path.resolve().name, "hash": hash_, "license": license_of(path), "synthetic": is_synthetic}


def write_card(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write README.md for the content of qilin.json."""
    write_atomic(folder / README, card(metadata))


def card(metadata: Mapping[str, Any]) -> str:
    """The Markdown of a model that is not evaluated yet; `metadata` of one without a recipe has `converted`."""
    bases, data, recipe = metadata.get("bases") or [], metadata.get("data") or [], metadata.get("recipe") or {}
    title = metadata.get("label") or "Chinese medical vision-language model"
    stages = [*(metadata.get("history") or []), {"stage": metadata.get("stage"), "data": data}]
    synthetic = any(source.get("synthetic") for source in data)
    lines = [
        format_head(head(metadata)),
        f"# {one_line(title)}",
        "",
        NOTICE,
        "",
        *([SYNTHETIC, ""] if synthetic else []),
        f"Made of 基座模型: {', '.join(base['name'] for base in bases) or 'unknown 未知'}.",
        "",
        "## Use 使用",
        "",
        USAGE,
        "",
        "## Training 训练",
        "",
        *(training(metadata, stages) if recipe else conversion(metadata)),
        "",
        "## License 许可",
        "",
        license_text(bases, stages),
        "",
        "## Evaluation 评测",
        "",
        NOT_EVALUATED,
        "## Limits 局限",
        "",
        LIMITS,
    ]
    return "\n".join(lines) + "\n"


def training(metadata: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """How a model was trained: its stages with their data, and the settings of the last one."""
    recipe = metadata["recipe"]
    rows = [(f"`{key}`", f"`{recipe[key]}`") for key in SHOWN_KEYS if recipe.get(key) not in (None, "", [], {})]
    return [
        "| stage 阶段 | trained parts 训练部分 | dataset 数据集 | sha256 | license 许可 |",
        "| --- | --- | --- | --- | --- |",
        *(
            table_row([number, stage["stage"], source["path"], source["hash"][:16], source.get("license", "unknown")])
            for number, stage in enumerate(stages, 1)
            for source in stage["data"]
        ),
        "",
        "| setting 设置 (last stage 最后阶段) | value 值 |",
        "| --- | --- |",
        *(table_row(row) for row in rows),
        "",
        f"Trained with Qilin {(metadata.get('versions') or {}).get('qilin', '')}; "
        "`qilin.json` has the complete recipe and the versions. 完整配方与版本见 `qilin.json`。",
    ]


def conversion(metadata: Mapping[str, Any]) -> list[str]:
    """Where a model comes from that was converted, not trained, by Qilin."""
    version, layout = (str((metadata.get("converted") or {}).get(key, "")) for key in ("qilin", "layout"))
    return [
        f"Converted with Qilin {version} from another layout ({layout}); "
        "how it was trained and on what data is stated by the models it is made of. "
        "由 Qilin 转换格式而来；训练方式与数据见其来源模型。"
    ]


SYNTHETIC = """> **Synthetic images.** Training images were drawn by a program and show no patient.
> **合成图像。** 训练图像由程序绘制，并非真实病例。"""


def head(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The YAML head, in the hub's terms; `training_data` is ours."""
    bases = metadata.get("bases") or []
    data = [source for stage in [*(metadata.get("history") or []), metadata] for source in stage.get("data") or []]
    ids = list(dict.fromkeys(base["name"] for base in bases if "/" in base["name"]))
    return {
        "language": metadata.get("language") or ["zh"],
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        **({"base_model": ids, "base_model_relation": "finetune"} if ids else {}),
        **license_fields([*(base["license"] for base in bases), *(source.get("license") for source in data)]),
        "tags": ["medical", "chinese", "qilin"],
        "training_data": [{"name": source["path"], "sha256": source["hash"]} for source in data],
    }


def license_fields(texts: Sequence[str | None]) -> dict[str, str]:
    """The license of what is made of all of these: theirs if it is one and the same, else `other`, to be decided."""
    identifiers = {hub_license(text or "") for text in texts}
    if len(identifiers) == 1 and not identifiers & {"unknown", "other"}:
        return {"license": identifiers.pop()}
    return {"license": "other", "license_name": "of-base-and-data", "license_link": "README.md#license-许可"}


def license_text(bases: Sequence[Mapping[str, str]], stages: Sequence[Mapping[str, Any]]) -> str:
    """What a publisher must decide on: the licenses of all parts, and what they permit at most."""
    data = [source for stage in stages for source in stage["data"]]
    parts = [(base["name"], base["license"]) for base in bases]
    parts += [(source["path"], source.get("license", "unknown")) for source in data]
    lines = ["| part 组成 | license 许可 | tier 许可等级 |", "| --- | --- | --- |"]
    lines += [table_row((name, text, license_tier(text))) for name, text in dict.fromkeys(parts)]
    unknown = any(license_tier(text) in ("unknown", "restricted") for _, text in parts)
    note = (
        "A part's license is unknown or restricted: find out what it permits before you publish or use this model. "
        "有组成部分的许可未知或受限：公开或使用前须先确认。"
    )
    return "\n".join([*lines, *(["", note] if unknown else [])])


def update_evaluation(folder: Path, name: str, section: str, results: Sequence[Mapping[str, Any]]) -> bool:
    """Put an evaluation into a card that Qilin wrote, in place of an earlier one of the same `name`.

    `results` are entries of the head's model-index. Returns False where there is no such card: a README.md of
    somebody else stays as it is.
    """
    file = folder / README
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    start, end = START.format(name), END.format(name)
    values = read_head(folder)
    if "## Evaluation 评测" not in text or "qilin" not in (values.get("tags") or []):
        return False
    body = text[text.index("\n---\n", 3) + len("\n---\n") :]
    block = f"{start}\n{section.strip()}\n{end}\n"
    if start in body and end in body:
        before, after = body[: body.index(start)], body[body.index(end) + len(end) :].lstrip("\n")
        body = before + block + "\n" + after
    else:
        body = body.replace(NOT_EVALUATED, "").replace("## Limits 局限", f"{block}\n## Limits 局限", 1)
    index = (values.get("model-index") or [{}])[0]
    others = [result for result in index.get("results") or [] if result["dataset"]["name"] != name]
    title = index.get("name") or re.search(r"^# (.*)$", body, re.MULTILINE)
    values["model-index"] = [
        {
            "name": title if isinstance(title, str) else title[1] if title else folder.name,
            "results": [*others, *results],
        }
    ]
    write_atomic(file, format_head(values) + "\n" + body.lstrip("\n"))
    return True


def format_head(values: Mapping[str, Any]) -> str:
    return "---\n" + yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=False, width=120) + "---\n"


def table_row(cells: Sequence[Any]) -> str:
    """Cells as a line of a Markdown table."""
    return "| " + " | ".join(one_line(str(cell)).replace("|", "\\|") for cell in cells) + " |"


def one_line(text: str) -> str:
    return " ".join(text.split())


def check_card(folder: Path) -> dict[str, Any]:
    """The head of a model's card. Raises UserError for a folder without a card, which is not published."""
    values = read_head(folder)
    missing = [key for key in ("license", "language") if not values.get(key)]
    if not (folder / README).is_file() or missing:
        problem = f"its head lacks {', '.join(missing)}" if (folder / README).is_file() else "there is none"
        raise UserError(
            f"{folder}: a model is published with a model card ({README}) only, and {problem}; qilin train and qilin "
            "convert write one, or write it: a YAML head with license and language, and the text"
        )
    return values
