"""Chained requests: one engine's clip becomes many requests of another model, and all of it one video. No torch."""
