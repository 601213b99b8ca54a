"""The connection to a service: redirects, passwords in its address, keys, certificates."""

import contextlib
import io
import json
import logging
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from builders.llm_server import FakeService, Server, completion, serve, serve_http
from qilin.core.errors import RunError, UserError
from qilin.core.llm_client import ChatRequest, Endpoint, cache_key, complete_all
from qilin.core.llm_client_config import parse_extra, public_address

PROMPT = ChatRequest([{"role": "user", "content": "patient 4711"}])


@contextlib.contextmanager
def redirect(target: str, status: int = 307) -> Iterator[str]:
    """A server that redirects to `target`; "" stands for its own /moved, which answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.startswith("/moved"):
                data = json.dumps(completion("moved")).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                return
            self.send_response(status)
            self.send_header("Location", target or f"{base}/moved/chat/completions")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None: ...

    with serve_http(Handler) as base:
        yield base


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_another_host_gets_nothing(status: int) -> None:
    with serve(FakeService(lambda body: "a")) as other:
        for target in (
            f"{other.url}/chat/completions",
            other.url.replace("127.0.0.1", "localhost") + "/chat/completions",
        ):
            with redirect(target, status) as base, pytest.raises(UserError) as error:
                complete_all(Endpoint(f"{base}/v1", "m"), [PROMPT])
            assert "another host" in str(error.value)
            assert target in str(error.value)
        assert other.requests == []
        complete_all(Endpoint(other.url, "m"), [PROMPT])  # it would have answered
        assert len(other.requests) == 1


def test_a_redirect_on_the_same_host_is_followed() -> None:
    with redirect("", 308) as base:
        assert complete_all(Endpoint(f"{base}/v1", "m"), [PROMPT])[0].text == "moved"


def test_a_password_in_the_address_is_sent_and_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    with serve(FakeService(lambda body: "a", failures=[401])) as service:
        url = service.url.replace("//", "//user:pass%20word@")
        endpoint = Endpoint(url, "m", cache=tmp_path / "c.sqlite", retries=0)
        with pytest.raises(UserError) as error:
            complete_all(endpoint, [PROMPT])
        complete_all(endpoint, [PROMPT])
        assert service.keys[-1] == "Basic dXNlcjpwYXNzIHdvcmQ="
    shown = f"{error.value} {endpoint!r} {caplog.text}"
    assert service.url in str(error.value)
    assert "pass%20word" not in shown
    assert "dXNlcj" not in shown
    assert b"pass" not in (tmp_path / "c.sqlite").read_bytes()
    assert cache_key(endpoint, PROMPT) == cache_key(Endpoint(service.url, "m"), PROMPT)


def test_an_address_is_shown_without_its_secrets() -> None:
    assert public_address("http://127.0.0.1:8000/v1") == "http://127.0.0.1:8000/v1"
    assert public_address("https://u:p@h.example:8/v1?api-version=3&api-key=s#f") == (
        "https://h.example:8/v1?api-version=3&api-key=***"
    )
    for wrong in ("u:secret@h/v1", "http://u:secret@[::/v1", "http://u:sec ret@h/v1", "http://u:x/secret@h/v1"):
        with pytest.raises(UserError) as error:
            complete_all(Endpoint(wrong, "m"), [PROMPT])
        assert "sec" not in str(error.value), wrong


def test_the_query_of_an_address_is_sent() -> None:
    with serve(FakeService(lambda body: "a")) as service:
        assert complete_all(Endpoint(f"{service.url}?api-version=1", "m"), [PROMPT])[0].text == "a"
        assert service.paths[-1] == "/v1/chat/completions?api-version=1"


def test_a_key_that_a_service_repeats_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QILIN_API_KEY", "sk-secret-9\n")
    answer = (401, {"error": {"message": "Incorrect API key provided: sk-secret-9"}})
    with serve(FakeService(lambda body: "a", respond=lambda body: answer)) as service:
        with pytest.raises(UserError) as error:
            complete_all(Endpoint(service.url, "m"), [PROMPT])
        assert service.keys == ["Bearer sk-secret-9"]
    assert "sk-secret" not in str(error.value)
    monkeypatch.setenv("QILIN_API_KEY", "密钥")
    with pytest.raises(UserError, match="QILIN_API_KEY"):
        complete_all(Endpoint("http://127.0.0.1:9/v1", "m"), [PROMPT])


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_a_refused_certificate_is_told_as_such(tmp_path: Path) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    subprocess.run([*command, "-subj", "/CN=x", "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    handler = type("Handler", (BaseHTTPRequestHandler,), {})
    with serve_http(handler) as base:
        server = Server(("127.0.0.1", 0), handler)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with contextlib.redirect_stderr(io.StringIO()):
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with pytest.raises(RunError) as error:
                complete_all(Endpoint(f"https://127.0.0.1:{server.server_address[1]}/v1", "m"), [PROMPT])
            server.shutdown()
            server.server_close()
        assert "certificate verify failed" in str(error.value)
        assert "SSL_CERT_FILE" in str(error.value)
        with pytest.raises(RunError, match="encrypted connection"):  # no TLS there
            complete_all(Endpoint(base.replace("http:", "https:"), "m"), [PROMPT])


def test_extra_fields_are_a_json_object() -> None:
    assert parse_extra(None) == {}
    assert parse_extra('{"enable_thinking": false}') == {"enable_thinking": False}
    for wrong in ("enable_thinking=false", "[1]", "", "null", '{"model": "x"}', '{"stream": true}'):
        with pytest.raises(ValueError, match="extra"):
            parse_extra(wrong)
