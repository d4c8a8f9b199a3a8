"""What is wrong with a tensor that is not the checkpoint's."""
