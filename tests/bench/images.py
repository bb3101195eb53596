"""Jobs with one image, on the folder's backend: tokens and time of an image, and the bare library's time ÷ ours.

The engine is measured behind its contract, without broker and socket. The bare loop runs in a process of its own, as
the library's examples have it: its image processor, the prompt in one call, a token at a time. It cuts every image
into as many tiles as there may be, so the two are compared with 16. Pictures and questions are new each time, so
nothing of an earlier one is reused but where that is measured. A full-size job takes a minute or two.
"""

import hashlib
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from edge_agent.engine import backend
from edge_agent.engine.backend import LoadedModel, ModelSpec
from edge_agent.engine.messages import Failed, Finished, Generation, Image, JobId, Progress, Turn
from edge_agent.images.phi_tiling import TILES_MOST, grid
from hardware.probe import probe
from tests.bench.rig import Figure, arguments, interleave, median, model_folder, report

SIDE_PIXELS = 1200
CONTEXT_TOKENS = 3072
QUESTION = "What is shown in this image?"
ANSWER_S = 600.0


def bare_onnx(folder: Path, threads: int, line: Connection) -> None:
    """Answer questions about PNG files that come over a pipe, with the seconds each took; None ends it."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai as og  # in this process only

    config = og.Config(str(folder))
    settings = {"session_options": {"intra_op_num_threads": threads}}
    config.overlay(json.dumps({"model": {"decoder": settings, "vision": settings}}))
    model = og.Model(config)
    processor, tokenizer = model.create_multimodal_processor(), og.Tokenizer(model)
    line.send(None)
    while (asked := line.recv()) is not None:
        encoded, most = asked
        begun_s = time.monotonic()
        chat = json.dumps([{"role": "user", "content": f"<|image_1|>\n{QUESTION}"}])
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(prompt, images=og.Images.open_bytes(encoded))
        parameters = og.GeneratorParams(model)
        tokens = inputs["input_ids"].shape()[-1]
        parameters.set_search_options(max_length=tokens + most, do_sample=False)
        generator, stream = og.Generator(model, parameters), tokenizer.create_stream()
        generator.set_inputs(inputs)
        first_s = time.monotonic()
        while not generator.is_done():
            generator.generate_next_token()
            stream.decode(int(generator.get_next_tokens()[0]))
        line.send((time.monotonic() - begun_s, first_s - begun_s, tokens))


def bare_openvino(folder: Path, threads: int, line: Connection) -> None:
    """Do the same with the library's pipeline, in one call; 32-bit floats, as the engine computes."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # nobody is told of it
    import openvino_genai as genai  # in this process only
    from openvino import Tensor

    pipeline = genai.VLMPipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32", INFERENCE_NUM_THREADS=threads)
    pipeline.generate("Hello", max_new_tokens=4)  # as an engine does before it is ready
    line.send(None)
    while (asked := line.recv()) is not None:
        encoded, most = asked
        begun_s = time.monotonic()
        shown = Tensor(np.asarray(Pillow.open(io.BytesIO(encoded))).copy())
        answer = pipeline.generate(QUESTION, images=[shown], max_new_tokens=most, do_sample=False)
        figures = answer.perf_metrics
        line.send((time.monotonic() - begun_s, figures.get_ttft().mean / 1000, figures.get_num_input_tokens()))


BARE = {"onnx": bare_onnx, "openvino": bare_openvino}
BEGINNINGS = 4
"""openvino-genai begins each text between images with <s>, and the engine does not."""


class Bare:
    """The bare loop in its process."""

    def __init__(self, folder: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(
            target=BARE[backend.backend_of(folder)], args=(folder, threads, theirs), name="bare", daemon=True
        )
        self._process.start()
        self._recv()

    def _recv(self):
        if not self._line.poll(ANSWER_S):
            raise TimeoutError(f"the bare loop said nothing for {ANSWER_S:.0f} s")
        return self._line.recv()

    def run(self, picture: Pillow.Image, answer_tokens: int) -> tuple[float, float, int]:
        file = io.BytesIO()
        picture.save(file, "PNG")
        self._line.send((file.getvalue(), answer_tokens))
        return self._recv()

    def close(self) -> None:
        self._line.send(None)
        self._process.join(10)


class Engine:
    """The backend, and a folder for the images it is given."""

    def __init__(self, model: LoadedModel, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._jobs = 0
        model.start(Generation(JobId("warm-up"), (Turn("user", "Hello"),), 4))  # as the child does before it is ready
        while list(model.step()):
            pass

    def run(self, picture: Pillow.Image, answer_tokens: int, *, tiles: int) -> tuple[float, float, Finished]:
        """Run a job; return its seconds, those of computing its prompt's pieces, and how it ended."""
        self._jobs += 1
        pixels = picture.tobytes()
        (self._folder / f"{self._jobs}.rgb").write_bytes(pixels)
        begun_s = time.monotonic()
        image = Image(str(self._folder / f"{self._jobs}.rgb"), hashlib.sha256(pixels).hexdigest(), *picture.size, tiles)
        turns = (Turn("user", QUESTION, (image,)),)
        self._model.start(Generation(JobId(f"{self._jobs}.1"), turns, answer_tokens))
        pieces_ms = 0.0
        while True:
            for event in self._model.step():
                match event:
                    case Progress():
                        pieces_ms += event.prefill_ms
                    case Finished():
                        return time.monotonic() - begun_s, pieces_ms / 1000, event
                    case Failed():
                        raise RuntimeError(event.message)


def picture(seed: int) -> Pillow.Image:
    """Return a picture like no other: few large pixels, blurred."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    return Pillow.fromarray(pixels).resize((SIDE_PIXELS, SIDE_PIXELS), Pillow.Resampling.BICUBIC)


def image_figures(engine: Engine, tiles: int, rounds: int) -> list[Figure]:
    """Measure images that may be cut into so many tiles."""
    looked, prompts = [], []
    for seed in range(rounds):
        _, pieces_s, end = engine.run(picture(100 * tiles + seed), 1, tiles=tiles)
        looked.append(end.prompt_ms / 1000 - pieces_s)
        prompts.append(pieces_s)
    seconds, _, again = engine.run(picture(100 * tiles + rounds - 1), 1, tiles=tiles)
    cut = grid(SIDE_PIXELS, SIDE_PIXELS, tiles=tiles)
    name = f"{cut.rows} x {cut.columns} tiles"
    return [
        Figure(f"{name}: tokens of the image", cut.tokens, f"of {again.usage.prompt_tokens}"),
        median(f"{name}: looking at it", looked, "s"),
        median(f"{name}: the prompt's pieces", prompts, "s"),
        Figure(f"{name}: all of it when known", seconds, f"s, {again.usage.cached_tokens} tokens reused"),
    ]


def main() -> None:
    options = arguments(
        __doc__, model="full-vision", tiles="1,4", rounds=1, tokens=16, pairs=1, threads=probe().cpu.granted_cores
    ).parse_args()
    folder = model_folder(options.model)
    name = backend.backend_of(folder)
    spec = ModelSpec(folder, name, CONTEXT_TOKENS, 1, options.threads)
    with (
        closing(backend.find(name)(spec)) as model,
        closing(Bare(folder, options.threads)) as alone,
        tempfile.TemporaryDirectory(prefix="edge-agent-bench-") as images,
    ):
        engine = Engine(model, Path(images))
        figures = [
            figure
            for tiles in filter(None, options.tiles.split(","))
            for figure in image_figures(engine, int(tiles), options.rounds)
        ]
        ends: list[Finished] = []
        firsts: list[float] = []

        def ours(pair: int) -> float:
            seconds, _, end = engine.run(picture(9000 + pair), options.tokens, tiles=TILES_MOST)
            ends.append(end)
            return seconds

        def theirs(pair: int) -> float:
            seconds, first_s, tokens = alone.run(picture(9000 + pair), options.tokens)
            firsts.append(first_s)
            if ends and abs(tokens - ends[0].usage.prompt_tokens) > BEGINNINGS:
                raise RuntimeError("the two were not asked the same")
            return seconds

        measured = interleave(options.pairs, ours, theirs)
    figures += [
        median("bare library's time ÷ ours, 4 x 4 tiles", [its / our for our, its in measured], "", at_least=0.98),
        median("a job of ours", [our for our, _ in measured], "s"),
        median("… its prompt", [end.prompt_ms / 1000 for end in ends], "s"),
        median("a job of the bare library's", [its for _, its in measured], "s"),
        median("… its prompt", firsts, "s"),
    ]
    notes = [f"{folder}, {options.threads} threads, {options.pairs} pairs of {ends[0].usage.prompt_tokens} tokens"]
    report(f"Jobs with an image on the {name} backend", figures, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
