"""Data sets that are prepared once, verified, and never half-done; for scripts, notebooks and the container.

In: archives, a target folder. Out: images, annotation files and a manifest there. Nothing here imports torch.
"""
from .errors import PrepareError, Status
from .run import prepare_coco, prepare_imagenet, verify_tree

__all__ = ['PrepareError', 'Status', 'prepare_coco', 'prepare_imagenet', 'verify_tree']
