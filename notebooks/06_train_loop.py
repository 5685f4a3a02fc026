# %% [markdown]
# # Train loop: one step by hand, then the runner
#
# **Where is `loss.backward()`?** Whoever looks for it in mmclassification finds `runner.run(...)`, and in the runner no backward pass
# at all. You will take one step by hand, then an epoch, get the same weights to the bit from the library's runner and from mmcv's,
# see on a time line which hook does what when, write a hook, and kill a run in the middle and go on.
#
# **Time**: twenty minutes to read; the cells take about half a minute. **Needs**: notebooks 04 and 05; no GPU, no network.
#
# > config → registry → inference → test loop → **train loop** → data loader → loss, optimizer, schedule → checkpoint
# > → many processes → speed
# >
# > *You are here*: the network answers, and the answers can be judged. Now they shall become better.

# %%
# %load_ext autoreload
# %autoreload 2

# %%
import inspect
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from IPython.display import display
from torch.utils.data import Subset

from workspace_lib import apis
from workspace_lib.checkpoint import read_checkpoint
from workspace_lib.datasets import build_dataset
from workspace_lib.hooks import PRIORITIES, Hook
from workspace_lib.models import build_classifier
from workspace_lib.optim import build_optimizer
from workspace_lib.registry import HOOKS
from workspace_lib.schedules import lr_schedule
from workspace_lib.tools import analyze_logs, commands, live, vis_hooks, widgets
from workspace_lib.tools.plots import read_log

torch.set_num_threads(1)
runs = tempfile.TemporaryDirectory()


# %%
def boundary(name, x):
    """What crosses from one part to the next: its shape, dtype and device."""
    print(f'{name:<34}{str(tuple(x.shape)):<20}{str(x.dtype):<16}{x.device}')


# %% [markdown]
# ```mermaid
# flowchart LR
#   accTitle: One iteration of a training
#   accDescr {
#     The loader gives a batch. Before the iteration a hook sets the learning rate. The model makes the loss. After the
#     iteration the optimizer's hook does the backward pass and the step; then timers, checkpoints and logs follow.
#   }
#   loader -- "batch" --> before["before_train_iter: learning rate"]
#   before --> forward["model.train_step: loss"]
#   forward --> after["after_train_iter: backward, step, zero_grad"]
#   after --> others["after_train_iter: time, log, ..."]
#   others -- "next batch" --> loader
# ```

# %%
recipe = 'lenet/lenet5_mnist5k.py'
cfg = apis.load_config(recipe, {'seed': 0, 'runner.max_epochs': 1, 'log_level': 'ERROR'})
dataset = build_dataset(cfg.data.train)


def fresh():
    """The same untrained network each time."""
    torch.manual_seed(0)
    return build_classifier(cfg.model)


# %% [markdown]
# ## 1. One step
#
# > batch → **forward → loss → backward → step**
#
# **Predict**: which of the four changes a weight?

# %%
model = fresh()
optimizer = build_optimizer(model, cfg.optimizer)
loader = apis.build_loader(cfg, 'train', dataset, torch.device('cpu'))
batch = next(iter(loader))
boundary('images', batch['img'])
boundary('labels', batch['gt_label'])

# %%
logits = model.backbone(batch['img'])[-1]  # LeNet-5 classifies in its backbone
losses = torch.nn.functional.cross_entropy(logits, batch['gt_label'], reduction='none')
loss = losses.mean()  # as mmcls does it; the sum inside cross_entropy may round its last bit otherwise
for name, value in (('logits', logits), ('loss of each image', losses), ('loss', loss)):
    boundary(name, value)

# %%
weight = model.backbone.features[0].weight
before = weight.detach().clone()
print('gradient before the backward pass:', weight.grad)
loss.backward()
boundary('and after it', weight.grad)

# %%
assert torch.equal(weight, before)  # backward only says which way
optimizer.step()
assert not torch.equal(weight, before)
optimizer.zero_grad()  # gradients add up until somebody clears them

# %% [markdown]
# Only the step. What the library's model does in training is the first half of this, packed for whoever calls it:

# %%
outputs = fresh().train_step(batch)
print({name: type(value).__name__ for name, value in outputs.items()})
assert torch.equal(outputs['loss'], loss) and outputs['num_samples'] == len(batch['img'])

# %% [markdown]
# ## 2. An epoch: by hand, by the runner, by mmcv's runner
#
# Around the step: a loop over the loader, and a learning rate for each iteration. It is all that training is.

# %%
def train_by_hand(model, loader, optimizer, schedule):
    model.train()
    for iteration, batch in enumerate(loader):
        for group in optimizer.param_groups:
            group['lr'] = schedule(cfg.optimizer.lr, iteration)
        logits = model.backbone(batch['img'])[-1]
        torch.nn.functional.cross_entropy(logits, batch['gt_label'], reduction='none').mean().backward()
        optimizer.step()
        optimizer.zero_grad()


# %%
by_hand = fresh()
loader.set_epoch(0)
schedule = lr_schedule(cfg.lr_config, cfg.runner.max_epochs, len(loader))
train_by_hand(by_hand, loader, build_optimizer(by_hand, cfg.optimizer), schedule)
print(len(loader), 'steps')

# %% [markdown]
# The same from the config. **Predict**: will the weights be close, or equal?

# %%
runner, loaders = apis.build_training(fresh(), dataset, cfg, device='cpu')
runner.run(loaders, cfg.workflow)


# %%
def differing(one, other):
    """Names of the weights in which two networks differ, be it in the last bit."""
    pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
    return [name for (name, a), b in pairs if not torch.equal(a, b)]


assert differing(by_hand, runner.model) == [] and len(differing(by_hand, fresh())) == 10

# %% [markdown]
# Equal: order, augmentation and initialisation come from the seed, and nothing else is left to chance. This is the runner's loop:

# %%
print(inspect.getsource(type(runner).train), inspect.getsource(type(runner)._iterate), sep='\n')

# %% [markdown]
# No `backward`, no `lr`, no `step`. `_iterate` calls *points* by name (`call_hook`), and hooks do the rest (`_dealt` and `_settle` are
# for batches in parts and for several processes, and idle here):
#
# | by hand | in the runner | in mmcv |
# | --- | --- | --- |
# | `group['lr'] = schedule(...)` | `LrUpdaterHook.before_train_iter` | the same, a class for each policy |
# | forward and loss | `model.train_step` | `BaseClassifier.train_step` |
# | `backward`, `step`, `zero_grad` | `OptimizerHook.after_train_iter` | the same |
#
# So mmcv's runner can take the place of ours: same model, same loader, same config.

# %%
import logging
import warnings

with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    logging.disable()
    from mmcv import runner as mmcv_runner

    logging.disable(logging.NOTSET)

# %%
other = fresh()
loader.set_epoch(0)
theirs = mmcv_runner.EpochBasedRunner(other, optimizer=build_optimizer(other, cfg.optimizer), max_epochs=1,
                                      work_dir=runs.name, logger=logging.getLogger('mmcv'))
theirs.register_training_hooks(cfg.lr_config.to_dict(), cfg.optimizer_config.to_dict())
theirs.run([loader], cfg.workflow)

# %%
assert differing(by_hand, other) == []

# %% [markdown]
# ## 3. The hooks in their order
#
# > **before_run → before_train_epoch → before_train_iter** → forward → **after_train_iter → ... → after_run**
#
# At each point hooks come by priority, the lowest number first, and those of one priority in the order of their registration.
# **Predict**: which comes first after an iteration, the log or the optimizer? And is a checkpoint saved before or after the
# evaluation?

# %%
cfg.work_dir = str(Path(runs.name) / 'order')
runner, loaders = apis.build_training(fresh(), dataset, cfg, validate=True, device='cpu')
order = vis_hooks.order_plot(runner)
display(order, order.table)

# %% [markdown]
# Read a column downwards and you have what happens at that point. The optimizer (40) comes before the log (90), and the checkpoint (50)
# is saved before the evaluation (70): if that fails, the epoch is not lost. mmcv, given the same config, builds the same row of hooks; ours
# has four more, which look out for losses that are no number, for a loader that is too slow, for signals, and draw a progress bar.

# %%
theirs = mmcv_runner.EpochBasedRunner(other, work_dir=runs.name, logger=logging.getLogger('mmcv'), max_epochs=1)
theirs.register_training_hooks(*(cfg[key].to_dict() for key in (
    'lr_config', 'optimizer_config', 'checkpoint_config', 'log_config')))
theirs.register_hook(mmcv_runner.EvalHook(torch.utils.data.DataLoader([0])), priority='LOW')  # as mmcls does
print([type(hook).__name__ for hook in theirs.hooks])

# %%
their_names = [type(hook).__name__.replace('CosineAnnealing', '') for hook in theirs.hooks]
our_names = [type(hook).__name__ for hook in runner.hooks]
assert [name for name in our_names if name in their_names] == their_names
assert {priority.name: priority.value for priority in mmcv_runner.Priority} == PRIORITIES
for earlier, later in (('OptimizerHook', 'TextLoggerHook'), ('CheckpointHook', 'EvalHook')):
    assert our_names.index(earlier) < our_names.index(later)

# %% [markdown]
# ## 4. The time line
#
# Two epochs of three iterations, each followed by a test, with a clock at every call. **Predict** which hook takes longest.

# %%
recording = vis_hooks.short_run(recipe, epochs=2, iters=3, evaluate=True, device='cpu', options={'seed': 0})
vis_hooks.timeline_plot(recording)

# %% [markdown]
# The longest is the test after each epoch, of a thousand images. An iteration has two bars: the forward pass in the lowest row, and
# right after it the optimizer's hook, whose backward pass takes about as long or longer. `CheckpointHook` has one more, where it writes
# the last file; all others are hairlines. Where no bar is, the runner waits for the loader: notebook 07. The numbers, and a slider that
# shows one iteration (a page without a kernel has none; the picture above is its first setting):

# %% tags=["varies"]
display(widgets.hook_viewer(recording), vis_hooks.timeline_plot(recording).table)

# %%
second = [call for call in recording.calls if call.iter == 1]
for call in second:
    print(f'{call.stage:<20}{call.hook}')

# %%
assert max(recording.calls, key=lambda call: call.seconds).hook == 'EvalHook'
stages = [(call.stage, call.hook) for call in second]
assert stages[0] == ('before_train_iter', 'LrUpdaterHook')
assert stages.index(('forward', 'ImageClassifier')) < stages.index(('after_train_iter', 'OptimizerHook'))
assert len([call for call in recording.calls if call.stage == 'before_run' and call.hook == 'EvalHook']) == 1

# %% [markdown]
# In a terminal: `workspace vis_hooks CONFIG`. It trains a few iterations into a folder that is gone afterwards.
#
# ## 5. A hook of your own
#
# How far does a step move the weights, as a share of their length? A thousandth is a healthy value; a tenth is a learning rate that
# is too high. **Predict**: which priority must the hook have, so that it sees the weights *after* the step?

# %%
def flat(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


@HOOKS.register_module(force=True)
class UpdateRatioHook(Hook):
    priority = 'NORMAL'  # behind ABOVE_NORMAL, the optimizer's

    def before_train_iter(self, runner):
        self.before = flat(runner.model)

    def after_train_iter(self, runner):
        moved = flat(runner.model) - self.before
        runner.log_buffer.update({'update_ratio': moved.norm() / self.before.norm()})


# %% [markdown]
# What a hook puts into `log_buffer` is averaged and written by every logger. `custom_hooks` names it, and beside it one of the
# library's: `LivePlotHook`, which draws the curves while the training goes on (`workspace train` knows it; a script has to import
# `workspace_lib.tools.live`, as this page does above). Run the cell and watch.

# %% tags=["varies"]
whole = str(Path(runs.name) / 'whole')
brief = {'runner.max_epochs': 2, 'checkpoint_config.interval': 1, 'log_config.interval': 9, 'log_level': 'ERROR'}
watchers = [dict(type='UpdateRatioHook'), dict(type='LivePlotHook', interval=9, seconds=1)]
_ = commands.train(recipe, whole, seed=0, device='cpu', options={**brief, 'custom_hooks': watchers})

# %% [markdown]
# Afterwards the log gives the same picture:

# %%
entries = read_log(whole)
curves = live.training_plot(entries, name='LeNet-5')
curves

# %% tags=["varies"]
curves.table

# %%
at, ratios = analyze_logs.curve(entries, 'update_ratio')
print(len(ratios), 'entries, one every', entries[0]['iter'], 'iterations; the last at epoch', at[-1])
assert len(ratios) == 14 and 1e-4 < ratios[-1] < ratios.max() / 10 < 0.01

# %% [markdown]
# The ratio ends near zero because the cosine does: the last steps only polish.
#
# ## 6. Kill it, and go on
#
# The run above had two epochs of 63 iterations. Here the same recipe runs in a process of its own and is killed in the second
# epoch, without a warning, as by a power cut. **Predict**: at which iteration will the resumed run begin, and how far from the
# uninterrupted one will it end?

# %%
script = '''
import os, signal, sys, torch
from workspace_lib.hooks import Hook
from workspace_lib.registry import HOOKS
from workspace_lib.tools import commands

@HOOKS.register_module()
class PowerCut(Hook):
    def after_train_iter(self, runner):
        if runner.iter == 90:
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
options = {**eval(sys.argv[3]), 'custom_hooks': [dict(type='PowerCut')]}
commands.train(sys.argv[1], sys.argv[2], seed=0, device='cpu', options=options)
'''
cut = str(Path(runs.name) / 'cut')
killed = subprocess.run([sys.executable, '-c', script, recipe, cut, repr(brief)], capture_output=True, text=True)

# %%
print('ended by', signal.Signals(-killed.returncode).name, '| left behind:', sorted(path.name for path in Path(cut).glob('*.pth')))
assert killed.returncode == -signal.SIGKILL, killed.stderr

# %%
saved = read_checkpoint(Path(cut) / 'latest.pth')
print('in the file:', ', '.join(sorted(saved)))
print('it was saved after epoch', saved['meta']['epoch'], 'and iteration', saved['meta']['iter'])

# %%
resumed = commands.train(recipe, cut, resume_from='auto', device='cpu', options=brief)
ends = [read_checkpoint(Path(folder) / 'latest.pth') for folder in (whole, cut)]
assert ends[0]['meta']['iter'] == ends[1]['meta']['iter'] == 126
assert all(torch.equal(a, b) for a, b in zip(*(end['state_dict'].values() for end in ends), strict=True))

# %% [markdown]
# Not close: equal. Weights alone would not do it. The file holds the optimizer's momentum and the random state, too; the learning
# rate is a function of the iteration, and the order of samples one of seed and epoch, so neither can be off. The hooks that watched
# the first run changed nothing, either.
#
# A scheduler is more polite than a power cut: on SIGTERM or SIGUSR1 the run saves after the next iteration, *amid* the epoch, and ends
# with status 85; `--resume-from auto` goes on at that batch. mmcv's own resume starts the epoch anew, with another order.

# %%
momentum = [state['momentum_buffer'] for end in ends for state in end['optimizer']['state'].values()]
half = len(momentum) // 2
assert all(torch.equal(a, b) for a, b in zip(momentum[:half], momentum[half:], strict=True))
boundary('momentum of the first weight', momentum[0])

# %% [markdown]
# ## Exercises
#
# **1. Modify.** With `workflow = [('train', 1), ('val', 1)]`, which stages does the time line gain? (Give `build_training` a data set
# for each entry.)

# %% jupyter={"source_hidden": true} tags=["solution"]
cfg.work_dir, cfg.workflow = None, [('train', 1), ('val', 1)]
parts = [Subset(dataset, range(128)), Subset(dataset, range(128, 256))]
runner, loaders = apis.build_training(fresh(), parts, cfg, device='cpu')
with vis_hooks.recorded_hooks(runner) as both:
    runner.run(loaders, cfg.workflow)
gained = [stage for stage in dict.fromkeys(call.stage for call in both.calls) if 'val' in stage]
print(gained)
assert gained == ['before_val_epoch', 'before_val_iter', 'after_val_iter', 'after_val_epoch']
cfg.workflow = [('train', 1)]

# %% [markdown]
# **2. Break.** Register `UpdateRatioHook` with the priority `HIGH`. What does it log, and why?

# %% jupyter={"source_hidden": true} tags=["solution"]
runner, loaders = apis.build_training(fresh(), parts[0], cfg, device='cpu')
runner.register_hook(dict(type='UpdateRatioHook', priority='HIGH'))
runner.run(loaders, cfg.workflow)
seen = runner.log_buffer.average(2)['update_ratio']
print('update ratio', seen)  # after the iteration it now comes before the optimizer: nothing has moved yet
assert seen == 0

# %% [markdown]
# **3. Extend.** A hook that ends the run once the mean loss of an epoch is below a value. (`runner.max_epochs` may be changed.)

# %% jupyter={"source_hidden": true} tags=["solution"]
@HOOKS.register_module(force=True)
class GoodEnoughHook(Hook):
    priority = 'ABOVE_NORMAL'  # before CheckpointHook, which asks whether this is the last epoch

    def __init__(self, loss):
        self.loss = loss

    def after_train_epoch(self, runner):
        if runner.log_buffer.average(len(runner.data_loader))['loss'] < self.loss:
            runner.max_epochs = runner.epoch + 1


cfg.merge_from_dict({'runner.max_epochs': 20, 'custom_hooks': [dict(type='GoodEnoughHook', loss=0.8)]})
runner, loaders = apis.build_training(fresh(), Subset(dataset, range(1280)), cfg, device='cpu')
runner.run(loaders, cfg.workflow)
print('ended after epoch', runner.epoch, 'of 20')
assert 1 < runner.epoch < 20

# %% [markdown]
# ## The same way with a debugger
#
# In VS Code choose the launch entry **train** (*Run and Debug*) with `lenet/lenet5_mnist5k.py`. Three breakpoints:
#
# 1. `EpochBasedRunner.train` in `workspace_lib/runner.py`: stop in the loop over the batches; look at `batch['img'].shape`,
#    `self.iter`, `self.hooks`.
# 2. `OptimizerHook.after_train_iter` in `workspace_lib/hooks.py`: look at `runner.outputs['loss']`, and at
#    `next(runner.model.parameters()).grad` before the backward pass, after it, and at the end of the method.
# 3. `TextLoggerHook.write` in `workspace_lib/log_writers.py`: `entry` is the line of the log that is about to be written; go up the
#    stack, and you see at which point of the loop.
#
# In mmclassification the same way is `tools/train.py` → `mmcls/apis/train.py`: `train_model` →
# `mmcv/runner/epoch_based_runner.py`: `train`, `run_iter` → `mmcv/runner/hooks/optimizer.py`: `OptimizerHook.after_train_iter`.
#
# Next: [07_data_loader](07_data_loader.ipynb). The time line has gaps, in which the runner waits for a batch. Where does that time go?

# %%
runs.cleanup()
