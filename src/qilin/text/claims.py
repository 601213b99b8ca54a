"""Answers about a whole statement: whether it is true, needed or allowed, and whether it holds for all.

In: a normalized answer and a question taken apart. Out: True, False, or None where the question asks something else or
the answer does not say.
"""

from __future__ import annotations

import re

from qilin.text.abnormality import ABNORMAL, abnormality
from qilin.text.laterality import find_sides
from qilin.text.negation import negated_spans
from qilin.text.quantities import Bounds, find_quantities
from qilin.text.yes_no_question import CLAUSE_BREAK, YesNoQuestion

# --- statements about statements ------------------------------------------------------------------------------------

_ABOUT_STATEMENT = re.compile(
    r"说法|描述|表述|结论|观点|陈述|判断(?=[:对正])|判断对错|这句话|命题|论述|叙述|判断正误|正误|判断题|是真是假|真假|(?:是否|对错"
    r"|是)?正确|成立|对错|对不对|\b(?:true"
    r"|correct)\b"
)
_NAMES_STATEMENT = re.compile(r"^(?:该|此|这|上述)?(?:一|种|个|句)*(?:说法|描述|表述|结论|观点|陈述|命题|论述|话)")
_NOT_WRONG = re.compile(
    r"(?:没有?|无|并无|不存在|没什么)(?:任何|什么|明显)?(?:错误?|误|问题|毛病|不妥|不对|不当|偏差|出入)|无误"
    r"|并非错误|不是错"
    r"|不错|挑不出|\bno (?:error|mistake)"
)
_WRONG = re.compile(
    r"有误|误(?!差)|错|有(?:一定)?问题|不(?:准确|正确|成立|对|妥|严谨|当|恰当|可靠|科学|符合|完全正确|能成立|属实|实"
    r"|真)|欠(?:准确|妥|严谨)"
    r"|站不住|存在(?:错误|偏差|问题|不足)|有偏差|有出入|与(?:事实|实际).{0,4}(?:不符|相反|相悖|不一致)|违背|不可信"
    r"|误导|过于绝对|以偏概全|不同意|不赞同|不认同|反对|(?:没有|缺乏|无)(?:科学)?依据|说反|相反|混淆|部分正确|假"
    r"|难以成立|不敢苟同|片面|有失|值得商榷|\b(?:false|wrong|incorrect|untrue|not (?:true|correct))\b"
)
_TRUE = re.compile(
    r"正确|准确|成立|可靠|合理|属实|恰当|妥当|科学|无疑|(?:是|很|都|完全)?对(?:的|$)|符合|站得住|可信|同意|赞同|认同"
    r"|与(?:事实|实际).{0,4}(?:相符|一致)|说得对|真|\b(?:true|correct"
    r"|right)\b"
)


def answers_statement(text: str, question: YesNoQuestion) -> bool | None:
    """说法有误, 表述准确, 没有错 to a question whether a statement is true."""
    if not (_ABOUT_STATEMENT.search(question.text) or _NAMES_STATEMENT.search(text)):
        return None
    clause = next(
        (c for c in CLAUSE_BREAK.split(text) if _NOT_WRONG.search(c) or _WRONG.search(c) or _TRUE.search(c)), ""
    )
    if not clause:
        return None
    if _NOT_WRONG.search(clause):
        return True
    return not _WRONG.search(clause)


# --- need, permission, ability --------------------------------------------------------------------------------------

_MODAL = re.compile(
    r"需要?|必要|应该?|可以(?![看见观发显被])|可否|能否|能不能|能够?(?!看|见|观|发|解)|宜|适合|建议|推荐|必须|可不可以|\b(?:should"
    r"|need|can|must)\b"
)
_MODAL_NO = re.compile(
    r"无需|无须|毋须|不必|不用|不需|没(?:有)?必要|不宜|不应|不建议|不推荐|不主张|不适合|不能|不可|不得|不予|禁(?:食|水|饮|用"
    r"|忌|止)|避免|无法|难以|忌|慎用"
    r"|失去.{0,6}机会|不具备|未达到.{0,6}指征|没有.{0,6}指征|无.{0,6}指征|\b(?:not|cannot|contraindicated|avoid"
    r"|unnecessary)\b"
)
_MODAL_YES = re.compile(
    r"必须|务必|应(?:当|该|立即|尽快|尽早)?|需(?:要)?|建议|推荐|主张|可(?!能|见)|能够?|适合|适宜|宜|有必要|首选"
    r"|有.{0,6}指征|\b(?:should|must|needs?|can|required|recommended)\b"
)
_NO_CONTRAINDICATION = re.compile(r"(?:无|没有|未见)(?:明显|绝对|任何|相关)*禁忌[证症]?")
_ADVISES_TEST = re.compile(
    r"(?:建议|需|应|完善|加做|行).{0,8}(?:ct|mri|磁共振|超声|检查|活检|造影|穿刺|胃镜|肠镜|化验)"
)
_ENOUGH = re.compile(r"即可|足够|足矣|就(?:可以|行|够)|便可|is enough|suffices?")
_INSTEAD = re.compile(r"保守|观察|随访|门诊|药物|复查|定期")


def answers_modality(text: str, question: YesNoQuestion) -> bool | None:
    """必须手术, 无需住院, 保守治疗即可 to a question about need, permission or ability."""
    modal = _MODAL.search(question.statement)
    if not modal or (question.asks_presence and question.target and ABNORMAL.search(question.target)):
        return None
    action = question.statement[modal.end() :]
    bigrams = {action[i : i + 2] for i in range(len(action) - 1)}
    text = _NO_CONTRAINDICATION.sub("可以", text)
    for clause in CLAUSE_BREAK.split(text):
        is_about = any(bigram in clause for bigram in bigrams) if bigrams else True
        if _MODAL_NO.search(clause):
            return False
        if _ENOUGH.search(clause) and not is_about:
            return False
        if _MODAL_YES.search(clause):
            if is_about or len(clause) <= 5:
                return True
            if _INSTEAD.search(clause):
                return False
        if "检查" in action and _ADVISES_TEST.search(clause):
            return True
        if _INSTEAD.search(clause) and not is_about:
            return False
        if is_about and negated_spans(clause):
            return False
    return None


# --- all or some ----------------------------------------------------------------------------------------------------

_ALL = re.compile(r"所有|全部|完全|彻底|都|均|每[个一]|任何|整个|\ball\b|\bboth\b|\bevery\b")
_ONLY_ONE = re.compile(r"(?:只有|仅有?|单)(?:一|1)?(?:个|处|枚|发|侧|只|根|颗)")
_SEVERAL = re.compile(r"多发|多个|多处|多枚|数个|数枚|若干|不止|双侧|两侧|弥漫")


def answers_count(text: str, question: YesNoQuestion) -> bool | None:
    """大于3cm吗 answered by 4cm, 只有一个病灶吗 by 多发: a quantity inside or outside of the one asked about."""
    if _ONLY_ONE.search(question.statement) and _SEVERAL.search(text):
        return False
    if not any(not quantity.negated and len(quantity.bounds) == 1 for quantity in find_quantities(text)):
        return None
    in_question = find_quantities(question.statement)
    if len(in_question) != 1 or len(in_question[0].bounds) != 1:
        return None
    expected = in_question[0]
    stated = [q for q in find_quantities(text) if q.kind == expected.kind and not q.negated and len(q.bounds) == 1]
    if not stated:
        return None
    signs = {_is_within(quantity.bounds[0], expected.bounds[0]) for quantity in stated}
    return signs.pop() if len(signs) == 1 else None


def _is_within(stated: Bounds, expected: Bounds) -> bool | None:
    """True if the stated interval lies inside the expected one, False if outside, None if they overlap."""
    stated_low, stated_high = stated
    low, high = expected
    if (low is None or (stated_low is not None and stated_low >= low)) and (
        high is None or (stated_high is not None and stated_high <= high)
    ):
        return True
    is_below = low is not None and stated_high is not None and stated_high < low
    is_above = high is not None and stated_low is not None and stated_low > high
    return False if is_below or is_above else None


_ALL_NO = re.compile(
    r"未完全|不完全|残留|残余|次全|大部|"
    r"并非(?:所有|全部|都|均|每)|不是(?:所有|全部|都|均|每)|不全|未全|未都|仅|只有|部分|少数|个别|大多|有的"
    r"|\bnot all\b|\bonly\b|\bsome\b"
)
_ALL_YES = re.compile(
    r"无一(?:例外|幸免|不)|没有一.{1,8}?[不未没]|全部|所有|均|都|每[个一]|弥漫|完全|彻底|全切|\ball\b|\bboth\b"
)


def answers_quantifier(text: str, question: YesNoQuestion) -> bool | None:
    """所有椎体都受累吗: 仅腰3, 部分, 并非所有 answer no, 全部, 均 and 没有一个不 yes."""
    if not _ALL.search(question.statement):
        return None
    if re.search(r"无一(?:例外|幸免|不)|没有一.{1,8}?[不未没]", text):
        return True
    if _ALL_NO.search(text):
        return False
    clauses = [clause for clause in CLAUSE_BREAK.split(text) if clause]
    if len(question.sides) == 2:
        signs = [bare_sign(clause) for clause in clauses]
        if {False, True} <= set(signs):
            return False
        sides = {frozenset(find_sides(clause)) for clause in clauses if find_sides(clause)}
        if sides and all(len(side) == 1 for side in sides) and len(frozenset().union(*sides)) == 1:
            return False
        if signs and all(sign is None for sign in signs) and find_sides(text) == question.sides:
            return abnormality(text)
    if any(negated_spans(clause) for clause in clauses):
        return False
    return True if _ALL_YES.search(text) or len(find_sides(text)) == 2 else None


_BARE_END = re.compile(
    r"(?P<no>没有|没|无|未见|不能|不可以|不会|不存在|不是|阴性|不可见|未见异常|正常|清晰)$|(?P<yes>有|能|可以|会"
    r"|存在|是|阳性|可见|异常)$"
)


def bare_sign(clause: str) -> bool | None:
    """左肺没有, 右侧有: a place and a bare yes or no word."""
    match = _BARE_END.search(clause)
    return None if match is None else match["yes"] is not None
