"""A model into a running Ollama."""
