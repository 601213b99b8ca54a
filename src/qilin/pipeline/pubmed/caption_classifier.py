# ruff: noqa: E501 - vocabulary tables are easier to read with one entry a line
"""Classifies figures as medical images by plain rules over their captions.

In: a caption. Out: a CaptionClass: yes, no or unsure, with the modality and body part the caption names, and the
reason. The rules see text, not pixels; `qilin data filter-figures` shows the unsure figures to a vision model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qilin.pipeline.pubmed.jats_text import split_sentences

# modality -> pattern; the first match wins, so narrower modalities come first
MODALITIES = {
    "PET": r"\bpet\b|pet[-/]ct|positron emission|scintigra|\bspect\b|scintiscan",
    "OCT": r"optical coherence tomogra|\boct\b|sd-oct",
    "Fundus": r"fundus|fundoscop|ophthalmoscop|fluorescein angiogra|indocyanine green angiogra",
    "Dermoscopy": r"derm(?:at)?oscop",
    "Angiography": r"angiogra|angiogram|venogra|arteriogra|fluoroscop|cholangiopancreatogra|\bercp\b|\bdsa\b",
    "CT": r"\b(?:c(?:b|e)?|hr|md|ld)?ct\b(?! value)|\bcts\b|computed tomogra|computeri[sz]ed tomogra|tomographic",
    "MRI": r"\bf?mri\b|\bmr\b[ -](?:imag|angio|scan)|magnetic resonance|\bt[12][- ]?w|\bflair\b|diffusion[- ]weighted"
    r"|\bmrcp\b|\bcmr\b|gadolinium|\badc maps?\b|\bdwi\b",
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
    r"|bar (?:graph|chart)|\bgraphs?\b|histogram|\bscatter(?:gram| ?plot|\b)|heat ?map|phylogen|western blot|immunoblot|error bars?"
    r"|\bp\s?[<=>≤]\s?0?\.\d|odds ratio|confidence interval|regression|correlation|time ?line|consort|prisma"
    r"|\balgorithm|electrophoresis|\bpcr\b|alignment of|chemical structure|crystal structure|spectr(?:a|um)\b"
    r"|map of|questionnaire|screenshot|work ?flow|architecture|pipeline|\bcurves?\b|mean ?± ?s|\bn ?= ?\d+|illustration"
    r"|cartoon|expression levels?|proportion of|percentage of|study design|pedigree",
    re.IGNORECASE,
)
# Words of CHARTS where they are about a body, a specimen or an image: removed before CHARTS is searched
CLINICAL_PHRASES = re.compile(
    r"pipeline[™® ]*(?:flex|shield|vantage|embolization|embolisation|device|stent|flow)"
    r"|(?:normal|preserv\w+|loss of|lost|distort\w*|effac\w+|disrupt\w+|tissue|nodal|node|follic\w+|lobul\w+|glandular|crypt"
    r"|vill\w+|trabecul\w+|bone|cortical|hepat\w+|renal|papillary|alveolar|acinar|cribriform|muscle|growth|tumou?r|biliary)"
    r"(?: (?:of|the|in|normal|usual|its))*(?: [\w-]+){0,2}? architecture"
    r"|architecture of (?:the |a |an )?(?:normal |affected |left |right )?(?:lung|liver|kidney|node|lymph|gland|breast|bone|retina"
    r"|tumou?r|skin|spleen|thyroid|mucosa|crypts?|glands?|tissue|parenchyma)"
    r"|(?:greater|lesser|duodenal|spinal|scolio\w+|thoracic|lumbar|thoracolumbar|cervical|major|minor|compensatory|double"
    r"|structural|kypho\w+|lordo\w+|dental|nasal|gastric|c-|s-shaped|root)[ -]curves?|curves? of (?:the )?(?:stomach|spine|root"
    r"|colon|arch|scoliosis)"
    r"|(?:bone|soft[- ]tissue|lung|sharp|smooth|edge|standard|detail|high[- ]resolution|reconstruction|artifact[- ]reduction"
    r"|iterative|kernel|b\d\df?)(?: [\w-]+)? algorithms?"
    r"|(?:radio\w+|clinic\w*|imaging|hist\w+|cyto\w+|path\w+|gross|macroscopic|ct|mri?|sonogra\w+|anatom\w+)"
    r"(?:[-–/ ](?:path\w+|hist\w+|radio\w+|clinic\w*|imaging|anatom\w+))? correlation(?! (?:coeff|between|analys|plot|matri))"
    r"|correlation with (?:the )?(?:path\w+|hist\w+|gross|surg\w+|ct|mri?|clinical|imaging)"
    r"|(?<!logistic )(?<!linear )(?<!cox )(?<!ression )(?:tumou?r|spontaneous|partial|complete|marked|significant|disease|lesion"
    r"|caudal|interval|near[- ]total|slight|clear) regression"
    r"|(?<!logistic )(?<!linear )(?<!cox )regression (?:of|in) (?:\w+ ){0,3}?(?:mass\w*|lesions?|tumou?rs?|nodul\w+|lymph\w*"
    r"|metasta\w+|disease|edema|oedema|consolidation\w*|effusion|hematoma|haematoma|opacit\w+|infiltrat\w+|abscess|cyst\w*"
    r"|vessels|neovascular\w+|thromb\w+|swelling)"
    r"|(?:adc|fa|md|t1|t2\*?|r2\*?|perfusion|parametric|diffusion|colou?r|cbf|cbv|mtt|tmax|ttp|strain|thickness|topograph\w*"
    r"|elevation|polar|bull'?s[- ]eye|activation|field|velocity|elasticity|stiffness|flow|dose|coefficient|iodine|doppler)"
    r"[ -](?:colou?r[ -])?maps? of"
    r"|(?<!mass )(?<!nmr )(?<!ir )(?<!uv )(?<!raman )(?<!absorption )(?<!emission )spectrum of (?:\w+ )?(?:changes?|findings?"
    r"|disease|lesions?|appearances?|abnormalit\w+|disorders?|patholog\w+|features?|involvement|severity|manifestations?)"
    r"|alignment of (?:the )?(?:\w+ )?(?:fragments?|fracture\w*|bones?|joints?|spine|vertebra\w*|limb|knee|teeth|implants?|prosthes"
    r"\w+|facets?|femur|tibia|patella|foot|ankle|wrist|leg)"
    r"|(?:high|low|large|small|significant|great|greater) (?:percentage|proportion) of (?:[\w-]+ ){0,3}?(?:cells|nuclei|lymphocytes)"
    r"|case illustration",
    re.IGNORECASE,
)  # fmt: skip
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
class CaptionClass:
    """What a figure shows according to its caption. The field names are columns of the figure rows."""

    medical: Literal["yes", "no", "unsure"]
    modality: str | None
    body_part: str | None
    reason: str


def compile_patterns(patterns: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    return {name: re.compile(pattern, re.IGNORECASE) for name, pattern in patterns.items()}


PLAIN_DIGITS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")  # T₂-weighted
MODALITY_PATTERNS, BODY_PART_PATTERNS = compile_patterns(MODALITIES), compile_patterns(BODY_PARTS)


def classify_caption(caption: str) -> CaptionClass:
    """A caption that names a modality and no chart is medical; if it names both, its first sentence decides."""
    caption = caption.translate(PLAIN_DIGITS)
    modality = first_listed(MODALITY_PATTERNS, caption)
    body_part = first_in_text(BODY_PART_PATTERNS, caption)
    chart = names_chart(caption)
    if not caption:
        return CaptionClass("unsure", None, None, "no caption")
    if modality and not chart:
        return CaptionClass("yes", modality, body_part, f"names {modality}")
    if not modality:
        if chart:
            return CaptionClass("no", None, body_part, "a chart or a drawing by its caption")
        return CaptionClass("unsure", None, body_part, "names no kind of image")
    opening = next(iter(split_sentences(caption)), caption)
    opening_modality, opening_chart = first_listed(MODALITY_PATTERNS, opening), names_chart(opening)
    if opening_modality and not opening_chart:
        return CaptionClass("yes", opening_modality, body_part, f"opens with {opening_modality}")
    if opening_chart and not opening_modality:
        return CaptionClass("no", modality, body_part, "a chart or a drawing by its opening words")
    return CaptionClass("unsure", modality, body_part, "names a kind of image and a chart")


def names_chart(text: str) -> bool:
    """Whether a text names a chart or a drawing, and not only in a clinical phrase such as "greater curve"."""
    return CHARTS.search(text) is not None and CHARTS.search(CLINICAL_PHRASES.sub(" ", text)) is not None


def first_listed(patterns: Mapping[str, re.Pattern[str]], text: str) -> str | None:
    """The first name in the table whose pattern occurs in the text."""
    return next((name for name, pattern in patterns.items() if pattern.search(text)), None)


def first_in_text(patterns: Mapping[str, re.Pattern[str]], text: str) -> str | None:
    """The name whose pattern occurs earliest in the text."""
    matches = [(match.start(), name) for name, pattern in patterns.items() if (match := pattern.search(text))]
    return min(matches)[1] if matches else None
