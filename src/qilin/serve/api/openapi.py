"""The service described as an OpenAPI document, for clients and for tests that generate requests from it.

In: the model's name. Out: a JSON object. The schema of the chat body comes from the class that checks it.
"""

from typing import Any

from qilin import __version__
from qilin.serve.api.chat_schema import ChatBody

ERROR = {
    "description": "the error, in OpenAI's form",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["message", "type"],
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": ["string", "null"]},
                        },
                    }
                },
            }
        }
    },
}


def openapi_document(model_name: str) -> dict[str, Any]:
    """OpenAPI 3.1 for all routes."""
    schema = ChatBody.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    schema["properties"]["model"] = {"type": "string", "enum": [model_name]}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Qilin: {model_name}", "version": __version__},
        "components": {
            "schemas": {**definitions, "ChatBody": schema},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
        "paths": {
            "/v1/models": {"get": route("the model of this server")},
            "/health": {"get": route("whether the server works", ("503",))},
            "/metrics": {"get": route("counters for Prometheus", media="text/plain")},
            "/v1/chat/completions": {
                "post": {
                    **route(
                        "answer a conversation about images",
                        ("400", "404", "408", "413", "415", "429", "500", "503"),
                        ("application/json", "text/event-stream"),
                    ),
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatBody"}}},
                    },
                }
            },
        },
    }


def route(
    summary: str, errors: tuple[str, ...] = (), media: str | tuple[str, ...] = "application/json"
) -> dict[str, Any]:
    types = (media,) if isinstance(media, str) else media
    content: dict[str, Any] = {name: {"schema": {}} for name in types}
    responses = {"200": {"description": "OK", "content": content}}
    return {"summary": summary, "responses": responses | dict.fromkeys(("401", "403", *errors), ERROR)}
