"""Prompts by Hugging Face's tokenizers, for folders in that library's format."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.batching.lane_parts import Prompt
from edge_agent.engine.messages import Turn
from edge_agent.engine.text.prompt import SpecialTokens, images_of, messages


class HfPrompts:
    """Makes prompts with a folder's chat template and tokenizer.json.

    Raises EdgeAgentError MODEL_ERROR when they cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._special_tokens = SpecialTokens.read(folder)
        try:
            # The class that tokenizer_config.json names may be one that makes up rules of its own.
            self._tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EdgeAgentError(
                Code.MODEL_ERROR, f"the tokenizer in {folder} cannot be read ({type(error).__name__}); fetch it again"
            ) from error

    def encode(self, turns: Sequence[Turn]) -> Prompt:
        """Return the tokens of a conversation, which has no images."""
        images_of(turns, most=0)
        text = self._tokenizer.apply_chat_template(
            messages(turns, self._special_tokens), tokenize=False, add_generation_prompt=True
        )
        return Prompt(list(self._tokenizer(text, add_special_tokens=False).input_ids))


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
