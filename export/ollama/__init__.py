"""A running Ollama, over HTTP."""
