"""What the matrix products of a model cost in OpenVINO: by tokens per call, by how weights share scales, by their kind.

A few layers of Phi-3.5-mini without their attention, of random weights: more than any cache of a processor holds, so
that one token per call shows the memory's speed and many show the arithmetic. Each row tells the milliseconds that all
32 layers would take, and `of memory's speed` how fast their bytes came beside a plain maximum over as much memory.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from edge_agent.synth import FULL
from hardware.probe import probe
from tests.bench.rig import Figure, arguments, report

LAYERS = 4
CALLS = 9
"""Of each kind; the median counts."""
SCALE = 0.01
HALF = np.float16


@dataclass(frozen=True, slots=True)
class Kind:
    """How weights are kept: `group` share a scale, 0 for all of a row; without `zeros` they are symmetric (i4)."""

    group: int
    zeros: bool

    def __str__(self) -> str:
        return f"{'u4 with zero points' if self.zeros else 'i4'}, groups of {self.group or 'a row'}"


def product(
    source: ov.Node, kind: Kind, rows: int, columns: int, random: np.random.Generator, held: list[np.ndarray]
) -> ov.Node:
    """Return source x weights; `held` gets their arrays, which OpenVINO reads and does not keep."""
    group = kind.group or columns
    blocks = columns // group
    packed = random.integers(0, 256, rows * columns // 2, np.uint8)
    four = ov.Type.u4 if kind.zeros else ov.Type.i4
    weights = ops.convert(ops.constant(ov.Tensor(packed, ov.Shape((rows, blocks, group)), four)), "f16")
    scale = np.full((rows, blocks, 1), SCALE, HALF)
    held += [packed, scale]
    if kind.zeros:
        eights = np.full(rows * blocks // 2, 0x88, np.uint8)
        held.append(eights)
        zeros = ops.constant(ov.Tensor(eights, ov.Shape((rows, blocks, 1)), four))
        weights = ops.subtract(weights, ops.convert(zeros, "f16"))
    flat = ops.reshape(
        ops.multiply(weights, ops.constant(scale)), ops.constant(np.array([rows, columns])), special_zero=False
    )
    return ops.matmul(source, ops.convert(flat, "f32"), transpose_a=False, transpose_b=True)


def build(kind: Kind) -> tuple[ov.Model, list[np.ndarray]]:
    """Return a model of LAYERS layers, and its weights, which must live as long."""
    random, held = np.random.default_rng(0), []
    hidden, inner = FULL.hidden_size, FULL.mlp_size
    tokens = ops.parameter(ov.PartialShape([-1, hidden]), ov.Type.f32, name="tokens")
    stream = tokens
    for _ in range(LAYERS):
        wide = product(stream, kind, 3 * hidden, hidden, random, held)
        begin, end, step, axis = (ops.constant(np.array([number])) for number in (0, hidden, 1, 1))
        out = product(ops.slice(wide, begin, end, step, axis), kind, hidden, hidden, random, held)
        gate, up = ops.split(product(out, kind, 2 * inner, hidden, random, held), ops.constant(1), 2).outputs()
        down = product(ops.multiply(ops.swish(gate), up), kind, hidden, inner, random, held)
        stream = ops.tanh(down)  # keeps the numbers small
    return ov.Model([stream], [tokens], "layers"), held


def memory_bytes_per_s(size_bytes: int, threads: int) -> float:
    """Return how fast a plain maximum over so many bytes reads them, by as many threads."""
    parts = np.array_split(np.ones(size_bytes // 8, np.int64), threads)
    took = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(CALLS):
            began_s = time.perf_counter()
            list(pool.map(np.max, parts))
            took.append(time.perf_counter() - began_s)
    return size_bytes / median(took)


def took_ms(request: ov.InferRequest, counts: Sequence[int]) -> dict[int, float]:
    """Return the median of CALLS calls for each number of tokens, in turns, after one that prepares its shape."""
    given = {tokens: np.ones((tokens, FULL.hidden_size), np.float32) for tokens in counts}
    took: dict[int, list[float]] = {tokens: [] for tokens in counts}
    for _ in range(CALLS + 1):
        for tokens, values in given.items():
            began_s = time.perf_counter()
            request.infer([values])
            took[tokens].append((time.perf_counter() - began_s) * 1000)
    return {tokens: median(each[1:]) for tokens, each in took.items()}


def main() -> None:
    granted = probe().cpu.granted_cores
    options = arguments(__doc__, threads=granted, groups="32,128,0", tokens="1,3,8,16,32,128").parse_args()
    kinds = [Kind(int(group), zeros) for group in options.groups.split(",") for zeros in (True, False)]
    counts = [int(each) for each in options.tokens.split(",")]
    figures: list[Figure] = []
    for kind in kinds:
        model, held = build(kind)
        weight_bytes = sum(each.nbytes for each in held)
        memory = memory_bytes_per_s(weight_bytes, options.threads)
        for activations in sorted({0, kind.group or FULL.hidden_size}):
            settings = {
                "INFERENCE_NUM_THREADS": options.threads,
                "INFERENCE_PRECISION_HINT": "f32",
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(activations),
            }
            request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
            name = f"{kind}, activations {f'int8 in groups of {activations}' if activations else 'in f32'}"
            for tokens, ms in took_ms(request, counts).items():
                figures.append(Figure(f"{name}: {tokens} tokens", ms * FULL.layers / LAYERS, "ms"))
                if tokens == 1:
                    share = weight_bytes / (ms / 1000) / memory
                    figures.append(Figure(f"{name}: of memory's {memory / 1e9:.0f} GB/s", share, ""))
            del request
    report("Matrix products of a model", figures, as_json=options.json, notes=[f"{options.threads} threads"])


if __name__ == "__main__":
    main()
