"""An answer's text from its tokens, one by one: the same for every backend, and the same as of all tokens at once."""

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.text.stops import StopStrings

_SPACE = "\u2581"
"""How vocabularies of the SentencePiece kind write a space."""
_BYTE = re.compile("<0x([0-9A-F]{2})>")
"""How they write a byte that is no character of theirs."""


class Vocabulary:
    """What each token of a model stands for, in bytes; those that control the model stand for nothing.

    The libraries' own decoders differ: in the space that a text begins with, in characters that stay incomplete
    (onnxruntime-genai 0.18 eats the beginning of the next word), in control tokens.
    """

    def __init__(self, pieces: Mapping[int, bytes]) -> None:
        self._pieces = pieces

    @classmethod
    def read(cls, folder: Path) -> "Vocabulary":
        """Return that of a folder's tokenizer.json. Raises EdgeAgentError MODEL_ERROR when it cannot be read."""
        try:
            tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            spelled: Mapping[str, int] = tokenizer["model"]["vocab"]
            decoded = _byte_level if "ByteLevel" in _kinds(tokenizer["decoder"]) else _sentence_piece
            pieces = {number: decoded(piece) for piece, number in spelled.items()}
            for token in tokenizer["added_tokens"]:
                pieces[token["id"]] = b"" if token["special"] else token["content"].encode()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EdgeAgentError(
                Code.MODEL_ERROR, f"tokenizer.json in {folder} cannot be read ({error!r}); fetch the model again"
            ) from error
        return cls(pieces)

    def piece(self, token: int) -> bytes:
        """Return what a token stands for; nothing for one that is not in the vocabulary."""
        return self._pieces.get(token, b"")


class Words:
    """An answer under way: whole characters only, and none of the first stop string or of what follows it.

    The space that the first word's token holds is left out, as people write; with `exact`, for guided answers, it
    stays, for then it was asked for.
    """

    def __init__(self, vocabulary: Vocabulary, *, stop: Sequence[str] = (), exact: bool = False) -> None:
        self._vocabulary = vocabulary
        self._stops = StopStrings(stop)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = exact

    @property
    def stopped(self) -> bool:
        """Whether a stop string was complete; no text comes after that."""
        return self._stops.met

    def feed(self, token: int) -> str:
        """Take the next token and return the text that is certain now."""
        piece = self._vocabulary.piece(token)
        if piece and not self._begun:
            self._begun = True
            piece = piece.removeprefix(b" ")
        return self._stops.feed(self._characters.decode(piece))

    def rest(self) -> str:
        """Return what was held back, as the text ends here and nothing can complete it."""
        return self._stops.feed(self._characters.decode(b"", final=True)) + self._stops.rest()


def _kinds(decoder: Mapping[str, Any]) -> set[str]:
    """Return the kinds of a tokenizer.json's decoder, or of those it consists of."""
    return {decoder["type"], *(each["type"] for each in decoder.get("decoders", ()))}


def _sentence_piece(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()


def _byte_level(piece: str) -> bytes:
    """Undo GPT-2's spelling of bytes: those that print stand for themselves, others for characters from 256 on."""
    return bytes(_BYTES[character] for character in piece)


_PRINTING = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTES = {chr(byte): byte for byte in _PRINTING} | {
    chr(0x100 + number): byte for number, byte in enumerate(sorted(set(range(0x100)) - set(_PRINTING)))
}
