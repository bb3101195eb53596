"""What is known of llama.cpp, by xllamacpp."""

from pathlib import Path

from edge_agent.engine.facts import MIB, THREADS, Axis, BackendFacts, Build, DeviceFacts, Rates
from edge_agent.engine.llamacpp.gguf import gguf_file, read_facts


def _read(path: Path) -> Build:
    file = gguf_file(path)
    facts = read_facts(file)

    def number(name: str, default: int | None = None) -> int:
        return int(facts.get(f"{facts['general.architecture']}.{name}", default))  # type: ignore[arg-type] # TypeError

    heads = number("attention.head_count")
    head_size = number("embedding_length") // heads
    key_size, value_size = (number(f"attention.{kind}_length", head_size) for kind in ("key", "value"))
    kv_heads = number("attention.head_count_kv", heads)
    return Build(
        backend="llamacpp",
        weight_bytes=file.stat().st_size,
        kv_values_per_token=number("block_count") * kv_heads * (key_size + value_size),
        heads=heads,
    )


FACTS = BackendFacts(
    load="edge_agent.engine.llamacpp.load:load",
    guides="edge_agent.engine.llamacpp.load:guides",
    libraries=("xllamacpp", "llguidance"),
    extra="llamacpp",
    marks=("*.gguf",),
    file_suffix=".gguf",
    read=_read,
    distributions=("xllamacpp",),
    devices={
        "cpu": DeviceFacts(
            # Linear layers are repacked, the embedding stays mapped; keys and values are 16-bit, attention holds all
            # scores. Predicted / measured: 1.06 with 1,024 tokens, in small pieces (xllamacpp 2026.10.11549: 2443 MiB).
            rates=Rates(0.92, 2.0, 150_000, 4.0, 60 * MIB),
            axes=(Axis(THREADS),),
        )
    },
)
