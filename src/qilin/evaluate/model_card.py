"""model_card.md: what a model's README must say about an evaluation, to be pasted into it when the model is published.

Input: scores.json as a dictionary. Output: Markdown with the medical notice in English and Chinese, where a control
wins, and the scores, each beside its controls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qilin.evaluate.report.headline import headline
from qilin.evaluate.report.labels import type_names

NOTICE = """> **Not a medical device.** This model is for research. It was not tested on patients, invents findings, and
> must not be used for diagnosis, triage or treatment. A score on a test set says nothing about safety in a clinic.
>
> **本模型不是医疗器械。** 仅供研究使用，未经临床验证，可能编造所见，不得用于诊断、分诊或治疗。
> 测试集得分不能说明临床使用的安全性。"""
DRAWN = """> **Synthetic images.** The test images were drawn by a program and show no patient.
> **合成图像。** 测试图像由程序绘制，并非真实病例。"""
SUBSETS = (
    ("all questions 全部问题", "all"),
    ("closed 封闭式", "closed"),
    ("open 开放式", "open"),
    ("images without a near-duplicate in training 训练集中没有近似图像", "no_near_duplicate"),
)
CONTROLS = ("blind", "shuffled", "nearest")


def model_card(scores: Mapping[str, Any], is_synthetic: bool) -> str:
    """The Markdown."""
    manifest = scores["manifest"]
    dataset = manifest.get("dataset") or {}
    subsets = [(title, scores[name]) for title, name in SUBSETS]
    by_type = [("{} {}".format(*type_names(name)), block) for name, block in scores["by_question_type"].items()]
    lines = [
        "## Evaluation 评测",
        "",
        NOTICE,
        "",
        *([DRAWN, ""] if is_synthetic else []),
        f"Test data 测试数据: {Path(str(dataset.get('path', ''))).name}, split {dataset.get('split')}, "
        f"sha256 {str(dataset.get('split_sha256'))[:16]}. {scores['clusters']['n']} independent images 独立图像. "
        f"Scorer 评分规则 {manifest.get('scorer')}.",
        "",
        *(f"- {s.english} {s.chinese}" for s in headline(scores) if s.level != "wins"),
        "",
        "| | n | accuracy 准确率 | 95 % | blind 盲测 | shuffled images 打乱图像 | nearest neighbor 最近邻 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(accuracy_row(title, block) for title, block in [*subsets, *by_type] if block.get("n")),
    ]
    captions = scores["captions"]
    if captions["n"]:
        cells = [captions["fact_f1"], *(captions[name] for name in CONTROLS)]
        interval = format_interval(captions["fact_f1_interval"])
        values = [format_score(value) for value in cells]
        lines.append(table_row(["captions, fact F1 描述的事实 F1", captions["n"], values[0], interval, *values[1:]]))
    presence = scores["presence"]
    if presence["n"]:
        shares = (
            f"{title} {format_score(presence[name]['value'])} ({format_interval(presence[name]['interval'])})"
            for name, title in (("sensitivity", "sensitivity 敏感度"), ("specificity", "specificity 特异度"))
        )
        lines += ["", f"Is a finding present? 有无类问题 (n {presence['n']}): {'; '.join(shares)}."]
    return "\n".join(lines) + "\n"


def accuracy_row(title: str, block: Mapping[str, Any]) -> str:
    """One line of the table."""
    accuracy = block["accuracy"]
    controls = (format_score(accuracy.get(name)) for name in CONTROLS)
    return table_row(
        [title, block["n"], format_score(accuracy["value"]), format_interval(accuracy["interval"]), *controls]
    )


def table_row(cells: Sequence[Any]) -> str:
    """Cells as a line of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def format_score(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def format_interval(interval: Sequence[float] | None) -> str:
    """Low to high, or a dash."""
    return f"{interval[0]:.3f}–{interval[1]:.3f}" if interval else "–"
