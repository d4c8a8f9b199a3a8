"""The bridge from a checkpoint to llama.cpp: GGUF files, the parity proof, measurements."""
