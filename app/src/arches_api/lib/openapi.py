"""The OpenAPI 3.1 document of the application, from quart-schema, completed where that is incomplete."""

from typing import Any, cast

from quart import Quart
from quart_schema import DataSource, HttpSecurityScheme, Info, OpenAPIProvider, QuartSchema
from werkzeug.routing.converters import BaseConverter, UUIDConverter
from werkzeug.routing.rules import Rule

from .http import ProblemBody
from .idempotency import HEADER, REPLAYED

EXTENSION = "arches-openapi"
MEANINGS = {
    400: "The body is not JSON",
    401: "No valid credentials",
    404: "Not there, or not yours",
    409: "Conflicts with what is there",
    413: "The body is too large",
    415: "Not application/json in UTF-8",
    422: "A field is wrong; `errors` says which",
    429: "Too many requests; Retry-After says when to come back",
    503: "Temporarily unavailable; nothing was changed, repeat the request",
    504: "It is unknown whether the change was stored; look before repeating",
}
# What else they mean where an Idempotency-Key is taken.
WITH_KEY = {
    400: f"; or the {HEADER} is no key",
    409: f"; or the request with the same {HEADER} is not over",
    422: f"; or the {HEADER} came with another content before",
    504: f", or repeat it with the same {HEADER}",
}
REPLAYED_HEADER = {
    "description": f"`true` when this is the answer that a request with the same {HEADER} got before",
    "schema": {"type": "string", "enum": ["true"]},
}


class _Provider(OpenAPIProvider):
    """Names schemas, marks bodies as required, and gives problems their content type."""

    def generate_methods(self, rule: Rule) -> list[str]:
        return sorted(super().generate_methods(rule))

    def operation_id(self, method: str, path: str, func: Any) -> str | None:
        return cast(str | None, getattr(func, "_quart_schema_operation_id", None))

    def build_path_parameter(self, name: str, converter: BaseConverter) -> dict[str, Any]:
        parameter = super().build_path_parameter(name, converter)
        if isinstance(converter, UUIDConverter):
            parameter["schema"] = {"type": "string", "format": "uuid"}
        return parameter

    def build_querystring_parameters(self, model: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        parameters, definitions = super().build_querystring_parameters(model)
        for parameter in parameters:
            parameter["required"] = parameter["name"] in model.model_json_schema().get("required", [])
        return parameters, definitions

    def build_request_body(self, model: Any, source: DataSource) -> tuple[dict[str, Any], dict[str, Any]]:
        content, definitions = super().build_request_body(model, source)
        _name_schema(content["content"]["application/json"], model, definitions)
        return {**content, "required": True}, definitions

    def build_response_object(self, model: Any, headers_model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        response, definitions = super().build_response_object(model, headers_model)
        _name_schema(response["content"]["application/json"], model, definitions)
        if model is ProblemBody:
            response["content"] = {"application/problem+json": response["content"]["application/json"]}
        return response, definitions

    def build_paths(self, rule: Rule) -> tuple[dict[str, Any], dict[str, Any]]:
        paths, definitions = super().build_paths(rule)
        for operations in paths.values():
            for method, operation in operations.items():
                if method == "delete":
                    operation["responses"][204] = {"description": "Deleted"}
                keyed = HEADER in [parameter["name"] for parameter in operation["parameters"]]
                for status, response in operation["responses"].items():
                    response["description"] = MEANINGS.get(status) or response["description"]
                    if keyed:
                        response["description"] += WITH_KEY.get(status, "")
                        response |= {} if status >= 400 else {"headers": {REPLAYED: REPLAYED_HEADER}}
                operation["responses"] = {
                    str(status): operation["responses"][status] for status in sorted(operation["responses"])
                }
        return paths, definitions


def _name_schema(holder: dict[str, Any], model: Any, definitions: dict[str, Any]) -> None:
    definitions[model.__name__] = holder["schema"]
    holder["schema"] = {"$ref": f"#/components/schemas/{model.__name__}"}


def describe(app: Quart, release: str) -> None:
    """Prepares the document; `document` builds it on first use."""
    schema = QuartSchema(
        openapi_path=None,
        info=Info(title="Arches API", version=release, description="Store texts, find them by meaning."),
        security_schemes={"bearer": HttpSecurityScheme(scheme="bearer", bearer_format="JWT")},
        openapi_provider_class=_Provider,
    )
    app.extensions[EXTENSION] = {"provider": _Provider(app, schema), "schema": schema, "document": None}
    app.config["QUART_SCHEMA_CONVERSION_PREFERENCE"] = "pydantic"
    app.config["QUART_SCHEMA_CONVERT_CASING"] = False


def document(app: Quart) -> dict[str, Any]:
    """The OpenAPI document."""
    extension = app.extensions[EXTENSION]
    if extension["document"] is None:
        extension["document"] = extension["provider"].schema()
    return cast(dict[str, Any], extension["document"])
