"""Fine-tuning a base model on records that a user has."""
