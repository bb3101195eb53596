"""A server elsewhere that speaks OpenAI's chat completions, in the place of a model here."""
