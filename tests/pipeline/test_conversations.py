"""Conversations composed of the captions and questions of an image."""

from pathlib import Path
from typing import Any

import pytest

from builders.datasets import all_samples, hidden_files, image_record, text_sample, write_splits
from qilin.cli import main
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Sample, assistant, text_of, user
from qilin.pipeline.questions import conversations


def test_conversations_combine_the_caption_and_questions_of_an_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, three = image_record(1), image_record(2), image_record(3)

    def question(name: str, image: Any, tier: str = "attribution") -> Sample:
        messages = (user(f"{name}？", 1), assistant(f"答{name}"))
        return Sample(name, "vqa", (image.image_id,), messages, "open", license_tier=tier, group="g", source="made")

    samples = [text_sample("cap", "caption", one, "一张图", group="g")]
    samples += [question(f"q{n}", one, "noncommercial" if n == 1 else "attribution") for n in range(4)]
    samples += [question("alone", two), text_sample("told", "caption", three, "又一张", group="g")]
    source = write_splits(tmp_path / "in", [("train", sample) for sample in samples], one, two, three)
    command = ["data", "make-conversations", str(source)]
    assert main([*command, str(tmp_path / "out"), "--max-turns", "3"]) == 0
    written = {sample_id: sample for sample_id, (_, sample) in all_samples(open_dataset(tmp_path / "out")).items()}
    # the caption and two questions, then the other two; a single question or caption is no conversation
    assert set(written) == {"chat of q1", "chat of q3"}
    first = written["chat of q1"]
    assert (first.kind, first.group, first.license_tier) == ("chat", "g", "noncommercial")
    assert [text_of(message) for message in first.messages][1:] == ["一张图", "q0？", "答q0", "q1？", "答q1"]
    assert sum(part["type"] == "image" for message in first.messages for part in message["content"]) == 1
    assert [text_of(message) for message in written["chat of q3"].messages] == ["q2？", "答q2", "q3？", "答q3"]
    assert main([*command, str(tmp_path / "x"), "--min-turns", "1"]) == 2
    assert main([*command, str(tmp_path / "x"), "--min-turns", "8", "--max-turns", "9"]) == 2
    assert "no sample is left; rejected: none" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "x")]) == 0  # the failed run does not block it


def test_interrupted_conversations_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [image_record(n) for n in range(6)]
    samples = [text_sample(f"q{n}", "vqa", images[n // 2], f"答{n}") for n in range(12)]
    source = write_splits(tmp_path / "in", [("train", sample) for sample in samples], *images)
    monkeypatch.setattr("qilin.pipeline.execution.sharded_map.ROWS_PER_BUCKET", 3)
    combine_bucket = conversations.combine_bucket
    done: list[str] = []

    def run_until(limit: int) -> int:
        def interrupted(min_turns: int, max_turns: int, bucket: str) -> Any:
            if len(done) == limit:
                raise KeyboardInterrupt
            done.append(Path(bucket).name)
            yield from combine_bucket(min_turns, max_turns, bucket)

        monkeypatch.setattr(conversations, "combine_bucket", interrupted)
        return main(["data", "make-conversations", str(source), str(tmp_path / "out"), "--workers", "1"])

    assert run_until(2) == 130
    before, done[:] = list(done), []
    assert run_until(-1) == 0
    assert before
    assert done
    assert not set(before) & set(done)  # finished buckets are not computed again
    assert open_dataset(tmp_path / "out").count("train") == 6
    assert hidden_files(tmp_path) == []
