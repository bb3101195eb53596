"""openvino-genai's tokenizer with a vocabulary that guides can be followed by.

The library hands guides the pieces as the folder's detokenizer spells them (seen with 2026.4): a space is U+2581 there,
a byte is six characters, `<0xE7>`. So no guide with a space or a rarer character in it could be followed: where nothing
may come next, the library chooses at random, or dies. Pieces as they are read are all it takes; it is not asked to
decode any, see words.py.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
import openvino_tokenizers  # noqa: F401 - teaches openvino the operations of tokenizers
from openvino import opset13

from edge_agent.engine.text.detokenizer import Vocabulary

_DETOKENIZER = "openvino_detokenizer"
_PIECES = "VocabDecoder"
"""The operation that holds them: where each begins and ends, and all of them in a row."""


def tokenizer(folder: Path, vocabulary: Vocabulary) -> Any:
    """Return the tokenizer of a model folder. Raises RuntimeError when the library cannot read it."""
    model = ov.Core().read_model(folder / f"{_DETOKENIZER}.xml")
    for operation in model.get_ops():
        if operation.get_type_name() == _PIECES:
            _spell(operation, vocabulary)
    with tempfile.TemporaryDirectory() as beside:
        for file in folder.iterdir():
            if file.is_file() and file.stem != _DETOKENIZER:
                Path(beside, file.name).symlink_to(file.absolute())
        ov.serialize(model, Path(beside, f"{_DETOKENIZER}.xml"))
        return genai.Tokenizer(beside)


def _spell(operation: Any, vocabulary: Vocabulary) -> None:
    """Give it the vocabulary's pieces in place of its own, as many as there are."""
    count = operation.input(1).get_partial_shape()[0].get_length()
    pieces = [vocabulary.piece(token) for token in range(count)]
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int32)
    begins = np.concatenate(([0], ends[:-1])).astype(np.int32)
    for number, values in enumerate((begins, ends, np.frombuffer(b"".join(pieces), np.uint8)), 1):
        operation.input(number).replace_source_output(opset13.constant(values).output(0))
