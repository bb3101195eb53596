"""The sizes of a model of the Phi-3.5 architecture."""

from dataclasses import dataclass, replace

from edge_agent.synth.tokenizer import CONTROL_SLOTS, SMALLEST_VOCABULARY
from edge_agent.synth.vision import CLIP, STAND_IN, VisionShape


@dataclass(frozen=True, slots=True)
class Shape:
    """How wide, deep and long a Phi-3.5 model is; everything else follows.

    `hidden_size` is the width of the residual stream, `mlp_size` that inside the MLP, `heads` and `kv_heads`
    count query and key/value heads (equal in Phi-3.5-mini). The rotary embedding knows positions up to
    `context_tokens`. With `long_factors` it is longrope: one divisor of the frequency per pair of a head's
    dimensions, `short_factors` as long as the sequence fits `original_context_tokens`, `long_factors` beyond.
    Without factors it is plain rope. With `vision` it sees images.

    Raises ValueError, naming the field, when the sizes do not fit one another.
    """

    hidden_size: int
    mlp_size: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    context_tokens: int
    original_context_tokens: int
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    vision: VisionShape | None = None

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError("layers must be at least 1")
        if self.hidden_size % self.heads or self.head_size % 16:
            raise ValueError("hidden_size must be heads times a multiple of 16: the rotary kernel asks for it")
        if self.heads % self.kv_heads:
            raise ValueError("heads must be a multiple of kv_heads")
        if self.vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(f"vocab_size must be at least {SMALLEST_VOCABULARY}: bytes, characters, controls")
        if self.context_tokens < self.original_context_tokens:
            raise ValueError("context_tokens must not be less than original_context_tokens")
        for factors in (self.short_factors, self.long_factors):
            if len(factors) not in {0, self.head_size // 2} or len(factors) != len(self.long_factors):
                raise ValueError("short_factors and long_factors need one factor per pair of head dimensions")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.heads

    @property
    def kv_size(self) -> int:
        """Width of all keys (or all values) of one token in one layer."""
        return self.kv_heads * self.head_size

    @property
    def longrope(self) -> bool:
        """Whether the rotary embedding changes its frequencies beyond the original context."""
        return bool(self.long_factors)

    @property
    def first_control_id(self) -> int:
        """Id of `<|endoftext|>`, where control tokens begin: 32000 of the published 32064."""
        return self.vocab_size - CONTROL_SLOTS


def geometric(count: int, *, last: float) -> tuple[float, ...]:
    """Return `count` factors that grow from 1 to `last`, each by the same ratio.

    They stand in for longrope's learned factors: like those they leave high frequencies alone and stretch low
    ones.
    """
    return tuple(last ** (step / (count - 1)) for step in range(count))


TINY = Shape(
    hidden_size=64,
    mlp_size=128,
    layers=2,
    heads=4,
    kv_heads=4,
    vocab_size=512,
    context_tokens=8192,
    original_context_tokens=4096,
    short_factors=geometric(8, last=2.0),
    long_factors=geometric(8, last=8.0),
)
"""Builds and loads in a blink; for tests."""

FULL = Shape(
    hidden_size=3072,
    mlp_size=8192,
    layers=32,
    heads=32,
    kv_heads=32,
    vocab_size=32_064,
    context_tokens=131_072,
    original_context_tokens=4096,
    short_factors=geometric(48, last=2.0),
    long_factors=geometric(48, last=64.0),
)
"""The sizes in Phi-3.5-mini-instruct's published config.json; for benchmarks."""

TINY_VISION = replace(TINY, vision=STAND_IN)
"""The same with a small stand-in for CLIP."""

FULL_VISION = replace(FULL, vision=CLIP)
"""The sizes of Phi-3.5-vision-instruct."""
