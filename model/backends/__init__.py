"""Denoiser backends: the protocol, the implementations, and the makers by name (`makers`, each loaded when asked for)."""
