"""Translation checks: correct translations pass, each planted fault fails its check, and memory stays bounded."""

import tracemalloc

import pytest

from qilin.pipeline.translation.checks import check_translation
from qilin.pipeline.translation.translate import terms_in
from qilin.text.laterality import named_sides

CORRECT = [
    ("A 3.5 cm mass in the left lung.", "左肺有一个35毫米的肿块。"),
    ("Two nodules, 12 mm and 8 mm.", "两个结节，分别为12mm和8mm。"),
    ("No pleural effusion, edema, or pneumothorax.", "未见胸腔积液、水肿或气胸。"),
    ("The lungs are free of pneumothorax or effusion.", "双肺未见气胸及积液。"),
    ("Both kidneys are normal.", "双肾正常。"),
    ("T2-weighted MRI at L5-S1.", "L5-S1水平的T2加权MRI。"),
    ("The EGFR and TP53 genes.", "EGFR和TP53基因。"),
    ("She was given amoxicillin.", "患者服用阿莫西林。"),
    ("In January 2010 the patient left the hospital.", "2010年1月患者出院。"),
    ("CT", "CT"),
    ("Levoscoliosis is noted.", "可见脊柱左侧弯。"),
    # the end of an English negation
    ("No fracture, but scarring of the right apex is seen.", "未见骨折，但可见右肺尖瘢痕。"),
    ("No effusion, except for a small nodule.", "除一枚小结节外，未见积液。"),
    ("There is no hemorrhage, although emphysema is present.", "未见出血，尽管存在肺气肿。"),
    ("No mass, and the hernia is small.", "未见肿块，疝气较小。"),
    ("Without contrast, the tumor is isodense.", "未增强时，肿瘤呈等密度。"),
    # denials that English words otherwise
    ("The nodule is no longer visible.", "结节已不可见。"),
    ("Neither hemorrhage nor infarction is seen.", "未见出血及梗死。"),
    ("The film ruled out pneumothorax.", "胸片排除了气胸。"),
    ("Effusion, fracture, and hemorrhage are all absent.", "未见积液、骨折及出血。"),
    # Chinese negations that deny no finding
    ("Healing rib fractures on the left.", "左侧肋骨骨折正在愈合。"),
    ("The pneumothorax resolved after drainage.", "引流后气胸消失。"),
    ("Unresolved pneumonia on the left.", "左侧未吸收的肺炎。"),
    ("No change in the aneurysm.", "动脉瘤无明显变化。"),
    ("The hernia is unchanged.", "疝气没有改变。"),
    ("A noncalcified nodule in the kidney.", "肾脏内见非钙化的结节。"),
    ("CT is advised to rule out metastasis.", "建议行CT以排除转移。"),
    ("Pneumonia cannot be completely excluded.", "不能完全排除肺炎。"),
    # lists that a Chinese negation reaches across
    ("No consolidation or visible mass.", "未见实变或可见的肿块。"),
    ("No nodule or hemorrhage, and no effusion.", "没有任何结节或出血、也没有积液。"),
    ("No consolidation, hemorrhage or mass.", "没有实变，出血或肿块。"),
]


@pytest.mark.parametrize(("english", "chinese"), CORRECT)
def test_correct_translations_pass(english: str, chinese: str) -> None:
    assert check_translation(english, chinese) == {}


FAULTY = [
    ("Which organ?", "肝脏", "question"),
    ("Liver", "哪个器官？", "question"),
    ("A 3.5 cm mass.", "一个3.5毫米的肿块。", "units"),
    ("A 35 mm mass.", "一个36毫米的肿块。", "numbers"),
    ("Seen in the scan.", "在5次扫描中可见。", "numbers"),
    ("A mass in the left lung.", "右肺有一个肿块。", "laterality"),
    ("A mass in the lung.", "左肺有一个肿块。", "laterality"),
    ("Effusion on both sides.", "左侧积液。", "laterality"),
    ("There is no pneumothorax.", "有气胸。", "negation"),
    ("There is a mass. No pneumothorax or effusion.", "未见肿块。有气胸，有积液。", "negation"),
    ("There is a fracture.", "没有骨折。", "negation"),
    ("No fracture, but scarring of the right apex is seen.", "未见骨折，右肺尖未见瘢痕。", "negation"),
    ("No effusion, except for a small nodule.", "未见积液，也未见结节。", "negation"),
    ("Neither hemorrhage nor infarction is seen.", "可见出血，未见梗死。", "negation"),
    ("The film ruled out pneumothorax.", "胸片未见异常，可见气胸。", "negation"),
    ("Effusion, fracture, and hemorrhage are all absent.", "未见积液及骨折，可见出血。", "negation"),
    ("Healing rib fractures on the left.", "左侧未见肋骨骨折愈合。", "negation"),
    ("No change in the aneurysm.", "未见动脉瘤。", "negation"),
    ("A noncalcified nodule in the kidney.", "肾脏内未见非钙化的结节。", "negation"),
    ("CT is advised to rule out metastasis.", "未见转移，建议行CT。", "negation"),
    ("No consolidation, hemorrhage or mass.", "没有实变，可见出血或肿块。", "negation"),
    ("Mutations of KRAS and BRCA1.", "KRAS和BRCA2突变。", "abbreviations"),
    ("She was given amoxicillin.", "患者服用头孢克洛。", "drugs"),
    ("The chest film shows a normal heart and clear lungs on this day.", "正常。", "length"),
    ("The lungs are clear.", "肺部清晰。the heart size is normal", "leftover"),
    ("The lungs are clear.", "The lungs are clear.", "language"),
    ("The lungs are clear.", "抱歉，我无法翻译。", "refused"),
    ("The lungs are clear.", "肺部清晰没有问题。" * 5, "repetition"),
    ("The lungs are clear.", "  ", "empty"),
]  # fmt: skip


@pytest.mark.parametrize(("english", "chinese", "check"), FAULTY)
def test_faults_fail_their_check(english: str, chinese: str, check: str) -> None:
    assert check in check_translation(english, chinese)


def test_sides_and_glossary() -> None:
    assert named_sides("双肺，左侧为著，3cm左右") == {"both", "left"}
    assert named_sides("He left the hospital right away; both the heart and the lungs") == frozenset()
    terms = (("pleural effusion", "胸腔积液"), ("effusion", "积液"))
    assert terms_in("Pleural effusions.", terms) == {"pleural effusion": "胸腔积液"}
    assert terms_in("Pleural effusion and joint effusion.", terms) == dict(terms)
    assert terms_in("transfusion", terms) == {}
    assert "glossary" in check_translation("An effusion.", "一处渗液。", {"effusion": "积液"})


def test_checks_keep_no_memory() -> None:
    """An earlier version leaked 15 KB per negation: gigabytes in a long run."""
    for n in range(50):
        check_translation("No effusion.", f"未见积液{n}。")
    tracemalloc.start()
    for n in range(500):
        check_translation("No effusion.", f"未见积液{n + 50}。")
    traced, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert traced < 2e6
