"""A GPT-2 shaped model, its sizes and where it computes."""
