"""Kernels in Triton (the language), each one operation of torch.library with a fake form, so that it can be traced."""
