"""The JSON Schema of a configuration file, made from the declaration of the settings: for editors and other tools.

What a file may have besides what a model has is put in here: ``${NAME}`` in every value, ``NAME_file`` beside every
setting with one value, and null for what is then as not given.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from mirror.config import shapes

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ENVIRONMENT = {
    "description": "Text with ${NAME} or ${NAME:-default} of the environment in it.",
    "type": "string",
    "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}",
}
_REFERENCE = {"$ref": "#/$defs/Environment"}
_NULL = {"type": "null"}
SOMETHING = r"\S"
"""The pattern of text that is not empty."""
_ABOUT = ("title", "description", "default")


def file_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a file with the settings of a model."""
    made = model.model_json_schema(schema_generator=_Generator)
    definitions = {name: _with_environment(one) for name, one in made.pop("$defs").items()}
    own = _with_environment(made)
    return {
        "$schema": DIALECT,
        "title": "Settings of the mirror",
        **own,
        "type": ["object", "null"],  # an empty file is one
        "$defs": dict(sorted({**definitions, "Environment": _ENVIRONMENT}.items())),
    }


def as_in_a_file(section: type[BaseModel], schema: dict[str, Any]) -> dict[str, Any]:
    """Add to the schema of a section what a file may have there besides."""
    schema.pop("title", None)
    if "description" in schema:  # the docstring of the model
        schema["description"] = schema["description"].splitlines()[0].replace("``", "")
    properties = schema["properties"]
    for name, field in section.model_fields.items():
        shape = field.annotation
        if shapes.entry(shape) is not None:
            properties[name]["additionalProperties"] = False  # beside the pattern of its keys
        if "default" in properties[name]:
            properties[name]["default"] = written_default(section, name)
        if shapes.item(shape) is not None and not shapes.nullable(shape):
            properties[name] = _or_null(properties[name])
        elif shapes.as_section(shape) is not None and not field.is_required():
            properties[name] = _or_null(properties[name])  # all of it is commented out
    required = list(schema.pop("required", ()))
    alternatives = []
    for key, name in shapes.from_files(section):
        properties[key] = _or_null({"description": f"File that holds {name}.", "type": "string", "pattern": SOMETHING})
        if name in required:
            required.remove(name)
            alternatives.append({"anyOf": [{"required": [name]}, {"required": [key]}]})
    if required:
        schema["required"] = required
    if alternatives:
        schema["allOf"] = alternatives
    return schema


def written_default(section: type[BaseModel], name: str) -> Any:
    """Return the default of a setting as it would stand in a file. It must have one that is a value."""
    unchecked = section.model_construct(**{name: section.model_fields[name].default})
    return unchecked.model_dump(mode="json", include={name}, exclude_unset=True)[name]


class _Generator(GenerateJsonSchema):
    """Schemas of what is read, with defaults as they would be written, and without titles nobody needs."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Let null stand for what is not given."""
    about = {key: value for key, value in schema.items() if key in _ABOUT}
    rest = {key: value for key, value in schema.items() if key not in _ABOUT}
    options = rest["anyOf"] if set(rest) == {"anyOf"} else [rest]
    return {**about, "anyOf": options if _NULL in options else [*options, _NULL]}


def _with_environment(schema: Any) -> Any:
    """Let every single value of a schema be text with a variable in it."""
    if isinstance(schema, list):
        return [_with_environment(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    about = {key: schema[key] for key in _ABOUT if key in schema}
    rest = {key: value for key, value in schema.items() if key not in _ABOUT}
    if _is_limited(rest):
        return {**about, "anyOf": [rest, _REFERENCE]}
    if set(rest) == {"anyOf"} and any(_is_limited(option) for option in rest["anyOf"]):
        options = [option if _is_limited(option) else _with_environment(option) for option in rest["anyOf"]]
        return {**about, "anyOf": [*options, _REFERENCE]}
    return {**about, **{key: _inner(key, value) for key, value in rest.items()}}


def _inner(key: str, value: Any) -> Any:
    """Go on to what holds schemas: of properties by their names, of items, of alternatives."""
    if key == "properties":
        return {name: _with_environment(one) for name, one in value.items()}
    return _with_environment(value) if key in ("items", "additionalProperties", "anyOf") else value


def _is_limited(schema: Any) -> bool:
    """Say whether it is a single value that text with a variable in it would not be."""
    if not isinstance(schema, dict):
        return False
    if "enum" in schema or "const" in schema:
        return True
    if schema.get("type") == "string":
        return schema.get("pattern", SOMETHING) != SOMETHING and not schema["pattern"].startswith(r"^\$\{")
    return schema.get("type") in ("number", "integer", "boolean")
