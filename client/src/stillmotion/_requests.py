"""Wire types of requests: what a client may ask of the service. Unknown fields are refused.

Defined once, here; `stillmotion.types` has them all, and those of the answers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Solver = Literal["euler", "heun", "dpmpp-2m", "lcm"]
Schedule = Literal["karras", "align-your-steps", "lcm"]
ResizeMode = Literal["crop", "fit", "stretch"]
OutputFormat = Literal["mp4", "webm", "gif"]
Priority = Literal["low", "normal", "high"]
Strength = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
LabelName = Annotated[str, Field(min_length=1, max_length=64)]
Label = Annotated[str, Field(max_length=512)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86400, allow_inf_nan=False)]
Scale = Annotated[float, Field(ge=0, le=30, allow_inf_nan=False)]
LoraName = Annotated[str, Field(max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(@[0-9a-f]{12})?$")]
LoraScale = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Elevation = Annotated[float, Field(ge=-90, le=90, allow_inf_nan=False)]
_LORA = "an adapter, such as of a camera motion: NAME, or NAME@VERSION to have that one or none; GET /models lists them"
_LORA_SCALE = "strength of `lora`: 1 as trained, the default; 0 none of it, below 0 the opposite"
_WORDS = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}


def _said(value: object) -> object:
    """A form has only text: its words for yes and no are no names."""
    return _WORDS.get(value.lower(), value) if isinstance(value, str) else value


Interpolate = Annotated[
    bool | Annotated[str, Field(min_length=1, max_length=200)],
    BeforeValidator(_said),
    Field(
        description="make three frames between each two neighbours, at four times the frame rate: true, or the name of "
        "the frame-interpolation model where several are served"
    ),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False, frozen=True)


UploadId = Annotated[str, Field(pattern=r"^upload_[0-9a-f]{64}$")]


class ImageData(_Request):
    """A picture in a JSON body: base64, the id of an upload, or a URL where the server allows URLs; one of them."""

    data: str | None = Field(None, description="base64 of the picture's bytes")
    url: str | None = Field(
        None,
        max_length=2048,
        description="https URL the server fetches it from; off unless the operator allows it",
    )
    upload: UploadId | None = Field(None, description="what POST /uploads answered")


class Webhook(_Request):
    """Where the news of a job's end is sent, and what signs it (see stillmotion.webhooks)."""

    url: str = Field(max_length=2048, description="https URL; private addresses are refused unless the operator allows")
    secret: str | None = Field(
        None,
        max_length=256,
        pattern=r"^whsec_[A-Za-z0-9+/]+=*$",
        description="whsec_ and base64; the server's own if left out, where it has one",
    )


class ExtendRequest(_Request):
    """A stage: the clip goes on beyond what the checkpoint makes at once, window by window."""

    kind: Literal["extend"]
    num_frames: int = Field(ge=2, le=1000, description="of the whole clip, before interpolation")
    model: str | None = Field(None, description="image-to-video checkpoint that goes on; the clip's own if left out")


class InterpolateRequest(_Request):
    """A stage: three frames between each two neighbours, at four times the frame rate."""

    kind: Literal["interpolate"]
    model: str | None = Field(None, description="frame-interpolation checkpoint; the only one served if left out")


class UpscaleRequest(_Request):
    """A stage: every frame larger."""

    kind: Literal["upscale"]
    factor: int = Field(2, ge=2, le=4)
    network: str = Field("lanczos", max_length=100, description="lanczos, or a network of the server's")


StageRequest = Annotated[ExtendRequest | InterpolateRequest | UpscaleRequest, Field(discriminator="kind")]
_STAGES = "what is done to the clip, in the order extend, interpolate, upscale, each at most once; or in the short form"
_UPSCALE = "make every frame so many times as large: 2, 3 or 4"
_UPSCALER = "by what: lanczos, or a network of the server's"


class GenerationRequest(_Request):
    """Settings that every task has. None: the checkpoint's own default."""

    model: str | None = Field(None, description="which checkpoint; GET /models lists them")
    num_frames: int | None = Field(
        None, ge=1, le=1000, description="more than the checkpoint makes at once: the clip is extended"
    )
    width: int | None = Field(None, ge=8, le=4096)
    height: int | None = Field(None, ge=8, le=4096)
    fps: int | None = Field(None, ge=1, le=60, description="conditioned on, and played at")
    motion_bucket_id: int | None = Field(None, ge=1, le=255, description="how much moves: 1 hardly, 255 very much")
    max_guidance_scale: Scale | None = Field(
        None, description="guidance at its most: at the last frame, half way round an orbit, or at every frame"
    )
    num_inference_steps: int | None = Field(None, ge=1, le=200)
    solver: Solver | None = None
    schedule: Schedule | None = Field(
        None,
        description="noise levels stepped through; align-your-steps suits few steps, lcm "
        "checkpoints distilled by consistency",
    )
    decode_chunk_size: int | None = Field(None, ge=1, le=128, description="frames decoded at once, at most")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="the same seed and settings: the same video")
    output_format: OutputFormat = "mp4"
    priority: Priority = "normal"
    deadline_s: Seconds | None = Field(None, description="seconds from now by which the result is wanted")
    metadata: dict[LabelName, Label] = Field(
        default_factory=dict[str, str], max_length=16, description="your own labels, kept with the job"
    )
    webhook: Webhook | None = Field(None, description="told when the job has ended")
    previews: bool = Field(False, description="small pictures of what is coming, among the job's events; see /models")
    reuse: bool = Field(
        False,
        description="answer with a finished job of yours that made the same video, if there is one; with `seed` only",
    )


class TextToVideoRequest(GenerationRequest):
    """The body of POST /generate/text-to-video, as a form or as JSON."""

    prompt: str = Field(min_length=1, max_length=2000, description="what is to be seen")
    lora: LoraName | None = Field(None, description=_LORA)
    lora_scale: LoraScale | None = Field(None, description=_LORA_SCALE)
    interpolate: Interpolate = False
    upscale: int | None = Field(None, ge=2, le=4, description=_UPSCALE)
    upscaler: str | None = Field(None, max_length=100, description=_UPSCALER)
    stages: list[StageRequest] = Field(default_factory=list[StageRequest], max_length=3, description=_STAGES)


class _FromPictures(GenerationRequest):
    noise_aug_strength: Strength | None = Field(None, description="noise on what is conditioned on; more: freer")
    resize_mode: ResizeMode | None = Field(None, description="how a picture meets the clip's aspect")


class ImageToVideoRequest(_FromPictures):
    """Settings of POST /generate/image-to-video, besides the picture. None: the checkpoint's own default."""

    min_guidance_scale: Scale | None = Field(None, description="guidance at the first frame")
    lora: LoraName | None = Field(None, description=_LORA)
    lora_scale: LoraScale | None = Field(None, description=_LORA_SCALE)
    interpolate: Interpolate = False
    upscale: int | None = Field(None, ge=2, le=4, description=_UPSCALE)
    upscaler: str | None = Field(None, max_length=100, description=_UPSCALER)
    stages: list[StageRequest] = Field(default_factory=list[StageRequest], max_length=3, description=_STAGES)


class FrameInterpolationRequest(_FromPictures):
    """Settings of POST /generate/frame-interpolation, besides the two pictures."""


class MultiViewRequest(_FromPictures):
    """Settings of POST /generate/multi-view, besides the picture."""

    min_guidance_scale: Scale | None = Field(None, description="guidance at both ends of the orbit")
    elevation: Elevation | None = Field(None, description="of the camera, in degrees above the object's equator")


class TextToVideoBody(TextToVideoRequest):
    """The same as a JSON body."""


class ImageToVideoBody(ImageToVideoRequest):
    """The same as a JSON body, with the picture in it."""

    image: ImageData


class FrameInterpolationBody(FrameInterpolationRequest):
    """The same as a JSON body, with both pictures in it."""

    image: ImageData
    last_image: ImageData


class MultiViewBody(MultiViewRequest):
    """The same as a JSON body, with the picture in it."""

    image: ImageData


REQUESTS: dict[str, tuple[type[GenerationRequest], type[GenerationRequest]]] = {
    "image-to-video": (ImageToVideoRequest, ImageToVideoBody),
    "text-to-video": (TextToVideoRequest, TextToVideoBody),
    "frame-interpolation": (FrameInterpolationRequest, FrameInterpolationBody),
    "multi-view": (MultiViewRequest, MultiViewBody),
}
"""The settings of each task, and the same as a JSON body; pictures are the body's further fields, in order."""


class BatchLine(_Request):
    """One line of POST /batches: a submission under a name of your own."""

    custom_id: str = Field(
        min_length=1,
        max_length=255,
        pattern=r"^[^\x00]*$",
        description="your name for this row, unique in the batch",
    )
    method: Literal["POST"] = "POST"
    url: Literal[
        "/generate/image-to-video",
        "/generate/text-to-video",
        "/generate/frame-interpolation",
        "/generate/multi-view",
    ]
    body: dict[str, Any] = Field(
        description="as the JSON body of `url`, without `priority` (rows are offline work) and `reuse` (each is a job)"
    )


class UploadIntent(_Request):
    """A picture that is to go to S3 directly."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of its bytes, in hex")
    bytes: int = Field(ge=1, le=2**40)
