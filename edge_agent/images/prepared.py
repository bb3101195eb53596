"""What is known of a job's images once they are decoded, as it stands in the job's row."""

from pydantic import TypeAdapter

from edge_agent.jobs.job import Frozen, ImageUse


class Prepared(Frozen):
    """A decoded image: the file of its RGB bytes, the file's hash in hex, and what it costs."""

    path: str
    sha256: str
    use: ImageUse


_LIST = TypeAdapter(tuple[Prepared, ...])


def encode(images: tuple[Prepared, ...]) -> str:
    """Return the images of a job as JSON."""
    return _LIST.dump_json(images).decode()


def decode(text: str | None) -> tuple[Prepared, ...]:
    """Return the images of a job from its row; none for a job without."""
    return _LIST.validate_json(text) if text else ()
