"""torchvision's detection networks, also beside a torch that cannot load torchvision's compiled operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture.specs import build_spec

# name -> (the part whose outputs the rest of the detector reads, pixels of a small picture)
DETECTORS = {
    "ssdlite320_mobilenet_v3_large": "backbone",
    "fasterrcnn_resnet50_fpn": "backbone.body",
    "retinanet_resnet50_fpn": "backbone.body",
    "maskrcnn_resnet50_fpn": "backbone.body",
    "keypointrcnn_resnet50_fpn": "backbone.body",
}


def detector(name: str) -> nn.Module:
    """Fresh weights; pictures are not enlarged, and non-maximum suppression needs no compiled operator."""
    model = build_spec(f"torchvision:{name}").module
    from torchvision.ops import boxes

    boxes.nms = suppressed
    model.transform.min_size, model.transform.max_size = (96,), 128
    return model


def suppressed(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression: indices of the boxes (n, 4) that stay, best first."""
    from torchvision.ops.boxes import box_iou

    overlap = box_iou(boxes, boxes) > iou_threshold
    kept: list[int] = []
    gone = torch.zeros(len(boxes), dtype=torch.bool)
    for one in scores.argsort(descending=True, stable=True).tolist():
        if not gone[one]:
            kept.append(one)
            gone |= overlap[one]
    return torch.tensor(kept, dtype=torch.int64)


def pictures() -> list[Tensor]:
    """Two pictures of different sizes, as detectors take them."""
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, 96, 96, generator=generator), torch.rand(3, 96, 128, generator=generator)]


def targets() -> list[dict[str, Any]]:
    """One box a picture, with a mask and key points."""
    return [
        {
            "boxes": torch.tensor([[10.0, 10.0, 70.0, 80.0]]),
            "labels": torch.tensor([1]),
            "masks": torch.ones(1, *picture.shape[1:], dtype=torch.uint8),
            "keypoints": torch.tensor([[[30.0, 40.0, 1.0]] * 17]),
        }
        for picture in pictures()
    ]
