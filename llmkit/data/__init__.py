"""Text from files, token ids on disk, and the built-in corpus."""
