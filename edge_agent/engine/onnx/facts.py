"""What is known of onnxruntime-genai."""

import json
from pathlib import Path

from edge_agent.engine.batching.prefill import LONGROPE_TOKENS
from edge_agent.engine.facts import PLAIN, THREADS, UNMEASURED_GPU, Axis, BackendFacts, Build, DeviceFacts, size_bytes
from edge_agent.engine.onnx.context import context
from hardware.machine import Kind, Vendor


def _read(folder: Path) -> Build:
    model = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
    decoder = model["decoder"]
    values = 2 * decoder["num_hidden_layers"] * decoder["num_key_value_heads"] * decoder["head_size"]
    return Build(
        backend="onnx",
        weight_bytes=size_bytes(folder, ".onnx"),
        kv_values_per_token=values,
        heads=int(decoder["num_attention_heads"]),
        # onnxruntime-genai switches factors for this type, at the length that all its models have in common
        original_context_tokens=LONGROPE_TOKENS - 1 if model["type"].startswith("phi3") else None,
        hidden_size=int(decoder["hidden_size"]) if "vision" in model else None,
        context=context(folder, model),
    )


def _plugged(kind: Kind, vendor: Vendor | None) -> DeviceFacts:
    """Return what is known of a device that a package of the user's brings.

    None was ever run: nothing is expected of them beyond the least of all others.
    """
    mend = "it takes onnxruntime's plugin for that, and the driver; see docs/limits.md"
    return DeviceFacts(kind=kind, vendor=vendor, efficiency=0.3, plugged=True, driver=mend)


FACTS = BackendFacts(
    load="edge_agent.engine.onnx.load:load",
    guides="edge_agent.engine.onnx.guide:guides",
    sees="edge_agent.engine.onnx.devices:devices",
    libraries=("onnxruntime_genai", "onnxruntime", "llguidance"),
    extra="cpu",
    marks=("genai_config.json",),
    read=_read,
    distributions=("onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime", "onnxruntime-gpu"),
    devices={
        "cpu": DeviceFacts(
            # Decode measured on full-size synthetic builds, 2 cores with 43 GB/s: 14.1 of 15.5 tokens/s.
            efficiency=0.9,
            # Weights are repacked, not mapped; keys and values are 32-bit. Predicted / measured: 1.01, 1.02 and 1.00
            # with 1,024, 4,096 and 8,192 tokens of context (onnxruntime-genai 0.18: 3692, 5989 and 10640 MiB). With an
            # image of 16 tiles in 2,543 tokens of Phi-3.5-vision 1.01 (5530 MiB).
            rates=PLAIN,
            axes=(
                Axis(THREADS),
                # onnxruntime.ai, "Thread management": threads that wait for work spin by default; a neighbour may need
                # the core more
                Axis("session.intra_op.allow_spinning", ("0",)),
                Axis("mlas.enable_gemm_fastmath_arm64_bfloat16", ("1",), frozenset({"bf16"}), "aarch64"),
            ),
        ),
        "cuda": DeviceFacts(
            kind=Kind.GPU,
            vendor=Vendor.NVIDIA,
            efficiency=0.6,  # published: 266 tokens/s of 438 on an RTX 4090
            rates=UNMEASURED_GPU,
            driver="install the extra [cuda] in place of [cpu], and NVIDIA's driver for CUDA 13",
            axes=(Axis("enable_cuda_graph", ("1",)),),  # onnxruntime.ai, "CUDA Execution Provider"
        ),
        "gpu": _plugged(Kind.GPU, Vendor.INTEL),
        "npu": _plugged(Kind.NPU, Vendor.INTEL),
        "qnn": _plugged(Kind.NPU, Vendor.QUALCOMM),
        "trt-rtx": _plugged(Kind.GPU, Vendor.NVIDIA),
        "webgpu": _plugged(Kind.GPU, None),
    },
)
