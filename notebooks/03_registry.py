# %% [markdown]
# # Registry: from a string to an object
#
# **How does `type='ResNet'` become a network?** "The registry knows everything; I only choose", people note when they first
# read an OpenMMLab code base, and then ask: how does it know? You will write a registry in fifteen lines, see at which
# moment each name gets into the real one, watch a whole classifier being built, add a backbone of your own from a notebook
# and from a file, and borrow one from mmclassification.
#
# **Time**: fifteen minutes to read; the cells take about fifteen seconds. **Needs**: notebook 02; no GPU, no network.
#
# > config → **registry** → inference → test loop → train loop → data loader → loss, optimizer, schedule → checkpoint
# >
# > *You are here*: you hold `cfg`, a nested dictionary, and want objects.

# %%
# %load_ext autoreload
# %autoreload 2

# %%
import inspect
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from IPython.display import display

from workspace_lib.apis import load_config
from workspace_lib.models import build_classifier
from workspace_lib.registry import BACKBONES, HEADS, MODELS, Registry, build_from_cfg
from workspace_lib.tools import registry_view
from workspace_lib.tools.build_tree import BuildTree, trace_builds
from workspace_lib.trace import shown

torch.set_num_threads(1)

# %%
def boundary(name, x):
    """What crosses from one part to the next: its shape, dtype and device."""
    print(f'{name:<30}{str(tuple(x.shape)):<20}{str(x.dtype):<16}{x.device}')


# %% [markdown]
# ```mermaid
# flowchart LR
#   accTitle: Two moments, import and build
#   accDescr {
#     At import a decorator puts each class into the dictionary of a registry. At build the type of a config is looked up
#     in it, and the class is called with the other keys; inside its constructor the same happens for its parts.
#   }
#   import["import of backbones/resnet.py"] -- "@register_module()" --> table["module_dict: name → class"]
#   cfg["dict(type='ResNet', depth=50)"] -- "registry.build" --> lookup["module_dict['ResNet']"]
#   table --> lookup
#   lookup -- "ResNet(depth=50)" --> object
#   object -- "its parts: build again" --> cfg
# ```
#
# ## 1. Fifteen lines
#
# A registry is a dictionary with a decorator that fills it and a function that calls what is found in it. **Predict**:
# what does the decorator have to return, so that the class can still be used under its own name?

# %%
class MiniRegistry:
    def __init__(self):
        self.module_dict = {}

    def register_module(self, cls):
        self.module_dict[cls.__name__] = cls
        return cls

    def build(self, cfg):
        args = dict(cfg)
        return self.module_dict[args.pop('type')](**args)


# %%
mini = MiniRegistry()


@mini.register_module
class Scale(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


scale = mini.build(dict(type='Scale', factor=3))
print(type(scale).__name__, scale.factor, scale(torch.ones(2)))

# %% [markdown]
# With the real table's classes in it, the fifteen lines build a real backbone, weight for weight the library's:

# %%
mini.module_dict.update(MODELS.module_dict)
section = dict(type='ResNet', depth=18)
torch.manual_seed(0)
first = mini.build(section)
torch.manual_seed(0)
second = BACKBONES.build(section)

# %%
assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
assert section == dict(type='ResNet', depth=18)  # `dict(cfg)`, so that the config stays as it was

# %% [markdown]
# What the library's `build_from_cfg` adds is what you miss the first time something is misspelt:

# %%
for wrong in (dict(type='ResNet50'), dict(type='ResNet', dept=18), dict(depth=18)):
    try:
        build_from_cfg(wrong, MODELS)
    except (KeyError, TypeError) as error:
        message = error.args[0].removesuffix('\nNone')  # the default arguments, of which there are none
        print(f'{type(error).__name__}: {message}\n')

# %% [markdown]
# ## 2. When does the table learn a name?
#
# > **import** → `module_dict` → build
#
# **Predict**: how many names does the table of a fresh process hold after `from workspace_lib.registry import MODELS`, and
# why does `build` find `ResNet` all the same?

# %%
import subprocess

script = '''
from workspace_lib.registry import MODELS
print(len(MODELS.module_dict), 'names after the import of the registry')
MODELS.get('ResNet')
print(len(MODELS.module_dict), 'names after the first question')
'''
print(subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True).stdout)

# %% [markdown]
# A decorator runs when the line that it stands on runs: at the import of its file. In mmclassification `tools/train.py`
# imports `mmcls.models`, whose `__init__` imports `backbones`, whose `__init__` imports every file; and if you forget that
# import, the table is empty. Here a registry knows its *home*, the module whose import fills it, and imports that before a
# name counts as missing. The registry also remembers the chain of imports, down to the class itself:

# %% tags=["varies"]
for line in MODELS.registered_by('VGG'):
    print(shown(line))

# %%
chain = MODELS.registered_by('VGG')
assert chain[-1][0].endswith('models/backbones/vgg.py') and chain[-2][0].endswith('models/__init__.py')
print('\n'.join(inspect.getsource(MODELS.get('VGG')).splitlines()[:2]))

# %% [markdown]
# `BACKBONES`, `NECKS`, `HEADS`, `LOSSES` and `CLASSIFIERS` are one table under several names, as in mmclassification:
# whoever asks for a head may be given a backbone. Data sets, pipeline steps, samplers, hooks, runners and optimizers
# have tables of their own.

# %%
assert BACKBONES is HEADS is MODELS
for name in registry_view.REGISTRIES:
    print(f'{name:<12}{len(registry_view.named(name)):>4} names')

# %% [markdown]
# The whole of it, to search in: `workspace registry models --search vgg` in a terminal; or here, with the source of each.
# (A page without a kernel shows no controls; the table below is one setting.)

# %%
for row in registry_view.registry_table(registry_view.named('pipelines'), 'flip').rows:
    print(row[0], row[1], row[2], sep=' | ')

# %% tags=["varies"]
display(registry_view.registry_browser())

# %%
page = registry_view.browsed('models', 'vgg', 'VGG')
assert 'models/backbones/vgg.py' in page and 'class VGG(' in page

# %% [markdown]
# ## 3. Who calls whom: the trace of a build
#
# > import → `module_dict` → **build**
#
# One call builds the whole classifier. **Predict** the order in which backbone, neck, head and loss come into being, and
# which of them has the most parameters.

# %%
cfg = load_config('resnet/resnet50_8xb32_in1k.py')
torch.manual_seed(0)
with trace_builds() as trace:
    model = build_classifier(cfg.model)

# %%
for record in trace.records:
    count = '-' if record.parameters is None else f'{record.parameters:,}'
    print(f'{"   " * record.depth + record.type:<28}{record.registry:<10}{count:>12}  {shown((record.file, record.line))}')

# %% tags=["varies"]
display(BuildTree(trace))

# %% [markdown]
# Nobody passes objects around: `ImageClassifier.__init__` gets three dictionaries and builds them itself, and the head does
# the same with its loss. That is why a config can replace any part at any depth. These are the lines:

# %%
source = inspect.getsource(type(model).__init__)
print('\n'.join(line for line in source.splitlines() if 'build' in line))

# %%
assert [record.type for record in trace.records] == [
    'ImageClassifier', 'ResNet', 'GlobalAveragePooling', 'LinearClsHead', 'CrossEntropyLoss']
assert [record.depth for record in trace.records] == [0, 1, 1, 1, 2]
assert trace.records[0].parameters == 25_557_032  # the number that every ResNet-50 has

# %% [markdown]
# The rest of a training is built in the same way, from the same dictionary: the data set (whose constructor builds its
# pipeline, step by step), the optimizer, the runner, each hook.

# %%
from workspace_lib.datasets import build_dataset

lenet = load_config('lenet/lenet5_mnist5k.py')
with trace_builds() as trace:
    dataset = build_dataset(lenet.data.train)
print('\n'.join('   ' * record.depth + record.type + f' ({record.registry})' for record in trace.records))

# %%
assert trace.records[0].registry == 'dataset' and {record.registry for record in trace.records[1:]} == {'pipeline'}

# %% [markdown]
# ## 4. A backbone of your own
#
# A backbone takes images (N, 3, H, W) and returns a tuple of feature maps, one for each of its outputs. `in_channels` of
# the head has to fit the last one. **Predict**: what is left to do once the class below has been run?

# %%
@BACKBONES.register_module(force=True)
class Patchify(torch.nn.Module):
    """Cuts the image into squares and maps each to a vector."""

    def __init__(self, channels, patch=16):
        super().__init__()
        self.project = torch.nn.Conv2d(3, channels, patch, stride=patch)

    def forward(self, x):
        return (self.project(x).relu(),)


# %%
cfg.merge_from_dict({'model.backbone': dict(_delete_=True, type='Patchify', channels=64), 'model.head.in_channels': 64})
mine = build_classifier(cfg.model).eval()
images = torch.rand(2, 3, 224, 224)
boundary('backbone', mine.extract_feat(images, 'backbone')[-1])
boundary('neck', mine.extract_feat(images, 'neck')[-1])

# %%
scores = mine(img=images, return_loss=False)
boundary('scores of one image', scores[0])
assert scores[0].shape == (1000,) and abs(float(scores[0].sum()) - 1) < 1e-5

# %% [markdown]
# Nothing was left to do: no list to extend, no `if` in a factory. In a project the class lies in a file, and the config
# says which module to import, so that its decorator runs: `custom_imports`.

# %%
folder = tempfile.TemporaryDirectory()
Path(folder.name, 'my_backbones.py').write_text('''
import torch
from workspace_lib.registry import BACKBONES

@BACKBONES.register_module()
class Grey(torch.nn.Module):
    def forward(self, x):
        return (x.mean(dim=1, keepdim=True),)
''')
Path(folder.name, 'config.py').write_text('''
custom_imports = dict(imports=['my_backbones'])
model = dict(type='ImageClassifier', backbone=dict(type='Grey'), neck=dict(type='GlobalAveragePooling'),
             head=dict(type='LinearClsHead', num_classes=10, in_channels=1, loss=dict(type='CrossEntropyLoss')))
''')
sys.path.insert(0, folder.name)

# %%
known_before = 'Grey' in MODELS
custom = load_config(Path(folder.name, 'config.py'))  # here the module is imported
print(known_before, 'Grey' in MODELS, [Path(file).name for file, _ in MODELS.registered_by('Grey')][-1])

# %%
build_classifier(custom.model)
assert not known_before and 'Grey' in MODELS

# %% [markdown]
# ## 5. One that is not here: borrowing
#
# This library has the parts that the walkthrough and most recipes need. For any other name the table asks that of
# mmclassification 0.25, where it is installed, and says so. **Predict**: whose code is it that you step into then?

# %%
logging.getLogger('workspace_lib').addHandler(logging.StreamHandler(sys.stdout))
with warnings.catch_warnings(), trace_builds() as trace:
    warnings.simplefilter('ignore')
    shuffle = BACKBONES.build(dict(type='ShuffleNetV2', widen_factor=1.0))
print(trace.records[0].lender, '|', type(shuffle).__module__)

# %%
from mmcls.models import BACKBONES as THEIRS

assert type(shuffle) is THEIRS.get('ShuffleNetV2')
assert 'ShuffleNetV2' not in MODELS and 'ShuffleNetV2' in THEIRS
shuffle.eval()
boundary('its last feature map', shuffle(images)[-1])

# %% [markdown]
# And is ours theirs? The same section, built by both registries; the names of the weights are the same, so the weights
# can move, and then the features agree.

# %%
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    ours, theirs = (table.build(dict(type='ResNet', depth=18)) for table in (BACKBONES, THEIRS))
theirs.load_state_dict(ours.state_dict())
_ = ours.eval(), theirs.eval()
with torch.no_grad():
    difference = (ours(images)[-1] - theirs(images)[-1]).abs().max()
print(type(ours).__module__, 'and', type(theirs).__module__, 'differ by', float(difference))

# %%
assert type(ours) is not type(theirs) and difference == 0

# %% [markdown]
# Two tables with one name in each would clash in a program that uses several OpenMMLab packages. Therefore a table has a
# *scope*, and a type can be written with it; `mmcls` is the scope of ours as well, so that published configs mean us.

# %%
assert MODELS.scope == 'mmcls' and MODELS.get('mmcls.ResNet') is MODELS.get('ResNet')

# %% [markdown]
# ## Exercises
#
# **1. Modify.** Register `Patchify` under a second name, `Squares`, and build it by that name. What does the trace call it?

# %% jupyter={"source_hidden": true} tags=["solution"]
BACKBONES.register_module(name='Squares', module=Patchify, force=True)
with trace_builds() as trace:
    BACKBONES.build(dict(type='Squares', channels=8))
print(trace.records[0].type, '->', trace.records[0].cls)  # the name as it was asked for, and the class that answered
assert trace.records[0].type == 'Squares' and trace.records[0].cls.endswith('Patchify')

# %% [markdown]
# **2. Break.** Register another class under the name `ResNet`, without `force`. What does the error tell you, and why may a
# cell that defines a class be run twice all the same?

# %% jupyter={"source_hidden": true} tags=["solution"]
message = ''
try:
    BACKBONES.register_module(name='ResNet', module=Patchify)
except KeyError as error:
    message = error.args[0]
print(message)
assert 'backbones/resnet.py' in message and BACKBONES.get('ResNet') is not Patchify
for _ in range(2):  # the same module and name, defined again: a reload, which replaces itself
    exec("@BACKBONES.register_module()\nclass Twice(torch.nn.Module): ...", globals())
assert BACKBONES.get('Twice') is globals()['Twice']

# %% [markdown]
# **3. Extend.** A registry whose `build` answers a list as well: it gives a `torch.nn.Sequential` of all that is in it. (A
# registry takes a `build_func(cfg, registry)`.)

# %% jupyter={"source_hidden": true} tags=["solution"]
def build_chain(cfg, registry):
    if isinstance(cfg, list):
        return torch.nn.Sequential(*(build_from_cfg(one, registry) for one in cfg))
    return build_from_cfg(cfg, registry)


STEPS = Registry('steps', build_func=build_chain)
STEPS.register_module(module=Scale)
chain = STEPS.build([dict(type='Scale', factor=2), dict(type='Scale', factor=5)])
assert chain(torch.ones(1)).item() == 10

# %% [markdown]
# ## The same way with a debugger
#
# In VS Code choose the launch entry **train** (*Run and Debug*) with `lenet/lenet5_mnist5k.py`. Three breakpoints:
#
# 1. `Registry._register` in `workspace_lib/registry.py`, with the condition `module.__name__ == 'LeNet5'` (without it, it
#    stops more than a hundred times); the call stack is the chain of imports, `names` what the class will be called.
# 2. `build_from_cfg` in the same file: look at `cfg`, `registry.name`, and at `target` once it is found; the stack shows in
#    whose constructor you are.
# 3. `ImageClassifier.__init__` in `workspace_lib/models/classifier.py`: step over the three lines that build its parts.
#
# In mmclassification the same way is `tools/train.py` → `mmcls/models/builder.py` → `mmcv/utils/registry.py`:
# `Registry._register_module`, `build_from_cfg`; and `mmcls/models/classifiers/image.py`.
#
# Next: [04_inference](04_inference.ipynb), what the objects do with an image.

# %%
folder.cleanup()
