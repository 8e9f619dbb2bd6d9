"""RetinaNet's post-processing as a graph: anchors, decoding and NMS, for any batch and size.

mmdet's own post-processing takes one image at a time and branches in Python, which a
trace cannot record. Here the counts are constant: scores are padded with zeros up to
``nms_pre``, and detections up to ``max_per_img``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmscconv.errors import UserError


class PostProcess(nn.Module):
    """``predict_by_feat`` of an anchor head, for a batch.

    Args:
        head: mmdet's ``AnchorHead`` with sigmoid scores and a ``DeltaXYWHBBoxCoder``.
        cfg: ``test_cfg`` with ``nms_pre``, ``score_thr``, ``max_per_img`` and ``nms`` of type ``'nms'``.

    Shape:
        Class scores and box deltas of each level, (N, A * classes, H', W') and (N, A * 4, H', W'), and the
        images' (height, width) (N, 2) to boxes (N, max_per_img, 4) as x1, y1, x2, y2 in the input's pixels, scores
        (N, max_per_img), descending, and labels (N, max_per_img); free places have score 0 and label -1.

    Raises:
        UserError: The head or a setting is not supported.
    """

    OUTPUTS: Mapping[str, Mapping[int, str]] = {name: {0: 'batch'} for name in ('boxes', 'scores', 'labels')}

    generator: Any  # mmdet's AnchorGenerator
    coder: Any  # mmdet's DeltaXYWHBBoxCoder
    classes: int

    def __init__(self, head: Any, cfg: Mapping[str, Any]) -> None:
        from mmdet.models.dense_heads.anchor_head import AnchorHead
        from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder

        super().__init__()
        nms = cfg.get('nms', {})
        fits = {
            'an anchor head with class scores and boxes alone': isinstance(head, AnchorHead)
            and not hasattr(head, 'loss_centerness'),
            'sigmoid scores': getattr(head, 'use_sigmoid_cls', False),
            'bbox_coder DeltaXYWHBBoxCoder': type(getattr(head, 'bbox_coder', None)) is DeltaXYWHBBoxCoder,
            'test_cfg.nms_pre > 0': cfg.get('nms_pre', -1) > 0,
            'test_cfg.max_per_img > 0': cfg.get('max_per_img', -1) > 0,
            "test_cfg.nms = dict(type='nms', iou_threshold=...)": nms.get('type') == 'nms'
            and not set(nms) - {'type', 'iou_threshold'},
        }
        missing = [requirement for requirement, met in fits.items() if not met]
        if missing:
            raise UserError(f'--postprocess needs {missing[0]}; leave it out and decode in Python (docs/export.md)')
        self.generator, self.coder, self.classes = head.prior_generator, head.bbox_coder, head.num_classes
        self.per_level, self.places = cfg['nms_pre'], cfg['max_per_img']
        self.score_threshold, self.iou_threshold = float(cfg.get('score_thr', 0)), float(nms['iou_threshold'])
        self.least_side = cfg.get('min_bbox_size', -1)

    def forward(
        self, cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor], shape: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        sizes = [scores.shape[-2:] for scores in cls_scores]
        anchors = self.generator.grid_priors(sizes, dtype=shape.dtype, device=shape.device)
        levels = [self._candidates(*level) for level in zip(cls_scores, bbox_preds, anchors, strict=True)]
        scores, labels, deltas, priors = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        boxes = self._decoded(priors, deltas, shape)
        if self.least_side >= 0:
            scores = scores * ((boxes[..., 2:] - boxes[..., :2]) > self.least_side).all(dim=-1)
        return self._selected(boxes, scores, labels)

    def _candidates(self, scores: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, ...]:
        """Return scores and labels (N, nms_pre) of a level, and deltas and anchors (N, nms_pre, 4)."""
        n = scores.shape[0]
        scores = scores.permute(0, 2, 3, 1).reshape(n, -1).sigmoid()
        deltas = deltas.permute(0, 2, 3, 1).reshape(n, -1, 4)
        scores, chosen = torch.cat((scores, scores.new_zeros(n, self.per_level)), dim=1).topk(self.per_level)
        # Padding has score 0 and indices beyond the last anchor: clamp these.
        indices = torch.minimum(chosen // self.classes, torch.as_tensor(anchors.shape[0] - 1))
        coordinates = indices.unsqueeze(-1).expand(-1, -1, 4)
        return scores, chosen % self.classes, deltas.gather(1, coordinates), anchors[indices]

    def _decoded(self, anchors: Tensor, deltas: Tensor, shape: Tensor) -> Tensor:
        from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox

        boxes = delta2bbox(
            anchors.reshape(-1, 4), deltas.reshape(-1, 4), self.coder.means, self.coder.stds,
            add_ctr_clamp=self.coder.add_ctr_clamp, ctr_clamp=self.coder.ctr_clamp,
        ).reshape(anchors.shape)  # fmt: skip
        if not self.coder.clip_border:
            return boxes
        return torch.minimum(boxes.clamp(min=0), shape.flip(1).repeat(1, 2).unsqueeze(1))

    def _selected(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, k = scores.shape
        per_class = scores.unsqueeze(1) * (labels.unsqueeze(1) == torch.arange(self.classes).view(1, -1, 1))
        kept = NonMaxSuppression.apply(boxes, per_class, self.places, self.iou_threshold, self.score_threshold)
        marks = scores.new_zeros(n * k).scatter(0, kept[:, 0] * k + kept[:, 2], 1.0)
        scores, order = (scores * marks.view(n, k)).topk(min(self.places, self.per_level * self.generator.num_levels))
        labels = torch.where(scores > 0, labels.gather(1, order), -1)
        return boxes.gather(1, order.unsqueeze(-1).expand(-1, -1, 4)), scores, labels


class NonMaxSuppression(torch.autograd.Function):
    """ONNX's operator of this name: NMS of each class in each image separately.

    torchvision's NMS is exported as the same operator, but for one image; it separates
    classes by shifting their boxes, which costs precision.
    """

    @staticmethod
    def forward(
        ctx: Any, boxes: Tensor, scores: Tensor, most: int, iou_threshold: float, score_threshold: float
    ) -> Tensor:
        """Return the indices of image, class and box kept (M, 3), of boxes (N, K, 4) and scores (N, classes, K)."""
        from mmcv.ops import nms

        found = [scores.new_zeros(0, 3, dtype=torch.int64)]
        for image, label in (scores.amax(dim=2) > score_threshold).nonzero().tolist():
            _, kept = nms(
                boxes[image], scores[image, label], iou_threshold, score_threshold=score_threshold, max_num=most
            )
            found.append(torch.stack((torch.full_like(kept, image), torch.full_like(kept, label), kept), dim=1))
        return torch.cat(found)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, most: int, iou_threshold: float, score_threshold: float) -> Any:
        numbers = (torch.tensor([most]), torch.tensor([iou_threshold]), torch.tensor([score_threshold]))
        return g.op('NonMaxSuppression', boxes, scores, *(g.op('Constant', value_t=t) for t in numbers))
