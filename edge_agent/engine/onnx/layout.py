"""What a build's genai_config.json says of its graphs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.context import ContextBound
from edge_agent.engine.onnx.context import context

_VISION_KIND = "phi3v"
_LONGROPE_KINDS = ("phi3", _VISION_KIND)


@dataclass(frozen=True, slots=True)
class GraphFile:
    """A graph beside the decoder: its file and the names of what goes in and comes out."""

    filename: str
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Layout:
    """The numbers and names in a build's genai_config.json; names of keys and values have `%d` for the layer.

    `embedding` and `encoder` are there when it sees images.
    """

    kind: str
    filename: str
    vocab_size: int
    end_ids: tuple[int, ...]
    layers: int
    kv_heads: int
    head_size: int
    hidden_size: int
    names: Mapping[str, str]
    embedding: GraphFile | None
    encoder: GraphFile | None
    context: ContextBound

    @classmethod
    def read(cls, folder: Path) -> "Layout":
        """Return a folder's. Raises EdgeAgentError MODEL_ERROR when it cannot be read or is not of a known kind."""
        try:
            config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
            model, decoder = config["model"], config["model"]["decoder"]
            in_place = config["search"]["past_present_share_buffer"]
            layout = cls(
                kind=str(model["type"]),
                filename=str(decoder["filename"]),
                vocab_size=int(model["vocab_size"]),
                end_ids=_numbers(model["eos_token_id"]),
                layers=int(decoder["num_hidden_layers"]),
                kv_heads=int(decoder["num_key_value_heads"]),
                head_size=int(decoder["head_size"]),
                hidden_size=int(decoder["hidden_size"]),
                names=_names(decoder),
                embedding=_part(model.get("embedding")),
                encoder=_part(model.get("vision")),
                context=context(folder, model),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EdgeAgentError(
                Code.MODEL_ERROR, f"genai_config.json in {folder} cannot be read ({error!r}); fetch the model again"
            ) from error
        if layout.encoder is not None and layout.kind != _VISION_KIND:
            raise EdgeAgentError(
                Code.MODEL_ERROR,
                f"the build in {folder} sees images in another way than {_VISION_KIND}; choose one that is",
            )
        if not in_place:
            raise EdgeAgentError(
                Code.MODEL_ERROR,
                f"the build in {folder} copies its keys and values with every token (past_present_share_buffer is "
                "false), which is not supported; choose one that does not",
            )
        return layout

    @property
    def longrope(self) -> bool:
        """Whether the build changes its rotary factors at prefill.LONGROPE_TOKENS."""
        return self.kind in _LONGROPE_KINDS


def _numbers(told: int | Sequence[int]) -> tuple[int, ...]:
    return (int(told),) if isinstance(told, int) else tuple(map(int, told))


def _part(config: Mapping[str, Any] | None) -> GraphFile | None:
    return None if config is None else GraphFile(str(config["filename"]), _names(config))


def _names(config: Mapping[str, Any]) -> Mapping[str, str]:
    return {**config["inputs"], **config["outputs"]}
