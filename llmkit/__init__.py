"""llmkit: from a GPT built from scratch to a proved GGUF that runs in Ollama."""

import os

# PyTorch and llama.cpp each have an OpenMP pool on the same cores. Threads that spin while they
# wait take the cores from the other pool and from other programs: several times slower on a busy
# machine. It counts only when set before the first of the two is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
