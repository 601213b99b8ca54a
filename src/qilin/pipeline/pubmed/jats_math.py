"""One line of text for formulas, superscripts and subscripts.

In: MathML, TeX or the content of `sup` and `sub`. Out: 10⁹ and not 109, 1/2 and not 12, H₂O, and `[formula]` for a
formula that is only a picture. The line keeps the value; it is not meant to be typeset again.
"""

import re
from collections.abc import Iterator
from typing import Any

SUPERSCRIPTS = str.maketrans("0123456789+-−–()", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁻⁽⁾")
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
SUPERSCRIPT_TEXT = re.compile(r"[0-9+\-−–()]+")
INVISIBLE = dict.fromkeys(map(ord, "\u2061\u2062\u2063"))  # apply, times, separator
TEX_BODY = re.compile(r"\\begin\{document\}(.*?)\\end\{document\}", re.DOTALL)
ACCENTS = {"¯": "\u0304", "‾": "\u0304", "ˉ": "\u0304", "_": "\u0304", "^": "\u0302", "ˆ": "\u0302", "~": "\u0303"}
FORMULA_MARK, SYMBOL_MARK = "[formula]", "[symbol]"


def superscript(text: str, before: str, after: str) -> str:
    """The content of `sup` between two texts: digits as superscripts, "^" where letters would join a number."""
    stripped = text.strip()
    if stripped in ("o", "º", "∘", "0") and after.lstrip()[:1] in ("C", "F") and before.rstrip()[-1:].isdigit():
        return "°"
    if SUPERSCRIPT_TEXT.fullmatch(stripped):
        return text.translate(SUPERSCRIPTS)  # with the spaces around it
    follows_number = before[-1:].isdigit() or before[-1:] == ")"
    is_exponent = any(c.isdigit() for c in stripped) or len(stripped) == 1  # and not the "th" of 4th
    if follows_number and is_exponent and stripped not in ("*", "†", "‡", "§", "®", "™", "°"):
        return f"^{stripped}" if len(stripped) == 1 else f"^({stripped})"
    if re.fullmatch(r"[-−–]?\d+[./]\d+", stripped) and before[-1:].isalpha():  # m^(1/2)
        return f"^({stripped})"
    return text


def subscript(text: str) -> str:
    return text.translate(SUBSCRIPTS) if text.strip().isalnum() else text  # F[1,12] stays


def local_name(element: Any) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def tex_text(source: str) -> str:
    """The TeX between the dollar signs, without the preamble that some publishers repeat in each formula."""
    match = TEX_BODY.search(source)
    body = match.group(1) if match else source
    return " ".join(re.sub(r"\\[\[\]()](?![a-zA-Z])|\$", " ", body).split())


# --- MathML ---------------------------------------------------------------------------------------------------------


def math_text(element: Any) -> str:
    """A MathML element as one line."""
    return " ".join(node_text(element).split())


def node_text(node: Any) -> str:
    name = local_name(node)
    if name in ("mphantom", "annotation", "annotation-xml", "mprescripts", "none", ""):
        return ""
    if name == "mspace":
        return " "
    parts = [child for child in node if isinstance(child.tag, str)]
    if not parts:
        return (node.text or "").translate(INVISIBLE).replace("\u2064", " ").strip("\n\t ")  # \u2064: 2 and 1/2
    if name in ("semantics", "maction"):
        return node_text(parts[0])
    if name == "mmultiscripts":
        return multiscripts(parts)
    if name == "mtable":
        rows = ((node_text(cell) for cell in row) for row in parts)
        return "; ".join(", ".join(cells) for cells in rows)
    if name == "mfenced":
        separator = (node.get("separators", ",").strip() or " ")[0]
        return f"{node.get('open', '(')}{separator.join(map(node_text, parts))}{node.get('close', ')')}"
    if name == "mfrac" and len(parts) == 2:
        joint = " over " if node.get("linethickness") in ("0", "0pt", "0em") else "/"
        text = joint.join(grouped(node_text(part)) for part in parts)
        return f"({text})" if joint != "/" else text
    if name == "msqrt":
        return "√" + grouped(row_text(parts))
    if name == "mroot" and len(parts) == 2:
        return raised(node_text(parts[1])) + "√" + grouped(node_text(parts[0]))
    if name in ("msup", "msub", "msubsup", "mover", "munder", "munderover") and len(parts) > 1:
        return scripted(name, [node_text(part) for part in parts])
    return (node.text or "").strip() + row_text(parts)


def row_text(parts: list[Any]) -> str:
    text = ""
    for part in parts:
        if local_name(part) == "mfrac" and text[-1:].isdigit():
            text += " "  # 2 1/2
        text += node_text(part)
        if part.tail and part.tail.strip():
            text += part.tail.strip()
    return text


def scripted(name: str, texts: list[str]) -> str:
    base = texts[0]
    if name == "mover":
        return base + (ACCENTS[texts[1]] if texts[1] in ACCENTS and len(base) == 1 else raised(texts[1]))
    if name in ("msub", "munder"):
        return base + lowered(texts[1])
    if name == "msup":
        return (f"({base})" if re.search(r"[/ ]", base) else base) + raised(texts[1])
    return base + lowered(texts[1]) + "".join(map(raised, texts[2:3]))


def multiscripts(parts: list[Any]) -> str:
    """Base, then pairs of sub- and superscripts; those after `mprescripts` come before the base: ¹⁸F."""
    names = [local_name(part) for part in parts]
    split = names.index("mprescripts") if "mprescripts" in names else len(parts)

    def pairs(scripts: list[Any]) -> Iterator[str]:
        for position, script in enumerate(scripts):
            if text := node_text(script):
                yield lowered(text) if position % 2 == 0 else raised(text)

    return "".join(pairs(parts[split + 1 :])) + node_text(parts[0]) + "".join(pairs(parts[1:split]))


def raised(text: str) -> str:
    if not text or set(text) <= set("′'″*†°"):
        return text
    if text in ("∘", "º"):
        return "°"
    return text.translate(SUPERSCRIPTS) if SUPERSCRIPT_TEXT.fullmatch(text) else "^" + grouped(text)


def lowered(text: str) -> str:
    if not text:
        return ""
    return text.translate(SUBSCRIPTS) if text.isascii() and text.isdigit() else "_" + grouped(text)


def grouped(text: str) -> str:
    return text if re.fullmatch(r"[\w.%°′]*", text) else f"({text})"
