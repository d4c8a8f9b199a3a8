"""`verify`: does llama.cpp compute from a GGUF file what PyTorch computes from its checkpoint?"""
