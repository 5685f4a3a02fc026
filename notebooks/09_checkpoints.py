# %% [markdown]
# # Checkpoints: what a file has to hold so that nothing is lost
#
# **What is in a `.pth` file, does it bring a training back exactly, and can you trust it?** You will list all that a run saved, load
# it into networks that do not fit, resume to the last bit, kill a process in the middle of saving, average weights in two ways,
# carry weights between three libraries, and open a file that wants to run a program.
#
# **Time**: fifteen minutes to read; the cells take about half a minute. **Needs**: notebook 08; no GPU, no network.
#
# > config → registry → inference → test loop → train loop → data loader → loss, optimizer, schedule → **checkpoint**
# > → many processes → speed
# >
# > *You are here*: something was learned. Now it has to outlive the process.

# %%
# %load_ext autoreload
# %autoreload 2

# %%
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import torch
import torchvision
from IPython.display import display
from torch.optim.swa_utils import AveragedModel

from workspace_lib import apis
from workspace_lib.checkpoint import load_checkpoint, save_checkpoint
from workspace_lib.hooks import Hook
from workspace_lib.registry import HOOKS
from workspace_lib.resume import damage_of
from workspace_lib.safe_load import UnsafeCheckpointError, read_checkpoint
from workspace_lib.tools import commands
from workspace_lib.tools.checkpoint_view import contents
from workspace_lib.tools.conversion import convert_file

torch.set_num_threads(1)
here, runs = Path.cwd(), tempfile.TemporaryDirectory()
os.chdir(runs.name)  # all files of this notebook, by short names

# %%
def boundary(name, x):
    """What crosses from one part to the next: its shape, dtype and device."""
    print(f'{name:<34}{str(tuple(x.shape)):<20}{str(x.dtype):<16}{x.device}')


# %% [markdown]
# ```mermaid
# flowchart LR
#   accTitle: What a run writes, and who reads which part
#   accDescr {
#     A run writes a file of four entries: meta, state_dict, optimizer and random. Inference reads the weights and the class
#     names, a new training the weights, a resumed one everything. Converting gives the weights other names.
#   }
#   run["runner.save_checkpoint"] --> file["epoch_3.pth: meta, state_dict, optimizer, random"]
#   file -- "weights, CLASSES" --> infer["init_model: inference"]
#   file -- "weights" --> new["load_from: a new run"]
#   file -- "all of it" --> resume["resume_from: the same run"]
#   file -- "weights, other names" --> convert["workspace convert"]
# ```
#
# ## 1. Anatomy
#
# > **save** → load → resume → average → convert → trust
#
# LeNet-5, three epochs on real digits, one file for each. **Predict**: the network has 61,706 weights, of four bytes. How large is
# the file?

# %%
recipe = 'lenet/lenet5_mnist5k.py'
brief = {'runner.max_epochs': 3, 'checkpoint_config': dict(interval=1, max_keep_ckpts=-1),
         'log_level': 'ERROR'}
if not Path('run').exists():
    _ = commands.train(recipe, 'run', seed=0, device='cpu', validate=False, options=brief)
print(*sorted(path.name for path in Path('run').glob('*.pth')), '| latest.pth ->', os.readlink('run/latest.pth'))
size = Path('run/epoch_3.pth').stat().st_size
print(f'{size / 246_824:.1f} times the weights')
assert size > 2 * 246_824

# %%
checkpoint = read_checkpoint('run/epoch_3.pth')
contents(checkpoint, depth=1)

# %% [markdown]
# More than twice the weights. SGD with momentum keeps a velocity for each of them; Adam would keep two numbers. `random` is the state
# of the generators of each process. One level deeper, what you would look for when you ask where a file came from:

# %% tags=["varies"]
display(contents(checkpoint))

# %%
weights, velocities = checkpoint['state_dict'], checkpoint['optimizer']['state']
boundary('backbone.classifier.2.weight', weights['backbone.classifier.2.weight'])
boundary('the velocity of the same', velocities[8]['momentum_buffer'])

# %%
assert sum(tensor.numel() for tensor in weights.values()) == 61_706
assert [v['momentum_buffer'].shape for v in velocities.values()] == [w.shape for w in weights.values()]
assert (checkpoint['meta']['epoch'], checkpoint['meta']['iter']) == (3, 3 * checkpoint['meta']['iters_per_epoch'])

# %% [markdown]
# The optimizer knows no names, only positions: parameter 8 is whichever comes ninth. So an optimizer's state is worth nothing to
# a model whose parameters come in another order, and `convert` leaves it out.
#
# On the disk the file is a zip: a pickle that says how things hang together, and the bytes of each tensor. The zip keeps a check sum of
# each part. **Predict**: who notices, if one bit of a weight flips on a disk?

# %%
with zipfile.ZipFile('run/epoch_3.pth') as archive:
    print([name for name in archive.namelist() if name.endswith(('.pkl', '/0', '/1', '/2'))])
content = bytearray(Path('run/epoch_3.pth').read_bytes())
content[content.index(weights['backbone.features.0.weight'].numpy().tobytes()) + 3] ^= 64
_ = Path('flipped.pth').write_bytes(content)

# %%
flipped = torch.load('flipped.pth', weights_only=True)['state_dict']['backbone.features.0.weight'].flatten()[0]
print(f'torch.load: {flipped:.0e} instead of', round(float(weights['backbone.features.0.weight'].flatten()[0]), 2))
print('damage_of: ', damage_of('flipped.pth'))
assert abs(flipped) > 1e15 and damage_of('run/epoch_3.pth') is None

# %% [markdown]
# Torch does not look at the sums. A run does, before it goes on from a file: `--resume-from auto` passes over a damaged one, and one that
# was named is refused.
#
# ## 2. Loading what does not fit
#
# > save → **load** → resume → average → convert → trust
#
# Inference loads *strictly*: names and shapes agree, or it is an error. Transfer does not: a network for five classes takes what fits
# from one of ten. **Predict** how many of the ten tensors that is.

# %%
speaker = logging.getLogger('notebook')
speaker.handlers, speaker.propagate = [logging.StreamHandler(sys.stdout)], False
five = apis.init_model(recipe, device='cpu', options={'model.backbone.num_classes': 5})
before = five.backbone.classifier[2].weight.clone()
_ = load_checkpoint(five, 'run/epoch_3.pth', logger=speaker)

# %%
assert torch.equal(five.backbone.classifier[2].weight, before)
assert torch.equal(five.backbone.features[0].weight, weights['backbone.features.0.weight'])

# %% [markdown]
# Read such a report before you wait for a training. A part that silently stayed random is the usual reason for one that "does not
# learn". With `strict=True`, and so for inference, the same text is an error:

# %%
def refusal(load, *args, **kwargs):
    try:
        load(*args, **kwargs)
    except RuntimeError as error:
        return str(error)


said = refusal(load_checkpoint, five, 'run/epoch_3.pth', strict=True)
print(said.splitlines()[0], '...')
assert said == refusal(apis.init_model, recipe, 'run/epoch_3.pth', 'cpu', options={'model.backbone.num_classes': 5})

# %% [markdown]
# A file from `DataParallel` has `module.` before every name. What `load_checkpoint` can put right by itself, it does, and says so.

# %%
wrapped = torch.nn.DataParallel(apis.init_model(recipe, 'run/epoch_3.pth', device='cpu')).state_dict()
torch.save({f'model.{name}': value for name, value in wrapped.items()}, 'wrapped.pth')
speaker.setLevel(logging.INFO)
_ = load_checkpoint(apis.init_model(recipe, device='cpu'), 'wrapped.pth', strict=True, logger=speaker)

# %% [markdown]
# ## 3. Resuming, to the bit
#
# > save → load → **resume** → average → convert → trust
#
# Three epochs at once, or one, a new process, and two more. **Predict**: the same accuracy, nearly the same weights, or equal ones? And
# if only the weights are taken along (`load_from`)?

# %%
if not Path('resumed').exists():
    _ = commands.train(recipe, 'resumed', resume_from='run/epoch_1.pth', device='cpu', validate=False, options=brief)
resumed = read_checkpoint('resumed/epoch_3.pth')
print({name: torch.equal(resumed['state_dict'][name], weights[name]) for name in list(weights)[-2:]})

# %%
assert all(torch.equal(resumed['state_dict'][name], weights[name]) for name in weights)
assert all(torch.equal(resumed['optimizer']['state'][i]['momentum_buffer'], velocities[i]['momentum_buffer']) for i in velocities)
assert resumed['meta']['seed'] == 0  # it was not given: the file knew

# %% [markdown]
# Equal, since everything that the next step depends on was in the file: weights, velocities, the place in epoch and schedule, seed and
# random state. Augmentation draws from (seed, epoch, index), so no state of a worker is missing. SIGTERM in the middle of an
# epoch saves as well, and `--resume-from auto` goes on from the newest whole file.
#
# ## 4. A kill in the middle of saving
#
# A scheduler's kill or a full disk can come while the file is written. Here Linux ends the process with the 100,000th byte of a file
# (`RLIMIT_FSIZE`). **Predict** what is left of `latest.pth` after each library's `save_checkpoint`.

# %%
script = '''
import resource, signal, sys, warnings
warnings.simplefilter('ignore')
from {library} import save_checkpoint
from workspace_lib.apis import init_model
model = init_model('lenet/lenet5_mnist5k.py', device='cpu')
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
save_checkpoint(model, sys.argv[1])
'''

# %%
def kill_while_saving(library):
    file = Path(library, 'latest.pth')
    save_checkpoint(five, file)
    ended = subprocess.run([sys.executable, '-c', script.format(library=library), file], stderr=subprocess.DEVNULL)
    assert ended.returncode == -signal.SIGXFSZ
    print(f'{library:<26} killed   {damage_of(file) or f"{file} is whole"}')
    return damage_of(file)


# %%
ours, theirs = kill_while_saving('workspace_lib.checkpoint'), kill_while_saving('mmcv.runner')
assert ours is None and theirs is not None

# %% [markdown]
# mmcv opens the file itself and writes over it. Here the new file grows under another name, is forced to the disk, and then renamed,
# which a file system does whole or not at all. What the kill left is cleared away by the next save.

# %%
print([path.name.replace(path.name.split('.')[3], 'PID') for path in Path('workspace_lib.checkpoint').glob('.*')])
save_checkpoint(five, 'workspace_lib.checkpoint/latest.pth')
assert os.listdir('workspace_lib.checkpoint') == ['latest.pth']

# %% [markdown]
# ## 5. Averages
#
# > save → load → resume → **average** → convert → trust
#
# The last steps of a training jump around a minimum; their average lies nearer to it. `EMAHook` keeps one while it trains: after each
# iteration `average += m * (weights - average)`. To compute it by hand, a hook of our own keeps all weights:

# %%
@HOOKS.register_module(force=True)
class Note(Hook):
    def before_run(self, runner):
        self.seen = [{name: p.detach().clone() for name, p in runner.model.named_parameters()}]

    def after_train_iter(self, runner):
        self.seen.append({name: p.detach().clone() for name, p in runner.model.named_parameters()})


# %%
hooks = {'custom_hooks': [dict(type='EMAHook', momentum=0.02), dict(type='Note')], 'runner.max_epochs': 2}
if not Path('ema').exists():
    runner = commands.train(recipe, 'ema', seed=0, device='cpu', validate=False, options={**brief, **hooks})
averaged = read_checkpoint('ema/latest.pth')
contents(averaged, depth=1)

# %%
start, *steps = next(hook for hook in runner.hooks if isinstance(hook, Note)).seen
average = {name: value.clone() for name, value in start.items()}
for i, step in enumerate(steps):
    m = min(0.02, (1 + i) / (100 + i))  # at first smaller: the average moves more slowly; here for two iterations only
    for name in average:
        average[name] += m * (step[name] - average[name])

# %%
assert all(torch.allclose(average[name], averaged['state_dict'][name], atol=1e-6) for name in average)
assert all(torch.equal(steps[-1][name], averaged['trained_weights'][name]) for name in average)

# %% [markdown]
# So `state_dict`, which everybody reads, holds the averages, and `trained_weights` those that a resumed run needs. mmcv keeps
# the second as buffers `ema_backbone_...` of the model, which surprise whoever loads the file; both forms are read here.
#
# The other way costs nothing while training: the mean of some epochs' files. Is it better? **Predict**, then test.

# %%
files = [read_checkpoint(f'run/epoch_{epoch}.pth')['state_dict'] for epoch in (2, 3)]
mean = {name: sum(file[name] for file in files) / len(files) for name in weights}
torch.save(dict(state_dict=mean, meta=dict(CLASSES=checkpoint['meta']['CLASSES'])), 'mean.pth')
torch.save(dict(state_dict=averaged['trained_weights'], meta=averaged['meta']), 'trained.pth')

# %%
found = {file: commands.test(recipe, file, ['accuracy'], dict(topk=1), device='cpu')['accuracy'] for file in (
    'trained.pth', 'ema/latest.pth', 'run/epoch_2.pth', 'run/epoch_3.pth', 'mean.pth')}
print({file: round(value, 1) for file, value in found.items()})
assert found['ema/latest.pth'] < found['trained.pth'] and found['mean.pth'] >= found['run/epoch_3.pth']

# %%
swa = AveragedModel(apis.init_model(recipe, device='cpu'))
for epoch in (2, 3):
    swa.update_parameters(apis.init_model(recipe, f'run/epoch_{epoch}.pth', device='cpu'))
assert all(torch.allclose(mean[name], value, atol=1e-6) for name, value in swa.module.state_dict().items())

# %% [markdown]
# In the middle of a training the moving average lags behind weights that still travel, and scores lower; at the end of a long one it
# is the other way round. The mean of the last two files, between which the rate falls from a quarter to nothing, gains a little here.
#
# With BatchNorm one thing is missing: the mean of two networks' statistics are not the statistics of the mean network. Compute them anew,
# as `PreciseBNHook` does.
#
# ## 6. The same weights under other names
#
# > save → load → resume → average → **convert** → trust
#
# A ResNet-18 is `conv1` in torchvision, and `backbone.conv1` in mmcls; a shortcut is `downsample.0` in both, a classifier `fc` here and
# `head.fc` there. **Predict**: do any numbers change on the way? (In a terminal: `workspace convert IN OUT --to mmcls`.)

# %%
torch.manual_seed(0)
network = torchvision.models.resnet18(num_classes=10).eval()
torch.save(network.state_dict(), 'torchvision.pth')
lines = convert_file('torchvision.pth', 'mmcls.pth', to='mmcls', force=True)
print(*lines[:2], sep='\n')

# %%
resnet = {'model.backbone.depth': 18, 'model.head.num_classes': 10, 'model.head.in_channels': 512}
with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # the file names no classes
    same = apis.init_model('resnet/resnet50_8xb32_in1k.py', 'mmcls.pth', device='cpu', options=resnet)
images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
scores = same(img=images, return_loss=False)

# %%
with torch.no_grad():
    expected = network(images).softmax(1)
boundary('of torchvision', expected)
assert torch.allclose(torch.as_tensor(scores[0]), expected[0], atol=1e-6)

# %%
_ = convert_file('mmcls.pth', 'back.pth', to='torchvision', force=True)
back = torch.load('back.pth', weights_only=True)
assert list(back) == list(network.state_dict())
assert all(torch.equal(back[name], value) for name, value in network.state_dict().items())

# %% [markdown]
# And into another network? A ResNet-18 and a ResNet-50 share many names. From four layers of another shape on, loading refuses: that is
# another network:

# %%
fifty = apis.init_model('resnet/resnet50_8xb32_in1k.py', device='cpu', options={'model.head.num_classes': 10})
try:
    load_checkpoint(fifty, 'torchvision.pth')
except RuntimeError as error:
    print('\n'.join(str(error).splitlines()[:3]), '...')

# %% [markdown]
# Between mmcv and this library nothing has to be converted. Each reads the other's file, and mmcls's own ResNet takes what was
# converted:

# %%
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    logging.disable()
    from mmcls.models import build_backbone
    from mmcv import runner as mmcv_runner

    logging.disable(logging.NOTSET)

# %%
model = apis.init_model(recipe, 'run/epoch_3.pth', device='cpu')
mmcv_runner.save_checkpoint(model, 'mmcv.pth', torch.optim.SGD(model.parameters(), lr=0.1), meta=dict(epoch=3))
print('written by mmcv:', *read_checkpoint('mmcv.pth'), '| meta:', *sorted(read_checkpoint('mmcv.pth')['meta']))

# %%
backbone = {name.removeprefix('backbone.'): value for name, value in read_checkpoint('mmcls.pth')['state_dict'].items()}
theirs = build_backbone(dict(type='ResNet', depth=18))
_ = theirs.eval(), theirs.load_state_dict({name: value for name, value in backbone.items() if not name.startswith('head.')})
with torch.no_grad():
    assert torch.equal(theirs(images)[-1], same.extract_feat(images, 'backbone')[-1])

# %%
to_mmcv, from_mmcv = (apis.init_model(recipe, device='cpu') for _ in range(2))
_ = mmcv_runner.load_checkpoint(to_mmcv, 'run/epoch_3.pth', strict=True, logger=speaker)
_ = load_checkpoint(from_mmcv, 'mmcv.pth', strict=True)
for loaded in (to_mmcv, from_mmcv):
    assert all(torch.equal(loaded.state_dict()[name], weights[name]) for name in weights)

# %% [markdown]
# ## 7. A file that runs a program
#
# > save → load → resume → average → convert → **trust**
#
# A pickle may name any function to be called while it is read. This one only leaves a mark. **Predict** which of the two readers below
# leaves it.

# %%
class Surprise:
    def __reduce__(self):
        return exec, ("open('it_was_run', 'w').close()",)


torch.save(dict(state_dict=weights, meta=Surprise()), 'gift.pth')

# %%
Path('it_was_run').unlink(missing_ok=True)
try:
    read_checkpoint('gift.pth')
except UnsafeCheckpointError as error:
    print(error)
assert not Path('it_was_run').exists()

# %%
_ = torch.load('gift.pth', weights_only=False)
print('and with weights_only=False it was run:', Path('it_was_run').exists())
assert Path('it_was_run').exists()
Path('it_was_run').unlink()

# %% [markdown]
# `read_checkpoint` admits tensors, numbers, text, lists and dictionaries, and stand-ins for what old files of mmcv hold. mmcv calls
# `torch.load` and leaves the choice to it: since torch 2.6 that refuses too, before it ran the program.

# %%
try:
    mmcv_runner.load_checkpoint(to_mmcv, 'gift.pth')
except pickle.UnpicklingError as error:
    print(type(error).__name__, '|', 'exec' in str(error))
assert not Path('it_was_run').exists()

# %% [markdown]
# What could not be read back is not written either:

# %%
try:
    save_checkpoint(model, 'mine.pth', meta=dict(started=Path('run')))
except TypeError as error:
    print(error)
assert not Path('mine.pth').exists()

# %% [markdown]
# ## Exercises
#
# **1. Modify.** Save the weights in half precision, without the optimizer. How large is the file, and what does it cost in accuracy?

# %% jupyter={"source_hidden": true} tags=["solution"]
halved = {name: value.half() for name, value in weights.items()}
torch.save(dict(state_dict=halved, meta=dict(CLASSES=checkpoint['meta']['CLASSES'])), 'half.pth')
print(f'{Path("half.pth").stat().st_size / Path("run/epoch_3.pth").stat().st_size:.0%} of the bytes')
accuracy = commands.test(recipe, 'half.pth', ['accuracy'], dict(topk=1), device='cpu')['accuracy']
assert abs(accuracy - found['run/epoch_3.pth']) <= 0.2

# %% [markdown]
# **2. Break.** Resume from `flipped.pth`. What is said, and before or after the first step?

# %% jupyter={"source_hidden": true} tags=["solution"]
try:
    commands.train(recipe, 'broken', resume_from='flipped.pth', device='cpu', options=brief)
except ValueError as error:
    print(str(error).splitlines()[0])
assert not Path('broken').exists()  # before anything was written

# %% [markdown]
# **3. Extend.** Write `moved(a, b)`: for each tensor of two checkpoints, by how much its weights moved, relative to their size. Which
# layer moved most between epochs 1 and 3?

# %% jupyter={"source_hidden": true} tags=["solution"]
def moved(a, b):
    return {name: float((b[name] - a[name]).norm() / a[name].norm()) for name in a}


first = read_checkpoint('run/epoch_1.pth')['state_dict']
print(max(moved(first, weights), key=moved(first, weights).get))
assert moved(first, first)['backbone.features.0.weight'] == 0 and min(moved(first, weights).values()) > 0

# %% [markdown]
# ## The same way with a debugger
#
# In VS Code choose the launch entry **train** (*Run and Debug*), with `lenet/lenet5_mnist5k.py`. Three breakpoints:
#
# 1. `EpochBasedRunner._write` in `workspace_lib/runner.py`: look at `done`, `extra`, and `self.meta`; the stack shows the hook that asked.
# 2. `write_atomically` in `workspace_lib/checkpoint.py`: stop at `os.replace`, and look into the folder: both files are there.
# 3. `_copy_in` in the same file, with the launch entry **test**: look at `result.missing_keys` and `result.unexpected_keys`.
#
# In mmclassification the same way is `mmcv/runner/hooks/checkpoint.py` → `mmcv/runner/checkpoint.py`: `save_checkpoint`, `load_checkpoint`,
# `load_state_dict`; and `EpochBasedRunner.resume` in `mmcv/runner/base_runner.py`.
#
# Next: [10_batches_and_processes](10_batches_and_processes.ipynb), where several processes make one batch.

# %%
os.chdir(here)
runs.cleanup()
