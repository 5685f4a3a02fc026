"""An OpenMMLab-style image classifier in parts small enough to step through, and good enough to train with."""

__version__ = '0.1.0'
