"""The mini autoencoder: 16 latent channels at stride 8, trained on the starter dataset; a decoder for orbits."""

from training.config import DecoderConfig, EquivarianceConfig, Optim, VAEConfig


def mini_vae() -> VAEConfig:
    """Three phases on 64 x 64 crops; about an hour on two CPU cores."""
    return VAEConfig(
        preset="mini",
        optim=Optim(
            iterations=2400,
            batch=16,
            lr=1e-3,
            warmup=20,
            final_lr_share=0.05,
            beta2=0.99,
            weight_decay=0.0,
            clip_norm=1.0,
            ema_decay=0.995,
            seed=0,
            checkpoint_every=100,
            log_every=20,
        ),
        skeleton_until=600,
        spatial_until=2000,
        phase_warmup=60,
        phase_batch=8,
        crop=64,
        frames=4,
        latent_noise=0.05,
        target_weight=0.3,
        whitening=0.75,
        gradient_weight=0.5,
    )


def mini_decoder_orbits() -> DecoderConfig:
    """The autoencoder's decoder, fitted to rendered orbits (`stillmotion data multi-view`)."""
    return DecoderConfig(
        preset="mini",
        optim=Optim(
            iterations=1000,
            batch=4,
            lr=2e-3,
            warmup=40,
            final_lr_share=0.02,
            beta2=0.99,
            weight_decay=0.0,
            clip_norm=1.0,
            ema_decay=0.99,
            seed=40,
            checkpoint_every=100,
            log_every=20,
            method="muon",
        ),
        vae="mini-vae",
        crop=64,
        frames=4,
        latent_noise=0.1,
        gradient_weight=0.5,
    )


def mini_vae_equivariant() -> EquivarianceConfig:
    """The autoencoder again, so that its latents move with the picture (docs/adr/0013)."""
    return EquivarianceConfig(
        preset="mini",
        optim=Optim(
            iterations=2000,
            batch=8,
            lr=1e-3,
            warmup=40,
            final_lr_share=0.05,
            beta2=0.99,
            weight_decay=0.0,
            clip_norm=1.0,
            ema_decay=0.995,
            seed=71,
            checkpoint_every=100,
            log_every=20,
            method="muon",
        ),
        vae="mini-vae",
        consistency=0.1,
        scale_share=0.25,
        crop=64,
        latent_noise=0.05,
        gradient_weight=0.5,
    )
