"""Clips made on the spot, and tiny random models with the architectures that curation loads."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from model.media.video import encode_video
from training.curation.frames import ClipFrames
from training.curation.records import ClipRecord

FPS = 8


def textured(height: int = 96, width: int = 192, seed: int = 0) -> np.ndarray:
    """A smooth picture [H, W, 3] that repeats at its edges."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = np.stack([gaussian_filter(noise[..., k], height / 25, mode="wrap") for k in range(3)], axis=-1)
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def pan(frames: int = 24, pixels: int = 1, seed: int = 0) -> np.ndarray:
    """A textured picture that moves right by so many pixels a frame, [T, H, W, 3]."""
    picture = textured(seed=seed)
    return np.stack([np.roll(picture, pixels * t, axis=1) for t in range(frames)])


def clip_of(folder: Path, frames: np.ndarray, name: str = "0" * 20) -> ClipFrames:
    """The frames as a file with its record."""
    path = folder / f"{name}.mp4"
    path.write_bytes(encode_video(frames, FPS, "mp4"))
    count, height, width, _ = frames.shape
    record = ClipRecord(
        name, "s", 0.0, count / FPS, 0, 0, 0, 0, path.name, "", count, width, height, Fraction(FPS), "whole"
    )
    return ClipFrames(path, record)


def write_tokenizer(folder: Path, words: list[str], *, special: tuple[str, ...] = (), end: str = "") -> None:
    """A word-level tokenizer that AutoTokenizer loads: <pad>, <s>, </s>, <unk>, the special tokens, then the words.

    Args:
        end: what texts end with; CLIP wants ` </s>`, language models go on writing.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    first = ["<pad>", "<s>", "</s>", "<unk>", *special]
    vocabulary = {word: index for index, word in enumerate([*first, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{end}", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)


def write_clip_model(folder: Path, seed: int = 0) -> Path:
    """A tiny random CLIP with a tokenizer."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": 32, "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**small, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    write_tokenizer(folder, ["a", "rabbit", "in", "the", "grass"], end=" </s>")
    return folder


def write_video_captioner(folder: Path) -> Path:
    """A tiny random InstructBlipVideo with both tokenizers."""
    import torch
    from transformers import InstructBlipVideoConfig, InstructBlipVideoForConditionalGeneration, OPTConfig

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = ["a", "rabbit", "sleeps", "in", "grass", "Describe", "the", "video", "one", "sentence"]
    text = OPTConfig(
        vocab_size=16, hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = InstructBlipVideoConfig(
        vision_config={**small, "image_size": 32, "patch_size": 16},
        qformer_config={**small, "vocab_size": 16, "encoder_hidden_size": 16, "cross_attention_frequency": 1},
        text_config=text.to_dict(),
        num_query_tokens=3,
        video_token_index=4,
    )
    InstructBlipVideoForConditionalGeneration(config).save_pretrained(folder)
    write_tokenizer(folder, words, special=("<video>",))
    write_tokenizer(folder / "qformer_tokenizer", words, special=("<video>",))
    return folder


def write_vision_model() -> Callable[[Sequence[Image.Image], str, int], str]:
    """A tiny random LLaVA of transformers, as a function of pictures, a prompt and a number of tokens to words."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from training.curation.inputs import square_pixels

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**small, image_size=32, patch_size=16)
    text = LlamaConfig(**small, vocab_size=32, max_position_embeddings=128, pad_token_id=0, eos_token_id=None)
    words = [f"word{index}" for index in range(32)]
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=31, image_seq_length=4)
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data *= 8  # as random weights are, pictures would change no word
    patches, lock = 4, threading.Lock()

    def describe(pictures: Sequence[Image.Image], prompt: str, count: int) -> str:
        frames = np.stack([np.asarray(one.convert("RGB")) for one in pictures])
        tokens = [1, *[31] * (patches * len(pictures)), *(2 + len(word) % 20 for word in prompt.split())]
        with lock, torch.inference_mode():
            out = model.generate(
                input_ids=torch.tensor([tokens]),
                attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
                pixel_values=square_pixels(frames, 32, crop=False),
                max_new_tokens=count,
                do_sample=False,
            )
        return " ".join(words[int(token)] for token in out[0, len(tokens) :])

    return describe


def write_language_model(folder: Path) -> Path:
    """A tiny random causal language model."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=512, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    write_tokenizer(folder, ["a", "rabbit", "sleeps", "in", "grass", "coca", "video", "Sentence", "one", "plain"])
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gpt2"
    return folder
