"""Whether a training decodes no more of a JPEG than it crops. In: its data set. Out: a line for a log, or none."""
from __future__ import annotations

from typing import Any

from .. import jpeg_crop
from ..datasets import Pipeline
from ..datasets.formatting import LoadImageFromFile
from ..datasets.transforms import RandomResizedCrop
from ..datasets.wrappers import leaves
from .jpeg_crop import ON, state

OTHER = ('JPEGs are decoded whole: only a pipeline of uint8 that begins with LoadImageFromFile (no color_type, no '
         'imdecode_backend) and RandomResizedCrop, neither of them a class of your own, decodes the crop alone')


def crop_decoding(dataset: Any) -> str:
    """How the loader decodes the JPEGs that `dataset` cuts random boxes of; '' where it cuts none of files."""
    pipelines = [leaf.pipeline for leaf in leaves(dataset) if _crops_files(leaf)]
    if not pipelines:
        return ''
    if not all(map(_asks_for_a_box, pipelines)):
        return OTHER
    return ON if jpeg_crop.decoder() else state(jpeg_crop.library_path())[1]


def _crops_files(leaf: Any) -> bool:
    """Packs and data sets of arrays have their pixels already."""
    pipeline, infos = getattr(leaf, 'pipeline', None), getattr(leaf, 'data_infos', [])
    return (isinstance(pipeline, Pipeline) and len(infos) > 0 and isinstance(infos[0], dict) and 'img' not in infos[0]
            and any(isinstance(step, RandomResizedCrop) for step in pipeline.steps))


def _asks_for_a_box(pipeline: Pipeline) -> bool:
    """As the pipeline itself decides, which tells nobody."""
    load, begins = pipeline.steps[0], [*map(type, pipeline.steps[:2])] == [LoadImageFromFile, RandomResizedCrop]
    return pipeline.is_split and begins and (load.color_type, load.imdecode_backend) == ('color', None)
