"""mmcv's ops run: nms and RoIAlign equal torchvision's. A wheel without ops is found out here, not at first use."""

import importlib.metadata
import sys

import mmcls
import mmcv
import torch
import torchvision

try:
    importlib.metadata.version('mmcv-full')
except importlib.metadata.PackageNotFoundError:
    print(f'mmcv {mmcv.__version__} without ops (MMCV_OPS=0), mmcls {mmcls.__version__}')
    sys.exit(0)

from mmcv.ops import get_compiling_cuda_version, nms, roi_align  # noqa: E402

torch.manual_seed(0)
corners = torch.rand(200, 2) * 50
boxes = torch.cat([corners, corners + 1 + torch.rand(200, 2) * 30], 1)
scores = torch.rand(200)
assert torch.equal(nms(boxes, scores, 0.5)[1], torchvision.ops.nms(boxes, scores, 0.5)), 'nms differs from torchvision'
image = torch.rand(1, 3, 40, 40)
rois = torch.cat([torch.zeros(20, 1), boxes[:20] * 0.4], 1)
ours = roi_align(image, rois, (7, 7), 1.0, 2, 'avg', True)
torch.testing.assert_close(ours, torchvision.ops.roi_align(image, rois, (7, 7), 1.0, 2, True))
print(
    f'mmcv-full {mmcv.__version__} (CUDA: {get_compiling_cuda_version()}): nms and RoIAlign equal torchvision; '
    f'mmcls {mmcls.__version__}'
)
