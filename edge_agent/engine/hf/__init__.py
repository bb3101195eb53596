"""Models in Hugging Face's own format: by torch's transformers and by mlx-lm."""
