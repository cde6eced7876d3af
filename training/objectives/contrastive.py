"""Contrastive training of the small image and text towers (Radford et al. 2021, CLIP, with two changes).

Legend: B pictures, D embedding width, N tokens.

- Measured captions repeat (training.data.attribute_captions), so a picture's targets are all captions equal to its
  own, evenly.
- Two frames of one shot are each other's positives as well: the image tower learns what a scene keeps while it moves,
  which is what a denoiser that is given one frame of a clip needs of it.
"""

from __future__ import annotations

import json
import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from model.conditioning import clip_input
from model.encoders import build_image_encoder
from model.media.video import Frames
from model.presets import preset
from training.config import ImageEncoderConfig
from training.data.attribute_captions import attribute_caption
from training.data.frames import Clip
from training.data.seeding import generator
from training.objectives.protocol import backward_of

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CONTEXT = 77


def learn_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level pairs) whose merges are learned from the captions."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1024, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(captions, trainer)
    state = cast(dict[str, object], json.loads(learner.to_str())["model"])
    words = sorted(cast(dict[str, int], state["vocab"]), key=lambda word: cast(dict[str, int], state["vocab"])[word])
    words += [letter + "</w>" for letter in alphabet if letter + "</w>" not in words]
    vocab = {word: index for index, word in enumerate([*words, *special])}
    merges = [tuple(pair) for pair in cast(list[list[str]], state["merges"])]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


class Towers(nn.Module):
    """The two towers and the temperature between them."""

    def __init__(self, config: ImageEncoderConfig, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        size = preset(config.preset).image_encoder
        self.image = build_image_encoder(size)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            projection_dim=size.projection,
            max_position_embeddings=CONTEXT,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        self.text = CLIPTextModelWithProjection(text)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))


class ContrastiveObjective:
    """Pairs of frames of B shots, and their captions."""

    def __init__(self, config: ImageEncoderConfig, clips: list[Clip], device: torch.device | None = None) -> None:
        self.config, self.clips = config, clips
        torch.manual_seed(config.optim.seed)
        captions = [
            attribute_caption(clip.frames[t], clip.item.kind) for clip in clips for t in range(len(clip.frames))
        ]
        self.tokenizer = learn_tokenizer(captions)
        self.towers = Towers(config, self.tokenizer).to(device)

    @property
    def module(self) -> nn.Module:
        """Both towers."""
        return self.towers

    def enter(self, step: int) -> None:
        """Nothing changes between iterations."""

    def rate(self, step: int) -> float:
        """The schedule as it is."""
        return 1.0

    def batch(self, step: int) -> tuple[Tensor, list[str]]:
        """Pictures [2B, 3, H, W] in [-1, 1], the second half from the same items as the first; captions of all."""
        draw = generator(self.config.optim.seed, step)
        count = self.config.optim.batch
        indices = torch.multinomial(torch.ones(len(self.clips)), count, replacement=False, generator=draw).tolist()
        pictures: list[Tensor] = []
        captions: list[str] = []
        for _ in range(2):
            for index in indices:
                clip = self.clips[index]
                frame = clip.frames[int(torch.randint(0, len(clip.frames), (), generator=draw))]
                captions.append(attribute_caption(frame, clip.item.kind))
                pictures.append(_augmented(torch.from_numpy(frame.copy()), draw))
        pixels = torch.stack(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        return pixels, captions

    def names(self, step: int) -> list[str]:
        """The clips that pictures are drawn from."""
        return [clip.item.id for clip in self.clips]

    def samples(self, step: int) -> dict[str, Frames]:
        """None: it makes no pictures."""
        return {}

    def backward(self, step: int) -> dict[str, float]:
        """The gradients of iteration `step`."""
        return backward_of(*self.loss(step))

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of picture against caption, and of frame against frame."""
        pixels, captions = self.batch(step)
        towers = self.towers
        device = towers.log_scale.device
        pixels = pixels.to(device)
        image = F.normalize(towers.image(clip_input(pixels, CLIP_MEAN, CLIP_STD)).image_embeds, dim=-1)
        tokens = self.tokenizer(captions, padding="max_length", max_length=24, truncation=True, return_tensors="pt")
        text = F.normalize(towers.text(**tokens.to(device)).text_embeds, dim=-1)
        scale = towers.log_scale.exp().clamp(max=100)
        same = torch.tensor([[float(a == b) for b in captions] for a in captions], device=device)
        target = same / same.sum(1, keepdim=True)
        logits = scale * image @ text.T
        with_text = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        first, second = image.chunk(2)
        pairs = scale * first @ second.T
        labels = torch.arange(len(first), device=device)
        with_frames = (F.cross_entropy(pairs, labels) + F.cross_entropy(pairs.T, labels)) / 2
        total = self.config.text_weight * with_text + with_frames
        top = (pairs.argmax(1) == labels).float().mean().item()
        return total, {"text": with_text.item(), "frames": with_frames.item(), "frame_top1": top}


def _augmented(frame: Tensor, draw: torch.Generator) -> Tensor:
    """A mirrored and re-cropped frame [H, W, 3], at most a fifth of each side cut away, scaled back."""
    height, width, _ = frame.shape
    if torch.rand((), generator=draw) < 0.5:
        frame = frame.flip(1)
    share = 1 - 0.2 * float(torch.rand((), generator=draw))
    h, w = int(height * share), int(width * share)
    y = int(torch.randint(0, height - h + 1, (), generator=draw))
    x = int(torch.randint(0, width - w + 1, (), generator=draw))
    cut = frame[y : y + h, x : x + w].permute(2, 0, 1)[None].float()
    return F.interpolate(cut, size=(height, width), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
