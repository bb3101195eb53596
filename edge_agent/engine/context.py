"""How long a text may be: what a model's configuration says, in the spellings that exporters wrote."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ContextBound:
    """The most tokens of prompt and answer together, and why they are fewer than the model was made for."""

    tokens: int
    why: str = ""


def bound(config: Mapping[str, Any], *, longrope: bool, window: bool) -> ContextBound:
    """Return the longest text that is computed as its maker meant it, by a config.json of Hugging Face's.

    `longrope`: whether the engine changes rotary factors where the model does. `window`: whether its attention forgets
    what the model forgets. Raises KeyError, TypeError or ValueError when the configuration does not say.
    """
    most = int(config["max_position_embeddings"])
    bounds = [ContextBound(most)]
    original = original_tokens(config)
    if original is not None and not longrope:
        bounds.append(ContextBound(original, f"beyond {original} tokens longrope changes factors, not so this engine"))
    if (sees := window_tokens(config)) is not None and not window:
        bounds.append(windowed(sees))
    return min(bounds, key=lambda each: each.tokens)


def windowed(tokens: int) -> ContextBound:
    """Return the bound of a graph that sees the whole text where its model sees so many tokens back."""
    return ContextBound(tokens, f"the model sees {tokens} tokens back, and here it would see more")


def original_tokens(config: Mapping[str, Any]) -> int | None:
    """Return where longrope changes its factors; None for any other rope, whose factors no length changes.

    `rope_scaling` of type `longrope`, `su` or `yarn`, or the `rope_parameters` of transformers 5, there also one for
    each kind of layer: longrope is what has factors for short and long texts.
    """
    told = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for scaling in (told, *(each for each in told.values() if isinstance(each, Mapping))):
        if scaling.get("long_factor"):
            key = "original_max_position_embeddings"
            return int(scaling.get(key) or config.get(key) or config["max_position_embeddings"])
    return None


def window_tokens(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens back a model's layers, or some of them, see; None where all see the whole text.

    `sliding_window` counts unless `use_sliding_window` is false (Qwen), or `layer_types` name no layer that slides.
    """
    window = config.get("sliding_window")
    kinds = config.get("layer_types")
    slides = config.get("use_sliding_window", True) and (kinds is None or "sliding_attention" in kinds)
    return int(window) if window and slides and window < config["max_position_embeddings"] else None
