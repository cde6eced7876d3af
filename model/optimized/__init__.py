"""Exact rewrites, fused blocks and kernels, each held to the plain form; and the feature cache."""
