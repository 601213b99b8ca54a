"""Articles to figures against pubmed_parser's figure calls: CPU seconds a core on the same articles in one run.

    python bench/figures.py ARTICLES --peer VENV/bin/python

ARTICLES holds .nxml files; VENV has pubmed_parser. Each side runs in a process of its own, in turns, five times; the
best turn counts. pubmed_parser needs two calls for what a figure row holds: parse_pubmed_caption (figures) and
parse_pubmed_paragraph (the paragraphs that mention them); both numbers are kept, and lxml's bare parsing of the files.
Writes bench/results/figures.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from write_result import write_result

TIMED = """
import json, sys, time
files = sys.argv[1:]
{imports}
best = {{}}
for name, work in {{{calls}}}.items():
    times = []
    for _ in range(20):
        began = time.process_time()
        for file in files:
            work(file)
        times.append(time.process_time() - began)
    best[name] = min(times)
print(json.dumps(best))
"""
OURS = TIMED.format(
    imports="from qilin.pipeline.pubmed.jats import read_article",
    calls="'read_article': lambda file: read_article(open(file, 'rb').read())",
)
THEIRS = TIMED.format(
    imports="import pubmed_parser as pp\nfrom lxml import etree",
    calls="'parse_pubmed_caption': pp.parse_pubmed_caption, 'parse_pubmed_paragraph': pp.parse_pubmed_paragraph,"
    " 'lxml alone': etree.parse",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("articles", type=Path)
    parser.add_argument("--peer", required=True, help="a Python that has pubmed_parser")
    asked = parser.parse_args()
    files = sorted(map(str, asked.articles.glob("*.nxml")))
    best: dict[str, float] = {}
    for _ in range(5):
        for python, code in ((sys.executable, OURS), (asked.peer, THEIRS)):
            said = subprocess.run([python, "-c", code, *files], capture_output=True, text=True, check=True).stdout
            for name, seconds in json.loads(said).items():
                best[name] = min(seconds, best.get(name, seconds))
    versions = "import pubmed_parser, lxml.etree; print(pubmed_parser.__version__, lxml.etree.__version__)"
    peer = subprocess.run([asked.peer, "-c", versions], capture_output=True, text=True, check=True).stdout.split()
    both = best["parse_pubmed_caption"] + best["parse_pubmed_paragraph"]
    result = {
        "pubmed_parser": peer[0], "lxml": peer[1],
        "articles": len(files), "bytes": sum(Path(file).stat().st_size for file in files),
        "milliseconds": {name: round(1000 * seconds, 2) for name, seconds in best.items()},
        "times_faster_than_caption_and_paragraph": round(both / best["read_article"], 2),
        "times_faster_than_caption_alone": round(best["parse_pubmed_caption"] / best["read_article"], 2),
        "articles_a_second_a_core": round(len(files) / best["read_article"]),
    }  # fmt: skip
    write_result(
        "figures", "python bench/figures.py ARTICLES --peer VENV/bin/python", result, "one core, best of 5 x 20 turns"
    )


if __name__ == "__main__":
    main()
