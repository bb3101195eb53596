"""A model's chat template: from the turns of a conversation to what the model reads, as transformers has it."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edge_agent.base.errors import Code, EdgeAgentError

DEFAULT = "default"
"""Of several named templates, the one for conversations without tools."""
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""What templates may name, huggingface.co/docs/transformers/chat_templating_writing."""


_FAILURES = (
    TemplateError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RecursionError,
)
"""What a template may raise, as any program."""


class ChatTemplate:
    """A template in the sandbox of Jinja; it reads messages and nothing else of the agent.

    `tokens` are the strings that stand for a beginning, an end and so on. `now` is what `strftime_now` tells. Raises
    EdgeAgentError MODEL_ERROR for a template that is none.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], *, now: Callable[[], datetime] = datetime.now) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        self._tokens = tokens
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise EdgeAgentError(
                Code.MODEL_ERROR, f"its chat template cannot be read: {error.message}, line {error.lineno}"
            ) from error
        except RecursionError as error:
            raise EdgeAgentError(Code.MODEL_ERROR, "its chat template cannot be read: it nests too deep") from error

    @classmethod
    def read(cls, folder: Path, *, now: Callable[[], datetime] = datetime.now) -> "ChatTemplate | None":
        """Return a folder's; None for a model that has none: it completes texts and talks to nobody.

        `chat_template.jinja` counts before what tokenizer_config.json holds, as transformers has it. Raises
        EdgeAgentError MODEL_ERROR.
        """
        try:
            config = _json(folder / "tokenizer_config.json")
            source = config.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
            if (file := folder / "chat_template.jinja").is_file():
                source = file.read_text(encoding="utf-8")
            if isinstance(source, list):
                source = {each["name"]: each["template"] for each in source}[DEFAULT]
            told = _json(folder / "special_tokens_map.json") | config
            tokens = {name: _content(told[name]) for name in _TOKENS if told.get(name)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EdgeAgentError(
                Code.MODEL_ERROR, f"the chat template in {folder} cannot be read ({error!r}); export the model again"
            ) from error
        return None if source is None else cls(source, tokens, now=now)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return what the model reads before its answer.

        Raises EdgeAgentError BAD_REQUEST when the template itself refuses the messages, MODEL_ERROR when it fails.
        """
        try:
            return self._template.render(messages=messages, tools=None, add_generation_prompt=True, **self._tokens)
        except _RefusedError as error:
            raise EdgeAgentError(Code.BAD_REQUEST, f"messages: this model's template refuses them: {error}") from error
        except (
            TemplateError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            RecursionError,
        ) as error:
            raise EdgeAgentError(Code.MODEL_ERROR, f"the model's chat template fails: {error}") from error


class _RefusedError(TemplateError):
    """The template called `raise_exception`."""


def _refuse(why: str) -> None:
    raise _RefusedError(why)


def _to_json(value: Any, *, indent: int | None = None, ensure_ascii: bool = False, **others: Any) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **others)


class _Generation(Extension):
    """`{% generation %}` marks what a model said, for those who train it; here it is nothing."""

    tags = {"generation"}  # noqa: RUF012 - Extension has it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])
