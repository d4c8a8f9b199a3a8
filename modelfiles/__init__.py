"""Text that goes with a model: prompt formats and Ollama Modelfiles."""
