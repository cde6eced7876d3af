"""The mini image encoder (and its text tower): trained contrastively on the starter dataset."""

from training.config import ImageEncoderConfig, Optim


def mini_image_encoder() -> ImageEncoderConfig:
    """Pairs of frames of 48 shots and photographs; minutes on two CPU cores."""
    return ImageEncoderConfig(
        preset="mini",
        optim=Optim(
            iterations=400,
            batch=48,
            lr=5e-4,
            warmup=20,
            final_lr_share=0.05,
            beta2=0.98,
            weight_decay=0.05,
            clip_norm=1.0,
            ema_decay=0.99,
            seed=0,
            checkpoint_every=100,
            log_every=20,
        ),
        temperature=0.07,
        text_weight=0.5,
    )
