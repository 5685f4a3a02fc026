# %% [markdown]
# # The whole game in five minutes
#
# [한국어](00_tour.ko.ipynb)
#
# **What happens between a config file and a tested classifier?** You will load a config and ask where its values come
# from, see a registry build a model, classify photographs with real ImageNet weights, train LeNet-5 on real digits, look
# at its worst mistakes, open the checkpoint and test again.
#
# **Time**: five minutes to read; the cells take under a minute on a CPU. **Needs**: nothing but this environment; no GPU,
# no network, no download.
#
# > config → registry → inference → test loop → train loop → checkpoint → test again
# >
# > *You are here*: at the start of the line, and at the end of it when you are done.
#
# Every section asks you to **predict** before you **run**; then it **explains**, and a cell **asserts** that the explanation
# holds. Change anything: the library is installed editable, and autoreload brings your edits of `workspace_lib/` into
# this notebook at the next cell.

# %%
# %load_ext autoreload
# %autoreload 2

# %%
import inspect
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from IPython.display import HTML, display

from workspace_lib import apis
from workspace_lib.registry import BACKBONES, MODELS
from workspace_lib.tools import commands, plots, widgets
from workspace_lib.tools.photos import photograph

torch.set_num_threads(1)  # so that a machine with more cores gets the same numbers
runs = tempfile.TemporaryDirectory()  # nothing is left in the checkout

# %%
def boundary(name, x):
    """What crosses from one part to the next: its shape, dtype and device."""
    print(f'{name:<30}{str(tuple(x.shape)):<20}{str(x.dtype):<16}{x.device}')


# %% [markdown]
# One picture of the line. On the arrows: the function that is called, or what crosses.
#
# ```mermaid
# flowchart TD
#   accTitle: From a config file to a checkpoint
#   accDescr {
#     A config file becomes a Config. From it, registries build the data set and the model. The loader sends batches of
#     floats to the model. The test loop collects scores, the train loop writes checkpoints, from which models start.
#   }
#   file["config file"] -- "Config.fromfile" --> cfg["cfg: nested dict"]
#   cfg -- "build_dataset" --> dataset["data set"]
#   dataset -- "uint8 (H, W, C)" --> loader
#   cfg -- "build_classifier" --> model["backbone → neck → head"]
#   loader -- "float32 (N, C, H, W)" --> model
#   model -- "scores (N, classes)" --> test["test loop"]
#   model -- "loss" --> train["train loop"]
#   train -- "state_dict" --> checkpoint
#   checkpoint --> model
# ```
#
# ## 1. Config: where does a value come from?
#
# > **config** → registry → inference → test loop → train loop → checkpoint → test again
#
# **Predict**: this is the whole recipe. It sets no learning rate. Where will the learning rate come from?

# %%
cfg = apis.load_config('lenet/lenet5_mnist5k.py')
print(Path(cfg.filename).read_text())

# %%
print(cfg.pretty_text)

# %% [markdown]
# The files under `_base_` are read first, and the recipe's own keys are merged over them. The result is one nested
# dictionary, whose keys can also be written as attributes. In other code bases a search through four files would now tell
# you who set `lr`. Here the config remembers.

# %%
print(cfg.optimizer.lr, 'set in', cfg.origin('optimizer.lr'))

# %%
origin = cfg.origin('checkpoint_config.interval')
print(cfg.checkpoint_config.interval, 'set in', origin, 'over', *origin.overrides)

# %%
assert cfg.optimizer.lr == cfg['optimizer']['lr']
assert origin.file.endswith('lenet5_mnist5k.py') and origin.overrides[0].file.endswith('default_runtime.py')

# %% [markdown]
# Is this how OpenMMLab's own loader reads the file? mmcv 1.7.2 is installed beside the library, for such questions only.

# %%
with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # mmcv announces its own successor ...
    logging.disable()  # ... and looks for a CUDA compiler
    from mmcv import Config as MMCVConfig

    logging.disable(logging.NOTSET)

# %%
assert MMCVConfig.fromfile(cfg.filename)._cfg_dict.to_dict() == cfg.to_dict()

# %% [markdown]
# ## 2. Registry: who builds what?
#
# > config → **registry** → inference → test loop → train loop → checkpoint → test again
#
# `cfg.model` is data: `type='LeNet5'` is a string. A registry is a dictionary from such strings to classes. **Predict**:
# how many objects does `build_classifier(cfg.model)` build, and which one first?

# %%
from workspace_lib.models import build_classifier
from workspace_lib.tools.build_tree import BuildTree, trace_builds
from workspace_lib.trace import shown

torch.manual_seed(0)
with trace_builds() as trace:
    model = build_classifier(cfg.model)

# %%
display(BuildTree(trace))
for record in trace.records:
    print('   ' * record.depth + record.type, f'{record.parameters:,} parameters')

# %% [markdown]
# The classifier comes first and builds its parts: each level of the tree is one more `build` inside a constructor. Open
# *arguments* above to see what each of them was given.
#
# But when did the dictionary learn the name `LeNet5`? At import, through this chain; the last line is the class itself.

# %%
for line in MODELS.registered_by('LeNet5'):
    print(shown(line))

# %% [markdown]
# What the backbone does with a batch of images is four lines of that file:

# %%
print(inspect.getsource(type(model.backbone).forward))

# %%
built = [record.type for record in trace.records]
assert built == ['ImageClassifier', 'LeNet5', 'ClsHead', 'CrossEntropyLoss']
assert trace.records[0].parameters == 61_706
assert type(model.backbone) is BACKBONES.get('LeNet5')

# %% [markdown]
# ## 3. Inference: a photograph becomes a name
#
# > config → registry → **inference** → test loop → train loop → checkpoint → test again
#
# EfficientNet-Lite0 with its ImageNet weights, which come with a package. First, what its test pipeline does to a file.
# **Predict**: at which step do the numbers stop being bytes?

# %%
classifier = apis.init_model(
    'efficientnet/efficientnet-lite0_in1k.py', 'packaged://efficientnet-lite0', device='cpu')
chelsea = photograph('chelsea.png')

# %%
from workspace_lib.datasets import Pipeline
from workspace_lib.datasets.decode import decode

steps = Pipeline(classifier.cfg.data.test.pipeline)
plots.pipeline_steps(steps, dict(img_prefix=None, img_info=dict(filename=str(chelsea))))

# %% [markdown]
# Up to the crop an image is uint8, a quarter of the memory of float32. On the way to a GPU, workers send these bytes,
# and `Normalize` runs on the device for a whole batch at once: the config's step is moved, not dropped. Now the same
# image through the parts of the model:

# %%
batch = apis.prepare_image(classifier, chelsea)
boundary('batch["img"]', batch['img'])

# %%
with torch.no_grad():
    for stage in ('backbone', 'neck'):
        boundary(f'after the {stage}', classifier.extract_feat(batch['img'], stage)[-1])

# %%
result = classifier(return_loss=False, **batch)
boundary('scores', result[0])
print(type(result).__name__, 'of', len(result), 'array; it sums to', round(float(result[0].sum()), 4))

# %% [markdown]
# `inference_model` is these steps in one call.

# %%
names = ['chelsea.png', 'coffee.png', 'flower.jpg']
answers = [apis.inference_model(classifier, photograph(name)) for name in names]

# %%
images = [decode(photograph(name)) for name in names]  # uint8 (H, W, 3), BGR as OpenCV has it
scores = [answer['scores'] for answer in answers]
photos = plots.predictions(images, scores, classifier.CLASSES, names)
display(photos, photos.table)

# %% [markdown]
# The flower is a dahlia. ImageNet has no such class, so the model spreads its bets over what it knows.

# %% [markdown]
# Now with your own hands: the short side is resized to `size`, then the middle 224 pixels are cut out; at 672 they are
# 7 % of the cat's picture. **Predict**: does the network grow surer or less sure as `size` grows? (A page without a
# kernel shows no controls; the pictures above are one setting.)

# %% tags=["varies"]
display(widgets.crop_explorer(classifier, names))

# %%
height, width = images[0].shape[:2]
surest = {}
for size in (224, 448, 672):
    label, surest[size] = widgets.seen_at(classifier, chelsea, size).table.rows[0][2:4]
    print(f'{size}: {224 ** 2 / (size * (width * size // height)):.0%} of the picture, {label} {surest[size]:.0f} %')
assert surest[224] < surest[448] > surest[672]  # surer down to one eye, less sure of half an eye
cats = {label for label, _ in plots.top_k(scores[0], classifier.CLASSES, 3)}
assert cats == {'tabby', 'tiger cat', 'Egyptian cat'}
assert answers[1]['pred_class'] == 'espresso'

# %% [markdown]
# ## 4. Test loop: a list of arrays
#
# > config → registry → inference → **test loop** → train loop → checkpoint → test again
#
# Back to LeNet-5, still untrained, and 1,000 real digits that training never sees. **Predict** its accuracy.

# %%
dataset = apis.build_dataset(cfg.data.test)
loader = apis.build_loader(cfg, 'test', dataset, torch.device('cpu'))
print(len(dataset), 'digits in', len(loader), 'batches')

# %%
boundary('an item of the data set', dataset[0]['img'])
boundary('a batch of the loader', next(iter(loader))['img'])

# %%
untrained = apis.single_gpu_test(model, loader)
boundary(f'each of {len(untrained)} results', untrained[0])

# %%
before = dataset.evaluate(untrained, 'accuracy', dict(topk=1))['accuracy']
labels = dataset.get_gt_labels()
boundary('labels', labels)
print(f'{before:.0f} % right')

# %% [markdown]
# Ten classes of 100 digits each: whoever guesses is right in about 100 of 1,000; random weights, by luck, in somewhat
# more or fewer. Accuracy is nothing mysterious; written by hand it is one line, and equal to the library's.

# %%
by_hand = 100 * (np.stack(untrained).argmax(axis=1) == labels).mean()
assert np.isclose(before, by_hand) and before < 30

# %% [markdown]
# ## 5. Train loop: six epochs
#
# > config → registry → inference → test loop → **train loop** → checkpoint → test again
#
# The recipe trains for 20 epochs and reaches 98 %. **Predict** how far six get. Any value of the config can be overridden
# by its path, here as on the command line (`workspace train CONFIG --cfg-options runner.max_epochs=6`).

# %%
work_dir = Path(runs.name) / 'lenet'
brief = {'runner.max_epochs': 6, 'log_level': 'ERROR'}
recipe = 'lenet/lenet5_mnist5k.py'
if not work_dir.exists():  # a folder with a run is never written over
    runner = commands.train(recipe, str(work_dir), seed=0, device='cpu', options=brief)

# %%
print(sorted(path.name.replace(runner.timestamp, 'TIME') for path in work_dir.iterdir() if path.suffix != '.patch'))

# %% [markdown]
# The folder holds all that the run was: the resolved config, versions, the log, the same as JSON lines, checkpoints.
# Below, the loss of each log entry on the left, and the held-out accuracy after each epoch on the right.

# %% tags=["varies"]
curves = plots.learning_curves(plots.read_log(work_dir))
display(curves, curves.table)

# %% [markdown]
# One step of training is four things: take a batch, call `model.train_step`, log, let the hooks act. The backward pass and
# the optimizer's step are a hook too, `OptimizerHook`. This is the loop that just ran:

# %%
print(inspect.getsource(type(runner).train), inspect.getsource(type(runner)._iterate), sep='\n')

# %%
assert runner.epoch == 6 and runner.iter == 6 * 63  # 4,000 digits are 63 batches of up to 64
assert curves.table.rows[-1][2] > 90 and curves.table.rows[-1][1] < curves.table.rows[0][1] / 5

# %% [markdown]
# ## 6. Checkpoint: what is in the file?
#
# > config → registry → inference → test loop → train loop → **checkpoint** → test again
#
# **Predict**: the file is a dictionary. Which keys are needed to classify, and which only to go on training?

# %%
from workspace_lib.checkpoint import read_checkpoint

saved = read_checkpoint(work_dir / 'latest.pth')
print({key: len(value) for key, value in saved.items()})
print(sorted(saved['meta']))

# %%
for name, tensor in saved['state_dict'].items():
    boundary(name, tensor)

# %% [markdown]
# `state_dict` alone classifies; `optimizer` (momentum, here), `random` (where the generators stand) and the counters in
# `meta` are for `--resume-from`. The names of the tensors are paths through the model, and the same as in mmclassification,
# so that its checkpoints load here. Files are read without running code that may be in them.

# %%
assert set(saved) == {'meta', 'state_dict', 'optimizer', 'random'} and saved['meta']['epoch'] == 6
assert sum(tensor.numel() for tensor in saved['state_dict'].values()) == 61_706

# %% [markdown]
# ## 7. Test again: which mistakes remain?
#
# > config → registry → inference → test loop → train loop → checkpoint → **test again**
#
# A fresh model, the weights from the file. **Predict**: which two digits does it confuse most?

# %%
trained = apis.init_model(cfg, str(work_dir / 'latest.pth'), device='cpu')
results = apis.single_gpu_test(trained, loader)
after = dataset.evaluate(results, 'accuracy', dict(topk=1))['accuracy']

# %% tags=["varies"]
confusion = plots.confusion_matrix(results, labels, dataset.CLASSES)
display(confusion, confusion.table)

# %% [markdown]
# Rows are what a digit is, columns what it was taken for: blue is right, orange wrong; the darkest orange answers the
# prediction. And these are the mistakes of which
# the model was most sure. Some of them you would have made as well.

# %%
worst = plots.worst_mistakes(dataset, results)
display(worst, HTML(worst.table._repr_html_()))

# %%
latest = str(work_dir / 'latest.pth')
same = commands.test(recipe, latest, ['accuracy'], dict(topk=1), device='cpu')
assert after > 90 > before and after == same['accuracy']  # `workspace test` says the same
assert np.isclose(after, curves.table.rows[-1][2])  # and so did the evaluation while training

# %% [markdown]
# ## Exercises
#
# The solutions are below each, folded; they ran with the notebook.
#
# **1. Modify.** mmclassification's recipe for MNIST has a learning rate of 0.01. Train two epochs with it by an override,
# and two with ours. Which loss is lower, and why does that say nothing about 60,000 digits?

# %% jupyter={"source_hidden": true} tags=["solution"]
losses = {}
for lr in (0.01, 0.1):
    folder = tempfile.mkdtemp(dir=runs.name)
    options = {**brief, 'runner.max_epochs': 2, 'optimizer.lr': lr}
    commands.train(recipe, folder, seed=0, device='cpu', validate=False, options=options)
    losses[lr] = plots.read_log(folder)[-1]['loss']
print({lr: round(loss, 2) for lr, loss in losses.items()})
assert losses[0.1] < losses[0.01]  # on 60,000 digits, two epochs are fifteen times as many steps

# %% [markdown]
# **2. Break.** Misspell `type='LeNet5'` as `LeNet`, then `num_classes` as `num_clases`. What does each error name?

# %% jupyter={"source_hidden": true} tags=["solution"]
named = []
for override in ({'model.backbone.type': 'LeNet'}, {'model.backbone.num_clases': 10}):
    try:
        build_classifier(apis.load_config(recipe, override).model)
    except (KeyError, TypeError) as error:
        named.append(error.args[0])
        print(f'{type(error).__name__}: {error.args[0]}\n')
assert 'nearest: LeNet5' in named[0] and "did you mean 'num_classes'?" in named[1]

# %% [markdown]
# **3. Extend.** Write a backbone with one linear layer, register it, and train it for two epochs by naming it in the
# config. A backbone returns a tuple; without a neck, its last element is what `ClsHead` takes as logits.

# %% jupyter={"source_hidden": true} tags=["solution"]
@BACKBONES.register_module(force=True)
class OneLayer(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = torch.nn.Linear(32 * 32, num_classes)

    def forward(self, x):
        return (self.layer(x.flatten(1)),)


linear = apis.load_config(recipe, {**brief, 'runner.max_epochs': 2, 'optimizer.lr': 0.01})
linear.model.backbone = dict(type='OneLayer', num_classes=10)
folder = tempfile.mkdtemp(dir=runs.name)
commands.train(linear, folder, seed=0, device='cpu')
assert plots.read_log(folder)[-1]['accuracy_top-1'] > 75  # one layer goes a long way on digits

# %% [markdown]
# ## The same way with a debugger
#
# Every arrow above is a plain function call, so step into it. In VS Code choose the launch entry **train** (*Run and
# Debug*) with `lenet/lenet5_mnist5k.py`. Three breakpoints:
#
# 1. `build_from_cfg` in `workspace_lib/registry.py`: it stops for each part that is built; look at `cfg`, at `registry.name`,
#    and at the call stack, which shows in whose constructor you are.
# 2. `EpochBasedRunner._iterate` in `workspace_lib/runner.py`: one step of training; look at `batch['img'].shape` before it, and at
#    `self.outputs` after `forward`.
# 3. `BaseDataset.evaluate` in `workspace_lib/datasets/base.py`: look at `len(results)` and `results[0].shape`.
#
# In mmclassification the same way is `tools/train.py` → `mmcls/apis/train.py` → `mmcv/runner/epoch_based_runner.py`. Without VS Code:
# switch the debugger of JupyterLab on (the bug at the upper right), or write `breakpoint()` where you want to stop; after an
# exception, `%debug` opens the frame where it happened.
#
# ## Where to go next
#
# - Take the walk again with your own hands on it: `workspace config CONFIG --origin`, `workspace train`, `workspace test`,
#   `workspace infer PHOTO CONFIG CHECKPOINT`. `make demo` tells this story as one page that you can send to somebody.
# - Read the code in the order in which it ran: `apis.py`, `registry.py`, `runner.py`, `loops.py`, `checkpoint.py`.
# - Next: [01_environment](01_environment.ipynb), what all this runs in; or at once [02_config](02_config.ipynb).

# %%
runs.cleanup()
