"""Our agent over MQTT ÷ llama.cpp's own server over HTTP, the peer: the same jobs on the same machine, in turns.

Both have `--jobs` places and as many threads. The server gets token ids at its `/completion`, keeps beginnings
(`cache_prompt`) and batches; ours gets texts by a broker. A round is so many jobs at once, from the first request to
the last answer. `alone` is one job at a time, `sharing` jobs with `--common` tokens in common, `apart` with none.

The server is the one in the wheel, whose kernels are for any processor; `--server` takes a llama-server built here.
"""

import json
import multiprocessing
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from edge_agent.engine.backend import backend_of
from edge_agent.engine.llamacpp.gguf import gguf_file
from hardware.probe import probe
from tests.bench.batch import PATIENCE_S, prompts, run
from tests.bench.rig import arguments, interleave, median, model_folder, report, rig
from tests.running import requester

READY_S = 120.0


class Peer:
    """A server that listens at an address."""

    def __init__(self, url: str) -> None:
        self._url = url

    def wait_ready(self) -> None:
        """Wait until it has loaded its model, and let it answer once."""
        end_s = time.monotonic() + READY_S
        while True:
            try:
                self._ask("health")
                break
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.2)
        self.answer(self.tokens("Hello"), 4)

    def tokens(self, text: str) -> list[int]:
        """Return a prompt's tokens, as Phi-3.5's template has it."""
        return self._ask("tokenize", content=f"<|user|>\n{text}<|end|>\n<|assistant|>")["tokens"]

    def answer(self, tokens: list[int], most: int) -> int:
        """Have a prompt answered; return the tokens of the answer."""
        said = self._ask("completion", prompt=tokens, n_predict=most, temperature=0, cache_prompt=True, ignore_eos=True)
        return said["tokens_predicted"]

    def round(self, asked: list[list[int]], most: int) -> float:
        """Have prompts answered at once; return tokens per second."""
        with ThreadPoolExecutor(len(asked)) as pool:
            begun_s = time.monotonic()
            said = list(pool.map(lambda tokens: self.answer(tokens, most), asked))
            return sum(said) / (time.monotonic() - begun_s)

    def _ask(self, path: str, **body: object):
        content = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"{self._url}/{path}", content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)


def serve(file: str, jobs: int, context: int, threads: int, line) -> None:
    """Run the wheel's server until told to end."""
    import xllamacpp  # in this process only

    params = xllamacpp.CommonParams()
    params.model.path, params.verbosity = file, -1
    params.n_parallel, params.n_ctx = jobs, jobs * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    line.send(server.listening_address)
    line.recv()


@contextmanager
def peer(file: Path, options, threads: int) -> Iterator[Peer]:
    """Start the server; it ends with the context."""
    if options.server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        context = str(options.jobs * options.context)
        settings = ["-np", str(options.jobs), "-c", context, "-t", str(threads), *options.server_options.split()]
        command = [options.server, "-m", str(file), "--host", "127.0.0.1", "--port", port, *settings]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield Peer(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
            process.wait(30)
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(
        target=serve, args=(str(file), options.jobs, options.context, threads, theirs), name="peer", daemon=True
    )
    child.start()
    try:
        if not ours.poll(READY_S):
            raise TimeoutError(f"the server said nothing for {READY_S:.0f} s")
        yield Peer(ours.recv())
    finally:
        child.terminate()  # it holds no more than memory
        child.join(30)


def main() -> None:
    threads = probe().cpu.granted_cores
    parser = arguments(
        __doc__,
        model="full-openvino",
        peer_model="full-llamacpp",
        server="",
        server_options="",
        jobs=8,
        common=192,
        own=32,
        tokens=32,
        pairs=6,
        context=1024,
    )
    parser.add_argument("--only", choices=("alone", "sharing", "apart"), help="one kind of round")
    options = parser.parse_args()
    folder, file = model_folder(options.model), gguf_file(model_folder(options.peer_model))
    sizes = {"common": options.common, "own": options.own}
    figures = []
    serving = {"parallel": options.jobs, "context_tokens": options.context, "threads": threads}
    with rig(folder, **serving) as made, peer(file, options, threads) as server:
        made.start()
        server.wait_ready()
        with requester(made.broker) as client:
            for kind in (options.only,) if options.only else ("alone", "sharing", "apart"):
                jobs = 1 if kind == "alone" else options.jobs
                # one list for both: what one side keeps the other does not see
                asked = [prompts(jobs, shared=kind == "sharing", **sizes) for _ in range(options.pairs + 1)]
                theirs = [[server.tokens(text) for text in texts] for texts in asked]
                run(client, asked[-1], options.tokens)
                server.round(theirs[-1], options.tokens)
                measured = interleave(
                    options.pairs,
                    lambda pair, asked=asked: run(client, asked[pair], options.tokens).per_s,
                    lambda pair, theirs=theirs: server.round(theirs[pair], options.tokens),
                )
                title = {"alone": "one job", "sharing": f"{jobs} jobs, sharing", "apart": f"{jobs} jobs, apart"}[kind]
                figures += [
                    median(f"{title}: ours ÷ the peer", [a / b for a, b in measured], ""),
                    median(f"{title}: ours over MQTT", [a for a, _ in measured], "tok/s out"),
                    median(f"{title}: the peer over HTTP", [b for _, b in measured], "tok/s out"),
                ]
    which = options.server or "the wheel's server"
    notes = [f"ours: {backend_of(folder)}, {threads} threads; the peer: {which}; {options.pairs} pairs"]
    report("Beside llama.cpp's own server", figures, as_json=options.json, notes=notes)


if __name__ == "__main__":
    sys.exit(main())
