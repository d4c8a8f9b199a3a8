"""llama.cpp run on a file: evaluation, generation, speed."""
