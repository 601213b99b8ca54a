"""Controls and tables of captions: a fixed report reaches a high fact F1, but no abnormal F1; tables by finding."""

import numpy as np
import pytest

from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.aggregate import ScoringContext, caption_scores
from qilin.evaluate.scoring.caption_controls import exchanged_captions, fixed_caption
from qilin.evaluate.scoring.captions import FactSource
from qilin.evaluate.scoring.efficacy import CHEXBERT, efficacy, present_classes
from qilin.text.facts import DEFAULT_VOCABULARY
from qilin.text.statements import read_statements

SOURCE = FactSource(DEFAULT_VOCABULARY, {})
NORMAL = "心影不大，两肺清晰，未见气胸及胸腔积液。"
REFERENCES = [
    NORMAL,
    NORMAL,
    "心影增大，两肺清晰，未见气胸，左侧胸腔积液。",
    "心影不大，右肺上叶实变，未见气胸及胸腔积液。",
]


def captions(texts: list[str]) -> list[Prediction]:
    return [
        Prediction(str(i), "", reference, text, image_ids=(str(i),), kind="caption")
        for i, (reference, text) in enumerate(zip(REFERENCES, texts, strict=True))
    ]


def test_one_normal_report_for_everybody_is_the_fixed_control() -> None:
    rows = captions([NORMAL] * 4)
    assert fixed_caption(rows, SOURCE) == NORMAL
    block = caption_scores(rows, np.arange(4), ScoringContext(np.arange(4)))
    assert block["fact_f1"] == block["fixed"] > 0.6
    assert block["abnormal_f1"] == 0
    assert block["gain"]["over_fixed"]["value"] == 0
    right = caption_scores(captions(REFERENCES), np.arange(4), ScoringContext(np.arange(4)))
    assert [right["fact_f1"], right["abnormal_f1"]] == [1.0, 1.0]
    assert right["fixed"] == block["fixed"]
    assert right["abnormal_controls"]["fixed"] == 0


def test_exchanged_captions_keep_no_row_of_their_cluster() -> None:
    rows = captions(["a", "b", "c", "d"])
    exchanged = exchanged_captions(rows, np.array([0, 0, 1, 1]))
    assert exchanged == {"0": "c", "1": "d", "2": "a", "3": "b"}
    assert exchanged_captions(rows, np.zeros(4, dtype=int)) is None


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("心影增大，纵隔增宽。", {"Cardiomegaly", "Enlarged Cardiomediastinum"}),
        ("双侧胸腔积液，左下肺不张。", {"Pleural Effusion", "Atelectasis"}),
        ("心包积液。", {"No Finding"}),
        ("右肺斑片影，考虑肺炎。", {"Lung Opacity", "Pneumonia"}),
        ("右肺结节，左侧第5肋骨骨折。", {"Lung Lesion", "Fracture"}),
        ("肝囊肿。", {"No Finding"}),
        ("间质性肺水肿，可见心脏起搏器。", {"Edema", "Support Devices"}),
        ("双侧胸膜增厚，未见气胸。", {"Pleural Other"}),
        ("左侧张力性气胸。", {"Pneumothorax"}),
        ("右肺固结。", {"Consolidation"}),
        ("两肺清晰，中心静脉导管在位。", {"Support Devices", "No Finding"}),
        ("肺炎待排。", {"Pneumonia"}),
        ("未见实变。", {"No Finding"}),
        ("", {"No Finding"}),
    ],
)
def test_chexbert_classes_of_a_chinese_report(text: str, classes: set[str]) -> None:
    assert present_classes(read_statements(text)) == classes


def test_efficacy_by_finding() -> None:
    true = [read_statements(text) for text in REFERENCES]
    stated = [read_statements(text) for text in (NORMAL, REFERENCES[2], REFERENCES[2], NORMAL)]
    block = efficacy(stated, true)
    rows = {row["finding"]: row for row in block["chexbert"]["rows"]}
    assert list(rows) == list(CHEXBERT)
    effusion = rows["Pleural Effusion"]
    assert [effusion[name] for name in ("precision", "recall", "f1", "prevalence")] == [0.5, 1.0, 2 / 3, 0.25]
    assert rows["Consolidation"]["recall"] == 0
    assert rows["Consolidation"]["precision"] is None
    assert {row["finding"] for row in block["findings"]["rows"]} == {"增大", "积液", "实变"}
    assert efficacy([read_statements("肝囊肿。")], [read_statements("肝囊肿。")])["chexbert"] is None
