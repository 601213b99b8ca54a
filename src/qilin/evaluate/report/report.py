"""report.html: one self-contained page with scores, controls, loss curves, and answers beside their images.

In: scores, prediction rows with verdicts, the dataset for its images, the model folder for its loss curves. Out: a
page that needs no network: style and script inside (report.html holds both), images as JPEG thumbnails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qilin.dataset.reader import Dataset
from qilin.evaluate.controls.contamination import in_words
from qilin.evaluate.items import is_caption, is_closed
from qilin.evaluate.report.charts import MARKERS, coverage, legend, loss_curve, mark, reliability, score_plot, stages_of
from qilin.evaluate.report.html import (
    MOST_IMAGES,
    answers_section,
    banners,
    choose,
    escape,
    image_cards,
    interval_text,
    is_drawn,
    section,
    tile,
    write_page,
)

STATES = ("all", "right", "wrong", "unparsable", "caption")
Row = Mapping[str, Any]


def write_report(
    out: Path,
    scores: Mapping[str, Any],
    rows: Sequence[Row],
    judged: Sequence[Row],
    data: Dataset,
    model: str,
    label: str | None = None,
) -> Path:
    """Write out/report.html and return its path. `label` stands in a banner over the page (such as "quick run")."""
    shown = choose(rows, MOST_IMAGES)
    verdicts = {row["id"]: row for row in judged}
    cards = image_cards(shown, lambda row: answer_line(row, verdicts[row["id"]]), data)
    path = out / "report.html"
    write_page(
        path,
        [
            banners(label, is_drawn(data), scores),
            headline(scores, model, data),
            section("Scores with controls", scores_section(scores)),
            section("Captions", captions_section(scores["captions"])),
            section("Does it know when it is wrong?", confidence_section(scores)),
            section("How the loss fell", losses_section(model)),
            section("Answers", answers_section(cards, rows, shown, STATES)),
            section("How these numbers were made", manifest_section(scores)),
        ],
    )
    return path


def headline(scores: Mapping[str, Any], model: str, data: Dataset) -> str:
    """Model, dataset and the few numbers that matter, gain first."""
    manifest = scores["manifest"]
    tiles = []
    for name, title in (("over_blind", "gain over blind"), ("over_nearest_neighbour", "gain over neighbour")):
        gain = scores["gain"][name]
        if gain["value"] is not None:
            tiles.append(tile(title, f"{gain['value']:+.3f}", interval_text(gain["interval"], signed=True)))
    for name in ("all", "closed", "open"):
        score = scores[name]["accuracy"]
        if score["value"] is not None:
            tiles.append(tile(f"accuracy, {name}", f"{score['value']:.3f}", interval_text(score["interval"])))
    if scores["captions"]["fact_f1"] is not None:
        tiles.append(tile("caption facts F1", f"{scores['captions']['fact_f1']:.3f}", f"n {scores['captions']['n']}"))
    return (
        f"<header><p class='eyebrow'>Qilin evaluation</p><h1>{escape(Path(model).name)} <span>on</span> "
        f"{escape(data.path.name)} <span>{escape(manifest['dataset']['split'])}</span></h1>"
        f"<div class='tiles'>{''.join(tiles)}</div>"
        "<p class='note'>Small figures: 95 % intervals by bootstrap over independent images. Blind: the better of a "
        "mean image and the commonest training answer. Neighbour: the answer of the most similar training "
        "question and image.</p></header>"
    )


def scores_section(scores: Mapping[str, Any]) -> str:
    """The plot of accuracy by group, its legend, and the table of all figures."""
    if not scores["all"]["n"]:
        return "<p>No questions in this split.</p>"
    names = [("all questions", "all"), ("closed", "closed"), ("open", "open")]
    names += [("images unlike training", "no_near_duplicate"), ("unseen wording", "unseen_wording")]
    rows = [(title, scores[name]) for title, name in names if scores[name].get("n")]
    labels = list(scores["by_question_type"].items())
    keys = legend([(mark(kind, 10, 12), title) for kind, title in MARKERS.items()])
    plot = f'<div class="plot">{keys}{score_plot(rows, "accuracy")}</div>'
    kinds = (
        f"<details open><summary>By question type</summary>{score_plot(labels, 'accuracy')}</details>" if labels else ""
    )
    for part, title in (("by_modality", "By modality"), ("by_body_part", "By body part")):
        if scores[part]:
            plot_of_part = score_plot(list(scores[part].items()), "accuracy")
            kinds += f"<details><summary>{title}</summary>{plot_of_part}</details>"
    leaks = scores["manifest"].get("leaks")
    known = f"<p class='note'>{escape(in_words(leaks).capitalize())}.</p>" if leaks else ""
    return plot + kinds + table(rows + labels, scores) + known


def table(rows: Sequence[tuple[str, Mapping[str, Any]]], scores: Mapping[str, Any]) -> str:
    """All figures, exact match and accuracy side by side."""
    head = "".join(
        f"<th>{name}</th>" for name in ("", "n", "exact", "accuracy", "blind", "shuffled", "nearest", "unparsable")
    )
    lines = []
    for name, block in rows:
        accuracy = block["accuracy"]
        cells = (
            block["n"],
            figure(block["exact"]),
            figure(accuracy),
            short(accuracy["blind"]),
            short(accuracy["shuffled"]),
            short(accuracy["nearest"]),
        )
        tds = "".join(f"<td>{cell}</td>" for cell in (*cells, block.get("unparsable", "–")))
        lines.append(f"<tr><th>{escape(name)}</th>{tds}</tr>")
    nearest = scores["nearest_neighbour"]
    if nearest.get("accuracy"):
        for name, by in nearest["each"].items():
            own = (nearest["n"], short(by["exact"]), short(by["accuracy"]), "", "", "", "")
            tds = "".join(f"<td>{cell}</td>" for cell in own)
            lines.append(f"<tr><th>nearest neighbour by {escape(name)}</th>{tds}</tr>")
    reasons = {**(scores["all"]["accuracy"].get("reasons") or {})}
    why = "".join(f"<p class='note'>{escape(name)}: not known, {escape(text)}</p>" for name, text in reasons.items())
    return (
        f"<details><summary>All figures</summary><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
        f"</table></details>{why}"
    )


def figure(score: Mapping[str, Any]) -> str:
    if score["value"] is None:
        return "–"
    interval = score.get("interval")
    return f"{score['value']:.3f}" + (f" <small>{interval[0]:.3f}–{interval[1]:.3f}</small>" if interval else "")


def short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def captions_section(captions: Mapping[str, Any]) -> str:
    """Fact scores with their controls, and the surface scores."""
    if not captions["n"]:
        return ""
    names = {
        "fact_f1": "fact F1", "fact_precision": "fact precision", "fact_recall": "fact recall",
        "blind": "blind fact F1",
        "shuffled": "shuffled fact F1", "nearest": "nearest neighbour's fact F1",
        "invented_findings": "invented findings a caption",
        "captions_that_invent": "share of captions that invent", "contradictions": "contradictions a caption",
        "bleu4": "BLEU-4", "chrf": "chrF", "cider": "CIDEr (0 to 10)",
        "rouge_l_char": "ROUGE-L, characters", "rouge_l_word": "ROUGE-L, words",
    }  # fmt: skip
    tiles = "".join(tile(title, short(captions[name]), "") for name, title in names.items())
    facts = f"<p class='note'>{captions['n']} captions; true facts from the {escape(captions['facts_from'])}.</p>"
    return f"<div class='tiles small'>{tiles}</div>{facts}"


def confidence_section(scores: Mapping[str, Any]) -> str:
    """Reliability, accuracy against coverage, and what is said where there is nothing to see."""
    sure, nothing = scores["confidence"], scores["nothing_to_see"]
    parts = ""
    if sure["n"]:
        tiles = [
            tile("calibration error (ECE)", f"{sure['ece']:.3f}", "0 is best"),
            tile("mean confidence", f"{sure['mean_confidence']:.3f}", f"accuracy {sure['accuracy']:.3f}"),
        ]
        for share in (0.8, 0.5):
            row = next(row for row in sure["coverage"] if row["coverage"] == share)
            tiles.append(
                tile(f"accuracy, surest {share:.0%}", f"{row['accuracy']:.3f}", f"confidence ≥ {row['from']:.2f}")
            )
        curves = f"<div class='curves'>{reliability(sure)}{coverage(sure)}</div>"
        parts += f"<div class='tiles small'>{''.join(tiles)}</div>{curves}"
    if nothing["n"]:
        lines = "".join(
            f"<tr><th>{title}</th><td>{block['n']}</td><td>{block['affirm_a_finding']:.3f}</td>"
            f"<td>{block['same_answer']:.3f}</td></tr>"
            for name, title in (
                ("own_picture", "own image"),
                ("mean_picture", "mean image: nothing to see"),
                ("blank_picture", "black image: nothing to see"),
                ("other_modality", "an image of another modality"),
            )
            if (block := nothing[name])
        )
        head = "<tr><th>shown</th><th>answers</th><th>affirm a finding</th><th>same words</th></tr>"
        parts += (
            "<p class='note'>Questions and captions whose reference affirms a finding. A model that affirms as many "
            f"where nothing is to be seen makes them up.</p><table><thead>{head}</thead><tbody>{lines}</tbody></table>"
        )
    return parts


def losses_section(model: str) -> str:
    """A curve for each training stage whose metrics are still there."""
    curves = "".join(loss_curve(stage) for stage in stages_of(model))
    return (
        f"<div class='curves'>{curves}</div>" if curves else "<p>No metrics of the training are beside this model.</p>"
    )


def answer_line(row: Row, verdict: Row) -> str:
    """Question, reference, answer, and the rule that decided."""
    caption = is_caption(row)
    state = "caption" if caption else {True: "right", False: "wrong", None: "unparsable"}[verdict["correct"]]
    kind = "caption" if caption else ("closed" if is_closed(row) else "open")
    sign = {"right": "✓", "wrong": "✗", "unparsable": "?", "caption": "¶"}[state]
    confidence = row.get("confidence")
    small = " · ".join(
        [row.get("question_type") or kind, verdict["rule"], *([f"{confidence:.2f}"] if confidence is not None else [])]
    )
    return (
        f"<li class='{state}' data-state='{state}' data-type='{escape(row.get('question_type') or '')}'>"
        f"<span class='sign' title='{state}'>{sign}</span><div><p class='question'>{escape(row['question'])}</p>"
        f"<p><span class='tag'>truth</span>{escape(row['reference'])}</p>"
        f"<p><span class='tag'>answer</span>{escape(row['prediction']) or '<i>nothing</i>'}</p>"
        f"<p class='rule'>{escape(small)}</p></div></li>"
    )


def manifest_section(scores: Mapping[str, Any]) -> str:
    """The manifest as a plain list."""

    def lines(value: Mapping[str, Any], prefix: str = "") -> str:
        found = ""
        for name, inner in value.items():
            if isinstance(inner, Mapping):
                found += lines(inner, f"{prefix}{name}.")
            else:
                found += f"<dt>{escape(prefix + name)}</dt><dd>{escape('–' if inner is None else inner)}</dd>"
        return found

    rules = "".join(
        f"<tr><th>{escape(rule)}</th>"
        + "".join(f"<td>{by.get(state, 0)}</td>" for state in ("right", "wrong", "unparsable"))
        + "</tr>"
        for rule, by in scores["rules"].items()
    )
    head = "<tr><th>rule</th><th>right</th><th>wrong</th><th>unparsable</th></tr>"
    decided = (
        f"<details><summary>Which rule decided how often</summary><table><thead>{head}</thead>"
        f"<tbody>{rules}</tbody></table></details>"
    )
    return (
        f"{decided if rules else ''}<details><summary>Manifest</summary><dl>{lines(scores['manifest'])}</dl></details>"
    )
