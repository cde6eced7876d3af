"""The routes, one concern a file. Each file has a `router`."""
