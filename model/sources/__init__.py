"""Where checkpoints come from: shipped ones, folders in any layout of diffusers, a model hub, single files."""
