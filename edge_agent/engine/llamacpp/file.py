"""A GGUF file in memory: its weights, its tokenizer, its chat template."""

import ctypes
import re
import weakref
from collections.abc import Sequence
from pathlib import Path

import llguidance

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.batching.lane_parts import Prompt
from edge_agent.engine.llamacpp.library import ChatMessage, Library
from edge_agent.engine.messages import Turn
from edge_agent.engine.text.detokenizer import Vocabulary
from edge_agent.engine.text.prompt import SpecialTokens, images_of, messages

_UNKNOWN, _CONTROL, _USER_DEFINED = 1 << 0, 1 << 3, 1 << 4
"""Attributes of tokens, llama.h's numbers."""
_FACT_BYTES = 256
_PIECE_BYTES = 4096
_ORIGINAL_CONTEXT = "phi3.rope.scaling.original_context_length"
_SWALLOWED = re.compile(r"(<\|assistant\|>|</s>)\s+")
"""Phi-3.5's tokenizer takes no token for white space there. A GGUF file does not tell, and llama.cpp takes one."""


class GgufFile:
    """Weights and words of a model, or its `words_only`; it makes prompts, see lane_parts.Prompts.

    Raises EdgeAgentError MODEL_ERROR, OUT_OF_MEMORY, UNSUPPORTED for what is no decoder or has another chat template.
    """

    def __init__(self, library: Library, path: Path, *, words_only: bool = False) -> None:
        self.library = library
        self._call = library.functions
        params = self._call.llama_model_default_params()
        params.n_gpu_layers = 0
        params.vocab_only = words_only
        with library.telling(f"{path} cannot be loaded"):
            self.model = library.held(self._call.llama_model_load_from_file(str(path).encode(), params))
        weakref.finalize(self, self._call.llama_model_free, self.model)
        self._vocab = self._call.llama_model_get_vocab(self.model)
        self._template = self._call.llama_model_chat_template(self.model, None)
        tokens = range(self._call.llama_vocab_n_tokens(self._vocab))
        self.vocab_size = len(tokens)
        self.end_ids = frozenset(each for each in tokens if self._call.llama_vocab_is_eog(self._vocab, each))
        self._obeyed = {each: self._text(each) for each in tokens if self._is_obeyed(each)}
        self._pieces = {each: b"" if each in self._obeyed else self._piece(each) for each in tokens}
        self.vocabulary = Vocabulary(self._pieces)
        self._special_tokens = SpecialTokens(text.decode(errors="replace") for text in self._obeyed.values())
        self._check(path)

    @property
    def context_tokens(self) -> int:
        """How long a sequence may be.

        With longrope it is the original context: llama.cpp chooses the factors by the room there is, not by the
        length reached, so with more of it even short texts would be turned by the long ones.
        """
        original = self._fact(_ORIGINAL_CONTEXT)
        trained = int(self._call.llama_model_n_ctx_train(self.model))
        return min(trained, int(original)) if original else trained

    def encode(self, turns: Sequence[Turn]) -> Prompt:
        """Return the tokens of a conversation. Raises EdgeAgentError BAD_REQUEST for a role, UNSUPPORTED for images."""
        images_of(turns, most=0)
        said = [
            ChatMessage(each["role"].encode(), each["content"].encode(errors="replace"))
            for each in messages(turns, self._special_tokens)
        ]
        prompt = _SWALLOWED.sub(r"\1", self._templated(said)).encode()
        tokens = (ctypes.c_int32 * (len(prompt) + 2))()  # a token has a byte at least; <s>, and the space before a text
        count = self._call.llama_tokenize(self._vocab, prompt, len(prompt), tokens, len(tokens), True, True)
        return Prompt(tokens[:count])

    def guide_tokens(self) -> llguidance.LLTokenizer:
        """Return the vocabulary as the library that follows guides wants it."""
        marked = [
            b"\xff" + self._obeyed[number] if number in self._obeyed else piece
            for number, piece in self._pieces.items()
        ]
        tokenize = ctypes.cast(self._call.llama_tokenize, ctypes.c_void_p).value
        made: llguidance.LLTokenizer = llguidance.LLTokenizer.from_llamacpp(  # type: ignore[attr-defined] # it is there
            tokens=marked, vocab_ptr=self._vocab, tokenize_fptr=tokenize, eos_token=sorted(self.end_ids), slices=None
        )
        return made

    def _check(self, path: Path) -> None:
        call = self._call
        if any(
            kind(self.model)
            for kind in (call.llama_model_has_encoder, call.llama_model_is_recurrent, call.llama_model_is_hybrid)
        ):
            what = "it is no plain decoder"
        elif self._template is None or not self._templated([ChatMessage(b"user", b"?")]):
            what = "its chat template is missing, or none that llama.cpp knows"
        else:
            return
        raise EdgeAgentError(Code.UNSUPPORTED, f"{path} cannot be used: {what}; choose another build")

    def _templated(self, said: Sequence[ChatMessage]) -> str:
        """Return a conversation as the model reads it; nothing when its template is unknown."""
        chat = (ChatMessage * len(said))(*said)
        length = self._call.llama_chat_apply_template(self._template, chat, len(said), True, None, 0)
        text = ctypes.create_string_buffer(max(0, length) + 1)
        self._call.llama_chat_apply_template(self._template, chat, len(said), True, text, len(text))
        return text.value.decode()

    def _fact(self, key: str) -> str:
        """Return a fact of the file; nothing when it is not there."""
        text = ctypes.create_string_buffer(_FACT_BYTES)
        self._call.llama_model_meta_val_str(self.model, key.encode(), text, len(text))
        return text.value.decode()

    def _is_obeyed(self, token: int) -> bool:
        attributes = self._call.llama_vocab_get_attr(self._vocab, token)
        if attributes & _USER_DEFINED:  # some conversions call control tokens so
            return self._text(token).startswith(b"<|")
        return bool(attributes & (_UNKNOWN | _CONTROL))

    def _text(self, token: int) -> bytes:
        text: bytes = self._call.llama_vocab_get_text(self._vocab, token)
        return text

    def _piece(self, token: int) -> bytes:
        piece = ctypes.create_string_buffer(_PIECE_BYTES)
        count = self._call.llama_token_to_piece(self._vocab, token, piece, len(piece), 0, False)
        return piece.raw[: max(0, count)]
