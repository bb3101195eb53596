"""Models whose library computes one sequence at a time, in Hugging Face's format: the lanes take turns."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.batching.lane_guide import Guides
from edge_agent.engine.batching.lane_model import LaneModel
from edge_agent.engine.batching.lane_parts import Decoder, Logits
from edge_agent.engine.batching.picture import Features
from edge_agent.engine.hf.config import end_ids, read_config
from edge_agent.engine.messages import ModelLimits
from edge_agent.engine.text.detokenizer import Vocabulary
from edge_agent.engine.text.prompt import PromptMaker


class LaneByLane(ABC):
    """Computes lanes one after another; see lane_parts.Decoder."""

    copies = True

    def run(
        self, lanes: range, tokens: npt.NDArray[np.int64], lengths: Sequence[int], features: Sequence[Features]
    ) -> Logits:
        """Compute tokens of each lane; there are no features."""
        assert not features  # noqa: S101 - no prompt has images
        rows = zip(lanes, tokens, lengths, strict=True)
        return np.stack([self.run_lane(lane, row, length) for lane, row, length in rows])

    @abstractmethod
    def run_lane(self, lane: int, tokens: npt.NDArray[np.int64], length: int) -> Logits:
        """Compute tokens of a lane, after which it is so long; return the logits of the last, shape [vocabulary].

        Raises EdgeAgentError OUT_OF_MEMORY, MODEL_ERROR.
        """


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Say of whatever a library makes of a folder that it cannot be loaded. Raises EdgeAgentError."""
    try:
        yield
    except (EdgeAgentError, OSError, ValueError, KeyError, TypeError) as error:
        code = error.code if isinstance(error, EdgeAgentError) else Code.MODEL_ERROR
        raise EdgeAgentError(code, f"{folder} cannot be loaded: {error}") from error


def lane_model(
    spec: ModelSpec,
    config: dict[str, Any],
    *,
    decoder: Decoder,
    limits: ModelLimits,
    library_name: str,
    now_s: Callable[[], float],
) -> LaneModel:
    """Return a model with the prompts, the words and the guides of its folder, whose config.json this is."""
    ends = end_ids(spec.path, config)
    return LaneModel(
        decoder=decoder,
        encoder=None,
        prompts=PromptMaker.read(spec.path),
        vocabulary=Vocabulary.read(spec.path),
        guides=Guides.read(spec.path, vocab_size=decoder.vocab_size, end_ids=ends),
        end_ids=frozenset(ends),
        limits=limits,
        library_name=library_name,
        device=spec.device,
        now_s=now_s,
    )


def guides(folder: Path) -> Guides:
    """Return what compiles guides for a folder's model, without loading that. Raises EdgeAgentError MODEL_ERROR."""
    config = read_config(folder)
    return Guides.read(folder, vocab_size=config["vocab_size"], end_ids=end_ids(folder, config))
