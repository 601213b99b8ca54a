"""The marker of an image in exported texts stands for an image only."""

from qilin.dataset.schema import assistant, user
from qilin.pipeline.export import text_with_markers


def test_a_marker_inside_a_text_marks_nothing() -> None:
    assert text_with_markers(user("What does <image> mean?", 1)) == "<image>\nWhat does <image > mean?"
    assert text_with_markers(assistant("<image><image>")) == "<image ><image >"
    assert text_with_markers(user("图", 2)) == "<image>\n<image>\n图"  # the control
