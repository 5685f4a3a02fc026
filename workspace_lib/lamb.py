"""LAMB (You et al. 2020, arXiv:1904.00962), as the recipes for large batches of mmclassification and timm use it.

In: parameters with gradients. Out: the parameters, a step further.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .registry import OPTIMIZERS


@OPTIMIZERS.register_module()
class Lamb(torch.optim.Optimizer):
    """Adam's step, scaled in each tensor to the norm of its weights; NVIDIA's form, as in timm 0.5 and mmcls 0.25.

    Args:
        bias_correction: divide the moments by what their start at zero makes them too small.
        grad_averaging: weigh a gradient with 1 - beta1 in the first moment; else with 1.
        max_grad_norm: gradients of a larger norm, over all parameters, are scaled down to it, in place; None: never.
        trust_clip: never scale a step up.
        always_adapt: scale the steps of parameters without weight decay, too.
    """

    def __init__(self, params: Any, lr: float = 1e-3, bias_correction: bool = True,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.01,
                 grad_averaging: bool = True, max_grad_norm: float | None = 1.0, trust_clip: bool = False,
                 always_adapt: bool = False) -> None:
        super().__init__(params, dict(lr=lr, bias_correction=bias_correction, betas=betas, eps=eps,
                                      weight_decay=weight_decay, grad_averaging=grad_averaging,
                                      max_grad_norm=max_grad_norm, trust_clip=trust_clip, always_adapt=always_adapt))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; returns what `closure` does, which may evaluate the model anew."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        grads = [p.grad for group in self.param_groups for p in group['params'] if p.grad is not None]
        # A tensor, so that no step waits for the GPU.
        limit = self.defaults['max_grad_norm']
        excess = (torch.nn.utils.get_total_norm(grads) / (math.inf if limit is None else limit)).clamp(min=1.0)
        for group in self.param_groups:
            group['step'] = group.get('step', 0) + 1
            for p in group['params']:
                if p.grad is not None:
                    p.add_(self._update(p, p.grad.div_(excess), group), alpha=-group['lr'])
        return loss

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        (beta1, beta2), state = group['betas'], self.state[p]
        if not state:
            state.update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        mean = state['exp_avg'].mul_(beta1).add_(grad, alpha=1 - beta1 if group['grad_averaging'] else 1.0)
        square = state['exp_avg_sq'].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        steps = group['step'] if group['bias_correction'] else float('inf')
        root = (square.sqrt() / (1 - beta2 ** steps) ** 0.5).add_(group['eps'])
        update = (mean / (1 - beta1 ** steps)).div_(root)
        if group['weight_decay'] != 0:
            update.add_(p, alpha=group['weight_decay'])
        if group['weight_decay'] != 0 or group['always_adapt']:
            update.mul_(_trust(p.norm(), update.norm(), group['trust_clip']))
        return update


def _trust(weight_norm: Tensor, update_norm: Tensor, clip: bool) -> Tensor:
    """The ratio of the norms, and 1 where one of them is 0."""
    ratio = torch.where((weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, 1.0)
    return ratio.clamp(max=1.0) if clip else ratio
