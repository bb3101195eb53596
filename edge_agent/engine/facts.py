"""What is known of a backend without loading it: the record that each keeps in its folder's facts.py.

Everybody else asks registry.py for these records. Whoever adds a backend writes one, and one line there.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_agent.engine.context import ContextBound, original_tokens
from hardware.machine import Accelerator, Kind, Machine, Vendor

MIB = 2**20
THREADS = "threads"
"""Among settings, the number of compute threads: libraries name it differently, ModelSpec has a field for it."""


@dataclass(frozen=True, slots=True)
class Build:
    """The numbers of a build that decide about memory.

    kv_values_per_token: keys and values of one token over all layers. original_context_tokens: where longrope changes
    its factors, None for plain rope. hidden_size: width of a token inside the model, where it sees images.
    kv_bytes_per_value: of the cache, where a setting says so; None: see Rates. context: the longest text that the
    backend computes right; None where nobody looked.
    """

    backend: str
    weight_bytes: int
    kv_values_per_token: int
    heads: int
    original_context_tokens: int | None = None
    hidden_size: int | None = None
    kv_bytes_per_value: float | None = None
    context: ContextBound | None = None


@dataclass(frozen=True, slots=True)
class Rates:
    """How a backend turns a build into memory on one kind of device.

    weights_factor: bytes held per byte of file. kv_bytes_per_value: of the cache, with its share of scales.
    token_bytes: activations and logits per token of a piece of prompt. score_bytes: per head, query and key of a
    piece; 0 where attention never holds them all. overhead_bytes: interpreter, library, tokenizer. encoder_bytes:
    activations of an image encoder over a strip of tiles, and pixels; with onnxruntime strips of 2 or 3 tiles.
    host_bytes: of the machine's memory, where the rest lies in memory of the device's own.
    """

    weights_factor: float
    kv_bytes_per_value: float
    token_bytes: int
    score_bytes: float
    overhead_bytes: int
    encoder_bytes: int = 200 * MIB
    host_bytes: int = 0


PLAIN = Rates(1.0, 4.0, 215_000, 1.7, 168 * MIB)
"""Those of onnxruntime on the processor, assumed where nobody measured: weights once, keys and values in 32 bits."""
UNMEASURED_GPU = Rates(1.05, 2.0, 215_000, 0, 700 * MIB, host_bytes=1500 * MIB)
"""Never measured here: sizes in 16 bits as the builds' configurations say, and room for the driver's context."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting of a library and the values worth trying in place of the one in use.

    No `values`: the calibration has them, of threads and of the precision of the cache. Worth trying only on
    processors that have one of the `flags` and are of an `architecture`, where these are given.
    """

    option: str
    values: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()
    architecture: str = ""

    def fits(self, machine: Machine) -> bool:
        """Return whether it is worth trying on a machine."""
        cpu = machine.cpu
        return (not self.flags or bool(self.flags & frozenset(cpu.flags or ()))) and (
            self.architecture in {"", cpu.architecture}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """How a backend drives one device.

    kind, vendor: the accelerator that it means by the device's name; no kind is the processor, no vendor anybody's.
    efficiency: share of the memory's speed that it makes use of; None: no build is chosen for it, what a folder holds
    runs there all the same. arm_share: what is expected on Arm beside x86.
    plugged: reached by packages that users install themselves: used where one is, never presumed.
    driver: what mends that the library does not see an accelerator which the kernel sees.
    load: `module:function` where the library drives it in another way than its other devices.
    group_size_option: the setting that is to be the group size of a build's weights.
    compiled_option: the setting that names a folder for what the library compiles, where that takes minutes.
    axes: what a calibration tries, what gains most first. plain: the settings of plain arithmetic, whose texts others
    are compared with; None where it is the default.
    """

    kind: Kind | None = None
    vendor: Vendor | None = None
    efficiency: float | None = None
    arm_share: float = 1.0
    rates: Rates = PLAIN
    plugged: bool = False
    driver: str = ""
    load: str = ""
    group_size_option: str = ""
    compiled_option: str = ""
    axes: tuple[Axis, ...] = ()
    plain: Mapping[str, str] | None = None

    def means(self, accelerator: Accelerator) -> bool:
        """Return whether it stands for an accelerator."""
        return accelerator.kind == self.kind and self.vendor in {None, accelerator.vendor}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendFacts:
    """A backend. What is loaded stands as `module:function`: its library is not imported for the rest.

    load: takes a ModelSpec and returns a LoadedModel. devices: by the names that settings and builds use.
    libraries: packages whose absence means that it is not installed; `extra` brings them.
    marks: patterns of files, one of which lies in every folder for it and in none for those before it.
    file_suffix: of a model that is one file, which may be named in place of its folder.
    guides: returns the Follower of a path as its engine has it; empty for one that compiles nothing on this device.
    sees: yields the devices that the library can use, as {"device", "name", "memory_bytes"}; empty: the processor.
    read: the numbers of a folder. Raises OSError, ValueError, KeyError, TypeError or EdgeAgentError for any other.
    distributions: those whose versions decide how fast it is.
    kv_option, kv_bytes: the setting for the numbers in the cache of keys and values, and the bytes of each precision.
    """

    load: str
    devices: Mapping[str, DeviceFacts] = field(default_factory=lambda: {"cpu": DeviceFacts()})
    libraries: tuple[str, ...] = ()
    extra: str = ""
    marks: tuple[str, ...] = ()
    file_suffix: str = ""
    guides: str = ""
    sees: str = ""
    read: Callable[[Path], Build] | None = None
    distributions: tuple[str, ...] = ()
    kv_option: str = ""
    kv_bytes: Mapping[str, float] = field(default_factory=dict)


def read_config(
    folder: Path, backend: str, *, weights: str, context: Callable[[Mapping[str, Any]], ContextBound]
) -> Build:
    """Return the numbers of a folder with a config.json of Hugging Face's; `weights` stands in the names of its files.

    `context` bounds the text by what stands there. Raises OSError, ValueError, KeyError or TypeError when it has none.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads = int(config["num_attention_heads"])
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    values = 2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * head_size
    return Build(
        backend=backend,
        weight_bytes=size_bytes(folder, weights),
        kv_values_per_token=values,
        heads=heads,
        original_context_tokens=original_tokens(config),
        hidden_size=int(config["hidden_size"]) if config.get("model_type") == "phi3_v" else None,
        context=context(config),
    )


def size_bytes(folder: Path, mark: str) -> int:
    """Return the size of a folder's files with a mark in their names."""
    return sum(file.stat().st_size for file in folder.iterdir() if mark in file.name)
