# ruff: noqa: E501 - tables of words read best with one name a line
"""Is a figure a medical image, of which kind and of what part of the body: plain rules over its caption.

In: a caption. Out: a Judgement: yes, no, or unsure, with the modality and body part it names and the reason. The rules
see words, not images; what they are unsure of, a vision model behind an endpoint can look at (`qilin data look`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qilin.pipeline.pubmed.jats_text import sentences

# the first that matches names the image, so the narrower ones stand first
MODALITIES = {
    "PET": r"\bpet\b|pet[-/]ct|positron emission|scintigra|\bspect\b|scintiscan",
    "OCT": r"optical coherence tomogra|\boct\b|sd-oct",
    "Fundus": r"fundus|fundoscop|ophthalmoscop|fluorescein angiogra|indocyanine green angiogra",
    "Dermoscopy": r"derm(?:at)?oscop",
    "Angiography": r"angiogra|angiogram|venogra|arteriogra|fluoroscop|cholangiopancreatogra|\bercp\b|\bdsa\b",
    "CT": r"\b(?:c(?:b|e)?|hr|md|ld)?ct\b(?! value)|\bcts\b|computed tomogra|computeri[sz]ed tomogra|tomographic",
    "MRI": r"\bf?mri\b|\bmr\b[ -](?:imag|angio|scan)|magnetic resonance|\bt[12][- ]?w|\bflair\b|diffusion[- ]weighted"
    r"|\bmrcp\b|\bcmr\b|gadolinium",
    "Ultrasound": r"ultraso(?:und|nogra)|sonogra|echocardiogra|echogra|\bdoppler\b|\b(?:tte|tee|eus|ivus)\b",
    "X-Ray": r"radiogra|\bx[- ]?rays?\b(?! diffract| crystal| photoelectron| absorption| fluoresc| structure)|roentgen"
    r"|\bcxr\b|mammogra|orthopantomo|panorex|barium",
    "Electron microscopy": r"electron (?:micro|photomicro)|\b(?:sem|tem) (?:image|micrograph|photo)",
    "Endoscopy": r"(?:endo|gastro|colono|broncho|laparo|cysto|arthro|hystero|laryngo|thoraco|entero|sigmoido|oto"
    r"|esophagogastroduodeno)scop(?:y|ic|ies)\b",
    "Pathology": r"histolog|histopatholog|patholog(?:y|ical|ic) (?:image|finding|section|specimen|exam|feature)|\bh ?& ?e\b"
    r"|ha?ematoxylin|immunohistochem|photomicrogra|microphotogra|\bstain(?:ed|ing|s)?\b|cytolog|(?:blood|pap|marrow) smear"
    r"|biops(?:y|ies)\b|\bmicroscopic (?:view|exam|appearance|finding|image)",
    "Microscopy": r"immunofluoresc|confocal|fluorescence (?:micro|image)|micrograph|microscop",
    "ECG": r"electrocardiogra|\b(?:ecg|ekg|eeg)\b|electroencephalogra",
    "Photograph": r"(?:clinical|intra-?oral|extra-?oral|intra-?operative|post-?operative|pre-?operative|operative)\s+(?:photo"
    r"|view|image|image|appearance|finding|aspect)|photograph(?:s|ic)?\b|gross (?:appearance|specimen|view|patholog)"
    r"|macroscopic|slit[- ]lamp|surgical specimen|resected specimen",
}  # fmt: skip
CHARTS = re.compile(
    r"kaplan|survival curve|\broc\b|flow ?chart|flow diagram|schematic|\bdiagram|forest plot|funnel plot|box ?plot|\bplots?\b"
    r"|bar (?:graph|chart)|\bgraphs?\b|histogram|scatter|heat ?map|phylogen|western blot|immunoblot|error bars?"
    r"|\bp\s?[<=>≤]\s?0?\.\d|odds ratio|confidence interval|regression|correlation|time ?line|consort|prisma"
    r"|\balgorithm|electrophoresis|\bpcr\b|alignment of|chemical structure|crystal structure|spectr(?:a|um)\b"
    r"|map of|questionnaire|screenshot|work ?flow|architecture|pipeline|\bcurves?\b|mean ?± ?s|\bn ?= ?\d+|illustration"
    r"|cartoon|expression levels?|proportion of|percentage of|study design|pedigree",
    re.IGNORECASE,
)
BODY_PARTS = {
    "Eye": r"\beyes?\b|retina|macula|corneal?\b|optic (?:disc|nerve)|choroid|\bfundus\b|ocular|orbit|conjunctiv|eyelid",
    "Mouth": r"\btooth\b|\bteeth\b|dental|mandib|maxill|\boral\b|gingiv|periodont|palat|tongue|molar",
    "Head": r"brain|cerebr|cerebell|crani|skull|intracranial|\bhead\b|frontal lobe|temporal lobe|pituitar|hippocamp|sinus(?:es)?\b",
    "Neck": r"\bneck\b|thyroid|larynx|laryng|pharyn|carotid|trachea|parotid",
    "Breast": r"breast|mammogra|mammary",
    "Heart": r"cardi(?:ac|o)|\bheart\b|coronary|ventric|atri(?:um|al)\b|mitral|aortic valve|myocard|pericard",
    "Chest": r"chest|\blungs?\b|pulmon|thora|mediastin|pleura|bronch|\bcxr\b|alveol|\bribs?\b",
    "Spine": r"\bspin(?:e|al)\b|vertebra|lumbar|intervertebral|sacr(?:um|al)\b|\bdis[ck] herniation",
    "Abdomen": r"abdom|liver|hepat|spleen|splen|pancrea|kidney|renal|gastr|stomach|bowel|colon|intestin|duoden|jejun|ileum"
    r"|gallbladder|bil(?:e|iary)\b|periton|appendi|esophag|oesophag|adrenal|ureter|rect(?:um|al)\b",
    "Pelvis": r"pelvi|uter(?:us|ine)|ovar|prostat|bladder|cervix|endometri|vagin|testi|scrot|penis|fetal|fetus|placent",
    "Limb": r"femu?r|femoral|tibia|fibula|\bknee|\bhip\b|shoulder|\bhand\b|\bfoot\b|\bfeet\b|wrist|ankle|elbow|humer|radius\b"
    r"|\bulna|finger|\btoe|\bleg\b|\barm\b|limb|thigh|calf\b|meniscus|cruciate|tendon",
    "Skin": r"\bskin\b|cutaneous|dermal|dermat|epiderm|melanoma|rash|papule|plaque",
    "Blood": r"blood smear|bone marrow|peripheral blood|leuk(?:a)?emi",
}  # fmt: skip


@dataclass(frozen=True)
class Judgement:
    """What the words of a figure say it is."""

    medical: Literal["yes", "no", "unsure"]
    modality: str | None
    body_part: str | None
    reason: str


def compiled(words: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    return {name: re.compile(pattern, re.IGNORECASE) for name, pattern in words.items()}


MODALITY_WORDS, BODY_WORDS = compiled(MODALITIES), compiled(BODY_PARTS)


def judge(caption: str) -> Judgement:
    """A caption that speaks of a kind of image and of no chart is one; the first sentence decides between both."""
    modality = first_named(MODALITY_WORDS, caption)
    part = earliest(BODY_WORDS, caption)
    chart = CHARTS.search(caption)
    if not caption:
        return Judgement("unsure", None, None, "no caption")
    if modality and not chart:
        return Judgement("yes", modality, part, f"names {modality}")
    if not modality:
        if chart:
            return Judgement("no", None, part, "a chart or a drawing by its caption")
        return Judgement("unsure", None, part, "names no kind of image")
    opening = next(iter(sentences(caption)), caption)
    modality_first, chart_first = first_named(MODALITY_WORDS, opening), CHARTS.search(opening)
    if modality_first and not chart_first:
        return Judgement("yes", modality_first, part, f"opens with {modality_first}")
    if chart_first and not modality_first:
        return Judgement("no", modality, part, "a chart or a drawing by its opening words")
    return Judgement("unsure", modality, part, "names a kind of image and a chart")


def first_named(words: Mapping[str, re.Pattern[str]], text: str) -> str | None:
    return next((name for name, pattern in words.items() if pattern.search(text)), None)


def earliest(words: Mapping[str, re.Pattern[str]], text: str) -> str | None:
    """The name whose words come first in the text."""
    found = [(match.start(), name) for name, pattern in words.items() if (match := pattern.search(text))]
    return min(found)[1] if found else None
