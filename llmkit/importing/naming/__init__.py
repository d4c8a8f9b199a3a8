"""Names and shapes of tensors to the parts of a GPT."""
