"""Run with the builders' environment: writes tiny models of true architectures, and what transformers says of them.

    python tests/builders/originals.py OUT NAME …

Weights are random, wide enough for clear choices, in float32. Each folder gets a `said.json`: conversations with their
prompt's ids and the ids of a greedy answer, and prompts of given lengths with theirs.
"""

import json
import random
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ANSWER_TOKENS = 12
LENGTHS = (300, 2040, 2100, 4000)
"""Around the window of Phi-3's 4k models, and below longrope's original context."""
WORDS = ["the", "pump", "in", "hall", "three", "is", "off", "and", "its", "valve", "dry", "while", "a", "fan", "turns"]
TEXTS = (
    "is the pump on?",
    "  leading and trailing  ",
    "two\n\nlines\n",
    "Ünïcödé naïve é",
    "日本語のテキスト、温度は42度です。",
    "పంప్ ఆన్‌లో ఉందా?",
    "هل المضخة تعمل؟",
    "🐝🔥 emoji",
    "▁literal <0x41> x < y > z |",
    '{"a": [1, 2.5, null]}',
)
PHI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{{ message.content | trim }}"
    "{{ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}"
    "{% elif message.role == 'system' %}{{ '<<SYS>>\\n' + message.content + '\\n<</SYS>>\\n\\n' }}"
    "{% else %}{{ ' ' + message.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
SMOL = (
    "{% set system = messages[0].content.replace('brief', 'short') if messages[0].role == 'system' else 'Be kind.' %}"
    "{{ '<|im_start|>system\n' + system + '<|im_end|>\n' }}{% for message in messages if message.role != 'system' %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BASE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1056,  # not that of any other layer: the onnx builder knows the last by its size
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}


def longrope(pairs):
    steps = [index / (pairs - 1) for index in range(pairs)]
    return {
        "type": "longrope",
        "short_factor": [round(2.84**step, 4) for step in steps],
        "long_factor": [round(1.08 * (64 / 1.08) ** step, 4) for step in steps],
    }


LONG = {"max_position_embeddings": 131_072, "original_max_position_embeddings": 4096}
SHORT = {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096}
MODELS = {
    "phi-3.5-mini": (
        "phi3",
        BASE | LONG | {"num_key_value_heads": 4, "rope_scaling": longrope(32), "sliding_window": 262_144},
        "pieces",
        PHI,
    ),
    "phi-3-mini-4k": ("phi3", BASE | SHORT | {"num_key_value_heads": 4, "sliding_window": 2047}, "pieces", PHI),
    "phi-3-medium-4k": ("phi3", BASE | SHORT | {"num_attention_heads": 8, "sliding_window": 2047}, "pieces", PHI),
    "phi-4-mini": (
        "phi3",
        BASE | LONG | {"partial_rotary_factor": 0.75, "rope_scaling": longrope(24), "tie_word_embeddings": True},
        "bytes",
        PHI,
    ),
    "phi-3.5-moe": (
        "phimoe",
        BASE
        | LONG
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True, "lm_head_bias": True}
        | {"rope_scaling": longrope(32) | {"short_mscale": 1.24, "long_mscale": 1.24}, "sliding_window": 131_072},
        "pieces",
        PHI,
    ),
    "llama-2": ("llama", BASE | {"max_position_embeddings": 4096}, "pieces", LLAMA),
    "qwen-2": ("qwen2", BASE | {"max_position_embeddings": 8192, "tie_word_embeddings": True}, "bytes", CHATML),
    "qwen-3": ("qwen3", BASE | {"max_position_embeddings": 8192, "head_dim": 128}, "bytes", CHATML),
    "smollm-3": ("smollm3", BASE | {"max_position_embeddings": 8192, "tie_word_embeddings": True}, "bytes", SMOL),
}
SPECIAL = ["<s>", "</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|im_start|>", "<|im_end|>"]


def tokenizer(kind):
    """A small tokenizer of one of the two families: SentencePiece's byte pairs, or GPT-2's."""
    corpus = [" ".join(random.Random(seed).choices(WORDS, k=30)) for seed in range(200)] + list(TEXTS)
    if kind == "pieces":
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        special = [*SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
        made.train_from_iterator(corpus, trainer)
        told = json.loads(made.to_str())
        told["added_tokens"] = [each for each in told["added_tokens"] if not each["content"].startswith("<0x")]
        for each in told["added_tokens"]:
            each["rstrip"] = each["content"] == "<|assistant|>"
        made = Tokenizer.from_str(json.dumps(told))
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder, made.normalizer = decoders.ByteLevel(), normalizers.NFC()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
        made.train_from_iterator(corpus, trainer)
        made.add_tokens([AddedToken("<think>", normalized=False), AddedToken("<tool_call>", normalized=False)])
    return made


def write(name, out):
    kind, told, words, template = MODELS[name]
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    config = transformers.CONFIG_MAPPING[kind](**told, rms_norm_eps=1e-5, initializer_range=0.05)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.6)
    model.generation_config = transformers.GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    model.save_pretrained(folder)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(words), bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=template
    )
    wrapped.save_pretrained(folder)
    if kind == "phimoe":  # the hub's spelling, which builders look for
        path = folder / "config.json"
        path.write_text(path.read_text().replace("PhimoeForCausalLM", "PhiMoEForCausalLM"))
    (folder / "said.json").write_text(json.dumps(said(model, wrapped, told["max_position_embeddings"])))
    sys.stdout.write(f"{name}: {sum(each.numel() for each in model.parameters()) // 1000} k parameters\n")


def said(model, words, context):
    """Return what is asked and what transformers makes of it."""
    chance, asked = random.Random(2), []
    for text in TEXTS:
        before = [{"role": "system", "content": "Be brief."}] if chance.random() < 0.5 else []
        more = [{"role": "user", "content": chance.choice(TEXTS)}, {"role": "assistant", "content": "it is off."}]
        asked.append([*before, *(more if chance.random() < 0.5 else []), {"role": "user", "content": text}])
    asked += [
        [{"role": "user", "content": " ".join(chance.choices(WORDS, k=int(length / 1.1)))}]
        for length in LENGTHS
        if length < context - ANSWER_TOKENS
    ]
    found = []
    for messages in asked:
        ids = words.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        with torch.inference_mode():
            mask = torch.ones(1, len(ids))
            whole = model.generate(
                torch.tensor([ids]), attention_mask=mask, max_new_tokens=ANSWER_TOKENS, do_sample=False
            )
        found.append({"messages": messages, "prompt": list(ids), "answer": whole[0, len(ids) :].tolist()})
    return found


if __name__ == "__main__":
    for each in sys.argv[2:] or MODELS:
        write(each, Path(sys.argv[1]))
