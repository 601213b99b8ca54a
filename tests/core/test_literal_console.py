"""Texts of strangers are printed literally, without control sequences, on terminals of any encoding."""

import io
import json
import os
import subprocess
import sys

import pytest
from rich.table import Table

from qilin.core.terminal import make_console, printable

TEXTS = ["[/b]", "[bold]x[/bold]", "[link=http://a]b[/link]", ":smile: [red]", "[/]", "\\[a]"]


@pytest.mark.parametrize("text", TEXTS)
def test_markup_is_printed_literally(text: str) -> None:
    file = io.StringIO()
    console = make_console(file=file, force_terminal=True, color_system=None)
    table = Table(text, title=text)
    table.add_row(text)
    console.print(text, style="bold")
    console.print(table)
    assert file.getvalue().count(text) == 4


def test_control_characters_never_reach_the_terminal() -> None:
    text = "a\x1b]0;title\x07\x9b31m\x00\x7f\tb\nc\r\nd"
    file = io.StringIO()
    make_console(file=file, force_terminal=True).print(text)
    assert file.getvalue() == "a\\x1b]0;title\\x07\\x9b31m\\x00\\x7f        b\nc\nd\n"
    assert printable("肺\u2028 é") == "肺\u2028 é"
    styled = io.StringIO()
    make_console(file=styled, force_terminal=True).print("x", style="bold")
    assert "\x1b[1m" in styled.getvalue()  # the control: our own styles are still sent


@pytest.mark.parametrize("encoding", ["ascii", "cp936", "latin-1", "utf-8"])
def test_terminals_of_other_encodings(encoding: str) -> None:
    code = (
        "import sys; from qilin import cli; from qilin.core.errors import UserError\n"
        "from qilin.core.terminal import make_console, print_json\n"
        "def fail(arguments):\n"
        "    make_console().print('肺 é'); print('肺 \\udc80'); print_json({'a': '肺é'}, indent=None)\n"
        "    raise UserError('肺 \\x1b[2J')\n"
        "cli.split_command = fail\n"
        "sys.exit(cli.main(['x']))\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    stdout, stderr = result.stdout.decode(encoding), result.stderr.decode(encoding)
    assert result.returncode == 2, stderr
    assert "Traceback" not in stderr
    assert stderr.endswith("\\x1b[2J\n")
    lines = stdout.splitlines()
    assert json.loads(lines[2]) == {"a": "肺é"}  # escaped, never "?"
    assert lines[0] == "肺 é".encode(encoding, "replace").decode(encoding)
