"""Frame interpolation as a second stage: one engine's clip becomes many requests of another model. No torch."""
