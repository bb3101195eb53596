"""What of a repository makes up a variant. PURE."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.models.catalogue import Variant
from edge_agent.models.manifest import BUILD_BYTES_MAX, FILES_MAX, Vouched
from edge_agent.models.programs import is_named_so, is_source

PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
"""A build's file."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Published:
    """A file as the hub lists it. sha256: of large files, kept outside git; git_id: of the others, git's blob id."""

    path: str
    size_bytes: int | None
    sha256: str | None = None
    git_id: str | None = None


@dataclass(frozen=True, slots=True)
class WantedFile:
    """A file to fetch: from which path of the repository, and what it must be."""

    name: str
    path: str
    size_bytes: int
    sha256: str | None
    git_id: str | None
    vouched: Vouched


def select(variant: Variant, published: Iterable[Published]) -> tuple[WantedFile, ...]:
    """Return the files of a variant: those of its folder, without hidden ones, Python's and the folders below.

    Raises EdgeAgentError MODEL_MISSING when the listing is not of this build, or names what no build holds.
    """
    prefix = f"{variant.folder}/" if variant.folder else ""
    found: dict[str, Published] = {}
    for each in published:
        if not each.path.startswith(prefix):
            continue
        name = each.path.removeprefix(prefix)
        if any(part in {"", ".", ".."} for part in each.path.split("/")) or "\\" in name or not name.isprintable():
            raise _refused(variant, "lists a file outside its folder")
        if "/" in name or name.startswith(".") or is_source(name):
            continue
        if not PLAIN.fullmatch(name) or is_named_so(name) or name in found:
            raise _refused(variant, f"lists a file whose name no build has ({name[:40]!r})")
        found[name] = each
        if len(found) > FILES_MAX:
            raise _refused(variant, f"lists more than {FILES_MAX} files")
    if not found:
        raise _refused(variant, f"has no folder {variant.folder!r} at {variant.revision}")
    if lost := sorted({each.name for each in variant.files if not is_source(each.name)} - found.keys()):
        raise _refused(variant, f"lacks {', '.join(lost)}")
    wanted = tuple(_wanted(variant, name, each) for name, each in found.items())
    if sum(each.size_bytes for each in wanted) > BUILD_BYTES_MAX:
        raise _refused(variant, "lists more bytes than any build has")
    return wanted


def _wanted(variant: Variant, name: str, published: Published) -> WantedFile:
    if published.size_bytes is None or published.size_bytes < 0:
        raise _refused(variant, f"tells no size of {name}")
    known = next((each for each in variant.files if each.name == name), None)
    told = published.sha256 if published.sha256 and _SHA256.fullmatch(published.sha256) else None
    expected = known.sha256 if known else None
    if known and known.size_bytes not in {None, published.size_bytes}:
        raise _refused(variant, f"has {name} with {published.size_bytes} bytes and not {known.size_bytes}")
    if expected and told not in {None, expected}:
        raise _refused(variant, f"has another {name} than the catalogue knows")
    git_id = published.git_id if not published.sha256 and published.git_id else None
    git_id = git_id if git_id and _SHA1.fullmatch(git_id) else None
    vouched: Vouched = "catalogue" if expected else "hub" if told or git_id else "nobody"
    return WantedFile(name, published.path, published.size_bytes, expected or told, git_id, vouched)


def _refused(variant: Variant, fault: str) -> EdgeAgentError:
    return EdgeAgentError(
        Code.MODEL_MISSING,
        f"{variant.repo} {fault}, so it is not {variant.name}; mend the catalogue's entry or models.hub_url",
    )
