"""Models of the true Phi-3.5 architecture without a download: any size, random, scripted or trained weights.

For tests, benchmarks and demonstrations. Stands on numpy and onnx alone (extra `synth`); without onnx the
import of this package raises ImportError with the install line.
"""

from edge_agent.synth.demo import build_demo
from edge_agent.synth.shape import FULL, TINY, Shape
from edge_agent.synth.text import build_text
from edge_agent.synth.weights import GivenWeights, RandomWeights, ScriptedWeights, Weights

__all__ = [
    "FULL",
    "TINY",
    "GivenWeights",
    "RandomWeights",
    "ScriptedWeights",
    "Shape",
    "Weights",
    "build_demo",
    "build_text",
]
