"""Denoiser backends: the protocol, the implementations, and makers by name (each loaded when asked for)."""
