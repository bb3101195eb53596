"""What the configurations of a folder in Hugging Face's format say."""

import json
from pathlib import Path
from typing import Any

from edge_agent.base.errors import Code, EdgeAgentError


def read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's config.json. Raises EdgeAgentError MODEL_ERROR when it cannot be read."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config["vocab_size"], int) or not isinstance(config["max_position_embeddings"], int):
            raise TypeError("sizes are whole numbers")  # noqa: TRY301 - one way out for all faults
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgeAgentError(
            Code.MODEL_ERROR, f"config.json in {folder} cannot be read ({error!r}); fetch the model again"
        ) from error
    return config


def end_ids(folder: Path, config: dict[str, Any]) -> list[int]:
    """Return the tokens that end an answer, by generation_config.json or else config.json."""
    path = folder / "generation_config.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        ends: Any = told.get("eos_token_id", config.get("eos_token_id"))
        return [int(each) for each in (ends if isinstance(ends, list) else [ends])]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise EdgeAgentError(
            Code.MODEL_ERROR, f"{folder} does not say which token ends an answer; fetch the model again"
        ) from error
