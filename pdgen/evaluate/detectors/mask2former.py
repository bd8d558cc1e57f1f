"""GenEval's detector with maintained parts: Mask2Former (Swin-S, COCO instances), and CLIP ViT-L/14 for colors.

The benchmark's own code runs mmdet 2.x, which newer systems cannot install. This module does the same with the same
architecture, step by step: pictures are scaled to a short side of 800 and a long side of at most 1333 pixels, masks are
resized to the picture's own size, and a box's score is its class probability times the mean probability of its mask's
pixels. The weights are those of Mask2Former's authors; GenEval used mmdet's own training of it.

Legend: q queries, c classes, n instances, h x w the picture.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from transformers import Mask2FormerForUniversalSegmentation

from pdgen.evaluate.errors import EvaluationError
from pdgen.evaluate.geneval.rule import Detection, Detections, Thresholds
from pdgen.shapes.graph import COLORS
from pdgen.shapes.lexicon import COCO

WEIGHTS = "facebook/mask2former-swin-small-coco-instance"
CLIP = ("ViT-L-14", "openai")
TEMPLATES = ("a photo of a {color} {noun}", "a photo of a {color}-colored {noun}", "a photo of a {color} object")
SHORT, LONG, DIVISOR = 800, 1333, 32
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, of values 0 to 255
MAX_INSTANCES = 100
PUBLISHED = Thresholds()
OUTSIDE = "#999"  # what replaces the pixels of a crop outside the object's mask
# COCO's names that differ in GenEval, and names of older releases.
_RENAMED = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "hair dryer": "hair drier",
}


# (crops, class) -> the one of ``COLORS`` that fits each crop best
ColorScorer = Callable[[Sequence[PIL.Image.Image], str], list[str]]


class ClipColors:
    """Zero-shot classification over ``COLORS`` with CLIP: the mean of the normalised embeddings of ``TEMPLATES``.

    Model, preprocessing and tokenizer are those that open_clip makes.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        preprocess: Callable[[PIL.Image.Image], torch.Tensor],
        tokenizer: Callable[[list[str]], torch.Tensor],
        device: str = "cpu",
    ):
        self._model: Any = model.to(device).eval()  # open_clip's methods are unknown to torch.nn.Module
        self._preprocess, self._tokenizer = preprocess, tokenizer
        self._device = device
        self._classifiers: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, crops: Sequence[PIL.Image.Image], noun: str) -> list[str]:
        """Return the color of each crop. See ``ColorScorer``."""
        images = torch.stack([self._preprocess(crop) for crop in crops]).to(self._device)
        features = F.normalize(self._model.encode_image(images), dim=-1)
        return [COLORS[i] for i in (features @ self._classifier(noun)).argmax(1).tolist()]

    def _classifier(self, noun: str) -> torch.Tensor:
        if noun not in self._classifiers:
            texts = [t.format(color=color, noun=noun) for color in COLORS for t in TEMPLATES]
            each = F.normalize(self._model.encode_text(self._tokenizer(texts).to(self._device)), dim=-1)
            mean = each.reshape(len(COLORS), len(TEMPLATES), -1).mean(1)
            self._classifiers[noun] = F.normalize(mean, dim=-1).T
        return self._classifiers[noun]


class Mask2Former:
    """The published detector.

    Args:
      model: An instance-segmentation Mask2Former over COCO's 80 classes.
      color_of: Determines the colors of crops.
      thresholds: Detections with lower scores are not processed further.
      device: The device to run on.
      weights: The model's name, for ``identity``.

    Raises:
      EvaluationError: The model's classes are not COCO's.
    """

    name: str = "mask2former"
    classes: tuple[str, ...] = COCO
    batch: int = 8
    learned: bool = True

    def __init__(
        self,
        model: Mask2FormerForUniversalSegmentation,
        color_of: ColorScorer,
        thresholds: Thresholds = PUBLISHED,
        device: str = "cpu",
        weights: str = WEIGHTS,
    ):
        id2label: Any = model.config.id2label  # from 0; transformers declares a union that lookups do not fit
        labels = tuple(id2label[i].lower() for i in range(len(id2label)))
        if tuple(_RENAMED.get(label, label) for label in labels) != COCO:
            raise EvaluationError(
                f"{weights}: its classes ({', '.join(labels[:3])}, ...) are not COCO's 80 in their order; "
                f"name a Mask2Former for COCO instances, such as {WEIGHTS}"
            )
        self._model = model.to(device).eval()
        self._color_of, self._device = color_of, device
        self.thresholds = thresholds
        self.identity = f"mask2former {weights} {' '.join(CLIP)} on {device}"

    @classmethod
    def load(cls, weights: str = "", device: str = "") -> "Mask2Former":
        """Load the published weights, which are downloaded once, or a folder, on a GPU if there is one.

        Raises:
          EvaluationError: The weights or the device are not available.
          ImportError: open_clip is not installed. Nothing else in this module needs it.
        """
        import open_clip

        weights, device = weights or WEIGHTS, device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            loaded: Any = Mask2FormerForUniversalSegmentation.from_pretrained(weights, output_loading_info=True)
            model, info = loaded
            # OpenAI trained with QuickGELU. From version 3 open_clip uses it for these weights only if forced.
            clip, _, preprocess = open_clip.create_model_and_transforms(*CLIP, force_quick_gelu=True)
        except (OSError, RuntimeError, ValueError) as fault:
            raise EvaluationError(f"detector mask2former: {fault}; connect once, or name a folder") from None
        if lacking := sorted(dict(model.named_parameters()).keys() & set(info["missing_keys"])):
            raise EvaluationError(
                f"{weights}: lacks {len(lacking)} of the model's tensors, such as {lacking[0]}; download it again"
            )
        try:
            colors = ClipColors(clip, preprocess, open_clip.get_tokenizer(CLIP[0]), device)
            return cls(model, colors, device=device, weights=weights)
        except (RuntimeError, AssertionError) as fault:  # PyTorch's errors for a missing device
            reason = str(fault).partition("\n")[0]
            raise EvaluationError(f"--device={device}: {reason}; use cpu, or cuda on a machine with a GPU") from None

    @torch.no_grad()
    def detect(self, images: Sequence[PIL.Image.Image]) -> list[Detections]:
        """Return the objects in each image. Only pictures of equal size share a batch: padding changes results."""
        answers: dict[int, Detections] = {}
        for size in dict.fromkeys(image.size for image in images):
            same = [number for number, image in enumerate(images) if image.size == size]
            pixels = torch.stack([_preprocess(images[number], self._device) for number in same])
            height, width = pixels.shape[-2:]
            padding = (0, -width % DIVISOR, 0, -height % DIVISOR)
            output = self._model(pixel_values=F.pad(pixels, padding))
            for row, number in enumerate(same):
                classes, masks = output.class_queries_logits[row], output.masks_queries_logits[row]
                answers[number] = self._extract_detections(classes, masks, (height, width), images[number].size[::-1])
        return [answers[number] for number in range(len(images))]

    def _extract_detections(
        self, classes: torch.Tensor, masks: torch.Tensor, scaled: tuple[int, int], original: tuple[int, int]
    ) -> Detections:
        """Return the objects from logits [q, c + 1] and [q, h', w'] of a picture of size ``scaled`` that was padded."""
        probabilities = classes.softmax(-1)[:, :-1]
        number = min(MAX_INSTANCES, probabilities.numel())
        scores, indices = probabilities.flatten().topk(number)
        # A mask's mean probability is at most 1, so a score never exceeds its class probability.
        indices = indices[scores > min(self.thresholds.score, self.thresholds.counting)]
        found: dict[str, list[Detection]] = {}
        padded = [side + -side % DIVISOR for side in scaled]
        own_size = functools.cache(
            lambda query: _resize(_resize(masks[query], padded)[: scaled[0], : scaled[1]], original)
        )
        for index in indices.tolist():
            query, label = divmod(index, probabilities.shape[1])
            logits = own_size(query)
            inside = logits > 0
            if not inside.any():
                continue
            score = probabilities[query, label] * logits.sigmoid()[inside].mean()
            item = Detection(_find_box(inside), float(score), mask=inside.cpu().numpy())
            found.setdefault(COCO[label], []).append(item)
        return found

    def colors(self, image: PIL.Image.Image, noun: str, found: Sequence[Detection]) -> list[str]:
        """Return the colors of crops at the boxes, with ``OUTSIDE`` in place of the pixels outside the masks."""
        blank = PIL.Image.new("RGB", image.size, OUTSIDE)
        masks = [PIL.Image.fromarray(o.mask) for o in found if o.mask is not None]  # ``detect`` gives all a mask
        crops = [PIL.Image.composite(image, blank, mask).crop(o.box) for o, mask in zip(found, masks, strict=True)]
        return self._color_of(crops, noun)


def _preprocess(image: PIL.Image.Image, device: str) -> torch.Tensor:
    # [3, h, w], scaled and normalised.
    array = torch.from_numpy(np.array(image, np.float32)).to(device).permute(2, 0, 1)
    scale = min(SHORT / min(image.size), LONG / max(image.size))
    size = [int(side * scale + 0.5) for side in image.size[::-1]]
    scaled = F.interpolate(array[None], size=size, mode="bilinear", align_corners=False)[0].round()
    mean, deviation = (torch.tensor(v, device=device)[:, None, None] for v in (MEAN, DEVIATION))
    return (scaled - mean) / deviation


def _resize(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(logits[None, None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0]


def _find_box(inside: torch.Tensor) -> tuple[float, float, float, float]:
    # Right and bottom are exclusive.
    rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
