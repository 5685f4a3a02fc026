# %% [markdown]
# # Batches and processes: one step, made in parts
#
# **A recipe wants 64 images a step. Your GPU holds 16, or you have two GPUs, or two machines. Is it still the same training?** You will
# put a batch's gradient together from parts, find the layer for which that is not the same, start two processes from this page and
# let them share gradients, look at what each of mmcv's wrappers does, count a metric in several processes without counting an
# image twice, and train on two machines that are one.
#
# **Time**: twenty minutes to read; the cells take less than a minute. **Needs**: notebook 09; no GPU, no network. The processes talk
# through gloo, as those of GPUs do through NCCL.
#
# > config → registry → inference → test loop → train loop → data loader → loss, optimizer, schedule → checkpoint
# > → **many processes** → speed
# >
# > *You are here*: one process trains, saves and resumes. Now more of them.

# %%
# %load_ext autoreload
# %autoreload 2

# %%
import inspect
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.update(CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')  # this page is about processes: without GPUs on any machine
import numpy as np
import torch

from workspace_lib import apis, dist
from workspace_lib.datasets import build_dataset
from workspace_lib.datasets.loader import Loader
from workspace_lib.hooks import OptimizerHook
from workspace_lib.models import build_classifier
from workspace_lib.runner import EpochBasedRunner
from workspace_lib.tools import commands, launch, launchers
from workspace_lib.tools.ranks import Ranks, shared_gradients, train_briefly

torch.set_num_threads(1)
runs = tempfile.TemporaryDirectory()

# %%
def boundary(name, x):
    """What crosses from one part to the next: its shape, dtype and device."""
    print(f'{name:<34}{str(tuple(x.shape)):<20}{str(x.dtype):<16}{x.device}')


# %%
def distance(a, b):
    """The largest difference between two sets of weights; what a norm only counts or averages is left out."""
    return max(float((a[name] - b[name]).abs().max()) for name in a if 'running' not in name and 'tracked' not in name)


# %% [markdown]
# ```mermaid
# flowchart LR
#   accTitle: One step of two processes
#   accDescr {
#     Each process takes every second image of the epoch's order and computes the gradients of its half. The mean of both goes
#     to both, so that their optimizers make the same step and their weights stay equal.
#   }
#   order["order of the epoch (seed, epoch)"] -- "images 0, 2, 4 ..." --> a["rank 0: forward, backward"]
#   order -- "images 1, 3, 5 ..." --> b["rank 1: forward, backward"]
#   a -- gradients --> mean["all-reduce: the mean"]
#   b -- gradients --> mean
#   mean --> stepa["rank 0: optimizer.step"]
#   mean --> stepb["rank 1: the same step"]
# ```
#
# ## 1. A batch in four parts
#
# > **accumulate** → processes → wrappers → norms → metrics → launchers → machines
#
# The loss is a mean over images, and gradients of a sum are sums of gradients. **Predict**: by which number must each part's loss be
# divided, so that four backward passes over 16 images leave the gradient of one over 64?

# %%
recipe = 'lenet/lenet5_mnist5k.py'
cfg = apis.load_config(recipe, {'seed': 0})
dataset = build_dataset(cfg.data.train)
batch = next(iter(apis.build_loader(cfg, 'train', dataset, torch.device('cpu'))))
boundary('a batch', batch['img'])

# %%
def share(batch, rank, ranks):
    return {key: values[rank::ranks] for key, values in batch.items()}


def gradients(model, batches, divisor):
    model.zero_grad()
    for part in batches:
        (model.train_step(part)['loss'] / divisor).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# %%
torch.manual_seed(0)
model = build_classifier(cfg.model)
parts = [share(batch, i, 4) for i in range(4)]
boundary('a part', parts[0]['img'])
whole, accumulated, forgotten = gradients(model, [batch], 1), gradients(model, parts, 4), gradients(model, parts, 1)

# %%
name = 'backbone.features.0.bias'
print('divided by 4, it is the gradient of the whole:', distance(whole, accumulated) < 1e-6)
print('not divided: times', round(float(forgotten[name].norm() / whole[name].norm()), 3))
assert distance(whole, accumulated) < 1e-6 and torch.allclose(forgotten[name], 4 * whole[name], atol=1e-5)

# %% [markdown]
# In a config that is `optimizer_config.cumulative_iters=4`; the hook divides, and steps after each fourth iteration:

# %%
print(inspect.getsource(OptimizerHook._is_due).strip(), inspect.getsource(OptimizerHook._window).strip(), sep='\n\n    ')

# %%
steady = {'lr_config': dict(_delete_=True, policy='fixed')}  # a schedule counts iterations, of which there are four times as many
quarter = {'data.samples_per_gpu': 16, 'optimizer_config.cumulative_iters': 4}
large = train_briefly(recipe, 4, {**steady, 'data.samples_per_gpu': 64})
small = train_briefly(recipe, 16, {**steady, **quarter})
print('large', np.round(large['losses'], 3), '\nsmall', np.reshape(small['losses'], (4, 4)).mean(1).round(3))

# %%
assert large['batch'] == small['batch'] == 64
assert distance(large['state'], small['state']) < 1e-5

# %% [markdown]
# ## 2. The layer that sees the whole batch
#
# LeNet treats each image alone. BatchNorm normalises an image by the mean and variance of its batch. **Predict** for which of the two
# networks below four parts train as one batch.

# %%
def with_norm(norm_cfg):
    backbone = dict(type='ResNet', depth=18, base_channels=8, in_channels=1, norm_cfg=norm_cfg)
    head = dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss'))
    return {'model.backbone': dict(_delete_=True, **backbone), 'model.head': dict(_delete_=True, **head),
            'model.neck': dict(_delete_=True, type='GlobalAveragePooling')}


# %%
far = {}
for kind, norm_cfg in dict(BatchNorm=dict(type='BN'), GroupNorm=dict(type='GN', num_groups=2)).items():
    one = train_briefly(recipe, 3, {**steady, **with_norm(norm_cfg), 'data.samples_per_gpu': 64})
    four = train_briefly(recipe, 12, {**steady, **with_norm(norm_cfg), **quarter})
    far[kind] = distance(one['state'], four['state'])
    print(f'{kind}: the same weights after three steps: {far[kind] < 1e-4}')

# %%
assert far['BatchNorm'] > 1e-2 and far['GroupNorm'] < 1e-4

# %% [markdown]
# With BatchNorm accumulation makes another training, though often as good a one: what counts is that the parts are not tiny. It also
# counts four batches into the running statistics instead of one. GroupNorm and LayerNorm look at one image only.
#
# ## 3. Two processes
#
# > accumulate → **processes** → wrappers → norms → metrics → launchers → machines
#
# `Ranks(2)` starts two Python processes, each with the variables that torchrun would set, and lets them call functions for us. They
# import what they run: a function typed into this page does not exist there. **Predict** what each rank answers.

# %%
ranks = Ranks(2)
print(ranks.run(dist.get_dist_info))
try:
    ranks.run(gradients, model, parts, 4)
except ValueError as error:
    print(error)

# %% [markdown]
# All that they can do together is made of a few exchanges, in which every rank must take part. The sum of a tensor over all:

# %%
totals = ranks.run_each(dist.all_reduce_sum, [(torch.tensor([1.0, 10.0]),), (torch.tensor([2.0, 20.0]),)])
print(totals)
assert torch.equal(totals[0], totals[1])

# %% [markdown]
# Both know the seed, and so the order of the epoch; rank r of N takes every N-th image of it, from the r-th on.

# %%
for rank, world_size in ((0, 1), (0, 2), (1, 2)):
    loader = Loader(dataset, 6 // world_size, shuffle=True, seed=0, rank=rank, world_size=world_size)
    print(f'rank {rank} of {world_size}:', *loader.files(epoch=0, batch=0))

# %% [markdown]
# With every backward pass the mean of all gradients replaces each rank's own. That is torch's `DistributedDataParallel`, and this is all
# that the runner does about it:

# %%
print(inspect.getsource(EpochBasedRunner.share_gradients).split('"""')[2])

# %%
halves = [share(batch, rank, 2) for rank in range(2)]
boundary('the half of rank 0', halves[0]['img'])
first, second = ranks.run_each(shared_gradients, [(model, half) for half in halves])
boundary('its gradient of one bias', first[name])

# %%
alone = gradients(model, halves[:1], 1)
assert distance(first, second) == 0  # to the bit: they have the same numbers, not numbers as good
assert distance(first, whole) < 1e-6 and distance(alone, whole) > 1e-3

# %% [markdown]
# Is a whole epoch the same, with its schedule, augmentation and momentum? Augmentation draws its chance from (seed, epoch, index), not from
# the process. **Predict** how the two losses of one iteration relate to that of one process.

# %%
one = train_briefly(recipe, 63, {'data.samples_per_gpu': 64})
two = ranks.run(train_briefly, recipe, 63, {'data.samples_per_gpu': 32})
for i in (0, 20, 62):
    print(f'iteration {i + 1:>2}: rank 0 {two[0]["losses"][i]:.3f}, rank 1 {two[1]["losses"][i]:.3f}; one process {one["losses"][i]:.3f}')

# %%
mean = np.mean([two[0]['losses'], two[1]['losses']], axis=0)
assert np.allclose(mean, one['losses'], atol=1e-3) and one['batch'] == two[0]['batch'] == 64
assert distance(two[0]['state'], two[1]['state']) == 0 and distance(two[0]['state'], one['state']) < 1e-3

# %% [markdown]
# Whoever takes more processes *and* leaves the images of each as they are trains with a larger batch, and then the learning rate is to grow
# with it (Goyal et al., [arXiv:1706.02677](https://arxiv.org/abs/1706.02677)): `--auto-scale-lr`. For which batch is a recipe's rate?

# %%
base = launch.base_batch_size(apis.load_config('resnet/resnet50_8xb32_in1k.py'))
print('for batches of', base)
assert base == 8 * 32

# %% [markdown]
# ## 4. mmcv's wrappers
#
# > accumulate → processes → **wrappers** → norms → metrics → launchers → machines
#
# mmclassification wraps the model before it trains: in `MMDataParallel` in one process, in `MMDistributedDataParallel` in several. torch
# lets only `forward` through a wrapper, but mmcv's runner calls `train_step`. **Predict** what the first of them adds to a step.

# %%
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    logging.disable()
    from mmcv.parallel import MMDataParallel, MMDistributedDataParallel

    logging.disable(logging.NOTSET)

# %%
wrapped = MMDataParallel(model)
print(next(iter(wrapped.state_dict())), '| train_step of torch:', hasattr(torch.nn.parallel.DistributedDataParallel, 'train_step'))
assert torch.equal(wrapped.train_step(batch, None)['loss'], model.train_step(batch)['loss'])
assert 'MMDataParallel only supports single GPU training' in inspect.getsource(MMDataParallel.train_step)

# %% [markdown]
# Nothing, but to unpack mmcv's `DataContainer` and to move the batch: in spite of its name it is for one GPU. Its cost is the `.module` in
# every hook and the `module.` before every name. The other one shares gradients, as ours does:

# %%
theirs = ranks.run_each(shared_gradients, [(model, half, MMDistributedDataParallel) for half in halves])
print('mmcv and ours differ by', distance(theirs[0], first))
assert distance(theirs[0], first) == distance(theirs[1], second) == 0

# %% [markdown]
# `torch.nn.DataParallel` itself, one process that drives several GPUs by threads, is what people mean when they say that multi-GPU training
# is slow. Neither library uses it as such to train.
#
# ## 5. SyncBN
#
# > accumulate → processes → wrappers → **norms** → metrics → launchers → machines
#
# DDP averages gradients, not statistics. **Predict**: what do two ranks with BatchNorm agree in after a few steps, weights or running means?

# %%
normed = ranks.run(train_briefly, recipe, 3, {**with_norm(dict(type='BN')), 'data.samples_per_gpu': 32})
a, b = (rank['state'] for rank in normed)
print('weights agree:', distance(a, b) == 0, '| running means agree:', torch.equal(a['backbone.bn1.running_mean'], b['backbone.bn1.running_mean']))
assert distance(a, b) == 0 and not torch.equal(a['backbone.bn1.running_mean'], b['backbone.bn1.running_mean'])

# %% [markdown]
# Rank 0's are saved. With SyncBN (`norm_cfg=dict(type='SyncBN')`) the ranks exchange what the whole batch's mean and variance follow from:
# torch gathers each rank's count, mean and 1/std; the same by hand with one sum of counts, sums and sums of squares, of 5 images on one
# rank and 3 on the other:

# %%
features = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
sums = [torch.cat([torch.tensor([part.numel() / 3]), part.sum((0, 2, 3)), part.square().sum((0, 2, 3))])
        for part in (features[:5], features[5:])]
boundary('what a rank sends', sums[0])
total = ranks.run_each(dist.all_reduce_sum, [(part,) for part in sums])[0]

# %%
mean = total[1:4] / total[0]
variance = total[4:] / total[0] - mean ** 2
by_hand = (features - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
assert torch.allclose(by_hand, torch.nn.BatchNorm2d(3)(features), atol=1e-5)  # which saw all eight images at once

# %% [markdown]
# So every such layer makes all GPUs wait for each other, twice a step: worth it where a GPU holds few images. torch has it for GPUs alone;
# in one process it would be plain BatchNorm without a word. Here it is an error that says so:

# %%
try:
    train_briefly(recipe, 1, with_norm(dict(type='SyncBN')))
except ValueError as error:
    print(re.sub(r'\(.*?\)', '(...)', str(error)))

# %% [markdown]
# ## 6. Metrics, whatever the number of processes
#
# > accumulate → processes → wrappers → norms → **metrics** → launchers → machines
#
# 111 test images, two processes. torch's `DistributedSampler`, and with it mmclassification's, repeats the first so that all have 56.
# **Predict**: is accuracy then too high or too low?

# %%
checkpoint = str(Path(runs.name) / 'one.pth')
torch.save(dict(state_dict=one['state'], meta=dict(CLASSES=dataset.CLASSES)), checkpoint)
part_of = {'data.test': dict(_delete_=True, type='KFoldDataset', dataset=cfg.data.test.to_dict(), num_splits=9, test_mode=True, seed=0)}
test = dict(metrics=['accuracy', 'precision', 'recall'], metric_options=dict(topk=1), device='cpu', options=part_of)

# %%
by_one = commands.test(recipe, checkpoint, **test)
by_two = ranks.run(commands.test, recipe, checkpoint, **test)
print({name: round(float(value), 2) for name, value in by_one.items()})
assert by_two == [by_one, {}]  # to the last digit; rank 0 tells it

# %%
images = build_dataset(apis.load_config(recipe, part_of).data.test, dict(test_mode=True))
scores = apis.single_gpu_test(apis.init_model(recipe, checkpoint, device='cpu'), Loader(images, 64))
padded = [i for rank in range(2) for i in torch.utils.data.DistributedSampler(images, 2, rank, shuffle=False)]
right = np.argmax(scores, axis=1) == images.get_gt_labels()
print(f'{len(images)} images: {100 * right.mean():.4f} %; padded to {len(padded)}: {100 * right[padded].mean():.4f} %')

# %%
assert np.isclose(100 * right.mean(), by_one['accuracy']) and not np.isclose(right.mean(), right[padded].mean())

# %% [markdown]
# It depends on whether the first image was right. A small error, but one that changes with the number of GPUs: two people get two numbers from
# one checkpoint. Here each rank takes its share unpadded, the results are put back in the data set's order, and counted once. (mmclassification
# cuts the surplus off after collecting, which is exact too; a metric averaged over ranks is not.)
#
# ## 7. What torchrun does
#
# > accumulate → processes → wrappers → norms → metrics → **launchers** → machines
#
# It starts a program N times, tells each by environment variables who it is, and ends all when one fails. The program can be anything:

# %% tags=["varies"]
say = 'echo RANK=$RANK LOCAL_RANK=$LOCAL_RANK WORLD_SIZE=$WORLD_SIZE MASTER_ADDR=$MASTER_ADDR'
words = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '--no-python', 'sh', '-c', say]
told = sorted(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines())
print(*told, sep='\n')

# %%
assert [line.split()[0] for line in told] == ['RANK=0', 'RANK=1'] and all('WORLD_SIZE=2' in line for line in told)
print('read by init_dist:', *launch.TORCHRUN)
for launcher, variables in launchers.LAUNCHERS.items():
    print(f'  {launcher:<8}', *variables)

# %% [markdown]
# `init_dist` reads them, takes the GPU number `LOCAL_RANK`, and meets the others at `MASTER_ADDR:MASTER_PORT`, where rank 0
# (under torchrun its agent) listens. So `workspace train CONFIG --gpus 8` is torchrun with eight times `workspace train CONFIG`;
# `scripts/dist_train.sh` is the same under mmclassification's name, and Slurm's or Open MPI's variables do as well.
#
# ## 8. Two machines
#
# > accumulate → processes → wrappers → norms → metrics → launchers → **machines**
#
# On each you would type the same, but for the number of the machine:
#
# ```
# workspace train CONFIG --gpus 8 --nnodes 2 --node-rank 0 --meet-at 10.0.0.1:29500      # on 10.0.0.1
# workspace train CONFIG --gpus 8 --nnodes 2 --node-rank 1 --meet-at 10.0.0.1:29500      # on 10.0.0.2
# ```
#
# Both need the same commit, the data, and a folder that both see. Here both run on this machine, with one process each. **Predict** whether the
# weights after an epoch are those of section 3, to the bit.

# %%
with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    place = f'127.0.0.1:{probe.getsockname()[1]}'
words = [sys.executable, '-m', 'workspace_lib.tools.cli', 'train', recipe, '--work-dir', 'two', '--seed', '0', '--device', 'cpu', '--no-validate',
         '--gpus', '1', '--nnodes', '2', '--meet-at', place, '--cfg-options', 'data.samples_per_gpu=32', 'runner.max_epochs=1']

# %%
machines = [subprocess.Popen([*words, '--node-rank', str(number)], cwd=runs.name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for number in range(2)]
try:
    assert [machine.wait(250) for machine in machines] == [0, 0]
finally:
    for machine in machines:
        machine.kill()  # where one failed, the other waits for it
log = next(Path(runs.name, 'two').glob('*.log')).read_text()
print(re.search(r'batch: .*', log)[0])

# %%
trained = torch.load(Path(runs.name, 'two', 'latest.pth'), weights_only=True)
print('they differ from two processes on one machine by', distance(trained['state_dict'], two[0]['state']))
assert distance(trained['state_dict'], two[0]['state']) == 0

# %% [markdown]
# What if one of them dies? `--max-restarts 3 --resume-from auto` lets the other wait for it, and go on from the newest checkpoint, to the same
# bits; `--nnodes 1:2` goes on alone, with the whole batch in two parts. `docs/distributed.md` has the table. Between GPUs, with NCCL,
# none of this has been run yet.
#
# ## Exercises
#
# **1. Modify.** Two ranks, 16 images each, accumulated over two iterations: is that `large` of section 1?

# %% jupyter={"source_hidden": true} tags=["solution"]
both = ranks.run(train_briefly, recipe, 8, {**steady, 'data.samples_per_gpu': 16, 'optimizer_config.cumulative_iters': 2})
print(both[0]['batch'], 'images a step; the same weights:', distance(both[0]['state'], large['state']) < 1e-5)
assert both[0]['batch'] == 64 and distance(both[0]['state'], large['state']) < 1e-5

# %% [markdown]
# **2. Break.** Let rank 1 fail while rank 0 waits for it in a sum. What would happen without somebody who watches both?

# %% jupyter={"source_hidden": true} tags=["solution"]
try:
    ranks.run_each(dist.all_reduce_sum, [(torch.ones(1),), ('no tensor',)])
except RuntimeError as error:
    print(str(error).splitlines()[0], '...', re.search(r'\w+Error', str(error))[0])
assert all(process.poll() is not None for process in ranks.processes)  # else rank 0 would wait until its timeout

# %% [markdown]
# **3. Extend.** Make the gradient of the batch from two parts of 40 and 24 images. What has each loss to be multiplied by?

# %% jupyter={"source_hidden": true} tags=["solution"]
uneven = [{key: values[:40] for key, values in batch.items()}, {key: values[40:] for key, values in batch.items()}]
weighted = dict.fromkeys(whole, 0.0)
for part in uneven:
    for name, gradient in gradients(model, [part], 1).items():
        weighted[name] = weighted[name] + gradient * len(part['img']) / 64  # its share of the batch, not one half
assert distance(weighted, whole) < 1e-6

# %% [markdown]
# ## The same way with a debugger
#
# In VS Code choose the launch entry **train** (*Run and Debug*), with `lenet/lenet5_mnist5k.py`. One process is enough to see the way, and a
# breakpoint in one of several makes the others wait. Three breakpoints:
#
# 1. `launch.join` in `workspace_lib/tools/launch.py`: look at `launcher`; with torchrun's five variables set, step into `init_dist`.
# 2. `_Requests._indices` in `workspace_lib/datasets/loader.py`: look at `order`, `self.rank`, `self.world_size`.
# 3. `OptimizerHook.before_train_iter` in `workspace_lib/hooks.py`: `require_backward_grad_sync` says in which iteration gradients are exchanged.
#
# In mmclassification the same way is `tools/dist_train.sh` → `mmcv/runner/dist_utils.py`: `init_dist` → `mmcls/datasets/builder.py` and
# `samplers/distributed_sampler.py` → `mmcls/apis/train.py`, where the model is wrapped → `mmcv/runner/hooks/optimizer.py`:
# `GradientCumulativeOptimizerHook`.
#
# Next: [11_speed](11_speed.ipynb), which asks what limits all this.

# %%
ranks.close()
runs.cleanup()
