"""How far `qilin score --scorer KIT` agrees with the kits' own functions, answer by answer.

    pip download --no-deps evalscope lmms-eval nvidia-vlmeval mathruler, unpack each wheel, then
    python bench/kits.py predictions.jsonl --evalscope DIR --lmms-eval DIR --vlmevalkit DIR \\
        [--medevalkit utils.py --mathruler DIR]

Reads tests/answer_pairs.jsonl, a model's own answers, noised forms of both, and answers made to strain choices, blanks
and statements. Needs none of the kits' other dependencies: only the files with the matching functions are loaded. The
file of MedEvalKit asks for clients of services at import; they are replaced by empty modules. VLMEvalKit is the package
that NVIDIA makes of it; its CMMMU.evaluate is given a table of one row at a time.
Prints a line a kit and writes bench/results/kits.json; a kit that is not given keeps its line there.
"""

import argparse
import importlib.util
import json
import platform
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qilin.evaluate.items import is_caption, is_closed
from qilin.evaluate.scoring import other_scorers as kits

HERE = Path(__file__).parent
GUESS = "guess"
STATEMENTS = "不正确 不准确 不对 对 错 正确 错误 是否正确 该说法是错误的 这个说法不正确。 判断为对"
STATEMENTS += " 对错 答案是对。所以错 表述准确"
PICKS = "B (B) 选B 根据MRI与CT，选B CT 气胸 A和B 没有 B.气胸 答案是(C)。 右肺 a AB 最可能是D，不是A"
BLANKS = "2 2个 12.5 1，234 3e2 约为3.14 等于5。所以是5 x=7 -4 0.5mm"
ENGLISH = ["yes", "no", "Yes.", "No, there is none", "The answer is yes", "<answer>yes</answer>", "\\boxed{no}",
           "Answer: lung", "lung", "Lung.", "final answer is no", "<answer>a</answer> <answer>b</answer>",
           "x\n\nb. text", "b\n\nbecause"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    for name in ("evalscope", "lmms-eval", "vlmevalkit", "medevalkit", "mathruler"):
        parser.add_argument(f"--{name}", type=Path)
    asked = parser.parse_args()
    rows = all_rows(asked.predictions)
    found: dict[str, Any] = {}
    if asked.evalscope:
        slake = load(asked.evalscope / "evalscope/benchmarks/slake/utils.py")
        cmmmu = load(asked.evalscope / "evalscope/benchmarks/cmmmu/utils.py")
        found["evalscope"] = agreement(rows, kits.evalscope, lambda row: by_evalscope(row, slake, cmmmu))
    if asked.lmms_eval:
        stand_ins("loguru", "lmms_eval", "lmms_eval.tasks", "lmms_eval.tasks._task_utils")
        stand_ins("lmms_eval.tasks._task_utils.file_utils")
        slake = load(asked.lmms_eval / "lmms_eval/tasks/slake/utils.py")
        cmmmu = load(asked.lmms_eval / "lmms_eval/tasks/cmmmu/utils.py")
        found["lmms-eval"] = agreement(rows, kits.lmms_eval, lambda row: by_lmms(row, slake, cmmmu))
    if asked.vlmevalkit:
        table = stand_in_tables()
        kit = load(asked.vlmevalkit / "vlmeval/dataset/cmmmu.py", "vlmeval.dataset.cmmmu")
        found["vlmevalkit"] = agreement(rows, kits.vlmevalkit, lambda row: by_vlmevalkit(row, kit, table))
    if asked.medevalkit:
        sys.path.insert(0, str(asked.mathruler))
        stand_ins("google", "nltk.translate.bleu_score", "openai", "rouge", "tenacity", "tqdm.asyncio")
        theirs = load(asked.medevalkit)
        found["medevalkit"] = agreement(rows, kits.medevalkit, lambda row: by_medevalkit(row, theirs))
    for name, kit in found.items():
        print(f"{name:12} {kits.KITS[name].version}: {kit['agree']} of {kit['n']}", *kit["unlike"][:5], sep="\n  ")
        kit["version"] = kits.KITS[name].version
    about = {"command": "python bench/kits.py", "python": platform.python_version(), "machine": platform.machine()}
    results = HERE / "results" / "kits.json"
    before = json.loads(results.read_text(encoding="utf-8"))["kits"] if results.is_file() else {}
    text = json.dumps({**about, "kits": before | found}, ensure_ascii=False, indent=1)
    results.write_text(text + "\n", encoding="utf-8")


def load(path: Path, name: str | None = None) -> Any:
    """A file as a module of its own, without its package; where it throws a coin, it says so."""
    spec = importlib.util.spec_from_file_location(name or "_".join(path.parts[-4:-1]), path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(module, "random"):
        module.random = LOT
    return module


class Lot:
    """random.choice that keeps in mind that it was asked."""

    asked = False

    def choice(self, things: Any) -> Any:
        self.asked = True
        return things[0]


LOT = Lot()


def stand_ins(*names: str) -> None:
    """Empty modules for what the kits import and the matching functions never call."""

    class Empty(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *a, **k: lambda f: f

    for name in names:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:end]), Empty(".".join(parts[:end])))


def all_rows(predictions: Path) -> list[dict[str, Any]]:
    files = (HERE.parent / "tests" / "answer_pairs.jsonl", predictions)
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines() if line]
    rows = [row for row in rows if not row.get("kind") or not is_caption(row)]
    lot = random.Random(0)
    noise = (
        "{}",
        "{}。",
        "答案是{}",
        "图中显示{}。",
        "（注）{}",
        "ANSWER: {}",
        "**Answer**: {}",
        "所以{}是对的\n结果为{}",
    )
    rows += [row | {"prediction": lot.choice(noise).replace("{}", row["prediction"])} for row in rows]
    for said in (*STATEMENTS.split(), ""):
        for lead in ("", "答案：", "因此，", "题目中的说法是"):
            rows += [{"question": "判断", "reference": r, "prediction": lead + said} for r in ("对", "错")]
    for choices in (["肺炎", "气胸", "结节", "正常"], ["左肺", "右肺", "双肺", "都不是"]):
        for said in (*PICKS.split(), ""):
            for lead in ("", "答案是", "The answer is "):
                rows += [
                    {"question": "?", "reference": r, "prediction": lead + said, "choices": choices} for r in "ABCD"
                ]
    rows += [
        {"question": "多少", "reference": r, "prediction": "结果是" + p} for r in BLANKS.split() for p in BLANKS.split()
    ]
    for said in ENGLISH:
        for kind in ("closed", "open"):
            rows += [
                {"question": "is it?", "reference": r, "prediction": said, "answer_type": kind}
                for r in ("yes", "no", "lung", "Lung")
            ]
        rows += [
            {"question": "?", "reference": r, "prediction": said, "choices": ["lung", "b text", "no", "yes"]}
            for r in "AB"
        ]
    return [row | {"choices": row.get("choices") or [], "answer_type": row.get("answer_type")} for row in rows]


def agreement(
    rows: list[dict[str, Any]], ours: Callable[[Any], kits.KitScore], theirs: Callable[[Any], Any]
) -> dict[str, Any]:
    unlike = []
    for row in rows:
        mark, LOT.asked = ours(row), False
        said = theirs(row)
        said = GUESS if LOT.asked else float(said)
        if said != (GUESS if mark.rule == "guess" else mark.points):
            unlike.append((row["reference"], row["prediction"], row["choices"], said, mark.points))
    return {"n": len(rows), "agree": len(rows) - len(unlike), "unlike": unlike[:20]}


def parsed(row: Any, kit: Any) -> tuple[str, Any, str] | None:
    """(type, what the kit reads, reference) of a row that its CMMMU code takes; None for others."""
    if row["choices"]:
        by_letter, letters = kit.get_multi_choice_info([kits.bare_choice(choice) for choice in row["choices"]])
        wanted = kits.selected_options(row["reference"], row["choices"])
        reference = "".join(kits.LETTERS[i] for i in sorted(wanted)) if wanted else row["reference"]
        return "选择", kit.get_multi_choice_prediction(row["prediction"], letters, by_letter), reference
    if row["reference"] in ("对", "错"):
        return "判断", kit.get_TF_prediction(row["prediction"]), row["reference"]
    return None


def by_evalscope(row: Any, slake: Any, cmmmu: Any) -> bool:
    read = parsed(row, cmmmu)
    if read:
        return bool(cmmmu.eval_cmmmu(dict(zip(("type", "parsed_pred", "answer"), read, strict=True))))
    return bool(
        slake.normalize_answer(slake.parse_answer(row["prediction"])) == slake.normalize_answer(row["reference"])
    )


def by_lmms(row: Any, slake: Any, cmmmu: Any) -> bool:
    read = parsed(row, cmmmu)
    if read:
        entry = dict(zip(("question_type", "parsed_pred", "answer"), read, strict=True))
        return bool(cmmmu.eval_cmmmu([entry])["correct_num"])
    record = slake.slake_process_results({"answer": row["reference"]}, [row["prediction"]])["slake_accuracy"]
    return bool(record["is_correct"])


MINE, *OTHERS = ["健康与医学", "技术与工程", "科学", "商业", "艺术与设计", "人文社会科学"]


def stand_in_tables() -> dict[str, Any]:
    """What VLMEvalKit's own helpers do here: hand over `row` as the table, and keep what is dumped as `result`. Its sum
    divides by the rows of each category, so every other category gets a wrong one."""
    import pandas as pd

    table: dict[str, Any] = {}
    wrong = [{"category": name, "type": "填空", "answer": "甲乙丙丁", "prediction": "无"} for name in OTHERS]
    stand_ins("vlmeval", "vlmeval.dataset", "vlmeval.dataset.image_base", "vlmeval.smp")
    sys.modules["vlmeval.dataset.image_base"].ImageBaseDataset = object  # type: ignore[attr-defined]
    smp = sys.modules["vlmeval.smp"]
    smp.__dict__.update(
        load=lambda path: pd.DataFrame([table["row"], *wrong]), dump=lambda result, path: table.update(result=result),
        d2df=pd.Series, tqdm=iter, osp=types.SimpleNamespace(exists=lambda path: False),
        pd=types.SimpleNamespace(read_csv=lambda path: None),
    )  # fmt: skip
    smp.__dict__["__all__"] = ["load", "dump", "d2df", "tqdm", "osp", "pd"]
    return table


def by_vlmevalkit(row: Any, kit: Any, table: dict[str, Any]) -> float:
    wanted = kits.selected_options(row["reference"], row["choices"]) if row["choices"] else None
    reference = "".join(kits.LETTERS[i] for i in sorted(wanted)) if wanted else row["reference"]
    kind = "选择" if row["choices"] else "判断" if row["reference"] in ("对", "错") else "填空"
    options = {f"option{i}": kits.bare_choice(choice) for i, choice in enumerate(row["choices"], 1)}
    given = {"category": MINE, "type": kind, "answer": reference, "prediction": row["prediction"]}
    table["row"] = given | options
    kit.CMMMU.evaluate("one.xlsx")
    return float(table["result"][MINE])


def by_medevalkit(row: Any, kit: Any) -> bool:
    reference, said = row["reference"], row["prediction"]
    if row["choices"]:
        choices = [kits.bare_choice(choice) for choice in row["choices"]]
        return bool(kit.judge_multi_choice(choices, kits.bare_choice(reference), said))
    if kit.extract_boxed_content(said) != "None":
        said = kit.extract_boxed_content(said)
    elif "<answer>" in said:
        said = kit.extract(said, "answer")
    if not is_closed(row):
        return bool(kit.parse_response(said) == reference.lower())  # its em, without BLEU and ROUGE beside it
    judge = kit.judge_judgement if reference in ("yes", "no") else kit.judge_close_end_vqa
    return bool(judge(reference, said))


if __name__ == "__main__":
    main()
