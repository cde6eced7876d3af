"""Alembic's scripts: how an existing database becomes today's."""
