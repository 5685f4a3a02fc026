# %% [markdown]
# # Speed: what is a step waiting for?
#
# **What limits a training, and how do you know that a change has made it faster?** You will work out from FLOPs and bytes how fast
# ResNet-50 can be on a card that you may not have, profile a real training and read its page, send batches as uint8 and as float32,
# look at what `channels_last` and `compile` change, and measure two variants against each other without being fooled.
#
# **Time**: twenty minutes to read; the cells take about half a minute. **Needs**: notebooks 06 and 07; no GPU, no network, no C++
# compiler.
#
# > config → registry → inference → test loop → train loop → data loader → loss, optimizer, schedule → checkpoint
# > → many processes → **speed**
# >
# > *You are here*: everything is right. Now it shall not take a week.

# %%
# %load_ext autoreload
# %autoreload 2

# %%
import copy
import gc
import gzip
import json
import logging
import math
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from IPython.display import display
from torch import nn

from workspace_lib.apis import load_config
from workspace_lib.datasets import Pipeline
from workspace_lib.datasets.loader import collate
from workspace_lib.models import build_classifier
from workspace_lib.registry import PIPELINES
from workspace_lib.tools.get_flops import config_cost
from workspace_lib.tools.photos import photograph
from workspace_lib.tools.profile import TRACED, counted_bytes, profile
from workspace_lib.tools.profile_cards import known_card
from workspace_lib.tools.profile_limit import PARTS, Profile
from workspace_lib.tools.profile_page import parts_plot, roofline_plot, roofs_plot, text, write_page
from workspace_lib.tools.surroundings import CHECKOUT
from workspace_lib.tools.table import Table

torch.set_num_threads(1)
folder = tempfile.TemporaryDirectory()


# %%
def boundary(name, x):
    """What crosses from one part to the next: its shape, dtype and device."""
    print(f'{name:<30}{str(tuple(x.shape)):<20}{str(x.dtype):<16}{x.device}')


# %% [markdown]
# ```mermaid
# flowchart LR
#   accTitle: The parts of a step and what may limit each
#   accDescr {
#     A step loads a batch, copies it to the device, runs forward, backward and the optimizer, and waits for hooks. Each part has
#     a limit of its own: the loader the first, the bus the second, arithmetic or memory the next three, the host's Python the last.
#   }
#   load["load"] --> copy["copy"] --> forward["forward, loss"] --> backward["backward"] --> optimizer["optimizer"] --> wait["wait: hooks"]
#   load -.- loader(["files, decoding, workers"])
#   copy -.- bus(["bytes over the bus"])
#   forward -.- roof(["arithmetic or memory: the roofline"])
#   backward -.- roof
#   optimizer -.- roof
#   wait -.- host(["Python, waiting for the device"])
# ```
#
# ## 1. How much work is a step?
#
# > **work → roofline** → profile → batches → memory format → compile → A/B
#
# Two numbers say how fast a network can be: the arithmetic that it does and the bytes that it moves. **Predict**: how many
# multiplications and additions does ResNet-50 need to *train* on one image, if one forward pass is 4.1 G multiply-adds?

# %%
recipe = 'resnet/resnet50_8xb32_in1k.py'
cost = config_cost(recipe)
flops_per_image = 3 * 2 * cost.macs
print(cost)
print(f'{flops_per_image / 1e9:.1f} GFLOP an image')

# %% [markdown]
# Twice, for a multiply-add is two operations; and three times, for the backward pass makes two products of the same size: the gradient of
# each layer's input and that of its weights. Only the first layer's input needs none: three passes are 1 % too many here. Counted on the
# *meta* device, where tensors have shapes but no content, and nothing is computed:

# %%
from torch.utils.flop_counter import FlopCounterMode

cfg = load_config(recipe)


def meta_step(batch_size, dtype):
    """One training step of the recipe's model, without any numbers in it."""
    model = build_classifier(cfg.model).to('meta', dtype=dtype).train()
    images = torch.zeros(batch_size, 3, 224, 224, device='meta', dtype=dtype)
    labels = torch.zeros(batch_size, dtype=torch.long, device='meta')
    return lambda: model(img=images, gt_label=labels)['loss'].backward()


# %%
with FlopCounterMode(display=False) as counter:
    meta_step(1, torch.float32)()
stem = next(part for part in cost.parts if part.name == 'backbone.conv1')
print(f'{counter.get_total_flops() / 1e9:.1f} GFLOP counted')
assert flops_per_image - counter.get_total_flops() == 2 * stem.macs

# %% [markdown]
# The bytes: each operation reads its inputs from the device's memory and writes its output there. **Predict**: do twice as many images
# move twice as many bytes?

# %%
moved = {size: counted_bytes(meta_step(size, torch.bfloat16)) for size in (1, 8, 64)}
rows = [(size, count / 1e6, count / size / 1e6, size * flops_per_image / count) for size, count in moved.items()]
Table(('batch', 'moved (MB)', 'for each image (MB)', 'FLOP a byte'), rows)

# %%
for_each = (moved[64] - moved[8]) / 56
assert moved[8] - moved[1] == 7 * for_each  # a straight line: weights and their gradients once, feature maps for each image
assert counted_bytes(meta_step(8, torch.float32)) > 1.9 * moved[8]

# %% [markdown]
# The last column is the *arithmetic intensity*. Larger batches raise it, to an end: the feature maps.
#
# ## 2. Memory or arithmetic?
#
# A step cannot take less than `FLOP / peak`, nor less than `bytes / bandwidth`; it takes the larger of the two at least. They are equal at
# the intensity `peak / bandwidth`, the *ridge* of a device. Left of it memory sets the pace, right of it arithmetic. **Predict** on
# which side ResNet-50 is: on an H200 in bfloat16; on a T4 of 2018, in float32.

# %%
card = known_card('NVIDIA H200', half=True)
arithmetic, traffic = 64 * flops_per_image / card.flops, moved[64] / card.bandwidth
print(f'H200, 64 images: arithmetic {1e3 * arithmetic:.2f} ms, memory {1e3 * traffic:.2f} ms, '
      f'so at most {64 / max(arithmetic, traffic):,.0f} images/s')

# %%
intensity = {'16 bits': 64 * flops_per_image / moved[64],
             '32 bits': 64 * flops_per_image / counted_bytes(meta_step(64, torch.float32))}
cards = [known_card(name, half=True) for name in ('NVIDIA H200', 'NVIDIA A100', 'T4')]
half = roofs_plot(cards, {'ResNet-50, 16 bits': intensity['16 bits']})
display(half, half.table)

# %%
single = roofs_plot([known_card(name, half=False) for name in ('NVIDIA H200', 'T4')], {'ResNet-50, 32 bits': intensity['32 bits']})
single.table

# %%
assert intensity['16 bits'] < card.ridge and traffic > arithmetic  # the same sentence twice
assert [row[-1] for row in single.table.rows] == ['memory', 'compute']

# %% [markdown]
# A faster tensor core would bring ResNet-50 nothing on an H200: it uses less than a third of those that are there. To move less is what
# helps: bf16 halves every byte, fusing skips some. On the old T4, which has no TF32 for its float32 convolutions, the same network is
# short of arithmetic.
#
# ## 3. Where does a step's time go?
#
# > work → roofline → **profile** → batches → memory format → compile → A/B
#
# The roofline is a bound; the profile is what happens. `profile` trains as `workspace train` does, hooks included, and puts marks between
# the parts. **Predict** the largest part of LeNet's step on this CPU.

# %%
alone = {'data.workers_per_gpu': 0}
lenet = 'lenet/lenet5_mnist5k.py'
trace = Path(folder.name) / 'trace.json.gz'
found = profile(lenet, steps=20, warm_up=5, device='cpu', options=alone, trace=trace)

# %% tags=["varies"]
print(text(found))
display(parts_plot(found), roofline_plot(found))

# %%
assert tuple(found.parts) == PARTS and found.parts['copy'] == 0  # on a CPU the batch is where it is made
assert abs(sum(found.parts.values()) - found.step) < 0.1 * found.step
assert found.flops == 3 * 2 * config_cost(lenet, (1, 32, 32)).macs * found.batch_size

# %% [markdown]
# `workspace profile CONFIG` makes a page of it. How to read one, from top to bottom:

# %%
page = write_page(Path(folder.name), lenet, found, 0.).read_text()
print(re.findall(r'<h2>(.*?)<small', page))
with gzip.open(trace, 'rt') as file:
    ranges = Counter(event['name'] for event in json.load(file)['traceEvents'] if event.get('cat') == 'user_annotation')
print({name: ranges[name] for name in ('forward', 'backward', 'optimizer')}, 'in the trace')

# %%
assert found.limit.name in page and min(ranges[name] for name in ('forward', 'backward', 'optimizer')) >= TRACED - 1

# %% [markdown]
# 1. *Parts of a step*: is it `load`, `copy` or `wait`? Then the network is not to blame, and nothing below matters yet.
# 2. *What limits it*: one sentence with its evidence, and keys to change, one at a time.
# 3. *Roofline*: the distance from the dot up to the roof is what better software could gain, the roof what only less work or another
#    device can. LeNet's dot lies far below (ten times, where this page was made): whichever part of the roof is above it, what holds it up
#    is neither memory nor arithmetic, but many small operations.
# 4. The trace, at [ui.perfetto.dev](https://ui.perfetto.dev), when the sentence is not enough: it shows every operation of five steps.
#
# The parts are the truth about a bottleneck only because they follow one another. On a GPU Python runs ahead, so a clock in Python times
# the *asking*, not the doing; the marks there are events on the device's own clock.
#
# **Predict** what the profile says if each image takes 20 ms to read:

# %%
@PIPELINES.register_module(force=True)
class SlowDisk:
    def __call__(self, results):
        time.sleep(0.02)
        return results


# %%
slow = load_config(lenet, {**alone, 'data.samples_per_gpu': 4})
slow.data.train.pipeline = [dict(type='SlowDisk'), *slow.data.train.pipeline]
limit = profile(slow, steps=4, warm_up=1, device='cpu').limit
print(limit.name, '|', limit.advice)
assert (limit.name, limit.part) == ('loader', 'load')


# %% [markdown]
# Each limit has its signature. Played, for ResNet-50 on an H200, in seconds of a step:


# %%
def played(busy=0.95, **parts):
    parts = {**dict.fromkeys(PARTS, 0.), **parts}
    return Profile(parts, sum(parts.values()), 64, 'cuda:0', 'bfloat16', busy, 64 * flops_per_image, moved[64], card)


cases = [played(load=.02, forward=.004, backward=.008), played(copy=.01, forward=.01, backward=.01),
         played(wait=.02, forward=.004, backward=.008), played(busy=.3, forward=.004, backward=.008),
         played(forward=.003, backward=.006)]
for case in cases:
    print(f'{case.limit.name:<16}{case.limit.advice}')

# %%
assert [case.limit.name for case in cases] == ['loader', 'copy', 'hooks', 'launch overhead', 'memory']

# %% [markdown]
# ## 4. Bytes or floats?
#
# > work → roofline → profile → **batches** → memory format → compile → A/B
#
# `Normalize` turns bytes into floats. mmclassification does it image by image in the workers; the library moves it behind the batch, onto the
# device. **Predict** the size of a batch of 64 on its way, before and after, and whether the numbers that the network sees differ.

# %%
names = ('chelsea.png', 'coffee.png', 'flower.jpg', 'china.jpg')
infos = [dict(img_prefix=None, img_info=dict(filename=str(photograph(name)))) for name in names]
pipeline = Pipeline(cfg.data.test.pipeline)
sent = collate([pipeline.item(info) for info in infos])['img']
seen = pipeline.device_stage(sent)
boundary('what the workers send', sent)
boundary('what the network sees', seen)

# %%
written = torch.stack([pipeline(info)['img'] for info in infos])  # every step as the config has it
assert torch.equal(seen, written) or (seen - written).abs().max() < 1e-5
assert seen.nbytes == 4 * sent.nbytes

# %%
for kind, nbytes in (('uint8', sent.nbytes / 4), ('float32', seen.nbytes / 4)):
    print(f'{kind:<8}{64 * nbytes / 1e6:6.1f} MB a batch of 64, {6000 * nbytes / 1e9:4.1f} GB/s for 6,000 images/s')

# %% [markdown]
# Each byte counts several times: written by a worker, copied into pinned memory, sent over the bus; and it lies in `/dev/shm` meanwhile
# (notebook 01). The device then does in microseconds what costs a worker a good part of its time.
#
# ## 5. The same numbers in another order
#
# > work → roofline → profile → batches → **memory format** → compile → A/B
#
# `channels_last=True` changes no shape. **Predict** what it changes.

# %%
x = torch.arange(2 * 3 * 4 * 4.).view(2, 3, 4, 4)
last = x.contiguous(memory_format=torch.channels_last)
print(tuple(x.shape), x.stride(), '->', tuple(last.shape), last.stride())

# %%
convolution = nn.Conv2d(3, 8, 3, bias=False)
assert torch.equal(x, last) and x.nbytes == last.nbytes
assert torch.allclose(convolution(x), convolution(last), rtol=1e-4, atol=1e-4)
assert sent.is_contiguous(memory_format=torch.channels_last)  # a decoded image is (H, W, C): stacked, it is so for nothing

# %% [markdown]
# Now the three values of a pixel lie side by side. Tensor cores multiply along the channels; with the other order cuDNN transposes before
# and after a convolution, traffic that the count above does not see. No FLOP and no byte of the arithmetic changes, so only a
# measurement can tell what it brings: much on a GPU, something or nothing on a CPU.
#
# ## 6. Fewer trips: compile
#
# > work → roofline → profile → batches → memory format → **compile** → A/B
#
# `compile=True` in a config hands the model to `torch.compile`, which first records a graph and then writes kernels for it (on a CPU with a
# C++ compiler, which takes minutes; so here a backend that only shows what was recorded). **Predict** how many graphs a block with three
# layers gives.

# %%
graphs = []


def recorded(graph, inputs):
    graphs.append([node.target.__name__ for node in graph.graph.nodes if node.op == 'call_function'])
    return graph.forward


block = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()).eval()
features = torch.randn(2, 64, 14, 14)

# %%
with torch.no_grad():
    same = torch.equal(torch.compile(block, backend=recorded)(features), block(features))
print(len(graphs), 'graph:', graphs[0])
assert same and len(graphs) == 1

# %% [markdown]
# Normalisation and ReLU do a few operations a number. Eager, each is a trip to memory and back; fused, the number stays in a register
# between the two. **Predict** what share of their traffic that saves, in inference (in training `batch_norm` reads its input twice).

# %%
norm, maps = nn.BatchNorm2d(64, device='meta').eval(), torch.zeros(64, 64, 56, 56, device='meta')
eager = counted_bytes(lambda: norm(maps).relu())
fused = 2 * maps.nbytes  # read once, written once; the norm's own few numbers do not count
print(f'{eager / 1e6:.0f} MB in two trips, {fused / 1e6:.0f} MB in one')
assert 1.99 < eager / fused < 2.01

# %% [markdown]
# That is why compiling helps where memory sets the pace. It costs minutes at the start, and again for every new shape of input.
#
# ## 7. Is B faster than A?
#
# > work → roofline → profile → batches → memory format → compile → **A/B**
#
# A machine to practise on, with a simulated clock: it gets 30 % slower as it warms up, and hiccups once in ten runs. We compare a
# variant *with itself*. **Predict** what ten runs of the one and then ten of the other say.

# %%
class Machine:
    def __init__(self, seed):
        self.random, self.runs = np.random.default_rng(seed), 0

    def seconds(self, work):
        self.runs += 1
        warmth = 1 + 0.3 * (1 - math.exp(-self.runs / 10))
        hiccup = 2 if self.random.random() < 0.1 else 1
        return work * warmth * hiccup * self.random.normal(1, 0.01)


# %%
machine = Machine(seed=0)
first, second = [machine.seconds(1.) for _ in range(10)], [machine.seconds(1.) for _ in range(10)]
blocks = statistics.mean(second) / statistics.mean(first)
print(f'one after the other, means: {100 * (blocks - 1):+.0f} %')

# %% [markdown]
# Many a speed-up was found in this way. In turns (A B A B ...) the warmth hits both; a ratio within each round cancels it; the median of the
# ratios does not see the hiccups. The benchmarks of this repository measure so:

# %%
sys.path.insert(0, str(CHECKOUT / 'benchmarks'))
from side_by_side import in_turns, ratio

gc.freeze()  # `in_turns` collects garbage before each run; what is here by now need not be looked through
machine = Machine(seed=0)
figures = in_turns({'A': lambda: machine.seconds(1.), 'A again': lambda: machine.seconds(1.),
                    'B': lambda: machine.seconds(0.95)}, rounds=20)
print({name: f'{100 * (ratio(figures, name, "A") - 1):+.1f} %' for name in ('A again', 'B')})

# %%
assert blocks > 1.05  # the same work, "slower"
assert abs(ratio(figures, 'A again', 'A') - 1) < 0.03 and 0.92 < ratio(figures, 'B', 'A') < 0.98

# %% [markdown]
# "A again" is the *A/A noise*: what two equal things differ by here. A difference that is not clearly larger is none. Now with a real clock:
# the block above, in both memory formats.

# %% tags=["varies"]
wide = torch.randn(8, 64, 56, 56)
block_last = copy.deepcopy(block).to(memory_format=torch.channels_last)  # `to` changes a module itself
wide_last = wide.contiguous(memory_format=torch.channels_last)


def timed(work, x):
    start = time.perf_counter()
    with torch.no_grad():
        work(x)
    return time.perf_counter() - start


figures = in_turns({'contiguous': lambda: timed(block, wide), 'contiguous again': lambda: timed(block, wide),
                    'channels_last': lambda: timed(block_last, wide_last)}, rounds=9)
Table(('variant', 'median (ms)', 'to the first'), [
    (name, 1e3 * statistics.median(runs), ratio(figures, name, 'contiguous')) for name, runs in figures.items()])

# %%
assert all(len(runs) == 9 for runs in figures.values())  # of ten: the first round, the warm-up, does not count
with torch.no_grad():
    assert torch.allclose(block(wide), block_last(wide_last), rtol=1e-3, atol=1e-4)

# %% [markdown]
# Trust the last column: it is the median of the ratios within each round, and may differ from the ratio of the medians where the machine is
# busy with other things. The last assertion belongs to the measurement as well: the fastest training is one that skips its work. And
# change one thing at a time.
#
# ## Exercises
#
# **1. Modify.** What limits ResNet-50 on a V100, in float32 and in half precision?

# %% jupyter={"source_hidden": true} tags=["solution"]
answers = {half: known_card('Tesla V100', half) for half in (False, True)}
for half, roof in answers.items():
    value = intensity['16 bits' if half else '32 bits']
    print(f'{"16 bits" if half else "32 bits":<9}ridge {roof.ridge:5.1f}, ResNet-50 {value:5.1f}: '
          f'{"memory" if value < roof.ridge else "compute"}')
assert answers[False].ridge < intensity['32 bits'] and intensity['16 bits'] < answers[True].ridge

# %% [markdown]
# **2. Break.** Put a `.item()` between two layers. How many graphs are recorded now, and what can no longer be fused?

# %% jupyter={"source_hidden": true} tags=["solution"]
class Peeking(nn.Module):
    def forward(self, x):
        x = x.relu()
        return x * 2 if x.sum().item() > 0 else x


graphs.clear()
logging.getLogger('torch._dynamo').setLevel(logging.ERROR)  # it would warn of just this
torch.compile(Peeking(), backend=recorded)(torch.ones(4))
print(len(graphs), 'graphs: Python has to know the number before it goes on')
assert len(graphs) == 2  # on a GPU the device is waited for as well

# %% [markdown]
# **3. Extend.** How large is the A/A noise for 5, 20 and 80 rounds? Repeat each fifty times on the simulated machine, and say how many rounds
# are needed to see a difference of 1 %.

# %% jupyter={"source_hidden": true} tags=["solution"]
def noise(rounds, repeats=50):
    """The largest of nine in ten differences between two equal things."""
    found = []
    for seed in range(repeats):
        machine = Machine(seed)
        pairs = [(machine.seconds(1.), machine.seconds(1.)) for _ in range(rounds + 10)][10:]
        found.append(abs(statistics.median(b / a for a, b in pairs) - 1))
    return sorted(found)[int(0.9 * repeats)]


spread = {rounds: noise(rounds) for rounds in (5, 20, 80)}
print({rounds: f'{100 * value:.2f} %' for rounds, value in spread.items()})
assert spread[5] > spread[20] > spread[80] and spread[80] < 0.01

# %% [markdown]
# ## The same way with a debugger
#
# In VS Code open `notebooks/11_speed.py` and choose the launch entry **the file open in the editor** (*Run and Debug*): the script is this
# notebook. Three breakpoints:
#
# 1. `DeviceStage.__call__` in `workspace_lib/datasets/pipeline.py`: look at `img.dtype`, and at the call stack: worker or main process?
# 2. `EpochBasedRunner.train` in `workspace_lib/runner.py`: step over it; what stands between two calls of hooks is what the parts measure.
# 3. `find_limit` in `workspace_lib/tools/profile_limit.py`: look at `share`, `found.intensity`, `found.roof.ridge`.
#
# In mmclassification: `mmcv/runner/hooks/iter_timer.py` measures `data_time` and `time`, by Python's clock; and
# `tools/analysis_tools/get_flops.py` counts.
# This was the last one. Back to the [tour](00_tour.ipynb): each of its lines is one of these notebooks.

# %%
folder.cleanup()
