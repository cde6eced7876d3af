"""What is minimised: one objective a file. Each draws its own batch from (seed, step), so a resumed run is exact."""
