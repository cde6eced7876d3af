"""Published weights in other layouts, as checkpoint folders of ours: Stability's single files, Stable Diffusion."""
