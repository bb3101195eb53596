"""The catalogue: which builds of which models are published, for what, and what is known of them.

The shipped one is catalogue.toml beside this file; users add their own files of the same form. What nobody has
verified is absent, not guessed.
"""

import re
import tomllib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from edge_agent.base.errors import PassingError, SettingsError
from edge_agent.engine import registry

SHIPPED = Path(__file__).with_name("catalogue.toml")

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,126}$")]
"""A file's or variant's name: one level of a path, never `..`."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_FOLDER = r"^([A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)?$"
FOREIGN = ("genie", "ryzenai")
"""Runtimes that no backend drives; builds for them are known so that a decision can say so."""
Backend = Annotated[str, AfterValidator(lambda name: registry.checked(name, (*registry.names(), *FOREIGN)))]
"""Whose runtime a build is for."""
Device = Annotated[str, AfterValidator(lambda name: registry.checked(name, registry.devices()))]
"""What a build can run on, as its backend calls it: `gpu` and `npu` are Intel's, `qnn` is Qualcomm's NPU."""

QUALITY = {
    ("fp16", None): 100,
    ("int8", None): 95,
    ("int4", "awq"): 80,
    ("int4", "gptq"): 78,
    ("int4", None): 75,
    ("int4", "group"): 74,
    ("int4", "rtn"): 70,
    ("int4", "channel"): 60,
}
"""Rank by (precision, method), higher is better; only the order counts. Eight bits lose nothing that shows, of four
bits the methods that look at activations lose least and one scale for a whole channel most: Lin et al., AWQ (2024),
tables 4 and 5, for rtn < gptq < awq; the group size argument in Frantar et al., GPTQ (2023), section 4."""


class _CatalogueEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


T = TypeVar("T", bound=_CatalogueEntry)


class RemoteFile(_CatalogueEntry):
    """A file of a build; size and hash where they are known."""

    name: Name
    size_bytes: int | None = Field(None, ge=0, le=2**40)
    sha256: Sha256 | None = None


class Family(_CatalogueEntry):
    """A model: what all its builds have in common, in the terms of its published config.json.

    kv_heads, head_size: what one token's keys and values hold in each layer.
    original_context_tokens: where longrope changes its factors; None for plain rope.
    question, answers: what a build is asked when it is tried on a device; one of these stands in every sound answer.
    """

    name: Name
    parameters: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_size: int = Field(gt=0)
    context_tokens: int = Field(gt=0)
    original_context_tokens: int | None = Field(None, gt=0)
    images: bool = False
    question: Annotated[str, StringConstraints(min_length=1, max_length=500)] | None = None
    answers: Annotated[tuple[Annotated[str, StringConstraints(min_length=1)], ...], Field(max_length=16)] = ()
    source: str


class Variant(_CatalogueEntry):
    """One published build.

    name: unique in the catalogue, and the build's folder in the store.
    devices: what it was made for, best first.
    made_for: the generations of an accelerator it is bound to, as the probe names them; empty for any.
    repo, revision, folder: where it is published; a revision that is not a commit moves.
    weight_bytes: size of the files that are loaded.
    files: those whose size or hash is known; the rest of the folder belongs to the build too.
    context_tokens, prompt_tokens, parallel: limits of this build where they are tighter than the family's.
    """

    name: Name
    family: Name
    backend: Backend
    devices: tuple[Device, ...] = Field(min_length=1)
    made_for: tuple[str, ...] = ()
    repo: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")]
    revision: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] = "main"
    folder: Annotated[str, StringConstraints(pattern=_FOLDER, max_length=255)] = ""
    precision: Literal["int4", "int8", "fp16"]
    method: Literal["awq", "gptq", "rtn", "group", "channel"] | None = None
    group_size: int | None = Field(None, gt=0)
    weight_bytes: int = Field(gt=0)
    context_tokens: int | None = Field(None, gt=0)
    prompt_tokens: int | None = Field(None, gt=0)
    parallel: int | None = Field(None, gt=0)
    files: tuple[RemoteFile, ...] = ()
    license: str = "MIT"
    note: str = ""
    source: str

    @property
    def quality(self) -> int:
        """Rank among the builds of one family, see QUALITY."""
        return QUALITY.get((self.precision, self.method), QUALITY[self.precision, None])

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return re.fullmatch(r"[0-9a-f]{7,40}", self.revision) is not None


class Catalogue(_CatalogueEntry):
    """Families and variants; names are unique and every variant's family is there."""

    family: tuple[Family, ...] = ()
    variant: tuple[Variant, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for kind in (self.family, self.variant):
            names = [each.name for each in kind]
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{', '.join(sorted(twice))}: two entries have this name")
        if lost := sorted({each.family for each in self.variant} - {each.name for each in self.family}):
            raise ValueError(f"no [[family]] is named {', '.join(lost)}")
        return self

    @cached_property
    def _families(self) -> dict[str, Family]:
        return {family.name: family for family in self.family}

    def family_of(self, variant: Variant) -> Family:
        """Return the family of one of our variants."""
        return self._families[variant.family]

    def builds_of(self, wanted: str) -> tuple[Variant, ...]:
        """Return the variants of a family, or the one variant of that name; empty when nobody has it."""
        return tuple(each for each in self.variant if wanted in {each.family, each.name})

    def names(self) -> tuple[str, ...]:
        """Return what can be asked for: families, then variants."""
        return (*self._families, *(each.name for each in self.variant))


def read(extra: Iterable[Path] = ()) -> Catalogue:
    """Return the shipped catalogue with the entries of further files, which win over ours of the same name.

    Raises SettingsError with the file, the entry and what is wrong with it.
    """
    families: dict[str, Family] = {}
    variants: dict[str, Variant] = {}
    for file in (SHIPPED, *extra):
        tables = _tables(file)
        families |= {each.name: each for each in _entries(file, Family, tables.pop("family", ()))}
        variants |= {each.name: each for each in _entries(file, Variant, tables.pop("variant", ()))}
        if tables:
            raise SettingsError(f"{file}: unknown table {next(iter(tables))!r}; there are [[family]] and [[variant]]")
    try:
        return Catalogue(family=tuple(families.values()), variant=tuple(variants.values()))
    except ValidationError as error:
        raise SettingsError(f"catalogue: {_said(error)}") from None


def _tables(file: Path) -> dict[str, Sequence[object]]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PassingError(f"{file}: {error.strerror or type(error).__name__}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not valid TOML: {error}") from error


def _entries(file: Path, kind: type[T], tables: Sequence[object]) -> list[T]:
    if not isinstance(tables, list | tuple):
        raise SettingsError(f"{file}: write [[{kind.__name__.lower()}]] above each entry, in two brackets")
    entries = []
    for number, table in enumerate(tables, 1):
        try:
            entries.append(kind.model_validate(table))
        except ValidationError as error:
            raise SettingsError(f"{file}: [[{kind.__name__.lower()}]] number {number}: {_said(error)}") from None
    return entries


def _said(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}".removeprefix(": ")
        for fault in error.errors(include_url=False, include_input=False)
    )
