"""What can go wrong, with the codes that cross the wire.

The sender's fault is answered with a code and a sentence that names the field; the job's
fault is recorded in its result; our own fault is no `EdgeAgentError`: it crashes the daemon.
"""

from enum import StrEnum


class Code(StrEnum):
    """Stable error codes of the protocol."""

    BAD_REQUEST = "bad_request"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    RETAINED = "retained"
    BAD_RESPONSE_TOPIC = "bad_response_topic"
    DUPLICATE_ID = "duplicate_id"
    UNKNOWN_JOB = "unknown_job"
    UNKNOWN_MODEL = "unknown_model"
    UNSUPPORTED = "unsupported"
    NO_FIT = "no_fit"
    MODEL_MISSING = "model_missing"
    PROMPT_TOO_LONG = "prompt_too_long"
    BAD_IMAGE = "bad_image"
    IMAGE_MISSING = "image_missing"
    QUEUE_FULL = "queue_full"
    QUOTA_EXCEEDED = "quota_exceeded"
    NOT_ALLOWED = "not_allowed"
    STORAGE_FULL = "storage_full"
    EXPIRED = "expired"
    CANCELED = "canceled"
    TIMEOUT = "timeout"
    MODEL_ERROR = "model_error"
    INVALID_ANSWER = "invalid_answer"
    OUT_OF_MEMORY = "out_of_memory"
    ENGINE_DIED = "engine_died"
    SHUTTING_DOWN = "shutting_down"
    INTERNAL = "internal"


RETRYABLE = frozenset(
    {
        Code.QUEUE_FULL,
        Code.QUOTA_EXCEEDED,
        Code.STORAGE_FULL,
        Code.SHUTTING_DOWN,
        Code.ENGINE_DIED,
        Code.OUT_OF_MEMORY,
        Code.NO_FIT,
    }
)
"""Codes after which the same request may succeed later."""

POOL_RETRYABLE = RETRYABLE | {Code.MODEL_MISSING, Code.UNKNOWN_MODEL, Code.PROMPT_TOO_LONG, Code.NOT_ALLOWED}
"""Codes after which another agent of the pool may take the same request."""


class EdgeAgentError(Exception):
    """An error with a code that a requester can act on.

    The message says what to do next, names the field at fault and never repeats its value.
    `retry_after_s` is a hint for retryable codes, in seconds.
    """

    def __init__(self, code: Code, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.code in RETRYABLE


class PromptTooLongError(EdgeAgentError):
    """A prompt leaves no room for an answer; `prompt_tokens` are as many as it has."""

    def __init__(self, message: str, prompt_tokens: int) -> None:
        super().__init__(Code.PROMPT_TOO_LONG, message)
        self.prompt_tokens = prompt_tokens


class SettingsError(Exception):
    """The settings cannot be used; the message names the key and says how to mend it."""


class PassingError(SettingsError):
    """What the settings name cannot be used now, and perhaps soon: a disk, a file, a lock. It is tried again."""


class BackendMissingError(Exception):
    """A backend's library is not installed; the message carries the install line."""
