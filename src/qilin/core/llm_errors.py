"""What a chat service's error means: for one request, for the whole run, or to try again.

In: a failed HTTP response, or a body with status 200 that holds an error. Out: a ServiceError with a kind. Every
service words its errors in its own way; the patterns are those that users of DashScope, DeepSeek, Zhipu, Moonshot,
MiniMax, Volcengine, Azure, OpenAI, OpenRouter, vLLM, SGLang and TGI report.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

CONTENT_FILTER_CODES = {"1301", "1026", "1027", "10013", "10014", "10019"}  # Zhipu; MiniMax; Spark
CONTENT_FILTER = re.compile(
    r"content[_ ]?(?:filter|policy|management policy|exists risk|moderation|violates)|data_?inspection_?failed"
    r"|inappropriate content|responsible_?ai_?policy|considered high risk|sensitive_?(?:content|words?|information)"
    r"|(?:new|input|output)_sensitive|contains? sensitive|safety[_ ](?:system|check|policy|filter)"
    r"|usage (?:guidelines|policy|policies)|\bmoderation\b|\bflagged\b"
    r"|不安全|敏感(?:内容|信息|词)|违规|违禁|不合规|内容安全",
    re.IGNORECASE,
)
NO_CREDIT = re.compile(
    r"insufficient[_ ](?:quota|balance|credits?|funds)|exceeded_current_quota|billing_|plan and billing|arrearage"
    r"|overdue[-_ ]payment|account is in good standing"
    r"|\bcredits?\b.{0,20}(?:exhausted|used up)|余额不足|欠费",
    re.IGNORECASE,
)
CONTEXT = re.compile(
    r"context (?:length|window|size)|maximum (?:sequence|model|input) length|max_model_len|token limit"
    r"|range of input length|`inputs` tokens|prompt is too long|input is too long",
    re.IGNORECASE,
)
REJECTED_STATUSES = (400, 413, 414, 415, 416, 422, 431, 451)  # what was asked is at fault, not the service or the key
RETRIED_STATUSES = (408, 409, 425, 429)
MAX_MESSAGE = 300  # characters


class ServiceError(Exception):
    """A service's answer that is an error. `status`: HTTP status, or the one that the body names."""

    def __init__(self, status: int, message: str, codes: str = "", param: str = "", headers: Any = None) -> None:
        super().__init__(message)
        self.status, self.message, self.codes, self.param = status, message, codes, param
        self.headers: Mapping[str, str] = headers or {}
        self.prefix = ""  # of the text; not in the message, whose numbers may be limits

    @property
    def kind(self) -> str:
        """filtered, too long, rejected: this request only; no credit, key, wrong: every request; else retry."""
        text = f"{self.codes} {self.message}"
        if self.status == 402 or NO_CREDIT.search(text):
            return "no credit"
        if self.status != 401 and (CONTENT_FILTER_CODES & set(self.codes.split()) or CONTENT_FILTER.search(text)):
            return "filtered"
        if self.status in (401, 403):
            return "key"
        if self.status == 429 and "request too large" in text.lower():  # more than a whole minute's tokens
            return "too long"
        if self.status in REJECTED_STATUSES:
            return "too long" if CONTEXT.search(text) else "rejected"
        return "retry" if self.status in RETRIED_STATUSES or self.status >= 500 else "wrong"

    def __str__(self) -> str:
        """The message in one line, with the codes."""
        codes = " ".join(code for code in self.codes.split() if code not in self.message)
        return self.prefix + " ".join(self.message.split())[:MAX_MESSAGE] + (f" ({codes})" if codes else "")


def from_response(status: int, text: str, headers: Any = None) -> ServiceError:
    """The error of a response with a status of 300 and more."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = text
    codes, message, param = read_error(body if isinstance(body, dict) else {"message": str(body)})
    error = ServiceError(status, message, codes, param, headers)
    error.prefix = f"status {status}: "
    return error


def error_in_completion(completion: Any) -> ServiceError | None:
    """The error in a body with status 200, None if it holds a reply: gateways and some vendors report errors so.

    An error without an HTTP status among its codes counts as one of the server, which is tried again.
    """
    choices = completion.get("choices") if isinstance(completion, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(choice, dict) and not choice.get("error"):
        if choice.get("finish_reason") not in ("error", "network_error", "insufficient_system_resource"):
            return None
        return ServiceError(500, f"the reply ended with {choice['finish_reason']}")
    body = choice if isinstance(choice, dict) else completion
    codes, message, param = read_error(body) if isinstance(body, dict) else ("", "", "")
    status = next((int(code) for code in codes.split() if re.fullmatch(r"[45]\d\d", code)), 500)
    return ServiceError(status, message or "a reply without choices", codes, param)


def read_error(body: Mapping[str, Any]) -> tuple[str, str, str]:
    """(codes, message, parameter) of an error's body in the forms of OpenAI, FastAPI, MiniMax, Baidu and others."""
    error = body.get("error") or body.get("base_resp") or body
    if not isinstance(error, dict):
        return str(body.get("code") or ""), str(error), ""
    inner = error.get("innererror")
    values = [error.get(name) for name in ("code", "status_code", "error_code", "type")]
    values += [inner.get("code")] if isinstance(inner, dict) else []
    codes = list(dict.fromkeys(str(value) for value in values if value))
    names = ("message", "detail", "msg", "status_msg", "error_msg")
    message = next((error[name] for name in names if error.get(name)), "")
    return " ".join(codes), format_detail(message) or " ".join(codes), str(error.get("param") or "")


def format_detail(detail: Any) -> str:
    """A message, or FastAPI's list of faults, as text: "body.seed: Extra inputs are not permitted"."""
    if isinstance(detail, dict) and "detail" in detail:
        detail = detail["detail"]
    if not isinstance(detail, list):
        return str(detail) if not isinstance(detail, dict) else json.dumps(detail, ensure_ascii=False)
    faults = [fault if isinstance(fault, dict) else {"msg": fault} for fault in detail]
    return "; ".join(
        ": ".join(filter(None, (".".join(map(str, fault.get("loc") or ())), str(fault.get("msg") or fault))))
        for fault in faults
    )
