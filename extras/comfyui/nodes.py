"""Client nodes: submit a picture or a prompt, follow the job with previews, load its video as frames.

They use the SDK (`stillmotion`), and of ComfyUI its progress bar and its check for an interrupted run. No model is
loaded here. Legend: B pictures, T frames, H, W pixels; ComfyUI's IMAGE is a float32 tensor [B, H, W, 3] in 0..1.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from stillmotion import Client

CATEGORY = "Stillmotion"
JOB = "STILLMOTION_JOB"
"""ComfyUI's name for what passes from node to node: a `Handle`."""
PREVIEW_SIDE = 512


@dataclass(frozen=True, slots=True)
class Handle:
    """A job at a service. The key is not in it: it would be written into the workflow's file."""

    server: str
    job_id: str


def _client(server: str) -> Client:
    """A client for the address; empty: the one in STILLMOTION_BASE_URL. The key is read from STILLMOTION_API_KEY."""
    return Client(server) if server else Client()


def to_png(image: torch.Tensor) -> bytes:
    """The first picture of a batch [B, H, W, 3], encoded."""
    pixels = (image[0, ..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def to_frames(video: bytes) -> tuple[torch.Tensor, float]:
    """An mp4's frames [T, H, W, 3], and how many play in a second."""
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        rate = float(stream.average_rate or 0)
    return torch.from_numpy(frames).float() / 255, rate


class StillmotionSubmit:
    """Sends a picture, or two, or a prompt to a service; answers at once with the job."""

    CATEGORY = CATEGORY
    FUNCTION = "submit"
    RETURN_TYPES = (JOB, "STRING")
    RETURN_NAMES = ("job", "job_id")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """ComfyUI's description of the inputs; 0 and empty leave a setting to the checkpoint."""
        return {
            "required": {
                "server": ("STRING", {"default": "http://127.0.0.1:8000"}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1, "control_after_generate": True}),
                "motion_bucket_id": ("INT", {"default": 127, "min": 1, "max": 255}),
                "steps": ("INT", {"default": 0, "min": 0, "max": 200}),
                "fps": ("INT", {"default": 0, "min": 0, "max": 60}),
            },
            "optional": {
                "image": ("IMAGE",),
                "last_image": ("IMAGE",),
                "prompt": ("STRING", {"default": "", "multiline": True}),
                "model": ("STRING", {"default": ""}),
                "lora": ("STRING", {"default": ""}),
                "lora_scale": ("FLOAT", {"default": 1.0, "min": -2.0, "max": 2.0, "step": 0.05}),
                "previews": ("BOOLEAN", {"default": True}),
            },
        }

    def submit(
        self,
        server: str,
        seed: int,
        motion_bucket_id: int,
        steps: int,
        fps: int,
        image: torch.Tensor | None = None,
        last_image: torch.Tensor | None = None,
        prompt: str = "",
        model: str = "",
        lora: str = "",
        lora_scale: float = 1.0,
        previews: bool = True,
    ) -> tuple[Handle, str]:
        """Two pictures: frame interpolation; one: image to video; none: text to video."""
        settings: dict[str, Any] = {"seed": seed, "motion_bucket_id": motion_bucket_id, "previews": previews}
        settings |= {"num_inference_steps": steps or None, "fps": fps or None, "model": model or None}
        if lora:
            settings |= {"lora": lora, "lora_scale": lora_scale}
        with _client(server) as client:
            if image is not None and last_image is not None:
                job = client.frame_interpolation(to_png(image), to_png(last_image), wait=False, **settings)
            elif image is not None:
                job = client.submit(to_png(image), **settings)
            elif prompt:
                job = client.text_to_video(prompt, wait=False, **settings)
            else:
                raise ValueError("connect an image, or write a prompt")
        return Handle(server, job.id), job.id


class StillmotionFollow:
    """Waits for a job's end with ComfyUI's progress bar and the service's previews; an interrupted run cancels it."""

    CATEGORY = CATEGORY
    FUNCTION = "follow"
    RETURN_TYPES = (JOB, "STRING")
    RETURN_NAMES = ("job", "status")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """ComfyUI's description of the inputs."""
        return {"required": {"job": (JOB,)}}

    def follow(self, job: Handle) -> tuple[Handle, str]:
        """The job, and how it ended.

        Raises:
            RuntimeError: it ended without a video.
        """
        from comfy.model_management import InterruptProcessingException, throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar

        bar = ProgressBar(100)
        with _client(job.server) as client:
            state = client.get(job.job_id)
            try:
                for event in client.stream_events(state):
                    state = event.job
                    jpeg = event.preview.jpeg if event.preview else None
                    shown = ("JPEG", Image.open(io.BytesIO(jpeg)), PREVIEW_SIDE) if jpeg else None
                    bar.update_absolute(state.progress, 100, shown)
                    throw_exception_if_processing_interrupted()
            except InterruptProcessingException:
                client.cancel(state)
                raise
        if state.status != "completed":
            raise RuntimeError(state.error.message if state.error else f"the job is {state.status}")
        return job, state.status


class StillmotionLoadVideo:
    """A finished job's video as frames, for any node that takes images."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("IMAGE", "FLOAT", "STRING")
    RETURN_NAMES = ("frames", "fps", "manifest")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """ComfyUI's description of the inputs."""
        return {"required": {"job": (JOB,)}}

    def load(self, job: Handle) -> tuple[torch.Tensor, float, str]:
        """The frames [T, H, W, 3], frames a second, and the manifest as JSON without the pictures in it."""
        with _client(job.server) as client:
            frames, rate = to_frames(client.content(job.job_id))
            manifest = json.loads(client.content(job.job_id, "manifest"))
        manifest.pop("pictures", None)
        return frames, rate, json.dumps(manifest, indent=2)


NODE_CLASS_MAPPINGS = {
    "StillmotionSubmit": StillmotionSubmit,
    "StillmotionFollow": StillmotionFollow,
    "StillmotionLoadVideo": StillmotionLoadVideo,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "StillmotionSubmit": "Stillmotion: submit",
    "StillmotionFollow": "Stillmotion: follow",
    "StillmotionLoadVideo": "Stillmotion: load video",
}
