"""The shape an answer is asked to have, in the spellings of the OpenAI and llama.cpp documents."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, model_validator
from pydantic_core import to_json

from edge_agent.jobs import json_schema
from edge_agent.jobs.strict import Strict

SCHEMA_BYTES_MAX = 32_768
SCHEMA_DEPTH_MAX = 32
ANY_OBJECT = '{"type":"object"}'

Regex = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
Grammar = Annotated[str, StringConstraints(min_length=1, max_length=16_384)]

_GIVEN = {"json_object": "schema", "json_schema": "schema", "regex": "regex", "grammar": "grammar"}


class NamedSchema(Strict):
    """A JSON Schema as OpenAI's clients wrap it; its name, description and strictness change nothing here."""

    schema_: dict[str, JsonValue] = Field(alias="schema")
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Strict):
    """A shape the answer must have: free text, any JSON object, JSON by a schema, a regular expression, a grammar."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: NamedSchema | None = None
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")
    regex: Regex | None = None
    grammar: Grammar | None = None

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.json_schema is not None and self.schema_ is not None:
            raise ValueError("give the schema once, in json_schema or in schema")
        given = {"schema": self._schema, "regex": self.regex, "grammar": self.grammar}
        wanted = _GIVEN.get(self.type)
        if odd := [name for name, value in given.items() if value is not None and name != wanted]:
            raise ValueError(f"{odd[0]} does not go with this type")
        if self.type in {"json_schema", "regex", "grammar"} and given[wanted or ""] is None:
            raise ValueError(f"{wanted} is missing")
        if self._schema is not None:
            if next(_deeper(self._schema, SCHEMA_DEPTH_MAX), False):
                raise ValueError(f"the schema nests deeper than {SCHEMA_DEPTH_MAX} levels")
            if len(to_json(self._schema)) > SCHEMA_BYTES_MAX:
                raise ValueError(f"the schema must be at most {SCHEMA_BYTES_MAX} bytes of JSON")
            json_schema.check(self._schema)
        return self

    @property
    def _schema(self) -> dict[str, JsonValue] | None:
        return self.schema_ if self.json_schema is None else self.json_schema.schema_

    @property
    def guide(self) -> tuple[str, str] | None:
        """What the text must keep to: `json_schema`, `regex` or `grammar`, and its text; None for free text."""
        match self.type:
            case "json_object" | "json_schema":
                return "json_schema", ANY_OBJECT if self._schema is None else to_json(self._schema).decode()
            case "regex":
                return "regex", self.regex or ""
            case "grammar":
                return "grammar", self.grammar or ""
        return None


def _deeper(value: Any, levels: int) -> Iterator[bool]:
    """Yield True if a JSON value nests deeper than so many levels; without recursion beyond them."""
    if not isinstance(value, dict | list):
        return
    if levels == 0:
        yield True
        return
    for item in value.values() if isinstance(value, dict) else value:
        yield from _deeper(item, levels - 1)
