"""What benchmarks/svd_xt_gpu.py is made of."""
