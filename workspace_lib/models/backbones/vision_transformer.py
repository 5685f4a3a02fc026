"""Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929); `deit-*` is DeiT without its distillation token.

In: images (N, 3, H, W) of any size. Out: a tuple with, for each layer in `out_indices`, by default the last,
[patch tokens (N, C, H / 16, W / 16), class token (N, C)], or with `output_cls_token=False` the patch tokens alone.
"""
from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair as pair

from ...arguments import check_known
from ..builder import BACKBONES
from ..init import BaseModule, InitCfg, truncated_normal
from ..layers import Cfg, DropPath, NamedNorms, build_activation, build_conv, build_norm, drop_path_rates
from .staged import chosen_arch, chosen_stages

GELU: Cfg = dict(type='GELU')
LN: Cfg = dict(type='LN')
PRECISE_LN: Cfg = dict(type='LN', eps=1e-6)
Size = int | Sequence[int]


class PatchEmbed(nn.Module):
    """A convolution, by default without overlap, whose output positions are the tokens.

    Args:
        padding: a number, or as much as the last, incomplete patches need: 'corner' at the right and below, 'same' on
            all sides.
        norm_cfg: of the tokens; None: without.
        input_size: images of this size have `init_out_size` patches.
    """

    def __init__(self, in_channels: int = 3, embed_dims: int = 768, conv_type: str = 'Conv2d', kernel_size: Size = 16,
                 stride: Size | None = 16, padding: Size | str = 'corner', dilation: Size = 1, bias: bool = True,
                 norm_cfg: Cfg | None = None, input_size: Size = 224) -> None:
        super().__init__()
        if isinstance(padding, str):
            check_known('padding', padding, ('corner', 'same', 'a number'), self)
        self.padding = padding
        self.stride = pair(kernel_size if stride is None else stride)
        self.extent = [d * (k - 1) + 1 for k, d in zip(pair(kernel_size), pair(dilation), strict=True)]
        self.projection = build_conv(dict(type=conv_type), in_channels, embed_dims, pair(kernel_size),
                                     stride=self.stride, padding=0 if isinstance(padding, str) else pair(padding),
                                     dilation=pair(dilation), bias=bias)
        self.norm = None if norm_cfg is None else build_norm(norm_cfg, embed_dims)
        added = self.missing(pair(input_size)) if isinstance(padding, str) else [2 * p for p in pair(padding)]
        self.init_out_size = tuple((size + pad - extent) // stride + 1 for size, pad, extent, stride in zip(
            pair(input_size), added, self.extent, self.stride, strict=True))

    def missing(self, size: Sequence[int]) -> list[int]:
        """By how many rows and columns the last patches reach beyond an image of this size."""
        return [max((math.ceil(length / stride) - 1) * stride + extent - length, 0)
                for length, stride, extent in zip(size, self.stride, self.extent, strict=True)]

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(N, in_channels, H, W) -> tokens (N, h * w, embed_dims), and (h, w)."""
        if isinstance(self.padding, str) and any(rest := self.missing(x.shape[-2:])):
            height, width = rest
            top, left = (height // 2, width // 2) if self.padding == 'same' else (0, 0)
            x = F.pad(x, (left, width - left, top, height - top))
        x = self.projection(x)
        tokens = x.flatten(2).transpose(1, 2)
        return tokens if self.norm is None else self.norm(tokens), (x.shape[2], x.shape[3])


class MultiheadAttention(nn.Module):
    """Self-attention of all tokens; queries, keys and values come from one linear layer."""

    def __init__(self, embed_dims: int, num_heads: int, attn_drop: float = 0., proj_drop: float = 0.,
                 drop_path: float = 0., qkv_bias: bool = True) -> None:
        super().__init__()
        self.embed_dims, self.num_heads, self.attn_drop = embed_dims, num_heads, attn_drop
        self.qkv = nn.Linear(embed_dims, embed_dims * 3, bias=qkv_bias)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop)
        self.out_drop = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:  # (N, L, C) -> the same
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (N, heads, L, C')
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop if self.training else 0.)
        return self.out_drop(self.proj_drop(self.proj(x.transpose(1, 2).flatten(2))))


class FFN(nn.Module):
    """`num_fcs` linear layers for each token by itself, `feedforward_channels` wide between them."""

    def __init__(self, embed_dims: int, feedforward_channels: int, num_fcs: int = 2, drop: float = 0.,
                 drop_path: float = 0., act_cfg: Cfg = GELU) -> None:
        super().__init__()
        self.feedforward_channels = feedforward_channels
        self.activate = build_activation(act_cfg)
        widths = [embed_dims, *[feedforward_channels] * (num_fcs - 1)]
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(a, b), self.activate, nn.Dropout(drop))
              for a, b in zip(widths, widths[1:], strict=False)),
            nn.Linear(feedforward_channels, embed_dims), nn.Dropout(drop))
        self.dropout_layer = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:  # (N, L, C) -> the same
        return self.dropout_layer(self.layers(x))


class TransformerEncoderLayer(BaseModule, NamedNorms):
    """x + attention(norm(x)), then x + FFN(norm(x)). Arguments: see the parts and `VisionTransformer`."""

    def __init__(self, embed_dims: int, num_heads: int, feedforward_channels: int, drop_rate: float = 0.,
                 attn_drop_rate: float = 0., drop_path_rate: float = 0., num_fcs: int = 2, qkv_bias: bool = True,
                 act_cfg: Cfg = GELU, norm_cfg: Cfg = LN, init_cfg: InitCfg = None) -> None:
        super().__init__(init_cfg)
        self.add_norm(1, norm_cfg, embed_dims)
        self.attn = MultiheadAttention(embed_dims, num_heads, attn_drop_rate, drop_rate, drop_path_rate, qkv_bias)
        self.add_norm(2, norm_cfg, embed_dims)
        self.ffn = FFN(embed_dims, feedforward_channels, num_fcs, drop_rate, drop_path_rate, act_cfg)

    def init_own(self) -> None:
        for layer in self.ffn.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:  # (N, L, C) -> the same
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


@BACKBONES.register_module()
class VisionTransformer(BaseModule, NamedNorms):
    """ViT small, base and large (or s, b, l), `deit-tiny`, `deit-small` and `deit-base`, or one of your own.

    Args:
        arch: its name, or dict(embed_dims=, num_layers=, num_heads=, feedforward_channels=).
        img_size: what the position embeddings are made for; to other sizes they are resized on the way.
        patch_size: of the square that becomes a token. patch_cfg: further options of `PatchEmbed`.
        out_indices: which layers' tokens to return; -1 is the last.
        drop_rate: dropout. drop_path_rate: stochastic depth of the last layer; it grows from 0.
        final_norm: normalise what the last layer returns.
        with_cls_token: let the class token through the layers. Without, it is only in the state dict.
        output_cls_token: return it beside the patch tokens, as `VisionTransformerClsHead` wants it.
        interpolate_mode: for resizing position embeddings, see `torch.nn.functional.interpolate`.
        layer_cfgs: further options of `TransformerEncoderLayer`, for all layers or a list with those of each.
    """

    arch_zoo: ClassVar[dict[str, dict[str, int]]] = {
        name: dict(embed_dims=width, num_layers=depth, num_heads=heads, feedforward_channels=hidden)
        for names, width, depth, heads, hidden in (
            (('s', 'small'), 768, 8, 8, 2304),
            (('b', 'base', 'deit-b', 'deit-base'), 768, 12, 12, 3072),
            (('l', 'large'), 1024, 24, 16, 4096),
            (('deit-t', 'deit-tiny'), 192, 12, 3, 768),
            (('deit-s', 'deit-small'), 384, 12, 6, 1536)) for name in names}
    num_extra_tokens = 1  # the class token; a relative may have more

    def __init__(self, arch: str | dict[str, int] = 'base', img_size: Size = 224, patch_size: Size = 16,
                 in_channels: int = 3, out_indices: int | Sequence[int] = -1, drop_rate: float = 0.,
                 drop_path_rate: float = 0., qkv_bias: bool = True, norm_cfg: Cfg = PRECISE_LN,
                 final_norm: bool = True, with_cls_token: bool = True, output_cls_token: bool = True,
                 interpolate_mode: str = 'bicubic', patch_cfg: Cfg | None = None,
                 layer_cfgs: Cfg | Sequence[Cfg] | None = None, init_cfg: InitCfg = None) -> None:
        super().__init__(init_cfg)
        if output_cls_token and not with_cls_token:
            raise ValueError('VisionTransformer got output_cls_token=True but with_cls_token=False: '
                             'there is no class token to return')
        sizes = chosen_arch(self, arch, self.arch_zoo)
        self.embed_dims, self.num_layers = sizes['embed_dims'], sizes['num_layers']
        self.with_cls_token, self.output_cls_token = with_cls_token, output_cls_token
        self.interpolate_mode, self.final_norm = interpolate_mode, final_norm
        self.out_indices = chosen_stages(self, out_indices, self.num_layers)
        self.patch_embed = PatchEmbed(**{**dict(
            in_channels=in_channels, input_size=img_size, embed_dims=self.embed_dims, kernel_size=patch_size,
            stride=patch_size), **(patch_cfg or {})})
        self.patch_resolution = self.patch_embed.init_out_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
        self.pos_embed = nn.Parameter(
            torch.zeros(1, math.prod(self.patch_resolution) + self.num_extra_tokens, self.embed_dims))
        self.register_load_state_dict_pre_hook(_fit_pos_embed)
        self.drop_after_pos = nn.Dropout(drop_rate)
        each = layer_cfgs if isinstance(layer_cfgs, Sequence) else [layer_cfgs or {}] * self.num_layers
        self.layers = nn.ModuleList(TransformerEncoderLayer(**{**dict(
            embed_dims=self.embed_dims, num_heads=sizes['num_heads'],
            feedforward_channels=sizes['feedforward_channels'], drop_rate=drop_rate, drop_path_rate=rate,
            qkv_bias=qkv_bias, norm_cfg=norm_cfg), **cfg})
            for rate, cfg in zip(drop_path_rates(drop_path_rate, self.num_layers), each, strict=True))
        if final_norm:
            self.add_norm(1, norm_cfg, self.embed_dims)

    def init_own(self) -> None:
        for layer in self.layers:
            layer.init_weights()  # type: ignore[operator]  # a plain ModuleList hides them
        truncated_normal(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        x, resolution = self.patch_embed(x)                             # (N, h * w, C)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)  # len() would fix the batch of an export
        x = x + resize_pos_embed(self.pos_embed, self.patch_resolution, resolution, self.interpolate_mode,
                                 self.num_extra_tokens)
        x = self.drop_after_pos(x)
        if not self.with_cls_token:
            x = x[:, 1:]
        outs = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if self.final_norm and i == self.num_layers - 1:
                x = self.norm1(x)
            if i in self.out_indices:
                patches = x[:, 1:] if self.with_cls_token else x
                patches = patches.unflatten(1, resolution).permute(0, 3, 1, 2)  # (N, C, h, w)
                outs.append([patches, x[:, 0]] if self.output_cls_token else patches)
        return tuple(outs)


def resize_pos_embed(pos_embed: Tensor, src_shape: Sequence[int], dst_shape: Sequence[int], mode: str = 'bicubic',
                     num_extra_tokens: int = 1) -> Tensor:
    """(1, extra + h * w, C), made for `src_shape` = (h, w) patches, for `dst_shape`; extra tokens have no place."""
    if tuple(src_shape) == tuple(dst_shape):
        return pos_embed
    extra, grid = pos_embed[:, :num_extra_tokens], pos_embed[:, num_extra_tokens:]
    grid = grid.unflatten(1, tuple(src_shape)).permute(0, 3, 1, 2)  # (1, C, h, w)
    grid = F.interpolate(grid, size=tuple(dst_shape), mode=mode, align_corners=False)
    return torch.cat((extra, grid.flatten(2).transpose(1, 2)), dim=1)


def _fit_pos_embed(model: VisionTransformer, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Position embeddings of square images of another size fit, resized, as for training on at a higher resolution."""
    name = f'{prefix}pos_embed'
    theirs, ours = state_dict.get(name), model.pos_embed
    if theirs is None or theirs.shape == ours.shape or theirs.shape[::2] != ours.shape[::2]:
        return
    side = math.isqrt(theirs.shape[1] - model.num_extra_tokens)
    if side ** 2 != theirs.shape[1] - model.num_extra_tokens:
        return  # not of a square image: load_state_dict will name the two shapes
    logging.getLogger('workspace_lib').info(f'{name}: resized from {side} x {side} patches to '
                                            f'{model.patch_resolution[0]} x {model.patch_resolution[1]}')
    state_dict[name] = resize_pos_embed(theirs, (side, side), model.patch_resolution, model.interpolate_mode,
                                        model.num_extra_tokens)
