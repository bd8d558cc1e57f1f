"""FLUX.1-Kontext [dev] as the painter of real pictures, by diffusers (the extra ``teachers``).

Licence: pdgen does not include the weights. FLUX.1-Kontext [dev] is licensed under the FLUX.1 [dev] Non-Commercial
License v1.1.1. The model may only be run for non-commercial purposes, which exclude training models for commercial use.
Its pictures may not be used to train a model that competes with FLUX.1 [dev] or FLUX.1 Kontext [dev]. Pictures that are
distributed must be filtered or reviewed. Read the licence before you build data with the model:
https://huggingface.co/black-forest-labs/FLUX.1-Kontext-dev
"""

import importlib
import threading
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from pdgen.sequence.images import Picture
from pdgen.teachers.protocols import Stroke, TeacherError

CHECKPOINT = "black-forest-labs/FLUX.1-Kontext-dev"


class KontextSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of FLUX.1-Kontext.

    Attributes:
      checkpoint: folder of a diffusers checkpoint, or its name on the Hugging Face hub.
      device, dtype: PyTorch's names. In bfloat16 the weights take 34 GB.
      size: side of a picture in pixels; the model was trained at about 1024 x 1024.
      steps: model evaluations per picture.
      guidance_scale: scale of the distilled guidance; the model card uses 2.5 for editing.
    """

    checkpoint: str = CHECKPOINT
    device: str = "cuda"
    dtype: str = "bfloat16"
    size: int = 1024
    steps: int = 28
    guidance_scale: float = 2.5


class KontextPainter:
    """A ``Painter`` with FLUX.1-Kontext: each step edits the previous picture according to the step's instruction.

    The first step is text to image. Parts that an instruction does not concern stay similar but not identical.

    Args:
      settings: see ``KontextSettings``.
      pipeline: a ``FluxKontextPipeline`` or an object with its interface; None: the checkpoint, loaded at first use.
    """

    def __init__(self, settings: KontextSettings, pipeline: Any = None):
        self.name = settings.checkpoint
        self.settings = settings
        self._pipeline = pipeline
        self._lock = threading.Lock()  # a pipeline's scheduler holds the state of one run

    def paint(self, stroke: Stroke) -> Picture:
        """Paint the picture after a step, [size, size, 3].

        Raises:
          TeacherError: the instruction is empty, the previous picture has another size, or the pipeline is missing.
        """
        size, previous = self.settings.size, stroke.previous
        if not stroke.instruction.strip():
            raise TeacherError(f"{self.name}: the instruction is empty")
        if previous is not None and previous.shape != (size, size, 3):
            raise TeacherError(
                f"{self.name}: {stroke.instruction!r}: the picture before is {previous.shape}, "
                f"expected {(size, size, 3)}"
            )
        with self._lock:
            pipeline = self._load()
            torch = importlib.import_module("torch")
            result = pipeline(
                image=None if previous is None else Image.fromarray(previous),
                prompt=stroke.instruction,
                height=size,
                width=size,
                num_inference_steps=self.settings.steps,
                guidance_scale=self.settings.guidance_scale,
                # Noise from the CPU is equal on every device.
                generator=torch.Generator("cpu").manual_seed(stroke.seed),
                # Otherwise the pipeline would paint about 1024 x 1024 pixels and crop the previous picture.
                max_area=size * size,
                _auto_resize=False,
            )
        return np.asarray(result.images[0].convert("RGB"), np.uint8)

    def _load(self) -> Any:
        if self._pipeline is None:
            self._pipeline = load_pipeline(self.settings)
        multiple = self._pipeline.vae_scale_factor * 2
        if self.settings.size < multiple or self.settings.size % multiple:
            raise TeacherError(f"size = {self.settings.size}: this pipeline needs a multiple of {multiple} pixels")
        return self._pipeline


def load_pipeline(settings: KontextSettings) -> Any:
    """Load the checkpoint's ``FluxKontextPipeline`` on its device, without progress bars.

    Raises:
      TeacherError: diffusers is missing, the checkpoint cannot be read, or the device does not exist.
    """
    try:
        torch, diffusers = (importlib.import_module(name) for name in ("torch", "diffusers"))
        importlib.import_module("transformers")
    except ImportError as fault:
        raise TeacherError(
            f"FLUX.1-Kontext needs the extra 'teachers' ({fault}): pip install 'pdgen[teachers]'"
        ) from None
    try:
        pipeline = diffusers.FluxKontextPipeline.from_pretrained(
            settings.checkpoint, torch_dtype=getattr(torch, settings.dtype)
        )
        pipeline.to(settings.device)
    except (OSError, ValueError, RuntimeError, AssertionError, AttributeError) as fault:
        line = " ".join(str(fault).split())[:300]
        raise TeacherError(f"{settings.checkpoint} on {settings.device} in {settings.dtype}: {line}") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
