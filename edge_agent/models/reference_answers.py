"""What is known of a build's words: a question with its answer, and what it began with on the processor.

The question is the one in `canary.json` beside the build, else its family's in the catalogue. What a build said on the
processor is kept in one file, used while build and library stay the same.
"""

import contextlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from edge_agent.base import durable
from edge_agent.base.errors import SettingsError
from edge_agent.base.log import get_logger
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import Canary
from edge_agent.models.catalogue import Family
from edge_agent.models.measurements import identity, installed_libraries

QUESTION = "canary.json"
FIRST_WORDS_FILE = "heard.json"
FILE_BYTES_MAX = 2**16
ENTRIES_MAX = 64
"""The oldest go first."""

Line = Annotated[str, StringConstraints(min_length=1, max_length=500)]

log = get_logger()


class Question(BaseModel):
    """What to ask a build; one of `expected` stands in its answer, in `after_long` prompts too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Line
    expected: Annotated[tuple[Line, ...], Field(max_length=16)] = ()
    after_long: bool = False


class Said(BaseModel):
    """What a build, by its identity, began with on the processor with a library, by name and version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    build: Line
    library: Line
    prompt: Line
    beginning: Line


class _StoredAnswer(BaseModel):
    said: Annotated[tuple[Said, ...], Field(max_length=ENTRIES_MAX)] = ()


class ReferenceAnswers:
    """What is known of the builds here, for any thread; `folder` is where it is kept. Without it nothing is."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FIRST_WORDS_FILE
        self._keeping = threading.Lock()

    def canary(self, path: Path, backend: str, family: Family | None) -> Canary:
        """Return what to ask a build in a folder."""
        question = _beside(path) or _of_family(family) or Question(prompt=Canary().prompt)
        return Canary(
            question.prompt,
            question.expected,
            question.after_long,
            self._reference(path, backend, question.prompt),
        )

    def keep(self, path: Path, backend: str, prompt: str, beginning: str) -> None:
        """Remember what a build began with on the processor, for when it runs elsewhere."""
        with self._keeping:
            if beginning and self._reference(path, backend, prompt) != beginning:
                self._write(path, backend, prompt, beginning)

    def _write(self, path: Path, backend: str, prompt: str, beginning: str) -> None:
        with contextlib.suppress(SettingsError):  # the folder went away: then it is compared with nothing
            new = Said(build=identity(path), library=_library(backend), prompt=prompt, beginning=beginning)
            others = [each for each in self._read() if (each.build, each.prompt) != (new.build, new.prompt)]
            entries = [each.model_dump() for each in (*others, new)[-ENTRIES_MAX:]]
            try:
                durable.write(self._path, json.dumps({"said": entries}, ensure_ascii=False, indent=1))
            except OSError as error:
                log.warning("reference.unwritten", file=str(self._path), reason=error.strerror)

    def _reference(self, path: Path, backend: str, prompt: str) -> str:
        said = self._read()
        if not said:
            return ""
        with contextlib.suppress(SettingsError):
            wanted = (identity(path), _library(backend), prompt)
            return next((each.beginning for each in said if (each.build, each.library, each.prompt) == wanted), "")
        return ""

    def _read(self) -> tuple[Said, ...]:
        """Return what is kept; a memory aid that cannot be read is as if it were not there."""
        with contextlib.suppress(OSError, ValidationError):
            return _StoredAnswer.model_validate_json(_bounded(self._path)).said
        return ()


@dataclass(frozen=True, slots=True)
class Compared:
    """Whether what a served model says where it runs was held against the processor's words, or why not."""

    variant: str
    backend: str
    device: str
    used: bool
    reason: str


def compared(spec: ModelSpec) -> Compared | None:
    """Return what a trial that was passed has shown of it (pure); None on the processor and where none was made.

    A trial on another device is passed only when it agrees with the processor's words, where those are known.
    """
    if spec.canary is None or spec.device == "cpu":
        return None
    used = bool(spec.canary.reference)
    reason = (
        "it begins as on the processor"
        if used
        else "nobody knows what this build says on the processor; `edge-agent bench --device cpu --keep` finds out"
    )
    return Compared(spec.variant or spec.path.name, spec.backend, spec.device, used, reason)


def _beside(path: Path) -> Question | None:
    file = (path if path.is_dir() else path.parent) / QUESTION
    try:
        return Question.model_validate_json(_bounded(file))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        # What it says is not repeated: an error of the library would show the file's content.
        log.warning("question.unread", file=str(file), reason=type(error).__name__, next="mend it or remove it")
        return None


def _of_family(family: Family | None) -> Question | None:
    if family is None or family.question is None:
        return None
    return Question(prompt=family.question, expected=family.answers, after_long=True)


def _library(backend: str) -> str:
    return installed_libraries().get(backend, backend)


def _bounded(path: Path) -> bytes:
    """Return a file's content up to FILE_BYTES_MAX; what is longer is no JSON then."""
    with path.open("rb") as file:
        return file.read(FILE_BYTES_MAX)
