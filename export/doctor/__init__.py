"""Whether this machine, its Ollama and its memory are ready for a model."""
