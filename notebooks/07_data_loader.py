# %% [markdown]
# # Data loader: from files to a batch, in time
#
# **Where does `cfg.data.samples_per_gpu` become a batch, and why does the network wait for it?** You will see which samples a sampler
# puts together, stack them by hand and get the library's and mmclassification's batch, look at batches, spread the work over processes
# without changing a bit of it, measure where the time of an image goes, and make it disappear by decoding only once.
#
# **Time**: twenty minutes to read; the cells take about half a minute. **Needs**: notebooks 04 and 06; no GPU, no network.
#
# > config → registry → inference → test loop → train loop → **data loader** → loss, optimizer, schedule → checkpoint
# > → many processes → speed
# >
# > *You are here*: the runner says `for batch in loader`. This is about the right-hand side.

# %%
# %load_ext autoreload
# %autoreload 2

# %%
import inspect
import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import torch
from IPython.display import display

from workspace_lib import apis
from workspace_lib.datasets import Loader, build_dataloader, build_dataset
from workspace_lib.datasets.decode import decode
from workspace_lib.registry import SAMPLERS
from workspace_lib.tools import loader_speed, vis_batch, widgets
from workspace_lib.tools.photos import PHOTOGRAPHS, photograph

torch.set_num_threads(1)
cv2.setNumThreads(1)
runs = tempfile.TemporaryDirectory()


# %%
def boundary(name, x):
    """What crosses from one part to the next: its shape, dtype and device."""
    print(f'{name:<34}{str(tuple(x.shape)):<20}{str(x.dtype):<16}{getattr(x, "device", "cpu")}')


# %% [markdown]
# ```mermaid
# flowchart LR
#   accTitle: From files to a batch
#   accDescr {
#     A sampler cuts an order of indices into batches. Workers read, crop and stack the samples of a batch as bytes, and hand it over
#     through shared memory. In the main process it goes to the device and is normalised there.
#   }
#   sampler -- "32 indices" --> worker["worker: read, crop, stack"]
#   worker -- "shared memory: uint8 (N, C, H, W)" --> main["main process"]
#   main -- "to the device, normalise" --> batch["float32 (N, C, H, W)"]
# ```
#
# Files to read: six real photographs, each under sixteen names, in the size and form of ImageNet's.

# %%
originals = Path(runs.name) / 'originals'
for name in PHOTOGRAPHS:
    (folder := originals / Path(name).stem).mkdir(parents=True)
    pixels = cv2.resize(decode(photograph(name)), (500, 375), interpolation=cv2.INTER_AREA)
    for copy in range(16):
        cv2.imwrite(str(folder / f'{copy:02}.jpg'), pixels)

# %%
cfg = apis.load_config('resnet/resnet50_8xb32_in1k.py', {'seed': 0, 'data.workers_per_gpu': 0})
for split in ('train', 'test'):
    files = dict(_delete_=True, type='CustomDataset', data_prefix=str(originals), pipeline=cfg.data[split].pipeline)
    cfg.merge_from_dict({f'data.{split}': files})
dataset = build_dataset(cfg.data.train)
print(len(dataset), 'files,', dataset.CLASSES)

# %% [markdown]
# ## 1. Sampler: which samples belong together
#
# > **sampler** → worker → shared memory → device
#
# The way of `samples_per_gpu`: `loader_config` collects the keys of `data`, `build_dataloader` makes a batch size of it, the sampler
# cuts the order of an epoch into pieces of that size. **Predict** how many batches 96 files make.

# %%
print({key: value for key, value in apis.loader_config(cfg, 'train').items() if 'per_gpu' in key})
lines = re.findall(r'share = .*|samples_per_gpu \* \w+', inspect.getsource(build_dataloader))
print('workspace_lib/datasets/builder.py, in build_dataloader:', *lines, sep='\n  ')

# %%
loader = apis.build_loader(cfg, 'train', dataset, torch.device('cpu'))
print(loader.batch_size, 'samples a batch,', len(loader), 'batches')
assert loader.batch_size == cfg.data.samples_per_gpu == 32 and len(loader) == 96 // 32

# %% [markdown]
# `share` is 1 where this process is one of several (`dist`), each with a GPU and a loader of its own, which is why `samples_per_gpu` is
# per GPU; else it is `num_gpus`. In mmclassification these two lines say the same, the first for `dist`:

# %%
import logging
import warnings

with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    logging.disable()
    from mmcls import datasets as mmcls_datasets

    logging.disable(logging.NOTSET)
source = inspect.getsource(mmcls_datasets.build_dataloader)
print('\n'.join(line.strip() for line in source.splitlines() if 'batch_size =' in line))

# %% [markdown]
# A loader can say which files a batch holds without reading one. **Predict**: is the first batch of the second epoch that of the first?

# %%
def named(epoch, batch, source=loader):
    return [str(Path(name).relative_to(originals)) for name in source.files(epoch, batch)]


for epoch in (0, 1):
    print('epoch', epoch, named(epoch, 0)[:3])

# %%
whole = [name for batch in range(len(loader)) for name in named(0, batch)]
assert len(set(whole)) == len(whole) == 96 and named(0, 0) != named(1, 0)  # each once, in another order each time
again = build_dataloader(dataset, 32, 0, seed=0)
assert named(1, 2) == named(1, 2, again)  # a function of seed and epoch, and of nothing else

# %% [markdown]
# Several processes (notebook 10) deal this order out like cards: rank 0 takes the first sample, rank 1 the second.

# %%
ranks = [Loader(dataset, 16, shuffle=True, seed=0, rank=rank, world_size=2) for rank in (0, 1)]
assert [name for pair in zip(named(0, 0, ranks[0]), named(0, 0, ranks[1]), strict=True) for name in pair] == named(0, 0)

# %% [markdown]
# `sampler = dict(type=...)` in a config gives another order: here one that shows each sample three times in a row, augmented anew each
# time ([arXiv:1901.09335](https://arxiv.org/abs/1901.09335)).

# %%
repeating = build_dataloader(dataset, 32, 0, seed=0, sampler_cfg=dict(type='RepeatAugSampler', selected_round=0))
print(named(0, 0, repeating)[:4])
assert set(Counter(named(0, 0, repeating)[:30]).values()) == {3}
assert len({image.numpy().tobytes() for image in next(iter(repeating))['img'][:3]}) == 3  # one file, three images

# %% [markdown]
# ## 2. Collate: from samples to a tensor
#
# > sampler → **worker** → shared memory → device
#
# **Predict** dtype and order of axes of one sample, and of the batch.

# %%
boundary('a sample of the data set', dataset[0]['img'])
batch = next(iter(loader))
boundary('a batch of the loader', batch['img'])
boundary('its labels', batch['gt_label'])

# %% [markdown]
# A sample is still bytes. The config says `Normalize` for each image, but a float takes four bytes where a colour of a pixel has one; so
# workers stack bytes, and what is left of the pipeline runs once, on the whole batch, on its device. By hand, for the test pipeline, which
# draws nothing by chance:

# %%
test_set = build_dataset(cfg.data.test, dict(test_mode=True))


def batches_by_hand(dataset, batch_size):
    for first in range(0, len(dataset), batch_size):
        samples = [dataset[index]['img'] for index in range(first, min(first + batch_size, len(dataset)))]
        stacked = torch.from_numpy(np.stack(samples)).permute(0, 3, 1, 2)  # bytes: (N, H, W, C) to (N, C, H, W)
        yield dataset.pipeline.device_stage(stacked)


# %%
test_loader = apis.build_loader(cfg, 'test', test_set, torch.device('cpu'))
for by_hand, from_loader in zip(batches_by_hand(test_set, 32), test_loader, strict=True):
    assert torch.equal(by_hand, from_loader['img'])
print(by_hand.nbytes / 2**20, 'MiB as floats,', by_hand.nbytes / 4 / 2**20, 'as bytes')

# %% [markdown]
# mmclassification normalises image by image and sends floats. The batch is the same:

# %%
mmcls_set = mmcls_datasets.build_dataset(cfg.data.test.to_dict(), dict(test_mode=True))
theirs = mmcls_datasets.build_dataloader(mmcls_set, 32, 0, dist=False, shuffle=False, persistent_workers=False,
                                         pin_memory=False)
for other, ours in zip(theirs, test_loader, strict=True):
    assert torch.allclose(other['img'], ours['img'], atol=1e-5)
boundary('the batch of mmclassification', other['img'])

# %% [markdown]
# Before a network trains for a week on its batches, look at one. Normalisation is undone, the label stands above:

# %%
taken, names = vis_batch.take_batch(loader, epoch=0, number=1)
grid = vis_batch.batch_plot(taken, loader, [Path(name).name for name in names], count=8, columns=4)
display(grid, grid.table)

# %%
assert [dataset.CLASSES[label] for label in taken['gt_label'][:8]] == [row[1] for row in grid.table.rows]
assert [row[1] for row in grid.table.rows] == [Path(name).parent.name for name in names[:8]]

# %% [markdown]
# With sliders: other batches, and other epochs, in which the same photograph is cropped and flipped anew. (A page without a kernel shows no
# controls; above stands one setting.) In a terminal: `workspace vis_batch CONFIG`.

# %% tags=["varies"]
display(widgets.batch_viewer(loader, page=8))

# %% [markdown]
# ## 3. Workers, and the memory that they share
#
# > sampler → worker → **shared memory** → device
#
# With `workers_per_gpu=2` two processes make batches ahead, in turns. **Predict**: which batches change?

# %%
def an_epoch(workers):
    return [batch['img'].clone() for batch in build_dataloader(dataset, 32, workers, seed=0)]


alone, two = an_epoch(0), an_epoch(2)
assert all(torch.equal(a, b) for a, b in zip(alone, two, strict=True))

# %% [markdown]
# None. The chance of each sample is seeded by seed, epoch and its own index (or, where a sampler of the config may give one several times,
# by its place in the epoch), so it does not matter who reads it. In mmclassification each worker has a generator of its own: with another
# number of workers you get another training.
#
# That also allows to begin anywhere. A run that is resumed amid an epoch does not read what it has seen:

# %%
loader.set_epoch(0)
loader.start_at(2)
rest = list(loader)
assert len(rest) == 1 and torch.equal(rest[0]['img'], alone[2])

# %% [markdown]
# How does a batch come from one process to the other? Through a pipe it would be copied twice, into it and out of it. Instead it lies in
# memory that both have mapped, and what goes through the pipe is where. Linux keeps such memory in `/dev/shm`, of which a container gets 64 MB unless
# told otherwise. **Predict** how much two workers need that are two batches ahead each.

# %%
def shared_bytes():
    """Of this process's memory, what it shares with others."""
    status = Path('/proc/self/status').read_text()
    return 1024 * int(re.search(r'RssShmem:\s+(\d+) kB', status)[1])


on_the_way = 2 * 2 * alone[0].nbytes
print(f'at least {on_the_way / 2**20:.0f} MiB of floats, or {on_the_way / 4 / 2**20:.0f} MiB of bytes')

# %%
with_workers = build_dataloader(dataset, 32, 2, seed=0)
before = shared_bytes()
held = [batch['img'] for batch in with_workers]
sums = [images.sum().item() for images in held]  # each page is touched
grown = (shared_bytes() - before) / held[0].nbytes
print('held:', len(held), 'batches; shared memory has grown by more than two:', grown > 2)

# %%
assert [images.sum().item() for images in alone] == sums and grown > 2  # the system counts in steps of many pages
_ = list(with_workers)  # another epoch, while the batches of the first are still in use
assert [images.sum().item() for images in held] == sums  # nothing was written over

# %% [markdown]
# On a CPU workers normalise as well, so floats travel here; on the way to a GPU it is bytes. If `/dev/shm` cannot hold what may be on its way, the
# loader says so before the first batch, with the numbers; with torch alone a worker dies of a bus error amid an epoch, or today of an
# error (notebook 01). (Also on the way to a GPU: the pages are locked, so that the copy runs beside the computation. There is no GPU in
# this notebook to see it.)
#
# ## 4. Where does the time go?
#
# **Predict** which two steps of the pipeline, as it is written in the config, take most of the time of an image.

# %%
seconds = loader_speed.step_seconds(dataset, range(0, 96, 2))
print('most of it:', sorted(sorted(seconds, key=seconds.get)[-2:]))


# %%
def batched_seconds(stage, batch):
    """CPU seconds an image to normalise a batch of bytes at once, the better of two."""
    found = []
    for _ in range(2):
        start = time.process_time()
        stage(batch)
        found.append((time.process_time() - start) / len(batch))
    return min(found)


stacked = torch.from_numpy(np.stack([dataset[index]['img'] for index in range(32)])).permute(0, 3, 1, 2)
at_once = batched_seconds(dataset.pipeline.device_stage, stacked)

# %% tags=["varies"]
print(f'Normalize for a whole batch, here on the CPU: {1e3 * at_once:.3f} ms/image')
loader_speed.steps_table(seconds)

# %%
largest = {'LoadImageFromFile', 'Normalize'}
assert min(seconds[name] for name in largest) > max(spent for name, spent in seconds.items() if name not in largest)
assert at_once < seconds['Normalize']

# %% [markdown]
# To normalise image by image in floats is the work that the loader moved away (section 2); on a GPU it costs the workers nothing. What
# remains is undoing JPEG's compression, and most pixels that it brings are thrown away by the crop that follows. So the loader draws the
# box first, from the size in the file's header, and has only that decoded (by a few lines of C; `make doctor` says whether they are
# compiled). Are the pixels those of the whole?

# %%
from workspace_lib.datasets.decode import decode, decode_later

photo = next(iter(sorted(originals.glob('*/*.jpg'))))
box = np.s_[40:140, 30:180]
print(f'whole {decode(photo).shape}, box {decode_later(photo)[box].shape}, {decode_later(photo)[box].dtype}')
assert np.array_equal(decode_later(photo)[box], decode(photo)[box])

# %% [markdown]
# To the bit. Two ways to do still less:
# store the pictures **resized** once, their short side 256 pixels; or store them **packed**, as raw pixels in one file that all workers
# map, with nothing left to decode. `scripts/prepare_imagenet.sh --resize 256 --pack` makes both. Here in small:

# %%
from workspace_lib.tools.prepare.images import Size, shrunk, shrunk_jpeg

resized, short = Path(runs.name) / 'resized', Size('short', 256)
jpegs = {path.relative_to(originals): path.read_bytes() for path in sorted(originals.glob('*/*.jpg'))}
for name, data in jpegs.items():
    (resized / name).parent.mkdir(parents=True, exist_ok=True)
    (resized / name).write_bytes(shrunk_jpeg(data, short, str(name)))

# %% [markdown]
# A pack is two files: all pixels one after another, and an index that says where each image begins.

# %%
def write_pack(folder, images):
    folder.mkdir()
    index = np.zeros(len(images), [('name', 'S32'), ('offset', 'i8'), ('height', 'i4'), ('width', 'i4')])
    end = 0
    with (folder / 'pixels.bin').open('wb') as file:
        for row, (name, pixels) in zip(index, images.items(), strict=True):
            row['name'], row['offset'], row['height'], row['width'] = str(name).encode(), end, *pixels.shape[:2]
            end += file.write(np.ascontiguousarray(pixels).data)
    np.save(folder / 'index.npy', index)


packed = Path(runs.name) / 'packed.pack'
write_pack(packed, {name: shrunk(data, short, str(name)) for name, data in jpegs.items()})

# %%
kinds = {kind.stem: build_dataset({**cfg.data.train, 'data_prefix': str(kind)}) for kind in (originals, resized, packed)}
for name, one in kinds.items():
    boundary(f'{name}: an image as stored', one.load_image(0))

# %%
first = next(iter(jpegs))
assert np.array_equal(kinds['packed'].load_image(0), shrunk(jpegs[first], short, str(first)))
assert all(one.get_gt_labels().tolist() == dataset.get_gt_labels().tolist() for one in kinds.values())

# %% [markdown]
# One key of the config chooses, `data.train.data_prefix`; files, labels and pipeline stay. Against time a pack trades disk: the training images
# of ImageNet take 148 GB as they come, about 36 GB resized, about 330 GB packed. **Predict** how much less CPU time the reading takes.

# %%
reading = {name: loader_speed.step_seconds(one, range(0, 96, 2))['LoadImageFromFile'] for name, one in kinds.items()}
assert reading['originals'] > reading['resized'] > 3 * reading['packed']
print('from slow to fast:', sorted(reading, key=reading.get, reverse=True))

# %% [markdown]
# ## 5. Throughput against workers
#
# Measured now, on the machine that runs this page: images a second with 0, 1 and 2 workers. The device `meta` stands for a GPU: what
# arrives there is gone, so that bytes travel and nobody normalises on the CPU. **Predict** where the lines bend.

# %% tags=["varies"]
rates = {name: loader_speed.rates_by_workers(one, 32, (0, 1, 2), 1.0, device='meta') for name, one in kinds.items()}
measured = loader_speed.rates_plot(rates)
display(measured, measured.table)

# %% [markdown]
# More workers help as long as there is a free core for each, and no longer: where other programs fill the cores, the lines are flat, or
# fall. One worker may be no faster than none, as whoever waits for it has nothing else to do; in a training the network computes
# meanwhile. Where a config has no `workers_per_gpu`, or 'auto', the loader chooses by cores and shared memory: `loader: N workers, ...` in
# the log.
#
# What rate is enough? That of the network: ResNet-50 trains on a few hundred images a second on a small GPU, on thousands on a large one. The log
# tells it without arithmetic: `data_time` is what an iteration waits for its batch, `time` all of it. If the first is a third of the second,
# `LoaderWatchHook` says so once, with what to change. `workspace loader_speed CONFIG` measures your data set on your machine.

# %%
best = {name: max(by_workers.values()) for name, by_workers in rates.items()}
assert best['packed'] > best['originals']  # with whichever number of workers suits each

# %% [markdown]
# ## Exercises
#
# **1. Modify.** With batches of 20 and `drop_last=True`: how many batches has an epoch, how many files are left out, and are they the same
# in every epoch?

# %% jupyter={"source_hidden": true} tags=["solution"]
dropping = build_dataloader(dataset, 20, 0, seed=0, drop_last=True)
seen = [{name for batch in range(len(dropping)) for name in named(epoch, batch, dropping)} for epoch in (0, 1)]
print(len(dropping), 'batches;', [96 - len(names) for names in seen], 'left out;', len(seen[0] | seen[1]), 'of 96 seen in two epochs')
assert len(dropping) == 4 and len(seen[0]) == 80 < len(seen[0] | seen[1])

# %% [markdown]
# **2. Break.** Cut a file off in its middle, as a full disk does. What does a loader with two workers say, and what with
# `skip_broken=True`?

# %% jupyter={"source_hidden": true} tags=["solution"]
victim = resized / 'coffee' / '07.jpg'
victim.write_bytes(victim.read_bytes()[:2000])
section = {**cfg.data.train, 'data_prefix': str(resized)}
try:
    list(build_dataloader(build_dataset(section), 32, 2, seed=0))
except Exception as error:
    print(type(error).__name__, '| names the file:', str(victim) in str(error))
logging.getLogger('workspace_lib').setLevel('ERROR')  # a warning names the file that was skipped
skipping = build_dataset({**section, 'skip_broken': True})
print(sum(len(batch['img']) for batch in build_dataloader(skipping, 32, 0, seed=0)), 'samples;', len(skipping.broken), 'broken file')
assert len(skipping.broken) == 1  # the next good file stood in for it

# %% [markdown]
# **3. Extend.** Write a sampler that puts every class into every batch of six, and register it for `sampler_cfg`.

# %% jupyter={"source_hidden": true} tags=["solution"]
@SAMPLERS.register_module(force=True)
class EveryClassSampler(torch.utils.data.Sampler):
    def __init__(self, dataset, num_replicas=1, rank=0, shuffle=True, seed=0):
        self.labels, self.seed, self.epoch = dataset.get_gt_labels(), seed or 0, 0

    def __iter__(self):
        rng = np.random.default_rng((self.seed, self.epoch))
        by_class = [rng.permutation(np.flatnonzero(self.labels == label)) for label in np.unique(self.labels)]
        return iter(np.stack(by_class, axis=1).ravel().tolist())  # one of each class in turn

    def __len__(self):
        return len(self.labels)

    def set_epoch(self, epoch):
        self.epoch = epoch


balanced = build_dataloader(dataset, 6, 0, seed=0, sampler_cfg=dict(type='EveryClassSampler'))
assert all(sorted(batch['gt_label'].tolist()) == [0, 1, 2, 3, 4, 5] for batch in balanced)
assert named(0, 0, balanced) != named(1, 0, balanced)

# %% [markdown]
# ## The same way with a debugger
#
# In VS Code choose the launch entry **train** (*Run and Debug*) with `lenet/lenet5_mnist5k.py`; it sets `workers_per_gpu=0`, since a
# breakpoint does not stop in another process. Three breakpoints:
#
# 1. `build_dataloader` in `workspace_lib/datasets/builder.py`: look at `samples_per_gpu`, `num_gpus`, `dist`; step to the `Loader`.
# 2. `Pipeline.item` in `workspace_lib/datasets/pipeline.py`: one sample; look at `info`, `seed`, and at `img.shape`, `img.dtype` at the end.
# 3. `DeviceStage.__call__` in the same file: `img` is a batch of bytes; go up the stack to see who stacked it.
#
# In mmclassification the same way is `mmcls/datasets/builder.py`: `build_dataloader` → `mmcls/datasets/base_dataset.py`: `__getitem__`,
# `prepare_data` → `mmcv/parallel/collate.py`.
#
# Next: [08_loss_optimizer_schedule](08_loss_optimizer_schedule.ipynb). The batch is there; what is minimised on it, and in which steps?

# %%
del with_workers
runs.cleanup()
