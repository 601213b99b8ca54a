"""Speed of `read_article` (article XML to figures) against pubmed_parser, in CPU seconds on one core.

    python bench/figures.py ARTICLES --peer VENV/bin/python

ARTICLES holds .nxml files; VENV has pubmed_parser. Each library runs in a separate process, alternating, five times;
the fastest run counts. pubmed_parser needs two calls for the contents of a figure row: parse_pubmed_caption (figures)
and parse_pubmed_paragraph (the paragraphs that mention them). The result has both, and parsing with lxml alone.
Writes bench/results/figures.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from write_result import write_result

TIMING_CODE = """
import json, sys, time
files = sys.argv[1:]
{imports}
best = {{}}
for name, parse in {{{calls}}}.items():
    times = []
    for _ in range(20):
        start = time.process_time()
        for file in files:
            parse(file)
        times.append(time.process_time() - start)
    best[name] = min(times)
print(json.dumps(best))
"""
QILIN_CODE = TIMING_CODE.format(
    imports="from qilin.pipeline.pubmed.jats import read_article",
    calls="'read_article': lambda file: read_article(open(file, 'rb').read())",
)
PEER_CODE = TIMING_CODE.format(
    imports="import pubmed_parser as pp\nfrom lxml import etree",
    calls="'parse_pubmed_caption': pp.parse_pubmed_caption, 'parse_pubmed_paragraph': pp.parse_pubmed_paragraph,"
    " 'lxml alone': etree.parse",
)
VERSIONS_CODE = "import pubmed_parser, lxml.etree; print(pubmed_parser.__version__, lxml.etree.__version__)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("articles", type=Path, help="folder of .nxml files")
    parser.add_argument("--peer", required=True, help="Python interpreter with pubmed_parser")
    args = parser.parse_args()
    files = sorted(map(str, args.articles.glob("*.nxml")))
    best: dict[str, float] = {}
    for _ in range(5):
        for python, code in ((sys.executable, QILIN_CODE), (args.peer, PEER_CODE)):
            for name, seconds in json.loads(run_python(python, code, *files)).items():
                best[name] = min(seconds, best.get(name, seconds))
    pubmed_parser_version, lxml_version = run_python(args.peer, VERSIONS_CODE).split()
    both = best["parse_pubmed_caption"] + best["parse_pubmed_paragraph"]
    result = {
        "pubmed_parser": pubmed_parser_version, "lxml": lxml_version,
        "articles": len(files), "bytes": sum(Path(file).stat().st_size for file in files),
        "milliseconds": {name: round(1000 * seconds, 2) for name, seconds in best.items()},
        "times_faster_than_caption_and_paragraph": round(both / best["read_article"], 2),
        "times_faster_than_caption_alone": round(best["parse_pubmed_caption"] / best["read_article"], 2),
        "articles_a_second_a_core": round(len(files) / best["read_article"]),
    }  # fmt: skip
    write_result(
        "figures", "python bench/figures.py ARTICLES --peer VENV/bin/python", result, "one core, best of 5 x 20 turns"
    )


def run_python(python: str, code: str, *arguments: str) -> str:
    """The standard output of `code`."""
    return subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
