"""The gateway: HTTP in front of the jobs. Nothing it imports imports torch.

app = create_app(engine, models, Settings())
"""

from serving.gateway.app import create_app
from serving.gateway.settings import Settings

__all__ = ["Settings", "create_app"]
