"""The whole model: backbone -> neck -> head.

In: a batch `dict(img=float (N, C, H, W), gt_label=int64 (N,))`. Out: losses in training, else scores.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .builder import CLASSIFIERS, build_backbone, build_head, build_neck
from .drawing import draw_result
from .init import BaseModule, InitCfg, Sequential

STAGES = ('backbone', 'neck', 'pre_logits')


@CLASSIFIERS.register_module()
class ImageClassifier(BaseModule):
    """A network that says what is on an image.

    Args:
        backbone, neck, head: configs of the parts; of the neck perhaps several, which follow each other.
        pretrained: checkpoint to start from; short for init_cfg=dict(type='Pretrained', checkpoint=...).
        train_cfg: `augments`: mixing of images, which the data loader does.
    """

    CLASSES: Sequence[str] | None = None

    def __init__(self, backbone: dict[str, Any], neck: dict[str, Any] | list[dict[str, Any]] | None = None,
                 head: dict[str, Any] | None = None, pretrained: str | None = None,
                 train_cfg: dict[str, Any] | None = None, init_cfg: InitCfg = None) -> None:
        super().__init__(dict(type='Pretrained', checkpoint=pretrained) if pretrained else init_cfg)
        self.backbone = build_backbone(backbone)
        if neck is not None:
            self.neck = Sequential(*map(build_neck, neck)) if isinstance(neck, (list, tuple)) else build_neck(neck)
        if head is not None:
            self.head: Any = build_head(head)
        self.train_cfg = train_cfg or {}

    @property
    def with_neck(self) -> bool:
        return hasattr(self, 'neck')

    @property
    def with_head(self) -> bool:
        return hasattr(self, 'head')

    def extract_feat(self, img: Tensor, stage: str = 'neck') -> Any:
        """Features after `stage`.

        Args:
            img: normalised images (N, C, H, W), float.
            stage: 'backbone', a tuple of feature maps (N, C', H', W'), or what a transformer has instead; 'neck', a
                tuple of vectors (N, C'); 'pre_logits', the one tensor that the last layer gets.
        """
        if stage not in STAGES:
            raise ValueError(f'extract_feat got stage={stage!r}; known: {", ".join(STAGES)}')
        if not img.is_floating_point():
            raise TypeError(f'the model takes normalised float images, but img is {img.dtype}; '
                            "a loader's device stage normalises what its workers send")
        x = self.backbone(img)
        if stage != 'backbone' and self.with_neck:
            x = self.neck(x)
        if stage == 'pre_logits' and self.with_head:
            x = self.head.pre_logits(x)
        return x

    def extract_feats(self, imgs: Sequence[Tensor], stage: str = 'neck') -> Iterator[Any]:
        """`extract_feat` of one batch after another."""
        return (self.extract_feat(img, stage) for img in imgs)

    def forward_dummy(self, img: Tensor) -> Any:
        """Features for the last layer, for tools that count operations."""
        return self.extract_feat(img, 'pre_logits')

    def forward(self, img: Tensor | list[Tensor], return_loss: bool = True, **kwargs: Any) -> Any:
        """`forward_train` or `simple_test`; both take a whole batch: `model(return_loss=False, **batch)`."""
        if return_loss:
            return self.forward_train(img, **kwargs)
        return self.forward_test(img, **kwargs)

    def forward_train(self, img: Any, gt_label: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Losses by name, each a scalar tensor, and perhaps `accuracy`.

        Args:
            gt_label: class indices (N,), or one value per class (N, num_classes).
        """
        if self.training and self.train_cfg.get('augments') and gt_label.dim() == 1:
            raise NotImplementedError(
                'model.train_cfg.augments asks for images to be mixed, but this batch is not mixed; '
                'train without it: --cfg-options model.train_cfg=None')
        return self.head.forward_train(self.extract_feat(img), gt_label)

    def forward_test(self, img: Tensor | list[Tensor], **kwargs: Any) -> Any:
        """`simple_test`, also for a list that holds the one batch."""
        if isinstance(img, list):
            if len(img) != 1:
                raise NotImplementedError(f'no test-time augmentation yet, but got {len(img)} batches')
            img = img[0]
        return self.simple_test(img, **kwargs)

    def simple_test(self, img: Tensor, gt_label: Tensor | None = None, img_metas: Any = None,
                    **kwargs: Any) -> Tensor | list[np.ndarray]:
        """N arrays of num_classes probabilities. `kwargs` go to the head; labels are not looked at."""
        return self.head.simple_test(self.extract_feat(img), **kwargs)

    def train_step(self, data: dict[str, Any], optimizer: Any = None, **kwargs: Any) -> dict[str, Any]:
        """One forward pass of training; the backward pass and the optimizer's step are a hook's.

        Returns:
            loss: scalar tensor to call `backward` on. num_samples: N.
            log_vars: detached tensors by name. Numbers would cost a CPU-GPU sync point each.
        """
        loss, log_vars = self.parse_losses(self(**data))
        return dict(loss=loss, log_vars=log_vars, num_samples=len(data['img']))

    def val_step(self, data: dict[str, Any], optimizer: Any = None, **kwargs: Any) -> dict[str, Any]:
        """The same for a workflow with ('val', 1): its loss is logged, not minimised."""
        return self.train_step(data, optimizer, **kwargs)

    @staticmethod
    def parse_losses(losses: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all entries with 'loss' in their name, and every entry, detached, for the log.

        An entry is a tensor (its mean counts), a list of them (the sum of their means) or a dict of scalars.
        """
        values: dict[str, Tensor] = {}
        for name, value in losses.items():
            if isinstance(value, Tensor):
                values[name] = value.mean()
            elif isinstance(value, list):
                values[name] = torch.stack([v.mean() for v in value]).sum()
            elif isinstance(value, dict):
                values.update(value)
            else:
                raise TypeError(f'the head returned {name} as {type(value).__name__}; '
                                'it must be a tensor, a list of tensors or a dict of tensors')
        found = [value for name, value in values.items() if 'loss' in name]
        if not found:
            raise ValueError(f"the head returned {', '.join(losses) or 'nothing'}: no name with 'loss' in it")
        loss = found[0] if len(found) == 1 else torch.stack(found).sum()
        return loss, {name: value.detach() for name, value in {**values, 'loss': loss}.items()}

    show_result = staticmethod(draw_result)
