"""The mathematics of sampling, one idea a file, to be read beside EDM (Karras et al. 2022, arXiv 2206.00364).

precondition -> schedule -> solvers -> guidance -> row (a request's state) -> prepare (its noise and conditioning) ->
sampler (rows of many requests in one denoiser call, and the plain loop over one row).
"""
