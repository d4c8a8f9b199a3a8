"""Names of the files in a checkpoint folder."""

CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"  # PEFT's names, so that PEFT loads the folder
ADAPTER_CONFIG_FILE = "adapter_config.json"
TOKENIZER_FILE = "tokenizer.json"
BLOCKS_FILE = "blocks.safetensors"  # what training for blocks made of the matrices
CHECKPOINT_FILES = (
    CONFIG_FILE,
    MODEL_FILE,
    BLOCKS_FILE,
    ADAPTER_FILE,
    ADAPTER_CONFIG_FILE,
    TOKENIZER_FILE,
)
TRAINING_FOLDER = "training"
HELD_OUT_FILE = "held_out.jsonl"  # records that fine-tuning held out
TRAINED_FILE = "trained.jsonl"  # records that fine-tuning trained on
