"""Quantization of a model: types per tensor, error feedback layer by layer, training for blocks."""
