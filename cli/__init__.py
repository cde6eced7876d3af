"""The `stillmotion` command: the one place that knows every package, each imported only when its command runs."""
