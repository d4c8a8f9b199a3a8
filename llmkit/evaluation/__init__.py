"""How good models are at tasks, and what quantization costs there."""
