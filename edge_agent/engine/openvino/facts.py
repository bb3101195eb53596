"""What is known of openvino-genai. Its devices' settings: docs.openvino.ai."""

from functools import partial

from edge_agent.engine import context
from edge_agent.engine.facts import MIB, THREADS, UNMEASURED_GPU, Axis, BackendFacts, DeviceFacts, Rates, read_config
from hardware.machine import Kind, Vendor

GROUP_SIZE = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
PRECISION = "INFERENCE_PRECISION_HINT"
KV_PRECISION = "KV_CACHE_PRECISION"

openvino_context = partial(context.bound, longrope=False, window=True)
"""Beyond longrope's original context the exported graph turns *all* tokens of a step by the long factors.

It goes by the greatest position among them: a neighbour's text would change when a long one joins, and keys computed
before, in an earlier piece or found in the cache, were turned by the short ones.
"""

FACTS = BackendFacts(
    load="edge_agent.engine.openvino.load:load",
    guides="edge_agent.engine.openvino.load:guides",
    sees="edge_agent.engine.openvino.devices:devices",
    libraries=("openvino_genai", "openvino"),
    extra="openvino",
    marks=("openvino_language_model.xml", "openvino_model.xml"),
    read=partial(read_config, backend="openvino", weights=".bin", context=openvino_context),
    distributions=("openvino-genai", "openvino"),
    kv_option=KV_PRECISION,
    kv_bytes={"f32": 4.0, "f16": 2.0, "bf16": 2.0, "u8": 1.2, "u4": 0.7},  # with the scales per token and head
    devices={
        "cpu": DeviceFacts(
            # Decode measured on full-size synthetic builds, 2 cores with 43 GB/s: 16.5 of 20 tokens/s.
            efficiency=0.8,
            arm_share=0.5,  # never measured; its 4-bit kernels are made for x86
            # Weights are repacked beside the mapped file, keys and values are 8-bit with a scale per token and head.
            # Predicted / measured: 1.06 and 1.04 with 1,024 and 4,096 tokens (openvino-genai 2026.4: 2368 and
            # 3078 MiB). Of a model that sees, with the repacked weights of its encoder and the library's copy of a
            # prompt, 1.00: 3913 MiB with 4,096 tokens filled by a text and an image of 17 tiles.
            rates=Rates(0.95, 1.2, 60_000, 0, 150 * MIB, encoder_bytes=600 * MIB),
            # the group size of the weights themselves: measured 1.4 to 1.5 times as fast as other sizes
            group_size_option=GROUP_SIZE,
            # "CPU Device" and "Optimizing LLMs": 0 is off, else activations share a scale by so many
            axes=(
                Axis(GROUP_SIZE, ("0", "32", "64", "128")),
                Axis(THREADS),
                Axis(PRECISION, ("bf16",), frozenset({"avx512_bf16", "amx_bf16", "bf16"})),
                Axis(KV_PRECISION),
            ),
            plain={PRECISION: "f32", KV_PRECISION: "f32", GROUP_SIZE: "0"},
        ),
        "gpu": DeviceFacts(
            kind=Kind.GPU,
            vendor=Vendor.INTEL,
            efficiency=0.6,  # published: 39 tokens/s of 66 on a Core Ultra 7 258V
            rates=UNMEASURED_GPU,
            driver="sudo apt install intel-opencl-icd",
            axes=(Axis(GROUP_SIZE, ("0", "32", "128")),),  # "GPU Device": f16 is its own choice, ignored without XMX
            plain={PRECISION: "f32", GROUP_SIZE: "0"},
        ),
        "npu": DeviceFacts(
            kind=Kind.NPU,
            vendor=Vendor.INTEL,
            load="edge_agent.engine.openvino.npu:load",
            # Neither measured nor published for these builds: about half of what the GPU beside it makes of the memory.
            efficiency=0.3,
            # It computes in the machine's memory. Beside the weights room for their repacked copy while they are
            # compiled.
            rates=Rates(2.0, 2.0, 215_000, 0, 700 * MIB),
            driver="install Intel's Linux NPU driver: intel-level-zero-npu, intel-driver-compiler-npu, level-zero",
            compiled_option="CACHE_DIR",  # "OpenVINO GenAI on NPU"
            axes=(Axis("GENERATE_HINT", ("BEST_PERF",)),),  # the same: slower to compile, faster to run
        ),
    },
)
