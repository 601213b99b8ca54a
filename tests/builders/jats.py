"""Small JATS articles in the form that PubMed Central publishes."""

ARTICLE = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) Journal Archiving and Interchange DTD v1.3 20210610//EN" "J.dtd">
<article xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://www.w3.org/1998/Math/MathML"
 article-type="{article_type}"><front><journal-meta><journal-title-group><journal-title>Journal of Cases</journal-title>
</journal-title-group></journal-meta><article-meta><article-id pub-id-type="pmcid">{pmcid}</article-id>
<article-id pub-id-type="doi">10.1/{pmcid}</article-id><title-group><article-title>A <italic>rare</italic> case
</article-title></title-group><permissions>{license}</permissions></article-meta></front><body>{body}</body>
<back><ref-list><ref id="b1"><label>1</label><mixed-citation>Smith &amp; Wu</mixed-citation></ref></ref-list></back>
{floats}</article>"""
CC_BY = '<license xlink:href="https://creativecommons.org/licenses/by/4.0/"><license-p>Open.</license-p></license>'
CC_BY_NC = CC_BY.replace("/by/", "/by-nc/")


def article(
    body: str, floats: str = "", pmcid: str = "PMC100", license: str = CC_BY, article_type: str = "case-report"
) -> bytes:
    return ARTICLE.format(body=body, floats=floats, pmcid=pmcid, license=license, article_type=article_type).encode()


def figure(figure_id: str, caption: str, image: str, label: str = "", inside: str = "") -> str:
    label = f"<label>{label}</label>" if label else ""
    caption = f"<caption><p>{caption}</p></caption>" if caption else ""
    return f'<fig id="{figure_id}">{label}{caption}{inside}<graphic position="float" xlink:href="{image}"/></fig>'


def link(figure_ids: str, text: str) -> str:
    return f'<xref ref-type="fig" rid="{figure_ids}">{text}</xref>'
