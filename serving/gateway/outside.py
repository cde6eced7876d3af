"""What the gateway reaches beyond itself, or loads only if told to: made from the settings; tests bring their own."""

from __future__ import annotations

from dataclasses import dataclass

from serving.gateway.fetching import Fetcher, FetchLimits
from serving.gateway.safety import SafetyFilter, load
from serving.gateway.settings import Settings
from serving.observe.traces import NoTraces, Traces, exporting
from serving.provenance.finish import Signer


@dataclass(frozen=True, slots=True)
class Outside:
    """The optional parts.

    Args:
        fetcher: gets pictures by URL, if the operator allows URLs.
        safety: judges pictures; None for no filter.
        signer: signs mp4s; None for no signatures.
        traces: where spans go.
    """

    fetcher: Fetcher
    safety: SafetyFilter | None
    signer: Signer | None
    traces: Traces

    @classmethod
    def of(cls, settings: Settings) -> Outside:
        """What the settings ask for.

        Raises:
            MissingExtra: an optional dependency is not installed.
            InvalidRequest: key and certificate do not sign.
        """
        return cls(
            fetcher=Fetcher(settings.image_urls, FetchLimits(settings.max_image_bytes, settings.image_fetch_s)),
            safety=load(settings.safety, settings.safety_threshold),
            signer=_signer(settings),
            traces=exporting() if settings.traces else NoTraces(),
        )


def _signer(settings: Settings) -> Signer | None:
    if settings.c2pa_certificate is None or settings.c2pa_key is None:
        return None
    from serving.provenance.c2pa import C2paSigner

    return C2paSigner(settings.c2pa_certificate, settings.c2pa_key, settings.c2pa_algorithm, settings.c2pa_timestamps)
