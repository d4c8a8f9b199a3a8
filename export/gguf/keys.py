"""GGUF keys that a program which runs a file reads too. No library is imported for them."""

CHAT_TEMPLATE_KEY = "tokenizer.chat_template"
# llmkit's own, which llama.cpp and Ollama pass over.
ADAPTER_KEY = "llmkit.adapter"  # file name of the LoRA adapter that lies beside the base
LABELS_KEY = "llmkit.labels"  # a classifier's, as JSON
QUANTIZATION_KEY = "llmkit.quantization"  # its name, where `general.file_type` means another
