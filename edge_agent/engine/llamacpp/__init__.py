"""GGUF files by llama.cpp."""
