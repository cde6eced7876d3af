"""How the checkpoints come to be: data, recipes, the trainer and evaluation."""
