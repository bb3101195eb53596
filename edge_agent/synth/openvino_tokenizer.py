"""The tokenizer of a folder, and what turns ids back into text, as OpenVINO models.

openvino-tokenizers' own conversion asks for the transformers library, but only to read the same files; its
building blocks do without.
"""

import json
from pathlib import Path
from typing import Any

import openvino as ov
from openvino_tokenizers import tokenizer_pipeline as steps
from openvino_tokenizers import utils
from openvino_tokenizers.constants import UTF8ReplaceMode

from edge_agent.synth.openvino_graph import save
from edge_agent.synth.tokenizer import BOS_ID, SPACE


def write(folder: Path) -> None:
    """Write openvino_tokenizer and openvino_detokenizer (.xml, .bin) beside tokenizer.json and tokenizer_config.json.

    Those two are taken for what this package writes: byte-pair encoding with Phi-3.5's normalizer, template and
    decoder. Vocabulary, merges, control tokens and chat template are theirs.
    """
    tokenizer, config = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("tokenizer.json", "tokenizer_config.json")
    )
    pipeline = _pipeline(tokenizer, config)
    models = {
        "openvino_tokenizer": utils.change_outputs_type(pipeline.get_tokenizer_ov_subgraph(), ov.Type.i64),
        "openvino_detokenizer": utils.change_inputs_type(pipeline.get_detokenizer_ov_subgraph(), ov.Type.i64),
    }
    for name, model in models.items():
        utils.update_rt_info_with_environment(model)  # without versions openvino-genai ignores add_special_tokens
        for key, value in _facts(tokenizer, config).items():
            model.set_rt_info(value, key)
        save(model, folder / f"{name}.xml")


def _pipeline(tokenizer: dict[str, Any], config: dict[str, Any]) -> steps.TokenizerPipeline:
    added, pad = tokenizer["added_tokens"], config["pad_token"]
    model = steps.BPETokenizationStep.from_hf_json(tokenizer)
    pieces = model.vocab + [""] * (1 + max(token["id"] for token in added) - len(model.vocab))
    for token in added:
        pieces[token["id"]] = token["content"]
    model.vocab = _findable(model.vocab, tokenizer["model"]["merges"])
    pipeline = steps.TokenizerPipeline(vocab=pieces)
    for step in (
        steps.SpecialTokensSplit(
            [steps.SpecialToken(token["content"], token["lstrip"], token["rstrip"]) for token in added]
        ),
        steps.RegexNormalizationStep.prepend_regex(SPACE),
        steps.RegexNormalizationStep.replace_spaces_metaspace(SPACE),
        model,
        steps.TruncationStep(max_length=config["model_max_length"] - 1),  # less <s>
        steps.CombineSegmentsStep([steps.AddToken("<s>", _token_id=BOS_ID), steps.Sequence()]),
        steps.PaddingStep(pad, _token_id=_id(tokenizer, pad), pad_right=config["padding_side"] == "right"),
        steps.VocabDecoderStep(pieces, skip_tokens=[token["id"] for token in added if token["special"]]),
        steps.RegexDecodingStep.replace_sp_spaces(),
        steps.ByteFallbackStep(),
        steps.FuseStep(),
        steps.RegexDecodingStep.strip_forward_space(),
        steps.UTF8ValidateStep(mode=UTF8ReplaceMode.REPLACE),
    ):
        pipeline.add_steps(step)
    return pipeline


def _findable(vocabulary: list[str], merges: list[str]) -> list[str]:
    """Mark, with a NUL that no text holds, the words that no merge leads to.

    OpenVINO's tokenizer would find them in a text as they stand, others would not. Bytes stay: it looks them up
    by these names, and takes a text that spells one, "<0x41>", for the byte.
    """
    merged = {merge.replace(" ", "") for merge in merges}
    return [
        piece if len(piece) == 1 or piece in merged or piece.startswith("<") else f"\0{piece}" for piece in vocabulary
    ]


def _facts(tokenizer: dict[str, Any], config: dict[str, Any]) -> dict[str, object]:
    """Return what openvino-genai reads out of a tokenizer model itself."""
    return {
        "bos_token_id": BOS_ID,
        "eos_token_id": _id(tokenizer, config["eos_token"]),
        "pad_token_id": _id(tokenizer, config["pad_token"]),
        "chat_template": config["chat_template"],
    }


def _id(tokenizer: dict[str, Any], content: str) -> int:
    return next(int(token["id"]) for token in tokenizer["added_tokens"] if token["content"] == content)
