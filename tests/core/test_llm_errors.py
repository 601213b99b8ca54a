# ruff: noqa: E501 - the messages of services are easier to read in one line
"""What services' errors mean: messages as users of each service report them, and which kind each one is."""

import json
from typing import Any

import pytest

from builders.llm_server import completion
from qilin.core.llm_errors import error_in_completion, from_response
from qilin.core.llm_parameters import ServiceParameters, limit_of_replies, room_for_reply

FILTERED: list[tuple[int, Any]] = [
    (400, {"error": {"code": "data_inspection_failed", "type": "data_inspection_failed", "param": None,
                     "message": "Input data may contain inappropriate content."}}),
    (400, {"code": "DataInspectionFailed", "message": "Output data may contain inappropriate content."}),
    (400, {"error": {"message": "<400> InternalError.Algo.DataInspectionFailed: Input text data may contain …"}}),
    (400, {"error": {"message": "The response was filtered due to the prompt triggering Azure OpenAI's content "
                                "management policy.", "code": "content_filter",
                     "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
    (400, {"error": {"message": "Your request was rejected by our safety system.", "code": "content_policy_violation"}}),
    (400, {"error": {"message": "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
                     "code": "invalid_prompt"}}),
    (400, {"error": {"code": "1301", "message": "系统检测到输入或生成内容可能包含不安全或敏感内容"}}),
    (400, {"error": {"code": 400, "type": "content_filter",
                     "message": "The request was rejected because it was considered high risk"}}),
    (400, {"error": {"message": "Content Exists Risk", "type": "invalid_request_error"}}),
    (400, {"detail": "Content Exists Risk"}),
    (400, {"error": {"code": "InputTextSensitiveContentDetected", "message": "The request failed because …"}}),
    (403, {"code": "The caller does not have permission", "error": "Content violates usage guidelines. Team: x"}),
    (403, {"error": {"code": 403, "message": "anthropic requires moderation. Your input was flagged"}}),
]  # fmt: skip
OTHERS: list[tuple[int, Any, str]] = [
    (400, {"code": "Arrearage", "message": "Access denied, please make sure your account is in good standing."}, "no credit"),
    (402, {"error": {"message": "Insufficient Balance"}}, "no credit"),
    (429, {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}, "no credit"),
    (429, {"error": {"code": "1113", "message": "您的账户已欠费，请充值后重试。"}}, "no credit"),
    (429, {"error": {"message": "Rate limit reached for requests. Add a payment method at …/account/billing."}}, "retry"),
    (429, {"error": {"message": "Request too large for m: tokens per min: Limit 30000, Requested 40000."}}, "too long"),
    (401, {"error": {"message": "Incorrect API key provided"}}, "key"),
    (403, {"error": {"message": "Forbidden"}}, "key"),
    (404, {"error": {"message": "The model `m` does not exist"}}, "wrong"),
    (400, {"error": {"message": "This model's maximum context length is 8192 tokens."}}, "too long"),
    (400, {"error": {"message": "Range of input length should be [1, 30720]"}}, "too long"),
    (413, "<html>413 Request Entity Too Large</html>", "rejected"),
    (400, {"error": {"message": "Failed to decode the image"}}, "rejected"),
    (422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": 0}]}, "rejected"),
    (503, "upstream connect error", "retry"),
]  # fmt: skip


def error_of(status: int, body: Any) -> Any:
    return from_response(status, body if isinstance(body, str) else json.dumps(body, ensure_ascii=False))


@pytest.mark.parametrize(("status", "body"), FILTERED)
def test_a_content_filter_is_known_in_each_service_s_words(status: int, body: Any) -> None:
    assert error_of(status, body).kind == "filtered"


@pytest.mark.parametrize(("status", "body", "kind"), OTHERS)
def test_other_errors_are_told_apart(status: int, body: Any, kind: str) -> None:
    assert error_of(status, body).kind == kind


def test_the_reason_of_a_422_is_told() -> None:
    detail = [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": 0}]
    expected = "status 422: body.seed: Extra inputs are not permitted"
    assert str(error_of(422, {"detail": detail})) == expected
    assert str(error_of(422, {"object": "error", "message": {"detail": detail}})) == expected
    assert str(error_of(422, "plain\ntext")) == "status 422: plain text"
    assert len(str(error_of(422, {"detail": "a" * 5000}))) < 400


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"choices": None, "error": {"message": "Provider returned error", "code": 524}}, "retry"),
        ({"error": {"message": "User not found", "code": 401}}, "key"),
        ({"choices": None, "base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}}, "filtered"),
        ({"error_code": 336100, "error_msg": "try again"}, "retry"),
        ({"success": False, "code": 500, "msg": "系统繁忙"}, "retry"),
        ({"choices": []}, "retry"),
        ([], "retry"),
        (completion("half", "network_error"), "retry"),
    ],
)
def test_an_error_inside_a_body_with_status_200_is_found(body: Any, kind: str) -> None:
    error = error_in_completion(body)
    assert error is not None
    assert error.kind == kind
    assert error_in_completion(completion("a")) is None


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        ("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]", 8192),
        ("Range of max_tokens should be [1, 4096]", 4096),
        ("max_tokens is too large: 20000. This model supports at most 16384 completion tokens, whereas you provided "
         "20000.", 16384),
        ("`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is less than the "
         "`context_window` for this model", 8192),
        ("max_tokens: 20000 > 8192, which is the maximum allowed number of output tokens", 8192),
        ("max_output_tokens is 20,000 but the supported range is from 1 (inclusive) to 8,193 (exclusive)", 8192),
        ("max_tokens must be an integer", None),
        ("This model's maximum context length is 4096 tokens; max_tokens was 20000", None),
    ],
)  # fmt: skip
def test_a_limit_of_replies_is_read_out_of_an_error(message: str, limit: int | None) -> None:
    assert limit_of_replies(message, 20000) == limit


@pytest.mark.parametrize(
    ("message", "room"),
    [
        ("This model's maximum context length is 16384 tokens. However, you requested 22946 tokens (2946 in the messages, "
         "20000 in the completion).", 13438),
        ("'max_tokens' or 'max_completion_tokens' is too large: 20000. This model's maximum context length is 16384 tokens "
         "and your request has 100 input tokens (20000 > 16384 - 100).", 16284),
        ("The model's maximum context length of 4096 tokens. You requested a total of 23000 tokens: 3000 tokens from the "
         "input messages and 20000 tokens for the completion.", 1096),
        ("`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 2100 `inputs` tokens and 20000 `max_new_tokens`", 1996),
        ("Your request exceeded model token limit: 8192 (requested: 21000)", 7192),
        ("Prompt contains 40000 tokens, too large for model with 32768 maximum context length", 0),
        ("Content Exists Risk", None),
    ],
)  # fmt: skip
def test_the_room_that_a_context_leaves_is_read_out_of_an_error(message: str, room: int | None) -> None:
    assert room_for_reply(error_of(400, {"error": {"message": message}}), 20000) == room


PARAMETERS = {"model": "doubao-seed-1.6", "max_tokens": 900, "temperature": 0.0, "seed": 0, "logprobs": True}


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        ("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
         {"max_tokens": None, "max_completion_tokens": 900}),
        ("invalid temperature: only 1 is allowed for this model", {"temperature": None}),
        ("Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
         {"temperature": None}),
        ("temperature must be in (0, 1]", {"temperature": 0.01}),
        ("This model does not support logprobs", {"logprobs": None}),
        ("body.seed: Extra inputs are not permitted", {"seed": None}),
        ("parameter.enable_thinking must be set to false for non-streaming calls", {"enable_thinking": False}),
        ("This model only support stream mode, please enable the stream parameter", {"stream": True}),
        ("doubao-seed-1.6 is busy with the image", {}),
        ("the valid range of max_tokens is [1, 512]", {"max_tokens": 512}),
    ],
)  # fmt: skip
def test_a_parameter_that_a_service_rejects_is_sent_as_it_wants_it(message: str, changed: dict[str, Any]) -> None:
    known = ServiceParameters()
    assert known.body(PARAMETERS) == PARAMETERS
    error = error_of(400, {"error": {"message": message}})
    for _ in range(2):  # a request that was in flight fails for the same reason and changes nothing more
        known.learn(error, PARAMETERS, "http://x/v1", "doubao-seed-1.6")
    body = known.body(PARAMETERS)
    assert {name: body.get(name) for name in changed} == changed
    assert {name: value for name, value in body.items() if name not in {*changed, "stream_options"}} == {
        name: value for name, value in PARAMETERS.items() if name not in changed
    }
