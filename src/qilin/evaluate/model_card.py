"""What a model card says about an evaluation: scores, each with its interval and controls, and where a control wins.

Input: scores.json as a dictionary. Output: Markdown (model_card.md, and the card in the model's folder), and the
results in the form of a card's head.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qilin.evaluate.report.headline import headline
from qilin.evaluate.report.labels import type_names
from qilin.model.card import NOTICE, table_row, update_evaluation

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
    """model_card.md: the medical notice and the section, to be pasted into a README.md."""
    return f"## Evaluation 评测\n\n{NOTICE}\n\n{evaluation_section(scores, is_synthetic)}"


def refresh_card(folder: Path, scores: Mapping[str, Any], is_synthetic: bool) -> None:
    """Put the evaluation into the card of a model folder that Qilin wrote; others stay as they are."""
    name = f"{test_set(scores)} {(scores['manifest'].get('dataset') or {}).get('split')}"
    section = f"### {name}\n\n{evaluation_section(scores, is_synthetic)}"
    try:
        update_evaluation(folder, name, section, results(scores, name))
    except OSError as error:
        print(f"{folder}: cannot write its README.md ({error.strerror}); paste model_card.md into it", file=sys.stderr)


def results(scores: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The entries of a card's `model-index`, each metric with its interval and controls."""
    metrics = []
    accuracy, captions = scores["all"]["accuracy"], scores["captions"]
    if scores["all"].get("n"):
        metrics.append(metric("accuracy", "accuracy", accuracy["value"], accuracy["interval"], accuracy))
    if captions["n"]:
        metrics.append(
            metric("fact_f1", "caption fact F1", captions["fact_f1"], captions["fact_f1_interval"], captions)
        )
    task = {"type": "visual-question-answering" if scores["all"].get("n") else "image-to-text"}
    dataset = {"name": name, "type": test_set(scores), "revision": scores["manifest"]["dataset"]["split_sha256"][:16]}
    return [{"task": task, "dataset": dataset, "metrics": metrics}] if metrics else []


def metric(
    kind: str, title: str, value: float, interval: Sequence[float] | None, controls: Mapping[str, Any]
) -> dict[str, Any]:
    """One metric of a result; the hub shows name and value."""
    shown = {name: round(controls[name], 4) for name in CONTROLS if controls.get(name) is not None}
    return {
        "type": kind,
        "name": title,
        "value": round(value, 4),
        **({"interval_95": [round(bound, 4) for bound in interval]} if interval else {}),
        **({"controls": shown} if shown else {}),
    }


def test_set(scores: Mapping[str, Any]) -> str:
    """The name of the dataset's folder."""
    return Path(str((scores["manifest"].get("dataset") or {}).get("path", ""))).name


def evaluation_section(scores: Mapping[str, Any], is_synthetic: bool) -> str:
    """The Markdown of one evaluation."""
    manifest = scores["manifest"]
    dataset = manifest.get("dataset") or {}
    subsets = [(title, scores[name]) for title, name in SUBSETS]
    by_type = [("{} {}".format(*type_names(name)), block) for name, block in scores["by_question_type"].items()]
    lines = [
        *([DRAWN, ""] if is_synthetic else []),
        f"Test data 测试数据: {test_set(scores)}, split {dataset.get('split')}, "
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


def format_score(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def format_interval(interval: Sequence[float] | None) -> str:
    """Low to high, or a dash."""
    return f"{interval[0]:.3f}–{interval[1]:.3f}" if interval else "–"
