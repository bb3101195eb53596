"""llama.cpp's C interface (llama.h), out of the shared library that the package xllamacpp brings.

The package's own classes are a server with threads and a queue of its own; this interface is one call per step. The
package promises nothing about it. So no other version is called than the one that was tried, and the layout of what is
passed by value is checked against the library's own defaults: it may differ between machines.
"""

import ctypes
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int32, c_uint32, c_void_p
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge_agent.base.errors import Code, EdgeAgentError

PACKAGE = "xllamacpp"
VERSION = "2026.10.11549"
"""The one whose header and layouts were looked at; pyproject.toml names it too."""
_SETTINGS = {
    "GGML_NO_BACKTRACE": "1",  # it would start a debugger to say where it died
    # Threads that wait for one another spin by default, some hundred times a token. Where a neighbour had the core of
    # the one that was waited for, that made decoding five times slower.
    "OMP_WAIT_POLICY": "passive",
}
_ERROR = 4
"""The level of errors in the library's log."""
_SAID_CHARACTERS = 200
_ALLOCATION = ("alloc", "out of memory")


class ModelParams(Structure):
    """llama_model_params."""

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        *((name, c_bool) for name in ("vocab_only", "check_tensors", "use_extra_bufts", "no_host", "no_alloc", "mtp")),
    )


class ContextParams(Structure):
    """llama_context_params."""

    _fields_ = (
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type")),
        *((name, c_int32) for name in ("pooling_type", "attention_type", "flash_attn_type")),
        *((name, c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor")),
        *((name, c_float) for name in ("yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("moe_cache_size", ctypes.c_size_t),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        *((name, c_bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified")),
        ("samplers", c_void_p),
        ("n_samplers", ctypes.c_size_t),
        ("ctx_other", c_void_p),
    )


class Batch(Structure):
    """llama_batch: tokens, each with its position and its sequence, and whether its logits are wanted."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    )


_DEFAULTS: Mapping[type[Structure], Mapping[str, float]] = {
    ModelParams: {"split_mode": 1, "load_mode": -1, "lazy_mode": 1, "use_extra_bufts": 1, "mtp": 0},
    ContextParams: {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max_per_seq": 1}
    | {"n_threads": 4, "flash_attn_type": -1, "yarn_beta_slow": -1, "defrag_thold": -1, "type_k": 1, "type_v": 1}
    | {"embeddings": 0, "offload_kqv": 1, "no_perf": 1, "op_offload": 1, "swa_full": 1, "kv_unified": 0},
}
"""What the library gives for a number, by which another layout is noticed."""
_LOG = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
_FUNCTIONS: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (_LOG, c_void_p)),
    "llama_model_default_params": (ModelParams, ()),
    "llama_model_load_from_file": (c_void_p, (c_char_p, ModelParams)),
    "llama_model_free": (None, (c_void_p,)),
    "llama_model_get_vocab": (c_void_p, (c_void_p,)),
    "llama_model_n_ctx_train": (c_int32, (c_void_p,)),
    "llama_model_has_encoder": (c_bool, (c_void_p,)),
    "llama_model_is_recurrent": (c_bool, (c_void_p,)),
    "llama_model_is_hybrid": (c_bool, (c_void_p,)),
    "llama_model_meta_val_str": (c_int32, (c_void_p, c_char_p, c_char_p, ctypes.c_size_t)),
    "llama_model_chat_template": (c_char_p, (c_void_p, c_char_p)),
    "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
    "llama_vocab_get_attr": (c_int32, (c_void_p, c_int32)),
    "llama_vocab_get_text": (c_char_p, (c_void_p, c_int32)),
    "llama_vocab_bos": (c_int32, (c_void_p,)),
    "llama_vocab_eos": (c_int32, (c_void_p,)),
    "llama_vocab_is_eog": (c_bool, (c_void_p, c_int32)),
    "llama_token_to_piece": (c_int32, (c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool)),
    "llama_tokenize": (c_int32, (c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool)),
    "llama_context_default_params": (ContextParams, ()),
    "llama_init_from_model": (c_void_p, (c_void_p, ContextParams)),
    "llama_free": (None, (c_void_p,)),
    "llama_get_memory": (c_void_p, (c_void_p,)),
    "llama_memory_seq_rm": (c_bool, (c_void_p, c_int32, c_int32, c_int32)),
    "llama_state_seq_get_size": (ctypes.c_size_t, (c_void_p, c_int32)),
    "llama_state_seq_get_data": (ctypes.c_size_t, (c_void_p, c_void_p, ctypes.c_size_t, c_int32)),
    "llama_state_seq_set_data": (ctypes.c_size_t, (c_void_p, c_void_p, ctypes.c_size_t, c_int32)),
    "llama_decode": (c_int32, (c_void_p, Batch)),
    "llama_get_logits_ith": (POINTER(c_float), (c_void_p, c_int32)),
}


class Library:
    """The library's functions by their names, and the last error that it wrote into its log."""

    def __init__(self, path: Path) -> None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        self.said = ""
        self.functions: Any = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self.functions, name)
            function.restype, function.argtypes = result, arguments
        self._listener = _LOG(self._listen)
        self.functions.llama_log_set(self._listener, None)
        self.functions.llama_backend_init()

    def _listen(self, level: int, text: bytes, _data: None) -> None:
        if level == _ERROR:
            self.said = text.decode(errors="replace").strip()[:_SAID_CHARACTERS]

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """Turn what a call that failed left in the log into our error."""
        self.said = ""
        try:
            yield
        except _FailedError:
            said = self.said or "no reason"
            memory = any(sign in said for sign in _ALLOCATION)
            code = Code.OUT_OF_MEMORY if memory else Code.MODEL_ERROR
            raise EdgeAgentError(code, f"{what}: llama.cpp said: {said}") from None

    @staticmethod
    def held(pointer: int | None) -> int:
        """Return a pointer that a call gave; without one it has failed, see `telling`."""
        if not pointer:
            raise _FailedError
        return pointer


class _FailedError(Exception):
    """A call of the library gave nothing."""


@cache
def library() -> Library:
    """Return the library; it is loaded once in a process.

    Raises ModuleNotFoundError without the package, EdgeAgentError UNSUPPORTED for one whose interface is another.
    """
    found = importlib.util.find_spec(PACKAGE)  # its own modules are of no use here, and take time to import
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {PACKAGE!r}", name=PACKAGE)
    path = next(Path(found.submodule_search_locations[0]).glob(f"{PACKAGE}.*so"))
    other = EdgeAgentError(
        Code.UNSUPPORTED,
        f"llama.cpp's interface in {PACKAGE} {version(PACKAGE)} is not the one known here; "
        f"install the other with: pip install {PACKAGE}=={VERSION}",
    )
    if version(PACKAGE) != VERSION:
        raise other
    try:
        loaded = Library(path)
    except AttributeError as error:  # a function is not there
        raise other from error
    except OSError as error:
        raise EdgeAgentError(
            Code.UNSUPPORTED, f"llama.cpp cannot be loaded ({error}); install libgomp (apt-get install libgomp1)"
        ) from error
    given = (loaded.functions.llama_model_default_params(), loaded.functions.llama_context_default_params())
    if any(getattr(each, name) != value for each in given for name, value in _DEFAULTS[type(each)].items()):
        raise other
    return loaded


def library_name() -> str:
    """Return the package and its version."""
    return f"{PACKAGE} {version(PACKAGE)}"
