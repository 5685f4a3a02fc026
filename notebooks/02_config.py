# %% [markdown]
# # Config: from a command line to one dictionary
#
# **Who decided that the learning rate is 0.1?** A training of an OpenMMLab code base is started with one argument: a file,
# whose only content may be a list of other files. You will read such a file as Python does, write the loader yourself in
# seventeen lines, compare it and the library's with mmcv's over 280 published recipes, change values from outside, and
# ask any value for the file and line that set it.
#
# **Time**: fifteen minutes to read; the cells take about fifteen seconds. **Needs**: notebook 00, or that you have seen a
# config; no GPU, no network.
#
# > **config** → registry → inference → test loop → train loop → data loader → loss, optimizer, schedule → checkpoint
# >
# > *You are here*: at the first arrow. Everything later is built from the dictionary that you hold at the end.

# %%
# %load_ext autoreload
# %autoreload 2

# %%
import argparse
import inspect
import logging
import warnings
from pathlib import Path

from IPython.display import display

from workspace_lib.config import Config
from workspace_lib.recipes import CONFIGS, load_config
from workspace_lib.tools import config_view
from workspace_lib.tools.main_commands import add_train
from workspace_lib.tools.options import DictAction

# %% [markdown]
# ```mermaid
# flowchart LR
#   accTitle: From a command line to a nested dictionary
#   accDescr {
#     The command line gives the name of a config file and overrides. The file names its bases. Files run, are merged in
#     order, the overrides are merged last, and the result is one nested dictionary from which the rest is built.
#   }
#   words["workspace train FILE --cfg-options KEY=VALUE"] -- argparse --> file["FILE"]
#   words -- DictAction --> options["overrides"]
#   file -- "_base_" --> bases["other files"]
#   bases -- "exec, then merge" --> cfg["cfg"]
#   file -- "exec, then merge" --> cfg
#   options -- "merge_from_dict" --> cfg
#   cfg -- "cfg.model, cfg.data, cfg.optimizer ..." --> build["build_classifier, build_dataset ..."]
# ```
#
# ## 1. The command line: what must be given, what may be
#
# `tools/train.py` of mmclassification has 65 lines of `argparse`; here `add_train` has 17, for the commands
# share what they have in common. An argument without dashes is *positional*: it must be there, and its place says what
# it is. One with dashes is *optional*, and `None` or its default where it is absent. **Predict**: which of the
# arguments of `train` are positional?

# %%
parser = argparse.ArgumentParser(prog='workspace train')
add_train(parser)
parser.print_usage()

# %%
args = parser.parse_args(['lenet/lenet5_mnist5k.py', '--seed', '1', '--cfg-options', 'optimizer.lr=0.01', 'runner.max_epochs=2'])
for name, value in vars(args).items():
    print(f'{name:<14}{type(value).__name__:<10}{value if name != "run" else value.__name__}')

# %%
positional = [action.dest for action in parser._actions if not action.option_strings]
assert positional == ['config']
assert args.seed == 1 and args.work_dir is None  # `type=int` made a number of the text; what is absent is None

# %% [markdown]
# `--cfg-options` has an action of its own, `DictAction`: it makes a dictionary of `KEY=VALUE` pairs. A shell knows only
# text. **Predict** the type of each value:

# %%
words = ['a=1', 'b=1e-3', 'c=true', 'd=None', 'e=step', 'f=[30,60,90]', 'g=(3,)', 'h="[(1,2),x]"']
options = argparse.ArgumentParser()
options.add_argument('--cfg-options', nargs='+', action=DictAction)
parsed = options.parse_args(['--cfg-options', *words]).cfg_options
for word, value in zip(words, parsed.values(), strict=True):
    print(f'{word:<16}{type(value).__name__:<10}{value!r}')

# %%
assert parsed['g'] == (3,) and parsed['h'] == [(1, 2), 'x'] and parsed['d'] is None and parsed['b'] == 0.001

# %% [markdown]
# ## 2. The file: Python that is run for its variables
#
# > command line → **file** → bases → merge → overrides → `cfg`

# %%
recipe = CONFIGS / 'resnet/resnet50_8xb32_in1k.py'
print(recipe.read_text())

# %% [markdown]
# Below the comment that says where it comes from is the whole recipe: four other files. Nothing in it is imported by
# anybody. The loader runs the text with `exec` and keeps the variables. **Predict**: which variables does this base
# leave behind, and which of them will a training read?

# %%
base = recipe.parent / '../_base_/datasets/imagenet_bs32.py'
variables = {}
exec(base.read_text(), variables)
print([name for name in variables if not name.startswith('__')])

# %%
print(variables['data']['train']['pipeline'][3])
assert variables['data']['train']['pipeline'] is variables['train_pipeline']

# %% [markdown]
# `data` and `evaluation` are read. `dataset_type`, `img_norm_cfg` and the two pipelines are helpers: ordinary Python names
# that save repeating, which stay in the config as keys that nobody asks for. Once the file has run they mean nothing:
# a child that sets `img_norm_cfg` anew does **not** change the pipelines that were built from the old one. This is the
# most frequent surprise in this grammar; exercise 1 walks into it.
#
# ## 3. Seventeen lines: bases, merge, `_delete_`
#
# > command line → file → **bases → merge** → overrides → `cfg`
#
# A dictionary in the child is merged into the base's, key by key and to any depth. Anything else, lists too, replaces.
# And `_delete_=True` says: take mine alone, do not merge. **Predict** what becomes of `momentum` when a child of a
# recipe with SGD asks for `dict(type='AdamW', lr=1e-3)`.

# %%
def mini_fromfile(path):
    names = {}
    exec(path.read_text(), names)
    values = {name: value for name, value in names.items() if not name.startswith('__')}
    bases, merged = values.pop('_base_', []), {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged.update(mini_fromfile(path.parent / base))
    return mini_merge(values, merged)


def mini_merge(child, base):
    merged = dict(base)
    for key, value in child.items():
        if isinstance(value, dict):
            value = dict(value)
            if not value.pop('_delete_', False) and isinstance(base.get(key), dict):
                value = mini_merge(value, base[key])
        merged[key] = value
    return merged


# %%
sgd = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
print(mini_merge(dict(optimizer=dict(lr=0.01)), sgd))
print(mini_merge(dict(optimizer=dict(type='AdamW', lr=1e-3)), sgd))
print(mini_merge(dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3)), sgd))

# %% [markdown]
# The second line is the trap: `AdamW` with a `momentum` that it does not know. Look for `_delete_` in a recipe that changes
# an optimizer or a schedule; it is nearly always there. The third line is what was meant.

# %%
mini, cfg = mini_fromfile(recipe), Config.fromfile(recipe)
assert mini == cfg.to_dict()
print(len(cfg), 'keys:', list(cfg))

# %% [markdown]
# ## 4. Is it the same as mmcv's, and on what?
#
# mmclassification 0.25 publishes 282 recipes with its package. Two of them name a base that was never put into it. Over the
# others: **predict** how many your seventeen lines load like the library does.

# %%
with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # mmcv announces its own successor ...
    logging.disable()  # ... and looks for a CUDA compiler
    import mmcls
    from mmcv import Config as MMCVConfig

    logging.disable(logging.NOTSET)

folder = Path(mmcls.__file__).parent / '.mim/configs'
every = [path for path in sorted(folder.rglob('*.py')) if '_base_' not in path.relative_to(folder).parts]

# %%
ours, incomplete = {}, []
for path in every:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # some recipes are announced as renamed
            ours[path] = Config.fromfile(path)
    except FileNotFoundError:
        incomplete.append(path.name)
print(len(ours), 'load;', 'a base is missing in', *incomplete)

# %%
def outcome(path):
    try:
        loaded = mini_fromfile(path)
    except Exception as error:
        return f'{type(error).__name__}: {error}'
    loaded.pop('_deprecation_', None)  # a note of the file's own about its new name
    return 'same' if loaded == ours[path].to_dict() else 'different'


outcomes = [outcome(path) for path in ours]
print(outcomes.count('same'), 'the same,', outcomes.count('different'), 'different; else for example')
print(next(text for text in outcomes if ':' in text))

# %% [markdown]
# Not one differs; the rest use the one piece of grammar that the seventeen lines lack. `{{_base_.policies}}` in a file
# stands for a value of its bases, which are known only after it has run. To Python it is a set in a set, whose element
# it asks of `_base_`, a list of file names: hence the AttributeError. So the loader replaces it by a placeholder in the
# text before running it, and puts the value in its place after the merge. Four more, `{{ fileDirname }}` and its kin,
# are replaced by text.

# %%
print((folder / '_base_/datasets/imagenet_bs64_autoaug.py').read_text().splitlines()[10])

# %% [markdown]
# And the library itself, beside the loader that it stands in for, on all of them. **Predict**: any difference?

# %%
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    theirs = {path: MMCVConfig.fromfile(str(path)) for path in ours}
differing = [path.name for path in ours if ours[path].to_dict() != theirs[path]._cfg_dict.to_dict()]
print(len(theirs), 'recipes,', len(differing), 'differ')

# %%
assert len(ours) == 280 and not differing and outcomes.count('same') == 198 and 'different' not in outcomes

# %% [markdown]
# ## 5. One nested dictionary
#
# > command line → file → bases → merge → overrides → **`cfg`**
#
# `cfg` holds dictionaries whose keys can be written as attributes. `pretty_text` is what a training writes into its log
# and its folder: all values written out; no bases, and no name refers to another any more. **Predict**: can that text
# be loaded again, and to the same config?

# %%
print(type(cfg.model).__name__, '|', cfg.model.backbone.depth, cfg['model']['backbone']['depth'])
print('\n'.join(cfg.pretty_text.splitlines()[:9]), '\n...')

# %%
again = Config.fromstring(cfg.pretty_text, '.py')
assert again.to_dict() == cfg.to_dict()
assert isinstance(cfg.model.backbone, dict) and cfg.get('fp16') is None  # a plain dictionary's methods, too

# %% [markdown]
# ## 6. Overrides: the last word
#
# > command line → file → bases → merge → **overrides** → `cfg`
#
# A dotted key reaches into dictionaries, a number into lists. **Predict**: after this override, how many blocks does the
# network have, and at what size is it trained?

# %%
overrides = {'model.backbone.depth': 18, 'data.train.pipeline.1.size': 160}
changed = Config.fromfile(recipe)
changed.merge_from_dict(overrides)
print(changed.model.backbone.depth, changed.data.train.pipeline[1], changed.model.head.in_channels)

# %% [markdown]
# The depth changed; the head still expects the 2,048 channels of a ResNet-50. An override changes what it says and
# nothing that should follow from it. **Predict**: what fails, the building of this model or its first image?

# %%
import torch

from workspace_lib.models import build_classifier

classifier, said = build_classifier(changed.model).eval(), ''
try:
    classifier(return_loss=False, img=torch.zeros(1, 3, 224, 224))
except ValueError as error:
    said = error.args[0]
print(said)
assert said.endswith('set model.head.in_channels=512')

# %% [markdown]
# It builds, and the first image is refused. So ask first what an override would change, and what it would take the place of:

# %%
config_view.changes_table(cfg, overrides)

# %% [markdown]
# A key that nobody reads would change nothing and say nothing. mmcv lets it pass. Here an unknown first name is refused
# by `load_config`, through which every command goes; a wrong one further down is left to whoever is built from it:

# %%
for wrong in ({'modle.backbone.depth': 18}, {'model.backbone.depht': 18}):
    try:
        build_classifier(load_config(recipe, wrong).model)
    except (KeyError, TypeError) as error:
        print(f'{type(error).__name__}: {error.args[0]}')

# %%
deeper = load_config(recipe, {'model.backbone.depht': 18})  # no error: it was the build that named it
assert deeper.model.backbone.depht == 18 and deeper.model.backbone.depth == 50

# %% [markdown]
# And an index that the list does not have:

# %%
try:
    load_config('lenet/lenet5_mnist5k.py', {'data.train.pipeline.9.size': 28})
except KeyError as error:
    print(error.args[0])

# %% [markdown]
# ## 7. Where was it set?
#
# `lr` is in none of the lines that you saw of the recipe. With four files, and a base of a base, people search.
# **Predict** which of the four sets it. The config remembers: for each value the file and line of its *key*, what the
# value came through, and what it took the place of.

# %%
for key in ('optimizer.lr', 'model.backbone.depth', 'data.train.pipeline.3.mean', 'evaluation.interval'):
    origin = changed.origin(key)
    print(f'{key:<28}{origin}', *(f'\n{"":<28}via {Path(file).name}:{line}' for file, line in origin.alias),
          *(f'\n{"":<28}over {earlier}' for earlier in origin.overrides))

# %%
assert changed.origin('model.backbone.depth').file == '<override>'
assert changed.origin('optimizer.lr').file.endswith('schedules/imagenet_bs256.py')

# %% [markdown]
# `via`: the mean stands in `img_norm_cfg`, and reached the step through `**img_norm_cfg` and the variable `train_pipeline`.
# The same for every value, as a search: `workspace config FILE --search lr` in a terminal, or here.

# %%
config_view.search(cfg, 'lr')

# %% [markdown]
# And with your hands: type a word into *search*, or a `KEY=VALUE` into *override* and see what it would change. (A page
# without a kernel shows no controls; the tables above are one setting of each.)

# %% tags=["varies"]
display(config_view.config_explorer(cfg))

# %%
page = config_view.explored(cfg, 'momentum', 'optimizer.momentum=0.8')
assert 'imagenet_bs256.py' in page and '0.8' in page and cfg.optimizer.momentum == 0.9

# %% [markdown]
# ## 8. And then?
#
# > **config** → registry → …
#
# Beside the model that failed in section 6, nothing has been built so far. `cfg.model` is a dictionary with a `type`,
# and so is each thing inside it; the next notebook asks what turns such a dictionary into an object. **Predict** how
# many calls `commands.train` needs from a file's name to a runner that can be started.

# %%
from workspace_lib.tools import commands

source = inspect.getsource(commands.train).splitlines() + inspect.getsource(commands.build_run).splitlines()[1:]
calls = [line.strip() for line in source if 'build_' in line or 'load_config' in line]
print(*calls, sep='\n')
assert [call.split('(')[0].split()[-1] for call in calls] == ['load_config', 'build_run', 'build_classifier', 'build_training']

# %% [markdown]
# ## Exercises
#
# **1. Modify.** A child of the recipe sets `img_norm_cfg = dict(mean=[0, 0, 0], std=[255, 255, 255], to_rgb=True)` and
# nothing else. With which mean does its `Normalize` step work? Find two ways to change it in truth.

# %% jupyter={"source_hidden": true} tags=["solution"]
child = f"_base_ = {str(recipe)!r}\nimg_norm_cfg = dict(mean=[0, 0, 0], std=[255, 255, 255], to_rgb=True)\n"
naive = Config.fromstring(child, '.py')
print(naive.img_norm_cfg.mean, naive.data.train.pipeline[3].mean)  # the variable changed, the pipeline did not
assert naive.data.train.pipeline[3].mean == [123.675, 116.28, 103.53]
naive.merge_from_dict({'data.train.pipeline.3.mean': [0, 0, 0]})  # one way; the other: write the pipeline again
assert naive.data.train.pipeline[3].mean == [0, 0, 0]

# %% [markdown]
# **2. Break.** Twins' recipe for ImageNet has a misspelling that has been there since it was published, and that nothing
# complained about. Find it: look for keys that begin with an underscore in what all recipes load to.

# %% jupyter={"source_hidden": true} tags=["solution"]
from workspace_lib.tools.annotate import leaves

for path, loaded in ours.items():
    for key, value in leaves(loaded.to_dict()):
        if str(key[-1]).startswith('_') and key[0] == 'optimizer':
            origin = loaded.origin(key)
            print(path.name, '.'.join(map(str, key)), '=', value, f'({Path(origin.file).name}:{origin.line})')
assert "_delete=True" in (folder / 'twins/twins-svt-base_8xb128_in1k.py').read_text()  # it should be _delete_

# %% [markdown]
# **3. Extend.** Teach the seventeen lines `{{_base_.name}}`, so that they load all 280. (Put a text in its place before the
# file runs, and the bases' value in the place of that text afterwards.)

# %% jupyter={"source_hidden": true} tags=["solution"]
import re


def full_fromfile(path):
    names = {}
    exec(re.sub(r'\{\{\s*_base_\.([\w.]+)\s*\}\}', r'"<base \1>"', path.read_text()), names)
    values = {name: value for name, value in names.items() if not name.startswith('__')}
    bases, merged = values.pop('_base_', []), {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged.update(full_fromfile(path.parent / base))
    return mini_merge(filled(values, merged), merged)


def filled(value, bases):
    if isinstance(value, dict):
        return {key: filled(item, bases) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(filled(item, bases) for item in value)
    if isinstance(value, str) and value.startswith('<base '):
        for part in value[6:-1].split('.'):
            bases = bases[part]
        return bases
    return value


for path, loaded in ours.items():
    values = full_fromfile(path)
    values.pop('_deprecation_', None)
    assert values == loaded.to_dict(), path.name

# %% [markdown]
# ## The same way with a debugger
#
# In VS Code choose the launch entry **config: where each value comes from** (*Run and Debug*), and the config
# `resnet/resnet50_8xb32_in1k.py`. The entry also gives `--cfg-options optimizer.lr=0.01`. Three breakpoints:
#
# 1. `load_config` in `workspace_lib/recipes.py`: look at `config` (what was typed) and `options` (what `DictAction` made).
# 2. `merge` in `workspace_lib/config/merge.py`: it stops for the recipe's own keys (`child` is empty: this one has none
#    over its bases), and later for the override, once for each level of it; look at `child`, `base`, and `path`.
# 3. `Config.merge_from_dict` in `workspace_lib/config/config.py`: between the two; step to `by_level`, the dotted keys
#    as a nested dictionary.
#
# In mmclassification the same way is `tools/train.py` → `mmcv/utils/config.py`: `Config.fromfile`, `_merge_a_into_b`,
# `merge_from_dict`.
#
# Next: [03_registry](03_registry.ipynb), how a dictionary with a `type` becomes an object.
