"""A checkpoint folder: config.json, model.safetensors, tokenizer.json. Never a pickle."""
