"""What of a webhook can be told at its submission, so that the caller hears of it and not only the log."""

from __future__ import annotations

import httpx
from stillmotion.webhooks import secret_bytes

from model.errors import InvalidRequest
from serving.gateway.settings import Settings
from serving.jobs.records import WebhookTarget
from serving.net import AddressRefused


def check_webhook(settings: Settings, webhook: WebhookTarget | None) -> None:
    """Refuse a webhook that could never be delivered; its address is resolved and checked when it is.

    Raises:
        InvalidRequest: the URL cannot be read or has another scheme, or there is nothing to sign with.
    """
    if webhook is None:
        return
    try:
        settings.webhook_policy.check_url(httpx.URL(webhook.url))
    except httpx.InvalidURL as error:
        raise InvalidRequest(f"webhook.url cannot be read: {error}", param="webhook.url") from error
    except AddressRefused as error:
        raise AddressRefused(error.message, param="webhook.url") from error
    if webhook.secret is None:
        if settings.webhook_secret is None:
            raise InvalidRequest(
                "this server has no webhook secret of its own: give webhook.secret, whsec_ and base64",
                code="missing_field",
                param="webhook.secret",
            )
        return
    try:
        secret_bytes(webhook.secret)
    except ValueError as error:
        raise InvalidRequest(f"webhook.secret: {error}", param="webhook.secret") from error
