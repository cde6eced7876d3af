"""Triton: the engine hosted in a Triton server, and the gateway's client for many of them."""
