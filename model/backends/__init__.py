"""Denoiser backends, and their registry by name; each is imported on first use."""
