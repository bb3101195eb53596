"""openvino-genai pushes the tokens of an answer at a streamer; here they are pulled, one at a time."""

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any

import openvino_genai as genai

from edge_agent.engine.openvino.pipeline_model import library


def pulled(generate: Callable[[Any], object]) -> Iterator[int]:
    """Yield the tokens that `generate`, which blocks, gives to the streamer it is called with.

    Nothing is computed while nobody asks: the call waits in its streamer. Closing the iterator cancels it; a prompt
    that is being computed is computed to its end first. The library's errors come as EdgeAgentError.
    """
    streamer = _Streamer()

    def run() -> None:
        try:
            with library():
                generate(streamer)
        except BaseException as error:  # noqa: BLE001 - raised again where the tokens are asked for
            streamer.said.put(error)
        else:
            streamer.said.put(None)

    thread = Thread(target=run, name="openvino-answer", daemon=True)
    thread.start()
    try:
        while isinstance(said := streamer.said.get(), int):  # as long as the library computes; the parent watches us
            yield said
            streamer.asked.put(genai.StreamingStatus.RUNNING)
    finally:
        streamer.asked.put(genai.StreamingStatus.CANCEL)
        thread.join()
    if said is not None:
        raise said


class _Streamer(genai.StreamerBase):  # type: ignore[misc] # the library has no types
    """Hands over a token and waits for the word to go on: what it returns is heard, what it raises is only logged."""

    def __init__(self) -> None:
        super().__init__()
        self.said: SimpleQueue[int | BaseException | None] = SimpleQueue()
        self.asked: SimpleQueue[Any] = SimpleQueue()

    def write(self, token: int | list[int]) -> Any:
        for each in [token] if isinstance(token, int) else token:
            self.said.put(each)
            status = self.asked.get()
            if status != genai.StreamingStatus.RUNNING:
                return status
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Nothing is held back."""
