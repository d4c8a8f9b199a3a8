"""GGUF files: reading and writing them, what they say of a model, how much memory they take."""
