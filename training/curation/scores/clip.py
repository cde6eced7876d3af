"""CLIP: the first, middle and last frame as one vector, and the aesthetic score that a linear head reads from it.

The vector is the mean of the three frames' unit-length embeddings. Both scores of the paper are linear in it, so
nothing is lost: the mean cosine with a caption is its product with the caption's unit vector (scores.clip_similarity),
and the mean of a linear head over the frames is the head of the mean.

CLIP is not shipped: `--tool clip.weights=DIR_OR_HUB_ID` names it, `--tool clip.aesthetic=FILE` the head (`weight`
[1, D] and `bias` [1], .safetensors or .pth). What is not named is recorded as not scored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from model.errors import DataError
from model.media.video import Frames
from training.curation.frames import ClipFrames
from training.curation.protocols import known_options
from training.curation.records import Resources, ScoreRecord, ToolOptions, score_records, unscored_records

EMBEDDING, AESTHETIC = "clip_embedding", "aesthetic"
NO_CLIP = "no CLIP weights were given (--tool clip.weights=DIR_OR_HUB_ID)"
NO_HEAD = "no aesthetic head was given (--tool clip.aesthetic=FILE)"


class ClipTowers:
    """A CLIP model with its tokenizer, from a folder or hub id; pictures and texts become unit vectors.

    Raises:
        DataError: nothing that can be loaded lies there.
    """

    def __init__(self, weights: str) -> None:
        from transformers import AutoTokenizer, CLIPModel

        from training.data.latents import weights_digest

        try:
            self._model = CLIPModel.from_pretrained(weights).eval().requires_grad_(False)
            self._tokenizer = AutoTokenizer.from_pretrained(weights)
        except (OSError, ValueError) as error:
            raise DataError(f"no CLIP model can be loaded from {weights!r}: {error}") from error
        self.weights_sha256 = weights_digest(self._model)
        self.tool = f"CLIPModel, {Path(weights).name}"

    def pictures(self, frames: Frames) -> np.ndarray[Any, np.dtype[np.float32]]:
        """[T, H, W, 3] to unit vectors [T, D]."""
        import torch

        from training.curation.inputs import square_pixels

        with torch.inference_mode():
            pixels = square_pixels(frames, self._model.config.vision_config.image_size, crop=True)
            image_features = self._model.visual_projection(self._model.vision_model(pixels).pooler_output)
            return np.asarray(torch.nn.functional.normalize(image_features, dim=-1).numpy())

    def texts(self, captions: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Captions to unit vectors [N, D]; what is longer than the model takes is cut off."""
        import torch

        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(captions, padding=True, truncation=True, max_length=length, return_tensors="pt")
        with torch.inference_mode():
            text_features = self._model.text_projection(self._model.text_model(**tokens).pooler_output)
            return np.asarray(torch.nn.functional.normalize(text_features, dim=-1).numpy())


class AestheticHead:
    """A linear head on CLIP's unit vectors.

    Raises:
        DataError: not a file with `weight` [1, D] and `bias` [1].
    """

    def __init__(self, path: Path) -> None:
        from training.data.sources import sha256_of

        if not path.is_file():
            raise DataError(f"{path} is no file; name the aesthetic head's .safetensors or .pth")
        values = _load(path)
        try:
            weight, bias = values["weight"], values["bias"]
        except KeyError as error:
            raise DataError(f"{path} has no {error}: an aesthetic head holds weight and bias") from error
        self._weight, self._bias = np.asarray(weight, np.float64).reshape(-1), float(np.asarray(bias).reshape(()))
        self.sha256 = sha256_of(path)

    def __call__(self, vector: np.ndarray[Any, np.dtype[np.float32]]) -> float:
        """The score of a vector [D]."""
        if len(vector) != len(self._weight):
            raise DataError(f"the aesthetic head is for vectors of {len(self._weight)}, this CLIP gives {len(vector)}")
        return float(vector @ self._weight) + self._bias


def _load(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return dict(load_file(path))
    import torch

    return {name: value.float().numpy() for name, value in torch.load(path, weights_only=True).items()}


class ClipScorer:
    """The CLIP vector, and the aesthetic score."""

    name = "clip"
    resources = Resources()

    def __init__(self, options: ToolOptions) -> None:
        known_options(self.name, options, ("weights", "aesthetic"))
        self._towers = ClipTowers(options["weights"]) if "weights" in options else None
        self._head = AestheticHead(Path(options["aesthetic"])) if "aesthetic" in options else None

    def score(self, clip: ClipFrames) -> list[ScoreRecord]:
        """`clip_embedding` (its vector [D]; its value is the vector's length) and `aesthetic`."""
        if self._towers is None:
            return unscored_records(clip.clip_id, (EMBEDDING, AESTHETIC), NO_CLIP, "CLIP")
        tool, weights = self._towers.tool, self._towers.weights_sha256
        mean = self._towers.pictures(clip.first_middle_last()).mean(axis=0)
        vector = tuple(float(one) for one in mean)
        records = [ScoreRecord(clip.clip_id, EMBEDDING, float(np.linalg.norm(mean)), None, tool, weights, vector)]
        if self._head is None:
            return records + unscored_records(clip.clip_id, (AESTHETIC,), NO_HEAD, tool, weights)
        named = f"{tool}, linear head {self._head.sha256[:12]}"
        return records + score_records(clip.clip_id, {AESTHETIC: self._head(mean)}, named, weights)
