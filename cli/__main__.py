"""`python -m cli` is `stillmotion`."""

from cli.main import app

app()
