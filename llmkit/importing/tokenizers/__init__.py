"""Tokenizers of other programs as byte-level BPE."""
