"""The configuration files that lie beside a model."""

from edge_agent.synth.shape import Shape
from edge_agent.synth.tokenizer import ASSISTANT, BOS_ID, END, END_OF_TEXT, Control
from edge_agent.synth.vision import TOKENS

TEXT_MODEL = "phi-3.5-mini-instruct-cpu-int4-awq-block-128-acc-level-4.onnx"
"""The published file name, whatever the block size is: what looks for a build by its files finds this one."""

VISION_DECODER = "phi-3.5-v-instruct-text.onnx"
VISION_EMBEDDING = "phi-3.5-v-instruct-embedding.onnx"
VISION_ENCODER = "phi-3.5-v-instruct-vision.onnx"
"""The same of the three graphs of a vision model."""

_CROPS = 4
"""As published; onnxruntime-genai does not look at it and cuts images into up to 16."""


def genai_config(shape: Shape) -> dict[str, object]:
    """Return genai_config.json: field by field the published one, with this shape's sizes."""
    vision = shape.vision is not None
    first_input = "inputs_embeds" if vision else "input_ids"
    return {
        "model": {
            "bos_token_id": BOS_ID,
            "context_length": shape.context_tokens,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": VISION_DECODER if vision else TEXT_MODEL,
                "head_size": shape.head_size,
                "hidden_size": shape.hidden_size,
                "inputs": {
                    first_input: first_input,
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": shape.heads,
                "num_hidden_layers": shape.layers,
                "num_key_value_heads": shape.kv_heads,
            },
            **(_vision_parts() if vision else {}),
            "eos_token_id": _id(shape, END) if vision else _ends(shape),
            "pad_token_id": _id(shape, END_OF_TEXT),
            "type": "phi3v" if vision else "phi3",
            "vocab_size": shape.vocab_size,
        },
        "search": {
            "diversity_penalty": 0.0,
            "do_sample": not vision,
            "early_stopping": True,
            "length_penalty": 1.0,
            "max_length": shape.context_tokens,
            "min_length": 0,
            "no_repeat_ngram_size": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }


def processor_config() -> dict[str, object]:
    """Return processor_config.json of a vision model: how onnxruntime-genai reads images."""
    operations: tuple[tuple[str, str, dict[str, object]], ...] = (
        ("decode_image", "DecodeImage", {"color_space": "BGR"}),
        ("convert_to_rgb", "ConvertRGB", {}),
        ("phi3_image_transform", "Phi3ImageTransform", {"num_crops": _CROPS, "num_img_tokens": TOKENS**2}),
    )
    transforms = [
        {"name": name, "domain": "com.microsoft.extensions", "type": kind} | ({"attrs": attrs} if attrs else {})
        for name, kind, attrs in operations
    ]
    return {"processor": {"name": "image_processing", "transforms": [{"operation": each} for each in transforms]}}


def hf_config(shape: Shape) -> dict[str, object]:
    """Return config.json as Hugging Face's Phi-3 has it."""
    scaling = {"type": "longrope", "short_factor": shape.short_factors, "long_factor": shape.long_factors}
    return {
        "architectures": ["Phi3ForCausalLM"],
        "bos_token_id": BOS_ID,
        "eos_token_id": _id(shape, END_OF_TEXT),
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.mlp_size,
        "max_position_embeddings": shape.context_tokens,
        "model_type": "phi3",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "original_max_position_embeddings": shape.original_context_tokens,
        "pad_token_id": _id(shape, END_OF_TEXT),
        "rms_norm_eps": shape.norm_epsilon,
        "rope_scaling": scaling if shape.longrope else None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": False,
        "vocab_size": shape.vocab_size,
    }


def generation_config(shape: Shape) -> dict[str, object]:
    """Return generation_config.json: which tokens begin, end and pad an answer."""
    return {
        "_from_model_config": True,
        "bos_token_id": BOS_ID,
        "eos_token_id": _ends(shape),
        "pad_token_id": _id(shape, END_OF_TEXT),
    }


def _vision_parts() -> dict[str, object]:
    return {
        "embedding": {
            "filename": VISION_EMBEDDING,
            "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
            "outputs": {"inputs_embeds": "inputs_embeds"},
        },
        "vision": {
            "filename": VISION_ENCODER,
            "inputs": {"pixel_values": "pixel_values", "image_sizes": "image_sizes"},
            "outputs": {"image_features": "image_features"},
        },
    }


def _ends(shape: Shape) -> list[int]:
    """Return the ids that end an answer."""
    return [_id(shape, END), _id(shape, ASSISTANT), _id(shape, END_OF_TEXT)]


def _id(shape: Shape, control: Control) -> int:
    return shape.first_control_id + control.slot
