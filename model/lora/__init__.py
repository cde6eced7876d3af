"""Low-rank adapters (LoRA) of the temporal attention: files, networks, and switching between them while serving."""
