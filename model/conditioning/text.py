"""A prompt becomes cross-attention tokens: the text encoder's last hidden states, padding included.

Legend: N tokens, D their width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from model.conditioners import TextTower
from model.errors import InvalidRequest


def text_context(tower: TextTower, prompt: str) -> Float[Tensor, "N D"]:
    """The tokens of a prompt, padded to the tokenizer's length, float32.

    Raises:
        InvalidRequest: the prompt is longer than what the text encoder reads; nothing is cut off silently.
    """
    longest = int(tower.tokenizer.model_max_length)
    count = len(tower.tokenizer(prompt).input_ids)
    if count > longest:
        raise InvalidRequest(
            f"the prompt takes {count} tokens, the text encoder reads {longest}; shorten it",
            param="prompt",
            code="prompt_too_long",
        )
    told = tower.tokenizer(prompt, padding="max_length", max_length=longest, return_tensors="pt")
    encoder = tower.encoder
    # As diffusers' pipelines do: padding is attended to unless the encoder's own config says otherwise.
    masked = bool(getattr(encoder.config, "use_attention_mask", False))
    mask = told.attention_mask.to(encoder.device) if masked else None
    hidden: Tensor = encoder(told.input_ids.to(encoder.device), attention_mask=mask).last_hidden_state
    return hidden[0].to(torch.float32)
