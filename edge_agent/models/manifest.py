"""The manifest of a build: its files with size and hash, who vouches for the hashes, and where it came from."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.models.catalogue import Name, RemoteFile, Sha256, Variant
from edge_agent.models.programs import is_source

MANIFEST = ".manifest.json"
"""Its name in a build's folder; no file of a build begins with a dot."""
MANIFEST_BYTES_MAX = 256 * 2**10
FILES_MAX = 256
"""Of one build; the published ones have about a dozen."""
BUILD_BYTES_MAX = 2**40
CHUNK_BYTES = 2**20

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$")]
"""A file of a build: one level of a path, and what a tar header holds."""
Vouched = Literal["catalogue", "hub", "archive", "nobody"]
"""Whose word a hash is: `archive` for one that came along with the file, `nobody` for one computed here."""


class _FileEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredFile(_FileEntry):
    """A file of a build in the store."""

    name: FileName
    size_bytes: int = Field(ge=0, le=BUILD_BYTES_MAX)
    sha256: Sha256
    vouched: Vouched


class Manifest(_FileEntry):
    """What a build in the store is made of.

    name: the variant's name, and the folder's.
    repo, revision: where it was published, as a commit where that is known; None when nobody told.
    at: when it came into the store it was first in.
    """

    format: Literal[1] = 1
    name: Name
    repo: str | None = Field(None, max_length=256)
    revision: str | None = Field(None, max_length=128)
    origin: Literal["pulled", "imported"]
    at: AwareDatetime
    files: tuple[StoredFile, ...] = Field(min_length=1, max_length=FILES_MAX)

    @model_validator(mode="after")
    def _one_build(self) -> Self:
        if len({each.name.casefold() for each in self.files}) < len(self.files):  # some SD cards ignore case
            raise ValueError("two files have the same name")
        if self.size_bytes > BUILD_BYTES_MAX:
            raise ValueError("the files are larger than any build")
        return self

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(each.size_bytes for each in self.files)

    @property
    def vouched(self) -> Vouched:
        """The weakest word that stands for one of its files."""
        order: tuple[Vouched, ...] = ("nobody", "archive", "hub", "catalogue")
        return min((each.vouched for each in self.files), key=order.index)

    def encode(self) -> bytes:
        """Return it as it is written to disk and into archives."""
        return self.model_dump_json(indent=1).encode()


def decode(body: bytes) -> Manifest:
    """Return the manifest in these bytes. Raises EdgeAgentError BAD_REQUEST with the field that is wrong."""
    try:
        return Manifest.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"])) or "it"
        raise EdgeAgentError(Code.BAD_REQUEST, f"the manifest is not valid: {place}: {fault['msg']}") from None


def read(folder: Path) -> Manifest | None:
    """Return a folder's manifest; None when it has none. Raises EdgeAgentError MODEL_MISSING when it is damaged."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            body = file.read(MANIFEST_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EdgeAgentError(Code.MODEL_MISSING, f"{folder / MANIFEST} cannot be read: {error.strerror}") from error
    try:
        return decode(body)
    except EdgeAgentError as error:
        raise EdgeAgentError(Code.MODEL_MISSING, f"{folder}: {error.message}; remove the folder") from None


def matched(variant: Variant | None, files: Iterable[StoredFile]) -> tuple[StoredFile, ...]:
    """Return the files with the catalogue's word for those it knows.

    `variant` is None when the catalogue does not know the build. Raises EdgeAgentError BAD_REQUEST when a file is not
    what the catalogue says, or lacks.
    """
    known: dict[str, RemoteFile] = {each.name: each for each in variant.files} if variant else {}
    found = tuple(files)
    if lost := sorted({name for name in known if not is_source(name)} - {each.name for each in found}):
        raise EdgeAgentError(
            Code.BAD_REQUEST, f"{', '.join(lost)}: named in the catalogue and not here; copy the whole build"
        )
    result = []
    for file in found:
        expected = known.get(file.name)
        if expected is not None and (
            expected.size_bytes not in {None, file.size_bytes} or expected.sha256 not in {None, file.sha256}
        ):
            raise EdgeAgentError(
                Code.BAD_REQUEST, f"{file.name} is not the file the catalogue knows; get this build anew"
            )
        certain = expected is not None and expected.sha256 is not None
        result.append(file.model_copy(update={"vouched": "catalogue"}) if certain else file)
    return tuple(result)


def sha256_of(file: Path, told: Callable[[int], None] = lambda _bytes: None) -> str:
    """Return a file's hash; `told` hears of each piece that was read. Raises OSError, also for a symbolic link."""
    digest = hashlib.sha256()
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as opened:
        while piece := opened.read(CHUNK_BYTES):
            digest.update(piece)
            told(len(piece))
    return digest.hexdigest()
