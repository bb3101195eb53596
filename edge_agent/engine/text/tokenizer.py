"""A tokenizer.json: from text to token ids, by the library that wrote it."""

import json
import secrets
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.text.added_tokens import AddedTokens


class TextTokenizer(Protocol):
    """Makes token ids of what a template wrote, or of a text to go on with."""

    @property
    def added(self) -> AddedTokens:
        """What it obeys."""

    def encode(self, text: str, *, begin: bool) -> list[int]:
        """Return the ids of a text, whose guarded parts are obeyed nowhere; with `begin` as at the start of a text."""


class FolderTokenizer:
    """That of a model folder. Ids come out as transformers has them.

    The library splits a text at its added tokens wherever they stand, whoever wrote them. So it is given others in
    their place, strings that nobody can guess, and where a template wrote `<|end|>` the one that stands for it.
    """

    def __init__(self, told: Mapping[str, Any], *, bos: str = "", begins: bool | None = None) -> None:
        """`told` is a tokenizer.json, `begins` whether a text begins with the token `bos`; None: as it says itself."""
        spellable = set(_merges(told["model"]))
        added = [each for each in told["added_tokens"] if each["special"] or each["content"] not in spellable]
        self._names = {each["content"]: _unguessable(each["content"]) for each in added}
        self._tokenizer: Any = Tokenizer.from_str(json.dumps(_renamed(told, self._names)))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Under other names they may have other numbers.
        self._ids = {self._tokenizer.token_to_id(self._names[each["content"]]): each["id"] for each in added}
        self._words = {each["content"] for each in added if each["single_word"]}
        self._bos_id = next((each["id"] for each in added if each["content"] == bos), None)
        self._begins = begins
        self.added = AddedTokens(self._names)

    @classmethod
    def read(cls, folder: Path) -> "FolderTokenizer":
        """Return a folder's. Raises EdgeAgentError MODEL_ERROR: without it no prompt is safe."""
        path = folder / "tokenizer.json"
        try:
            config = folder / "tokenizer_config.json"
            settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
            bos = settings.get("bos_token") or ""
            return cls(
                json.loads(path.read_text(encoding="utf-8")),
                bos=bos if isinstance(bos, str) else bos["content"],
                begins=settings.get("add_bos_token"),
            )
        except FileNotFoundError as error:
            raise EdgeAgentError(
                Code.MODEL_ERROR,
                f"{folder} has no tokenizer.json; export the model with its fast tokenizer (transformers' "
                "AutoTokenizer.save_pretrained writes it)",
            ) from error
        except Exception as error:  # the library raises nothing narrower
            raise EdgeAgentError(
                Code.MODEL_ERROR, f"tokenizer.json in {folder} cannot be read ({error!r}); fetch or export it again"
            ) from error

    def encode(self, text: str, *, begin: bool) -> list[int]:
        """Return the ids of a text, see TextTokenizer."""
        parts = self.added.split(text)
        named = [self._named(parts, at) if at % 2 else part for at, part in enumerate(parts)]
        text = self.added.plain("".join(named))
        encoded = self._tokenizer.encode(text, add_special_tokens=begin and self._begins is not False)
        ids = [self._ids.get(each, each) for each in encoded.ids]
        bos = self._bos_id if begin and self._begins else None
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def _named(self, parts: Sequence[str], at: int) -> str:
        """Return what stands for an added token; one that must be a word of its own is none inside of another."""
        string = parts[at]
        if string in self._words:
            before, after = (self.added.plain("".join(each)) for each in (parts[:at], parts[at + 1 :]))
            if _of_a_word(before[-1:]) or _of_a_word(after[:1]):
                return string
        return self._names[string]


def _of_a_word(character: str) -> bool:
    """Return whether a character belongs to a word as the library has it: Unicode's annex 18, with marks."""
    return character.isalnum() or (character != "" and unicodedata.category(character) in {"Mn", "Mc", "Me", "Pc"})


def _unguessable(string: str) -> str:
    """Return a string that nobody can guess; beside a word it is one where the given one is."""
    first, last = (character if _of_a_word(character) else "-" for character in (string[0], string[-1]))
    return f"{first}{secrets.token_hex(12)}{last}"


def _merges(model: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a vocabulary of byte pairs spells by itself."""
    for pair in model.get("merges", ()):
        first, second = pair.split(" ") if isinstance(pair, str) else pair
        yield first + second


def _renamed(told: Mapping[str, Any], names: Mapping[str, str]) -> Mapping[str, Any]:
    """Return a tokenizer.json in which added tokens have other names, in the vocabulary too."""
    model = dict(told["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    added = [each | {"content": names.get(each["content"], each["content"])} for each in told["added_tokens"]]
    return {**told, "added_tokens": added, "model": model}
