"""The engine child: loads one model, takes commands and sends events over a socket until its parent is gone.

Run as `python -m edge_agent.engine.child --fd N --parent PID`, where N is one end of a socket pair and PID the parent.
"""

import argparse
import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from edge_agent.base.awake import keep_time
from edge_agent.base.child_process import tie
from edge_agent.base.errors import BackendMissingError, Code, EdgeAgentError, PromptTooLongError
from edge_agent.engine.backend import NOWHERE, LoadedModel, ModelSpec, backend_of, find
from edge_agent.engine.guides.answer_check import AnswerCheck
from edge_agent.engine.messages import (
    Cancel,
    Close,
    Event,
    Failed,
    Finished,
    FrameReader,
    Generation,
    JobId,
    Load,
    LoadFailed,
    Message,
    Progress,
    Ready,
    Rest,
    Start,
    Trying,
    Turn,
    decode,
    encode,
)
from edge_agent.engine.selftest.rehearsal import Rehearsal

NAME = "ea-engine"
"""The process name, as `ps -e` and the kernel's log show it; the kernel keeps 15 bytes."""
OOM_SCORE_RAISE = 500
"""Of 1000: when memory runs out the kernel ends the engine, which is started again, and not the agent."""
RECEIVE_BYTES = 65_536
REST_MOST_S = 2.0
"""One rest at most, however long the step was: the parent waits for a sign of life."""
_WARM_UP = Generation(JobId("warm-up"), (Turn("user", "Hello"),), max_tokens=4)


class Channel:
    """The child's end of the socket. Both methods raise EOFError when the parent has closed its end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._frames = FrameReader()

    def send(self, message: Message) -> None:
        """Hand over a message; waits while the parent is slow to read."""
        try:
            self._connection.sendall(encode(message))
        except ConnectionError as error:
            raise EOFError from error

    def receive(self, *, wait: bool, rest_s: float = 0.0) -> list[Message]:
        """Return the messages that are complete. With `wait`, sleeps until something comes or the parent is gone.

        Without it sleeps for `rest_s`, or less when something comes.
        """
        if rest_s and not wait:
            select.select([self._connection], [], [], rest_s)
        try:
            chunk = self._connection.recv(RECEIVE_BYTES, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except ConnectionError as error:
            raise EOFError from error
        if not chunk:
            raise EOFError
        return [decode(body) for body in self._frames.feed(chunk)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to close or the parent is gone; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m edge_agent.engine.child", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="number of the inherited socket")
    parser.add_argument("--parent", type=int, required=True, help="process id of the parent")
    options = parser.parse_args(arguments)
    settle(options.parent)
    keep_time()
    with socket.socket(fileno=options.fd) as connection:
        try:
            return run(Channel(connection))
        except EOFError:
            return 0


def settle(parent: int) -> None:
    """Tie this process to its parent: it dies with it, and only by its will. Exits if the parent is gone already."""
    tie(parent, name=NAME)
    # A Ctrl-C or a closed terminal hits the whole group; what becomes of running jobs is the parent's to decide.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # native libraries print where they like
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):  # some containers forbid it; then the engine is as likely a victim as others
        score.write_text(str(min(1000, int(score.read_text(encoding="ascii")) + OOM_SCORE_RAISE)), encoding="ascii")


def run(channel: Channel) -> int:
    """Load what the first message says and serve it; return the exit status, 1 when it cannot be loaded."""
    messages: list[Message] = []
    while not messages:
        messages = channel.receive(wait=True)
    load, *early = messages
    if not isinstance(load, Load):
        raise TypeError(f"the first message must be Load, not {type(load).__name__}")
    began_s = time.perf_counter()
    try:
        model, heard = load_tried(load, channel.send)
    except EdgeAgentError as error:
        channel.send(LoadFailed(error.code, error.message))
        return 1
    except BackendMissingError as error:
        channel.send(LoadFailed(Code.UNSUPPORTED, str(error)))
        return 1
    with contextlib.closing(model):
        load_ms = (time.perf_counter() - began_s) * 1000
        channel.send(Ready(model.limits, load_ms, model.library, model.device, heard))
        serve(model, channel, early)
    return 0


def load_tried(load: Load, tell: Callable[[Trying], None]) -> tuple[LoadedModel, str]:
    """Return the model, having tried it, and what it began with; without a canary it answers once and nobody judges.

    A model elsewhere is asked nothing of ours. The first answer of any other is its slowest. Raises EdgeAgentError or
    BackendMissingError when it may not serve.
    """
    path = Path(load.path)
    elsewhere = path == NOWHERE
    if not elsewhere:
        backend_of(path)  # says best what is wrong with a folder
    spec = ModelSpec(
        path,
        load.backend,
        load.context_tokens,
        load.parallel,
        load.threads,
        load.device,
        dict(load.options),
        apart=load.apart,
    )
    model = find(load.backend, load.device)(spec)
    if elsewhere:
        return model, ""
    if load.canary is not None:
        return model, Rehearsal(model, load.canary, tell=tell).run(load.device)
    model.start(_WARM_UP)
    while True:
        for event in model.step():
            match event:
                case Failed(_, code, message):
                    raise EdgeAgentError(code, f"{path} does not answer: {message}")
                case Finished():
                    return model, ""


def serve(model: LoadedModel, channel: Channel, commands: Iterable[Message] = ()) -> None:
    """Take what commands there are, make one step, send its events; until `Close`. Sleeps only when idle."""
    under_way: set[JobId] = set()
    rest_share = 0.0

    answers = AnswerCheck()

    def tell(event: Event) -> None:
        event = answers.judged(event)
        channel.send(event)
        if isinstance(event, Finished | Failed):
            under_way.discard(event.job_id)

    while True:
        for command in commands:
            match command:
                case Start(generation):
                    under_way.add(generation.job_id)
                    answers.begun(generation)
                    _start(model, generation, tell)
                case Cancel(job_id):
                    for event in model.cancel(job_id):
                        tell(event)
                case Rest(share):
                    rest_share = share
                case Close():
                    return
                case _:
                    raise TypeError(f"{type(command).__name__} is not for an engine at work")
        rest_s = min(REST_MOST_S, _step(model, tell) * rest_share / (1 - rest_share))
        commands = channel.receive(wait=not under_way, rest_s=rest_s)


def _step(model: LoadedModel, tell: Callable[[Event], None]) -> float:
    """Make one step; return how long it took, in seconds."""
    began_s = time.perf_counter()
    for event in model.step():  # sent one by one: some announce that the next will take long
        tell(event)
    return time.perf_counter() - began_s


def _start(model: LoadedModel, generation: Generation, tell: Callable[[Event], None]) -> None:
    try:
        model.start(generation)
    except EdgeAgentError as error:
        if isinstance(error, PromptTooLongError):
            tell(Progress(generation.job_id, error.prompt_tokens))  # what was counted is told all the same
        tell(Failed(generation.job_id, error.code, error.message))


if __name__ == "__main__":
    sys.exit(main())
