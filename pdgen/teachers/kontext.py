"""FLUX.1-Kontext [dev] as the painter of real pictures, by diffusers (the extra ``teachers``).

Licences: this module brings no weights. Those of FLUX.1-Kontext [dev] come from their owner under the FLUX.1 [dev]
Non-Commercial License v1.1.1: the model may be run for non-commercial purposes alone, training other models for
commercial use is none, its pictures may not train a model that competes with FLUX.1 [dev] or FLUX.1 Kontext [dev],
and pictures that are given to others must be filtered or reviewed. Read it before you build data with them:
https://huggingface.co/black-forest-labs/FLUX.1-Kontext-dev
"""

import importlib
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from pdgen.sequence.images import Picture
from pdgen.teachers.protocols import Stroke, TeacherError

CHECKPOINT = "black-forest-labs/FLUX.1-Kontext-dev"


class KontextSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How Kontext is run.

    Attributes:
      checkpoint: folder of a diffusers checkpoint, or its name on the Hugging Face hub.
      device, dtype: as PyTorch names them. In bfloat16 the weights take 34 GB.
      size: of a picture's side in pixels; the model is trained at about 1024 x 1024.
      steps: evaluations of the model for a picture.
      guidance_scale: of the distilled guidance; 2.5 is what the model's card uses for editing.
    """

    checkpoint: str = CHECKPOINT
    device: str = "cuda"
    dtype: str = "bfloat16"
    size: int = 1024
    steps: int = 28
    guidance_scale: float = 2.5


class KontextPainter:
    """``teachers.Painter`` by FLUX.1-Kontext: each step edits the picture before by the step's instruction.

    The first step has no picture before it and is drawn from the instruction alone, as the pipeline does for text
    to image. What an instruction does not concern stays alike, not bit for bit.

    Args:
      settings: see ``KontextSettings``.
      pipeline: a ``FluxKontextPipeline`` or what behaves like one; None loads the checkpoint at the first picture.
    """

    def __init__(self, settings: KontextSettings, pipeline: Any = None):
        self.name = settings.checkpoint
        self.settings = settings
        self._pipeline = pipeline
        self._lock = threading.Lock()  # a pipeline's scheduler holds the state of one run

    def paint(self, stroke: Stroke) -> Picture:
        """The picture after the step, [size, size, 3].

        Raises:
          TeacherError: the instruction is empty, the picture before has another size, or the pipeline is missing.
        """
        return self.paint_batch([stroke])[0]

    def paint_batch(self, strokes: Sequence[Stroke]) -> list[Picture]:
        """The pictures after several steps, drawn together; all strokes are first ones, or none is.

        A stroke's noise comes from its own seed, so a picture depends on its batch by rounding alone. Errors as
        ``paint``.
        """
        self._check(strokes)
        images = None if strokes[0].previous is None else [Image.fromarray(s.previous) for s in strokes]
        with self._lock:
            pipeline = self._load()
            torch = importlib.import_module("torch")
            size = self.settings.size
            result = pipeline(
                image=images,
                prompt=[s.instruction for s in strokes],
                height=size,
                width=size,
                num_inference_steps=self.settings.steps,
                guidance_scale=self.settings.guidance_scale,
                # Noise is drawn on the CPU: equal on every device.
                generator=[torch.Generator("cpu").manual_seed(s.seed) for s in strokes],
                # Else the pipeline draws about 1024 x 1024 pixels, and shows a part of the picture before.
                max_area=size * size,
                _auto_resize=False,
            )
        return [np.asarray(image.convert("RGB"), np.uint8) for image in result.images]

    def _check(self, strokes: Sequence[Stroke]) -> None:
        size = self.settings.size
        if not strokes:
            raise TeacherError(f"{self.name}: no stroke to paint")
        if len({s.previous is None for s in strokes}) > 1:
            raise TeacherError(f"{self.name}: a batch mixes first steps and edits; paint them apart")
        for stroke in strokes:
            if not stroke.instruction.strip():
                raise TeacherError(f"{self.name}: the instruction is empty")
            if stroke.previous is not None and stroke.previous.shape != (size, size, 3):
                raise TeacherError(
                    f"{self.name}: {stroke.instruction!r}: the picture before is "
                    f"{stroke.previous.shape}, expected {(size, size, 3)}"
                )

    def _load(self) -> Any:
        if self._pipeline is None:
            self._pipeline = load_pipeline(self.settings)
        multiple = self._pipeline.vae_scale_factor * 2
        if self.settings.size < multiple or self.settings.size % multiple:
            raise TeacherError(f"size = {self.settings.size}: this pipeline needs a multiple of {multiple} pixels")
        return self._pipeline


def load_pipeline(settings: KontextSettings) -> Any:
    """The checkpoint's ``FluxKontextPipeline`` on its device, without progress bars.

    Raises:
      TeacherError: diffusers is missing, the checkpoint cannot be read, or the device is not there.
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
