"""How untrusted input becomes types."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Untrusted input: no unknown fields, no coercion, no NaN."""

    # The library else keeps up to 16,384 short strings it has read, prompts among them, long after their erasure.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, cache_strings="keys")
