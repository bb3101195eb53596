"""Between text and tokens, the same for every backend: prompts, detokenizing, stop strings."""
