"""Agreement of `qilin score --scorer KIT` with the scoring functions of the kits, answer by answer.

    pip download --no-deps evalscope lmms-eval nvidia-vlmeval mathruler, unpack each wheel, then
    python bench/kits.py predictions.jsonl --evalscope DIR --lmms-eval DIR --vlmevalkit DIR \\
        [--medevalkit utils.py --mathruler DIR]

Inputs: tests/evaluate/answer_pairs.jsonl, a model's predictions, noisy versions of both, and constructed answers to
multiple-choice, fill-in-the-blank and true/false questions. The kits' other dependencies are not needed: only the files
with the scoring functions are loaded, and packages that they import but do not use are replaced by empty modules.
VLMEvalKit is NVIDIA's package of it; its CMMMU.evaluate receives a table of one row at a time.
Prints the agreement per kit and writes bench/results/kits.json; entries of kits that are not passed are preserved.
"""

import argparse
import importlib.util
import json
import platform
import random
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qilin.evaluate.results import Prediction, read_predictions
from qilin.evaluate.scoring import other_scorers as scorers
from qilin.evaluate.scoring.multiple_choice import strip_choice_letter

HERE = Path(__file__).parent
PAIRS = HERE.parent / "tests" / "evaluate" / "answer_pairs.jsonl"
KIT_NAMES = ("evalscope", "lmms-eval", "vlmevalkit", "medevalkit")
MAX_EXAMPLES = 20  # disagreements in the result

NOISE = ("{}", "{}。", "答案是{}", "图中显示{}。", "（注）{}", "ANSWER: {}", "**Answer**: {}", "所以{}是对的\n结果为{}",
         "<think>不是左肺，先看CT</think>{}", "先看纵隔</think>\n{}", "<analysis>yes</analysis> {}", "<think>没有{}",
         "<THINK>对</THINK>{}", "<think>A</think><think>B</think>{}")  # fmt: skip
STATEMENTS = "不正确 不准确 不对 对 错 正确 错误 是否正确 该说法是错误的 这个说法不正确。 判断为对"
STATEMENTS += " 对错 答案是对。所以错 表述准确"
CHOICE_ANSWERS = "B (B) 选B 根据MRI与CT，选B CT 气胸 A和B 没有 B.气胸 答案是(C)。 右肺 a AB 最可能是D，不是A"
BLANKS = "2 2个 12.5 1，234 3e2 约为3.14 等于5。所以是5 x=7 -4 0.5mm"
ENGLISH = ["yes", "no", "Yes.", "No, there is none", "The answer is yes", "<answer>yes</answer>", "\\boxed{no}",
           "Answer: lung", "lung", "Lung.", "final answer is no", "<answer>a</answer> <answer>b</answer>",
           "x\n\nb. text", "b\n\nbecause"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path, help="predictions.jsonl of a model")
    for name in (*KIT_NAMES, "mathruler"):
        parser.add_argument(f"--{name}", type=Path, help="unpacked package, or utils.py for medevalkit")
    args = parser.parse_args()
    kit_functions: dict[str, Callable[[Prediction], float]] = {}
    if args.evalscope:
        slake = load_file(args.evalscope / "evalscope/benchmarks/slake/utils.py")
        cmmmu = load_file(args.evalscope / "evalscope/benchmarks/cmmmu/utils.py")
        kit_functions["evalscope"] = lambda p: evalscope_score(p, slake, cmmmu)
    if args.lmms_eval:
        add_empty_modules("loguru", "lmms_eval.tasks._task_utils.file_utils")
        lmms_slake = load_file(args.lmms_eval / "lmms_eval/tasks/slake/utils.py")
        lmms_cmmmu = load_file(args.lmms_eval / "lmms_eval/tasks/cmmmu/utils.py")
        reasoning = load_file(args.lmms_eval / "lmms_eval/api/reasoning.py")
        kit_functions["lmms-eval"] = lambda p: lmms_eval_score(without_reasoning(p, reasoning), lmms_slake, lmms_cmmmu)
    if args.vlmevalkit:
        table = add_table_modules()
        vlmevalkit = load_file(args.vlmevalkit / "vlmeval/dataset/cmmmu.py", "vlmeval.dataset.cmmmu")
        kit_functions["vlmevalkit"] = lambda p: vlmevalkit_score(p, vlmevalkit, table)
    if args.medevalkit:
        sys.path.insert(0, str(args.mathruler))
        add_empty_modules("google", "nltk.translate.bleu_score", "openai", "rouge", "tenacity", "tqdm.asyncio")
        medevalkit = load_file(args.medevalkit)
        kit_functions["medevalkit"] = lambda p: medevalkit_score(p, medevalkit)
    predictions = [*noised_answers(args.predictions), *constructed_answers()]
    results: dict[str, Any] = {}
    for name, kit_score in kit_functions.items():
        result = results[name] = measure_agreement(predictions, scorers.KITS[name].score, kit_score)
        result["version"] = scorers.KITS[name].version
        print(f"{name:12} {result['version']}: {result['agree']} of {result['n']}", *result["unlike"][:5], sep="\n  ")
    path = HERE / "results" / "kits.json"
    stored = json.loads(path.read_text(encoding="utf-8"))["kits"] if path.is_file() else {}
    header = {"command": "python bench/kits.py", "python": platform.python_version(), "machine": platform.machine()}
    text = json.dumps({**header, "kits": stored | results}, ensure_ascii=False, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


class RandomRecorder:
    """Replaces a kit's `random` module and records that the kit guessed."""

    has_guessed = False

    def choice(self, options: Any) -> Any:
        self.has_guessed = True
        return options[0]


RANDOM = RandomRecorder()


def load_file(path: Path, name: str | None = None) -> Any:
    """Loads a file as a module without its package; RANDOM records its random guesses."""
    spec = importlib.util.spec_from_file_location(name or "_".join(path.parts[-4:-1]), path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(module, "random"):
        module.random = RANDOM
    return module


def add_empty_modules(*names: str) -> None:
    """Adds empty modules, and their parent packages, for imports that the scoring functions never use."""

    class EmptyModule(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *a, **k: lambda f: f

    for name in names:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            module_name = ".".join(parts[:end])
            sys.modules.setdefault(module_name, EmptyModule(module_name))


def noised_answers(path: Path) -> list[Prediction]:
    """The questions of PAIRS and of a prediction file, each with its answer and with a noisy version of it."""
    lines = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines() if line]
    rows = [
        *((r["question"], r["reference"], r["prediction"], r.get("answer_type"), r.get("choices")) for r in lines),
        *((p.question, p.reference, p.prediction, p.answer_type, p.choices)
          for p in read_predictions(path) if not p.is_caption),
    ]  # fmt: skip
    rng = random.Random(0)
    rows += [(q, r, rng.choice(NOISE).replace("{}", p), kind, choices) for q, r, p, kind, choices in rows]
    return [Prediction("", q, r, p, kind, tuple(choices or ())) for q, r, p, kind, choices in rows]


def constructed_answers() -> Iterator[Prediction]:
    """Answers to true/false, multiple-choice, fill-in-the-blank and English questions."""
    for text in (*STATEMENTS.split(), ""):
        for lead in ("", "答案：", "因此，", "题目中的说法是"):
            yield from (Prediction("", "判断", reference, lead + text) for reference in ("对", "错"))
    for choices in (("肺炎", "气胸", "结节", "正常"), ("左肺", "右肺", "双肺", "都不是")):
        for text in (*CHOICE_ANSWERS.split(), ""):
            for lead in ("", "答案是", "The answer is "):
                yield from (Prediction("", "?", reference, lead + text, choices=choices) for reference in "ABCD")
    for reference in BLANKS.split():
        yield from (Prediction("", "多少", reference, "结果是" + text) for text in BLANKS.split())
    for text in ENGLISH:
        for answer_type in ("closed", "open"):
            references = ("yes", "no", "lung", "Lung")
            yield from (Prediction("", "is it?", reference, text, answer_type) for reference in references)
        yield from (Prediction("", "?", r, text, choices=("lung", "b text", "no", "yes")) for r in "AB")


def measure_agreement(
    predictions: Sequence[Prediction],
    qilin_score: Callable[[Prediction], scorers.KitScore],
    kit_score: Callable[[Prediction], float],
) -> dict[str, Any]:
    """How often both assign the same points; two random guesses count as agreement."""
    disagreements = []
    for p in predictions:
        score, RANDOM.has_guessed = qilin_score(p), False
        points = kit_score(p)
        expected: float | str = scorers.GUESS if RANDOM.has_guessed else float(points)
        if expected != (scorers.GUESS if score.rule == scorers.GUESS else score.points):
            disagreements.append((p.reference, p.prediction, p.choices, expected, score.points))
    num_agreements = len(predictions) - len(disagreements)
    return {"n": len(predictions), "agree": num_agreements, "unlike": disagreements[:MAX_EXAMPLES]}


def reference_letters(p: Prediction) -> str:
    """The letters of the correct options; the unchanged reference for other questions."""
    return (scorers.option_letters(p.reference, p.choices) if p.choices else None) or p.reference


def cmmmu_answer(p: Prediction, cmmmu: Any) -> tuple[str, Any, str] | None:
    """(question type, answer as parsed by the kit, reference) for the kit's CMMMU code; None for other questions."""
    if p.choices:
        by_letter, letters = cmmmu.get_multi_choice_info([strip_choice_letter(choice) for choice in p.choices])
        return "选择", cmmmu.get_multi_choice_prediction(p.prediction, letters, by_letter), reference_letters(p)
    if p.reference in ("对", "错"):
        return "判断", cmmmu.get_TF_prediction(p.prediction), p.reference
    return None


def evalscope_score(p: Prediction, slake: Any, cmmmu: Any) -> bool:
    answer = cmmmu_answer(p, cmmmu)
    if answer:
        return bool(cmmmu.eval_cmmmu(dict(zip(("type", "parsed_pred", "answer"), answer, strict=True))))
    return bool(slake.normalize_answer(slake.parse_answer(p.prediction)) == slake.normalize_answer(p.reference))


def without_reasoning(p: Prediction, reasoning: Any) -> Prediction:
    """A row whose reply lmms-eval has stripped, with the tags that its command line has by default."""
    pairs = [["<think>", "</think>"], ["<analysis>", "</analysis>"]]
    return replace(p, prediction=reasoning.strip_reasoning_tags(p.prediction, pairs))


def lmms_eval_score(p: Prediction, slake: Any, cmmmu: Any) -> bool:
    answer = cmmmu_answer(p, cmmmu)
    if answer:
        entry = dict(zip(("question_type", "parsed_pred", "answer"), answer, strict=True))
        return bool(cmmmu.eval_cmmmu([entry])["correct_num"])
    return bool(slake.slake_process_results({"answer": p.reference}, [p.prediction])["slake_accuracy"]["is_correct"])


CATEGORY, *OTHER_CATEGORIES = ["健康与医学", "技术与工程", "科学", "商业", "艺术与设计", "人文社会科学"]


def add_table_modules() -> dict[str, Any]:
    """Replaces VLMEvalKit's file helpers: they read `row` of the returned table and store the output as `result`.

    VLMEvalKit divides by the number of rows per category, so each other category gets one wrong row.
    """
    import pandas as pd

    table: dict[str, Any] = {}
    wrong = [{"category": c, "type": "填空", "answer": "甲乙丙丁", "prediction": "无"} for c in OTHER_CATEGORIES]
    add_empty_modules("vlmeval.dataset.image_base", "vlmeval.smp")
    sys.modules["vlmeval.dataset.image_base"].ImageBaseDataset = object  # type: ignore[attr-defined]
    helpers: dict[str, Any] = {
        "load": lambda path: pd.DataFrame([table["row"], *wrong]),
        "dump": lambda result, path: table.update(result=result),
        "d2df": pd.Series,
        "tqdm": iter,
        "osp": types.SimpleNamespace(exists=lambda path: False),
        "pd": types.SimpleNamespace(read_csv=lambda path: None),
    }
    sys.modules["vlmeval.smp"].__dict__.update(helpers, __all__=list(helpers))
    return table


def vlmevalkit_score(p: Prediction, vlmevalkit: Any, table: dict[str, Any]) -> float:
    question_type = "选择" if p.choices else "判断" if p.reference in ("对", "错") else "填空"
    options = {f"option{i}": strip_choice_letter(choice) for i, choice in enumerate(p.choices, 1)}
    row = {"category": CATEGORY, "type": question_type, "answer": reference_letters(p), "prediction": p.prediction}
    table["row"] = row | options
    vlmevalkit.CMMMU.evaluate("one.xlsx")
    return float(table["result"][CATEGORY])


def medevalkit_score(p: Prediction, medevalkit: Any) -> bool:
    answer = p.prediction
    if p.choices:
        choices = [strip_choice_letter(choice) for choice in p.choices]
        return bool(medevalkit.judge_multi_choice(choices, strip_choice_letter(p.reference), answer))
    if medevalkit.extract_boxed_content(answer) != "None":
        answer = medevalkit.extract_boxed_content(answer)
    elif "<answer>" in answer:
        answer = medevalkit.extract(answer, "answer")
    if not p.is_closed:
        return bool(medevalkit.parse_response(answer) == p.reference.lower())  # its exact match
    judge = medevalkit.judge_judgement if p.reference in ("yes", "no") else medevalkit.judge_close_end_vqa
    return bool(judge(p.reference, answer))


if __name__ == "__main__":
    main()
