"""What is read out of a chat completion: the text without reasoning, why there is none, the JSON in it."""

import json

import pytest

from builders.llm_server import completion
from qilin.core.llm_reply import ChatReply, join_stream, parse_json_reply, read_completion, without_reasoning

ANSWER = '{"1": "左肺结节"}'


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (f'<think>\nfirst {{"1": "draft"}}\n</think>\n\n{ANSWER}', ANSWER),
        (f"<think></think>{ANSWER}", ANSWER),
        (f"the template opened the tag</think>\n{ANSWER}", ANSWER),
        (f"  <thinking>a</thinking> {ANSWER}", ANSWER),
        (f"<think>a <think>b</think> c</think>{ANSWER}", ANSWER),
        (f"[THINK]a[/THINK]{ANSWER}", ANSWER),
        (f"<unused94>thought\na<unused95>{ANSWER}", ANSWER),
        (f"<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}", ANSWER),
        (f"<think>a</think><answer>{ANSWER}</answer>", ANSWER),
        ("<think>it does not end", ""),
        ("是的 <think>afterthought</think>", "是的"),
        (f" {ANSWER}\n", ANSWER),
        ("thinking aloud is no tag", "thinking aloud is no tag"),
    ],
)
def test_reasoning_is_no_part_of_a_reply(text: str, answer: str) -> None:
    assert without_reasoning(text) == answer


def test_a_reply_without_text_says_why() -> None:
    only = read_completion(completion(None, "length", reasoning_content="Let me see. " * 50))
    assert (only.text, only.finish, only.refused_by) == ("", "length", "form")
    assert "Let me see. Let me see." in only.refusal
    assert "enable_thinking" in only.refusal
    assert read_completion(completion(None, reasoning="vLLM's newer name")).refusal.endswith("newer name)")
    assert "no end" in read_completion(completion("<think>no end", "length")).refusal
    assert read_completion(completion(None, refusal="I will not.")).refusal == "the model refused: I will not."
    for finish in ("content_filter", "sensitive", "SAFETY"):
        filtered = read_completion(completion("half a", finish))
        assert (filtered.finish, filtered.refused_by) == ("content_filter", "content filter")
        with pytest.raises(ValueError, match="content filter"):
            parse_json_reply(filtered)
    assert read_completion(completion("", "stop")).refusal == ""
    assert read_completion(completion(ANSWER, reasoning_content="thoughts")).refusal == ""
    assert read_completion(completion(ANSWER, "MAX_TOKENS")).finish == "length"


def test_odd_fields_are_read_or_left_out() -> None:
    parts = [{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "左"}, {"type": "text", "text": "肺"}]
    assert read_completion(completion(parts)).text == "左肺"
    assert read_completion({"choices": [{"message": None}]}).text == ""
    reply = read_completion(completion("a", None, {"content": [{"logprob": None}]}, {"prompt_tokens": None}))
    assert (reply.confidence, reply.tokens_in, reply.finish) == (None, 0, "")
    assert read_completion(completion("a", logprobs=[])).confidence is None
    assert read_completion(completion("a", logprobs={"content": [{"logprob": 0.0}]})).confidence == 1.0


def reply_of(text: str, finish: str = "stop") -> ChatReply:
    return read_completion(completion(text, finish))


@pytest.mark.parametrize(
    "text",
    [ANSWER, f"```json\n{ANSWER}\n```", f"```\n{ANSWER}```", f"Here it is:\n\n```json\n{ANSWER}\n```\nAnything else?"],
)
def test_json_is_taken_out_of_a_code_fence(text: str) -> None:
    assert parse_json_reply(reply_of(text)) == {"1": "左肺结节"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "抱歉，我不能",
        '{"1": "a",}',
        f"Sure: {ANSWER}",
        "[" * 5000,
        f"```json\n{ANSWER}\n```\n```json\n{ANSWER}\n```",
    ],
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        parse_json_reply(reply_of(text))
    with pytest.raises(ValueError, match="cut short"):
        parse_json_reply(reply_of(text or "a", "length"))


def test_half_a_character_is_refused_and_never_stored() -> None:
    for text in ('{"1": "肿块\\ud83d"}', '{"1": "肿块\ud83d"}', '{"1": "a\\u0000"}'):
        reply = reply_of(text)
        json.dumps(vars(reply), ensure_ascii=False).encode()  # as the cache does
        with pytest.raises(ValueError, match="damaged"):
            parse_json_reply(reply)
    assert parse_json_reply(reply_of('{"1": "\\ud83d\\ude00"}')) == {"1": "\U0001f600"}


def test_how_a_reply_began_is_one_line() -> None:
    assert reply_of("对不起，\n我不能\t翻译。").beginning == "对不起， 我不能 翻译。"
    assert reply_of("a" * 200).beginning == "a" * 80 + "…"


def test_a_stream_adds_up_to_a_completion() -> None:
    chunks = [
        {"choices": [{"delta": {"role": "assistant", "content": None, "reasoning_content": "hm"}}]},
        {"choices": [{"delta": {"content": "左"}}]},
        {"choices": [{"delta": {"content": "肺"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
    ]
    text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n"
    result = join_stream(text)
    assert result is not None
    reply = read_completion(result)
    assert (reply.text, reply.tokens_in, reply.finish, reply.refusal) == ("左肺", 3, "stop", "")
    assert join_stream('data: {"error": {"message": "busy"}}\n') == {"error": {"message": "busy"}}
    assert join_stream("<html>") is None
