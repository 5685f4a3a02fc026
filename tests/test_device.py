"""Choice of device and number format."""
from __future__ import annotations

import logging

import pytest
import torch

from workspace_lib.device import Precision, select_device

CPU = torch.device('cpu')


def test_auto_says_what_it_chose(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('workspace_lib'), 'propagate', True)
    with caplog.at_level(logging.INFO, logger='workspace_lib'):
        device = select_device('auto')
    assert device.type == ('cuda' if torch.cuda.is_available() else 'cpu')
    assert device.type in caplog.text and 'auto' in caplog.text


def test_a_missing_gpu_is_an_error_not_a_fallback(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(RuntimeError, match='cuda:3.*1 CUDA device'):
        select_device('cuda:3')


@pytest.mark.parametrize('name', ['gpu', 'meta', 'cuda:x'])
def test_an_unknown_device_names_the_known_ones(name):
    with pytest.raises(ValueError, match='auto, cpu, cuda'):
        select_device(name)


def test_fp16_on_a_cpu_computes_in_float32_and_says_so(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('workspace_lib'), 'propagate', True)
    precision = Precision(CPU, fp16=dict(loss_scale=512.0))
    assert 'float32' in caplog.text
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32
    assert not precision.scaler.is_enabled()


def test_bf16_runs_matrix_products_in_bfloat16():
    with Precision(CPU, bf16=True).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16


def test_fp16_and_bf16_together_are_refused():
    with pytest.raises(ValueError, match='keep one'):
        Precision(CPU, fp16=dict(loss_scale='dynamic'), bf16=True)


@pytest.mark.parametrize('fp16, dtype', [({}, torch.float16), (dict(loss_scale='dynamic'), torch.float16),
                                         (None, torch.bfloat16), (False, torch.bfloat16)])
def test_an_empty_fp16_is_set_as_in_mmcv(monkeypatch, fp16, dtype):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda.amp.common, 'amp_definitely_not_available', lambda: False)
    precision = Precision(torch.device('cuda'), fp16=fp16, bf16=None)
    assert precision.dtype is dtype and precision.scaler.is_enabled() is (dtype is torch.float16)
    with pytest.raises(ValueError, match='keep one'):
        Precision(torch.device('cuda'), fp16={}, bf16=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('scale, start', [(512.0, 512.0), ('dynamic', 65536.0), (dict(init_scale=4.0), 4.0)])
def test_loss_scale_of_the_config(scale, start):
    scaler = Precision(torch.device('cuda'), fp16=dict(loss_scale=scale)).scaler
    assert scaler.is_enabled() and scaler.get_scale() == start
