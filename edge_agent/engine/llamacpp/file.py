"""A GGUF file in memory: its weights, its tokenizer, its chat template."""

import ctypes
import weakref
from pathlib import Path

import llguidance

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.llamacpp.gguf_tokenizer import CONTROL, UNKNOWN, USER_DEFINED, GgufTokenizer
from edge_agent.engine.llamacpp.library import Library
from edge_agent.engine.text.chat_template import ChatTemplate
from edge_agent.engine.text.detokenizer import Vocabulary
from edge_agent.engine.text.prompt import PromptMaker

_FACT_BYTES = 256
_PIECE_BYTES = 4096
_ORIGINAL_CONTEXT = "phi3.rope.scaling.original_context_length"


class GgufFile:
    """Weights and words of a model, or its `words_only`.

    Raises EdgeAgentError MODEL_ERROR, OUT_OF_MEMORY, UNSUPPORTED for what is no decoder.
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
        tokens = range(self._call.llama_vocab_n_tokens(self._vocab))
        self.vocab_size = len(tokens)
        self.end_ids = frozenset(each for each in tokens if self._call.llama_vocab_is_eog(self._vocab, each))
        self._obeyed = {each: self._text(each) for each in tokens if self._is_obeyed(each)}
        self._pieces = {each: b"" if each in self._obeyed else self._piece(each) for each in tokens}
        self.vocabulary = Vocabulary(self._pieces)
        self._check(path)
        self._path = path

    @property
    def context_tokens(self) -> int:
        """How long a sequence may be.

        With longrope it is the original context: llama.cpp chooses the factors by the room there is, not by the
        length reached, so with more of it even short texts would be turned by the long ones.
        """
        original = self._fact(_ORIGINAL_CONTEXT)
        trained = int(self._call.llama_model_n_ctx_train(self.model))
        return min(trained, int(original)) if original else trained

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
        kinds = (call.llama_model_has_encoder, call.llama_model_is_recurrent, call.llama_model_is_hybrid)
        if any(kind(self.model) for kind in kinds):
            raise EdgeAgentError(
                Code.UNSUPPORTED, f"{path} cannot be used: it is no plain decoder; choose another build"
            )

    def prompts(self) -> PromptMaker:
        """Return what makes prompts, by the file's own template and vocabulary; it holds the file.

        Raises EdgeAgentError MODEL_ERROR for a template that cannot be read.
        """
        told = {each: self._call.llama_vocab_get_attr(self._vocab, each) for each in range(self.vocab_size)}
        kinds = UNKNOWN | CONTROL | USER_DEFINED
        added = {each: attributes for each, attributes in told.items() if attributes & kinds}
        words = GgufTokenizer(self, self._vocab, added, architecture=self._fact("general.architecture"))
        source = self._call.llama_model_chat_template(self.model, None)
        ends = {"bos_token": self._call.llama_vocab_bos, "eos_token": self._call.llama_vocab_eos}
        numbers = {name: number(self._vocab) for name, number in ends.items()}
        tokens = {name: self._text(number).decode(errors="replace") for name, number in numbers.items() if number >= 0}
        try:
            return PromptMaker(None if source is None else ChatTemplate(source.decode(errors="replace"), tokens), words)
        except EdgeAgentError as error:
            raise EdgeAgentError(error.code, f"{self._path} cannot be used: {error.message}") from error

    def _fact(self, key: str) -> str:
        """Return a fact of the file; nothing when it is not there."""
        text = ctypes.create_string_buffer(_FACT_BYTES)
        self._call.llama_model_meta_val_str(self.model, key.encode(), text, len(text))
        return text.value.decode()

    def _is_obeyed(self, token: int) -> bool:
        attributes = self._call.llama_vocab_get_attr(self._vocab, token)
        if attributes & USER_DEFINED:  # some conversions call control tokens so
            return self._text(token).startswith(b"<|")
        return bool(attributes & (UNKNOWN | CONTROL))

    def _text(self, token: int) -> bytes:
        text: bytes = self._call.llama_vocab_get_text(self._vocab, token)
        return text

    def _piece(self, token: int) -> bytes:
        piece = ctypes.create_string_buffer(_PIECE_BYTES)
        count = self._call.llama_token_to_piece(self._vocab, token, piece, len(piece), 0, False)
        return piece.raw[: max(0, count)]
