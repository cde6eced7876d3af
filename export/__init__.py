"""From a checkpoint to what other runtimes load."""
