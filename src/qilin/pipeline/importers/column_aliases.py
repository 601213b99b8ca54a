"""The columns of tables by the names that people give them, in English and Chinese.

In: the header of a table. Out: the column of each field of the table importer. A name matches whatever its case, its
spaces, its underscores and what it has in brackets: `Image Path`, `image_path`, `图片（必填）`.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

# field of ImportConfig -> the names of its column, the first one that the table has is used
ALIASES: dict[str, tuple[str, ...]] = {
    "image": (
        "image", "images", "image_path", "image_file", "image_name", "image_filename", "img", "imgs", "img_path",
        "img_name", "file_name", "filename", "filepath", "file_path", "picture", "photo", "path", "file", "图片",
        "图像", "影像", "图", "照片", "图片路径", "图像路径", "影像路径", "图片文件", "图像文件", "影像文件",
        "图片文件名", "图像文件名", "图片名", "图片名称", "图像名", "图像名称", "影像名称", "图片地址", "文件名",
        "文件名称", "文件路径", "图片编号", "图像编号",
    ),
    "question": (
        "question", "questions", "query", "prompt", "ask", "问题", "提问", "问", "题目", "题干", "问句", "问题内容",
        "提示词", "咨询内容",
    ),
    "answer": (
        "answer", "answers", "response", "output", "completion", "reply", "答案", "回答", "答", "答复", "回复",
        "参考答案", "标准答案", "正确答案", "回答内容", "医生回复", "医生回答",
    ),
    "caption": (
        "caption", "captions", "description", "report", "text", "findings", "描述", "图片描述", "图像描述",
        "影像描述", "说明", "图片说明", "图注", "图题", "影像所见", "检查所见", "所见", "超声所见", "镜下所见",
        "报告", "报告内容", "影像报告", "检查报告", "诊断报告",
    ),
    "id": ("id", "编号", "序号", "样本编号", "题号"),
    "group": (
        "group", "patient_id", "patient", "patient_no", "subject_id", "case_id", "患者编号", "病人编号", "患者号",
        "病人号", "患者id", "病人id", "患者", "病人", "患者标识", "受试者编号", "病例编号", "病例号", "病历号",
        "病案号", "住院号", "门诊号", "就诊号",
    ),
    "split_column": ("split", "划分", "数据划分", "数据集划分", "集合", "所属集合"),
    "answer_type": ("answer_type", "答案类型", "回答类型"),
    "choices": ("choices", "options", "选项", "备选项", "候选项"),
    "question_type": ("question_type", "问题类型", "问题类别", "题型", "题目类型"),
    "modality": ("modality", "模态", "影像类型", "检查类型", "检查方式", "成像方式", "设备类型"),
    "body_part": ("body_part", "bodypart", "organ", "部位", "检查部位", "身体部位", "器官"),
}  # fmt: skip
# A table with questions may have these columns besides, which are not captions for stage 1
NOT_BESIDE_QUESTIONS = frozenset(("description", "report", "text", "findings"))
# cells that mean a value of the format
ANSWER_TYPE_NAMES = dict.fromkeys(("开放", "开放式", "开放题"), "open")
ANSWER_TYPE_NAMES |= dict.fromkeys(("封闭", "封闭式", "是非", "是非题", "判断", "判断题"), "closed")
ANSWER_TYPE_NAMES |= dict.fromkeys(("选择", "选择题", "单选", "单选题", "多选", "多选题"), "choice")
BRACKETS = re.compile(r"[（(【\[].*?[）)】\]]")


def column_key(name: str) -> str:
    """A header as it is compared: halfwidth, lower case, without spaces, underscores, brackets and a final colon."""
    text = BRACKETS.sub("", unicodedata.normalize("NFKC", name)) or name
    return re.sub(r"[\s_\-:：*]+", "", text.casefold())


def match_columns(names: Sequence[str], named_columns: Mapping[str, str]) -> dict[str, str]:
    """field -> column for each field of ALIASES that is not in `named_columns` and of which the table has a column.

    A column is used once; a name that is exactly a field's own comes before all others.
    """
    by_key: dict[str, str] = {}
    for name in names:
        by_key.setdefault(column_key(name), name)
    used = set(named_columns.values())
    columns: dict[str, str] = {}
    for field, aliases in ALIASES.items():
        if field in named_columns:
            continue
        exact = aliases[0] if aliases[0] in names else None
        candidates = [exact] if exact else [by_key.get(column_key(alias)) for alias in aliases]
        if column := next((name for name in candidates if name and name not in used), None):
            columns[field] = column
            used.add(column)
    has_questions = {"question", "answer"} <= {*columns, *named_columns}
    if has_questions and column_key(columns.get("caption", "")) in NOT_BESIDE_QUESTIONS:
        del columns["caption"]
    return columns
