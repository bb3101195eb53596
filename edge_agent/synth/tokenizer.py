"""A tokenizer of Phi-3.5's kind, with a smaller vocabulary.

Byte-pair encoding over characters, `▁` for a space, bytes as a fallback, and the control tokens of Phi-3.5 at
the very end: the published ids 32000 to 32063 become the last 64 of any vocabulary. Ids, from 0: `<unk>`,
`<s>`, `</s>`, 256 bytes, characters, merges, filler words, control tokens.
"""

import json
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.synth.bpe import learn_merges

SPACE = "\u2581"
BOS_ID = 1
FIRST_CHARACTER_ID = 3 + 256
CONTROL_SLOTS = 64

_CHARACTERS = SPACE + string.ascii_letters + string.digits + string.punctuation
SMALLEST_VOCABULARY = FIRST_CHARACTER_ID + len(_CHARACTERS) + CONTROL_SLOTS


@dataclass(frozen=True, slots=True)
class Control:
    """A control token: text, place after `<|endoftext|>`, whether it swallows the white space after it."""

    text: str
    slot: int
    swallows: bool


END_OF_TEXT = Control("<|endoftext|>", 0, swallows=False)
ASSISTANT = Control("<|assistant|>", 1, swallows=True)
SYSTEM = Control("<|system|>", 6, swallows=False)
END = Control("<|end|>", 7, swallows=False)
USER = Control("<|user|>", 10, swallows=False)
IMAGE = Control("<|image|>", 44, swallows=True)


def _controls() -> tuple[Control, ...]:
    named = {control.slot: control for control in (END_OF_TEXT, ASSISTANT, SYSTEM, END, USER, IMAGE)}
    free = (slot for slot in range(IMAGE.slot) if slot not in named)
    places = {slot: Control(f"<|placeholder{n}|>", slot, swallows=True) for n, slot in enumerate(free, start=1)}
    return tuple((named | places)[slot] for slot in range(IMAGE.slot + 1))


CONTROLS = _controls()
"""All of Phi-3.5's control tokens, as its published tokenizer_config.json names them."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

_SAMPLE = (
    "the pump is on and the fan is off. is the door open? the temperature of the motor is high. "
    "the humidity is low. the sensor reads the pressure of the valve. what is the state of the battery? "
    "the light is red, the camera is online. please check the device and tell me what you see. yes, no."
)


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A vocabulary (piece of text to id) and the merges that lead to its pieces, best first."""

    vocabulary: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    size: int

    def control_id(self, control: Control) -> int:
        """Return the id of a control token."""
        return self.size - CONTROL_SLOTS + control.slot

    def distinct_ids(self, text: str) -> list[int]:
        """Cut an answer into tokens of which none occurs twice; longer pieces are preferred.

        A piece that was used is replaced by shorter ones, a character by the tokens of its UTF-8 bytes, so a
        character outside ASCII always comes as several tokens. Raises ValueError when even the bytes have
        been used.
        """
        rest = SPACE + text.replace(" ", SPACE)
        ids: list[int] = []
        longest = max(map(len, self.vocabulary))
        while rest:
            free = (rest[:length] for length in range(min(longest, len(rest)), 0, -1))
            piece = next((p for p in free if self.vocabulary.get(p, 0) not in {0, *ids}), None)
            ids += [self.vocabulary[piece]] if piece else self._unused_bytes(rest[0], ids)
            rest = rest[len(piece or rest[0]) :]
        return ids

    def _unused_bytes(self, character: str, used: list[int]) -> list[int]:
        ids = [self.vocabulary[_byte(value)] for value in character.replace(SPACE, " ").encode()]
        if len(set(ids)) != len(ids) or set(ids) & set(used):
            raise ValueError(
                f"no token left for {character!r}: a scripted answer can use each token only once; "
                "say less, or say it in other words"
            )
        return ids

    def write(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into a folder."""
        for name, content in (
            ("tokenizer.json", self._tokenizer_json()),
            ("tokenizer_config.json", self._tokenizer_config()),
            ("special_tokens_map.json", _special_tokens_map()),
        ):
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")

    def _added_tokens(self) -> Iterator[dict[str, object]]:
        first = [(0, "<unk>", False), (BOS_ID, "<s>", False), (2, "</s>", True)]
        controls = [(self.control_id(control), control.text, control.swallows) for control in CONTROLS]
        for token_id, text, swallows in first + controls:
            yield {"id": token_id, **_added(text), "rstrip": swallows, "special": text != "</s>"}

    def _tokenizer_json(self) -> dict[str, object]:
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": list(self._added_tokens()),
            "normalizer": _sequence(
                "normalizers",
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ),
            "pre_tokenizer": None,
            "post_processor": _bos_first(),
            "decoder": _sequence(
                "decoders",
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "<unk>",
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": dict(self.vocabulary),
                "merges": [f"{left} {right}" for left, right in self.merges],
            },
        }

    def _tokenizer_config(self) -> dict[str, object]:
        return {
            "add_bos_token": True,
            "add_eos_token": False,
            "add_prefix_space": None,
            "added_tokens_decoder": {
                str(token["id"]): {key: value for key, value in token.items() if key != "id"}
                for token in self._added_tokens()
            },
            "bos_token": "<s>",
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": END_OF_TEXT.text,
            "legacy": False,
            "model_max_length": 131_072,
            "pad_token": END_OF_TEXT.text,
            "padding_side": "left",
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
            "use_default_system_prompt": False,
        }


def build(vocab_size: int) -> Tokenizer:
    """Return a tokenizer of exactly that many ids.

    Raises ValueError below SMALLEST_VOCABULARY.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"vocab_size must be at least {SMALLEST_VOCABULARY}")
    pieces = ["<unk>", "<s>", "</s>", *map(_byte, range(256)), *_CHARACTERS]
    room = vocab_size - CONTROL_SLOTS - len(pieces)
    merges = learn_merges(_SAMPLE, room, start=SPACE)
    pieces = list(dict.fromkeys(pieces + [left + right for left, right in merges]))  # two merges may meet in a piece
    # No merge leads to a filler, so no prompt holds one, but a model may say one: it reads like a word.
    pieces += [f"{SPACE}word{n}" for n in range(vocab_size - CONTROL_SLOTS - len(pieces))]
    return Tokenizer({piece: n for n, piece in enumerate(pieces)}, merges, vocab_size)


def _byte(value: int) -> str:
    return f"<0x{value:02X}>"


def _sequence(kind: str, *parts: dict[str, object]) -> dict[str, object]:
    return {"type": "Sequence", kind: list(parts)}


def _bos_first() -> dict[str, object]:
    def bos(segment: int) -> dict[str, object]:
        return {"SpecialToken": {"id": "<s>", "type_id": segment}}

    def text(name: str, segment: int) -> dict[str, object]:
        return {"Sequence": {"id": name, "type_id": segment}}

    return {
        "type": "TemplateProcessing",
        "single": [bos(0), text("A", 0)],
        "pair": [bos(0), text("A", 0), bos(1), text("B", 1)],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS_ID], "tokens": ["<s>"]}},
    }


def _added(text: str) -> dict[str, object]:
    return {"content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _special_tokens_map() -> dict[str, object]:
    return {
        "bos_token": _added("<s>"),
        "eos_token": _added(END_OF_TEXT.text),
        "pad_token": _added(END_OF_TEXT.text),
        "unk_token": _added("<unk>"),
    }
