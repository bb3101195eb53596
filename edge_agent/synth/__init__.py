"""Models of the true Phi-3.5 architecture without a download: any size, random, scripted or trained weights.

For tests, benchmarks and demonstrations. Stands on numpy, and on onnx (extra `synth`) or openvino with
openvino-tokenizers (extra `openvino`) for a model of that kind; without them building one raises ImportError
with the install line.
"""

from edge_agent.synth.demo import build_demo
from edge_agent.synth.shape import FULL, FULL_VISION, TINY, TINY_VISION, Shape
from edge_agent.synth.text import Backend, build_text
from edge_agent.synth.weights import GivenWeights, RandomWeights, ScriptedWeights, Weights

__all__ = [
    "FULL",
    "FULL_VISION",
    "TINY",
    "TINY_VISION",
    "Backend",
    "GivenWeights",
    "RandomWeights",
    "ScriptedWeights",
    "Shape",
    "Weights",
    "build_demo",
    "build_text",
]
