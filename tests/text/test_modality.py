"""Questions that take another kind of image for granted are noticed; questions about the kind, or about others, not."""

import pytest

from qilin.text.modality import named_kind, other_modality

TAKEN_FOR_GRANTED = {
    "这张CT图像中有结节吗？": "CT",
    "请描述这张胸部CT。": "CT",
    "根据头颅MRI，判断有无梗死。": "MRI",
    "T2加权像上高信号见于哪里？": "MRI",
    "FLAIR序列显示什么异常？": "MRI",
    "该磁共振图像的加权方式是什么？": "MRI",
    "胸片上心影增大吗？": "X光",
    "请看这张胸部X线片，有气胸吗？": "X光",
    "乳腺钼靶片中见钙化吗？": "X光",
    "B超图像中胆囊有结石吗？": "超声",
    "彩超显示的血流信号是否正常？": "超声",
    "病灶的CT值大约是多少？": "CT",
    "冠脉CTA显示狭窄在哪一段？": "CT",
    "这是一张腹部CT平扫图像，肝脏有异常吗？": "CT",
    "图中CT显示的病变位于哪侧？": "CT",
    "Does this chest x-ray show pneumothorax?": "X光",
    "What is the abnormality on this CT scan?": "CT",
    "Describe the brain MRI.": "MRI",
    "In this ultrasound image, is there a gallstone?": "超声",
}
NOT_TAKEN_FOR_GRANTED = [
    "这是CT吗？",
    "这张图片是不是MRI？",
    "这幅图像是CT还是MRI？",
    "图像属于超声检查吗？",
    "这张图是通过X线拍摄的吗？",
    "这张图片的成像方式是什么？",
    "该患者下一步需要做MRI吗？",
    "建议进一步行增强CT检查吗？",
    "与上次CT相比，病灶有变化吗？",
    "对于这个病变，MRI的优势是什么？",
    "还可以做哪些检查，例如超声？",
    "外院CT提示结节，本图中能看到吗？",
    "图中有结节吗？",
    "肺部有磨玻璃影吗？",
    "PET-CT上代谢是否增高？",
    "Is this a CT scan?",
    "Is this an MRI or a CT?",
    "Should an MRI be done next?",
    "What modality is used?",
    "Compared with the previous CT, has the lesion grown?",
]


@pytest.mark.parametrize(("question", "kind"), TAKEN_FOR_GRANTED.items())
def test_kind_that_a_question_takes_for_granted(question: str, kind: str) -> None:
    assert named_kind(question) == kind
    modality = {"CT": "MR", "MRI": "CT", "X光": "US", "超声": "DX"}[kind]
    assert other_modality(question, [modality, modality]) == kind
    assert other_modality(question, [{"CT": "CT", "MRI": "MRI", "X光": "X-Ray", "超声": "Ultrasound"}[kind]]) is None


@pytest.mark.parametrize("question", NOT_TAKEN_FOR_GRANTED)
def test_other_mentions(question: str) -> None:
    assert named_kind(question) is None


def test_images_of_unknown_or_several_kinds() -> None:
    question = "这张CT图像中有结节吗？"
    assert other_modality(question, []) is None
    for modalities in ([None], ["MR", "CT"], ["MR", None], ["PET"], ["Secondary Capture"]):
        assert other_modality(question, modalities) is None
    assert other_modality(question, ["Pathology"]) == "CT"
    assert other_modality(question, ["X光", "超声"]) == "CT"
