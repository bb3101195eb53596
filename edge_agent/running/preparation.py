"""Gets the jobs that come next ready, beside the engines: images are decoded and guides tried before a job is claimed.

One thread, which owns the image child and the guide child. What it finds is committed by the store; nothing of it
needs to survive. What a requester's images and guides take counts together.
"""

import contextlib
import errno
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TypeVar

from edge_agent.base.awake import awake_s
from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.heartbeat import Heartbeat
from edge_agent.base.log import get_logger
from edge_agent.base.signal import Signal
from edge_agent.engine.hosting.engines import Engines
from edge_agent.engine.hosting.prover import NotTriedError, Prover, guide_of
from edge_agent.engine.messages import ModelLimits
from edge_agent.images.decoder_process import BadImageError, DecoderProcess, FullError
from edge_agent.images.fair_share import Shares
from edge_agent.images.phi_tiling import TILE_PIXELS, grid
from edge_agent.images.spool import Spool
from edge_agent.images.tile_budget import Wish, room_tokens, share
from edge_agent.jobs.job import TERMINAL, Failure, ImageUse, Job, Prepared
from edge_agent.jobs.queue import Queue
from edge_agent.jobs.request import ImageHashPart, Request
from edge_agent.jobs.store import Store

AHEAD = 4
"""Decoded jobs that may wait per model: an image of 16 tiles takes 5 MB of the disk."""
JOB_S = 30.0
"""What the images of one job may take together, but for the one that is decoded then: so no job holds up others for
longer than this and IMAGE_S."""
LOOK_S = 1.0
RETRY_S = 5.0
"""When a disk that was full is tried again."""
CLOSE_S = 60.0
"""An image child that had nothing to do for so long is ended."""
SWEEP_S = 600.0
"""How often the spool is swept when no job with images ended: requests that could not be stored leave images too."""

T = TypeVar("T")

log = get_logger()


class _StoppedError(Exception):
    """We are to stop; the job is left as it is."""


class Preparation:
    """Gets jobs with images ready. `look` and `changed` may be called from any thread and only leave notes.

    `on_ready`: a job may be claimed. `short` tells whether the disk has little room. `apart`: whether clients are to
    learn nothing of each other's guides, by time.
    """

    def __init__(
        self,
        *,
        models: Sequence[str],
        store: Store,
        spool: Spool,
        decoder_process: DecoderProcess,
        guides: Prover,
        engines: Engines,
        short: Callable[[], bool] = lambda: False,
        apart: bool = False,
        now_s: Callable[[], float] = awake_s,
    ) -> None:
        self._models = models
        self._apart = apart
        self._store = store
        self._spool = spool
        self._decoder_process = decoder_process
        self._guides = guides
        self.on_ready: Signal[[]] = Signal()
        self._engines = engines
        self._short = short
        self._now_s = now_s
        self._shares = Shares()
        self._busy_s = self._swept_s = now_s()
        self._wake = threading.Event()
        self._stale = threading.Event()
        self._stopping = threading.Event()
        self.beat = Heartbeat("images", now_s=now_s)
        self._thread = threading.Thread(target=self._run, name="images")

    def start(self) -> None:
        """Begin to decode."""
        self._thread.start()

    def stop(self) -> None:
        """End, after what is being decoded or tried; the children end too."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    def look(self) -> None:
        """There may be a job to get ready."""
        self._wake.set()

    def changed(self, changes: Sequence[Job]) -> None:
        """Take in which jobs changed: one may have come, been claimed, or have left images behind."""
        concerned = [job for job in changes if job.unprepared or job.images is not None]
        if any(job.state in TERMINAL for job in concerned):
            self._stale.set()
        if concerned:
            self._wake.set()

    def proven(self, model: str, request: Request, client: str) -> bool:
        """Return whether a request's guide, if it has one, is known to be one that its engine takes now."""
        guide, engine = guide_of(request, self._owner(client)), self._engines.process(model)
        return guide is None or (engine is not None and self._guides.proven(guide, engine) is not None)

    def _owner(self, client: str) -> str:
        """Return whose a client's guides are: its own, where nobody shall learn what others asked."""
        return client if self._apart else ""

    # The thread

    def _run(self) -> None:
        with self._decoder_process, contextlib.suppress(_StoppedError):
            while not self._stopping.is_set():
                self.beat(LOOK_S)
                self._wake.wait(LOOK_S)
                self._wake.clear()
                self.beat()
                if self._prepare_next():
                    self._wake.set()  # there may be more
                    self._busy_s = self._now_s()
                elif self._now_s() - self._busy_s >= CLOSE_S:
                    self._decoder_process.close()
                    self._guides.close()
                self._sweep()
        self._guides.close()
        self.beat.over()

    def _sweep(self) -> None:
        """Remove what no job needs, soon after one has ended."""
        since_s = self._now_s() - self._swept_s
        if since_s >= SWEEP_S or (since_s >= LOOK_S and self._stale.is_set()):
            self._stale.clear()
            self._swept_s = self._now_s()
            self._ask(lambda queue: self._spool.sweep(*queue.images.needed()))

    def _ask(self, act: Callable[[Queue], T]) -> T:
        """Do something on the store's thread and wait for it, however long a full disk takes. Raises _StoppedError."""
        future: Future[T] = Future()
        self._store.do(act, future.set_result)
        while not self._stopping.is_set():
            self.beat(LOOK_S)
            try:
                return future.result(LOOK_S)
            except TimeoutError:
                continue
        raise _StoppedError

    def _prepare_next(self) -> bool:
        """Get the next job of any model ready; return whether there was one."""
        behind = self._shares.behind(now_s=self._now_s())
        for passed in (behind, frozenset[str]()) if behind else (behind,):
            for model in self._models:
                limits = self._engines.status(model).limits
                job = None if limits is None else self._next(model, passed)
                if limits is not None and job is not None and self._prepare(job, limits):
                    return True
        return False

    def _next(self, model: str, passed: frozenset[str]) -> Job | None:
        return self._ask(lambda queue: queue.images.next_unprepared(model, ahead=AHEAD, passed=passed))

    def _prepare(self, job: Job, limits: ModelLimits) -> bool:
        """Get a job ready; return False when its guide must wait for its engine to be up."""
        folder, engine = self._spool.prepared(job.row), self._engines.process(job.model)
        images = None
        try:
            request = job.asked
            guide = guide_of(request, self._owner(job.client))
            if guide is not None and engine is None:
                return False
            with self._counted(job.client):
                if guide is not None and engine is not None:
                    self._guides.prove(guide, engine)
                if request.images:
                    images = self._develop(job.client, request, folder, limits)
        except EdgeAgentError as error:
            self._ask(partial(Queue.give_up, job=job, failure=Failure.of(error)))
            return True
        except NotTriedError as error:
            log.warning("guides.waiting", reason=str(error), retry_s=RETRY_S)
            self._stopping.wait(RETRY_S)
            return True
        except (FullError, OSError) as error:
            if isinstance(error, FullError) and not folder.exists():
                return True  # swept: the job ended meanwhile
            log.error("images.full", reason=str(error), next="free disk space")
            shutil.rmtree(folder, ignore_errors=True)
            self._stopping.wait(RETRY_S)
            return True
        if self._ask(lambda queue: queue.images.prepared(job, images)):
            self.on_ready()
        else:
            self._stale.set()  # it has ended meanwhile
        return True

    @contextlib.contextmanager
    def _counted(self, client: str) -> Iterator[None]:
        """Count the time as a requester's."""
        begun_s = self._now_s()
        try:
            yield
        finally:
            now_s = self._now_s()
            self._shares.note(client, now_s - begun_s, now_s=now_s)

    def _develop(self, client: str, request: Request, folder: Path, limits: ModelLimits) -> tuple[Prepared, ...]:
        """Decode a job's images. Raises EdgeAgentError when they cannot be used, FullError, OSError."""
        images = [image for image in request.images if isinstance(image, ImageHashPart)]
        if len(images) > limits.images_per_prompt:
            sentence = f"messages: the model takes at most {limits.images_per_prompt} images"
            raise EdgeAgentError(Code.UNSUPPORTED, sentence)
        files = [self._spool.path(client, image.sha256) for image in images]
        if not all(file.exists() for file in files):
            raise EdgeAgentError(Code.IMAGE_MISSING, "messages: an image is gone from the device; send the job again")
        end_s = self._now_s() + JOB_S
        wishes = []
        for number, (file, image) in enumerate(zip(files, images, strict=True), 1):
            self._go_on(end_s)
            with _named(number, len(files)):
                wishes.append(Wish(*self._decoder_process.measure(file), image.detail))
        tiles = share(wishes, room_tokens=room_tokens(request, context_tokens=limits.context_tokens))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        found = []
        for number, (file, wish, most) in enumerate(zip(files, wishes, tiles, strict=True), 1):
            self._go_on(end_s)
            with _named(number, len(files)):
                found.append(self._develop_one(file, wish, most, folder / str(number)))
        return tuple(found)

    def _go_on(self, end_s: float) -> None:
        """Say that the next image's turn begins.

        Raises EdgeAgentError when those before it took all the time, OSError when it would take the room that jobs
        need, _StoppedError.
        """
        if self._stopping.is_set():
            raise _StoppedError
        if self._short():
            raise OSError(errno.ENOSPC, "too little is free on the disk")
        self.beat()
        if self._now_s() >= end_s:
            sentence = f"messages: the images take over {JOB_S:.0f} s to decode; send fewer of them, or smaller ones"
            raise EdgeAgentError(Code.BAD_IMAGE, sentence)

    def _develop_one(self, file: Path, wish: Wish, tiles: int, out: Path) -> Prepared:
        cut = grid(wish.width, wish.height, tiles=tiles)
        done = self._decoder_process.develop(file, long_side=max(cut.rows, cut.columns) * TILE_PIXELS, out=out)
        use = ImageUse(
            width=done.width,
            height=done.height,
            used_width=done.used_width,
            used_height=done.used_height,
            scaled=(done.width, done.height) != (done.used_width, done.used_height),
            tiles=tiles,
            tokens=grid(done.used_width, done.used_height, tiles=tiles).tokens,
        )
        return Prepared(path=str(out), sha256=done.sha256, use=use)


@contextlib.contextmanager
def _named(number: int, count: int) -> Iterator[None]:
    """Say which image it was that cannot be used."""
    try:
        yield
    except BadImageError as error:
        which = f"image {number} of {count}" if count > 1 else "the image"
        raise EdgeAgentError(Code.BAD_IMAGE, f"messages: {which} {error}") from None
