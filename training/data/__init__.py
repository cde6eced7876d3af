"""Reading footage: the starter dataset, the held-out split, clips and the latent cache."""
