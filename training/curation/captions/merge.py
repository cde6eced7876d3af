"""A language model merges what the earlier captioners said of a clip into one caption (paper, appendix C).

Either any endpoint that speaks OpenAI's chat completions (`--tool merge.url=http://HOST/v1`, `merge.model`, and
`merge.key_env`, the NAME of the environment variable that holds the key), or a local transformers model
(`merge.weights=DIR_OR_HUB_ID`). With neither, or with fewer than two captions to merge, nothing is written but why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model.errors import DataError, InvalidRequest
from training.curation.captions.chat import OPTIONS, ChatEndpoint
from training.curation.frames import ClipFrames
from training.curation.protocols import MEASURED, known_options
from training.curation.records import CaptionRecord, Resources, ToolOptions, caption_record, missing_caption

INSTRUCTION = (
    "Machines described the same short video: coca saw its middle frame, the others the whole clip. Write one plain "
    "sentence that says what they support together, and no more than they say. Answer with that sentence only."
)
NOTHING = "no language model was given (--tool merge.url=URL or merge.weights=DIR_OR_HUB_ID)"
LONGEST = 80


def question(captions: Sequence[CaptionRecord]) -> str:
    """What the model is asked, from the captions that are there."""
    return "\n".join(f"{one.captioner}: {one.text}" for one in captions)


class LocalModel:
    """A causal language model of transformers.

    Raises:
        DataError: nothing that can be loaded lies there.
    """

    def __init__(self, weights: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from training.data.latents import weights_digest

        try:
            self._model: Any = AutoModelForCausalLM.from_pretrained(weights).eval()
            self._tokenizer: Any = AutoTokenizer.from_pretrained(weights)
        except (OSError, ValueError) as error:
            raise DataError(f"no language model can be loaded from {weights!r}: {error}") from error
        self.tool, self.weights_sha256 = f"language model, {Path(weights).name}", weights_digest(self._model)

    def __call__(self, text: str) -> str:
        """The model's continuation; in the model's own chat form where its tokenizer has one."""
        import torch

        prompt = f"{INSTRUCTION}\n\n{text}\n\nSentence:"
        if self._tokenizer.chat_template:
            messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}]
            prompt = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        tokens = self._tokenizer(prompt, return_tensors="pt")
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        end = self._model.generation_config.eos_token_id
        with torch.inference_mode():
            out = self._model.generate(
                ids, attention_mask=mask, max_new_tokens=LONGEST, do_sample=False, pad_token_id=end
            )
        return str(self._tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def _merger(endpoint: ChatEndpoint) -> Callable[[str], str]:
    def ask(text: str) -> str:
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}]
        return endpoint.complete(messages, LONGEST)

    return ask


class MergeCaptioner:
    """One caption from those that the earlier captioners gave.

    Raises:
        InvalidRequest: both an endpoint and a local model, or an endpoint without a model's name.
        DataError: the local model cannot be loaded.
    """

    name = "merge"
    resources = Resources(batch=8)

    def __init__(self, options: ToolOptions) -> None:
        known_options(self.name, options, (*OPTIONS, "weights"))
        if "url" in options and "weights" in options:
            raise InvalidRequest("merge takes an endpoint (merge.url) or a local model (merge.weights)", param="tool")
        self._ask: Callable[[str], str] | None = None
        self._tool, self._weights = "language model", ""
        if "url" in options:
            endpoint = ChatEndpoint.from_options(self.name, options)
            self._ask, self._tool = _merger(endpoint), endpoint.tool
        elif "weights" in options:
            local = LocalModel(options["weights"])
            self._ask, self._tool, self._weights = local, local.tool, local.weights_sha256

    def caption(self, clips: Sequence[ClipFrames], earlier: Sequence[Sequence[CaptionRecord]]) -> list[CaptionRecord]:
        """One caption a clip, from what was said before."""
        return [self._merge(clip.clip_id, before) for clip, before in zip(clips, earlier, strict=True)]

    def _merge(self, clip_id: str, earlier: Sequence[CaptionRecord]) -> CaptionRecord:
        usable = [one for one in earlier if one.text and one.captioner != MEASURED]
        if self._ask is None:
            return missing_caption(clip_id, self.name, NOTHING, self._tool)
        if len(usable) < 2:
            reason = f"{len(usable)} captions of captioners to merge; it takes two"
            return missing_caption(clip_id, self.name, reason, self._tool, self._weights)
        return caption_record(clip_id, self.name, self._ask(question(usable)), self._tool, self._weights)
