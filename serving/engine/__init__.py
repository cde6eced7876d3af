"""The engine: rows of many requests through one denoiser. Importing this package imports no torch."""
