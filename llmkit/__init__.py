"""llmkit: from a GPT built from scratch to a proved GGUF that runs in Ollama."""
