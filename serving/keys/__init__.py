"""API keys: who may call, how much of the engine is theirs, and what they may use at once. Imports no torch."""
