"""Config to model. There is one registry; its names say which part is expected where."""
from ..registry import BACKBONES, CLASSIFIERS, HEADS, LOSSES, NECKS

build_backbone = BACKBONES.build
build_neck = NECKS.build
build_head = HEADS.build
build_loss = LOSSES.build
build_classifier = CLASSIFIERS.build
