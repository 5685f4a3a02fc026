# %% [markdown]
# # Inference: from a photograph to a name
#
# **What happens to a photograph before a network says "tiger cat"?** You will follow one image through every step: file,
# bytes, crop, floats, feature maps, logits, probabilities; look into the checkpoint that the weights came from; write the
# forward hooks that list all shapes; compute Grad-CAM in ten lines to see where the network looked; and break the thing on
# purpose, with the channels in the wrong order.
#
# **Time**: fifteen minutes to read; the cells take about twenty seconds. **Needs**: notebook 03; no GPU, no network, no
# download: the weights come in a package.
#
# > config → registry → **inference** → test loop → train loop → data loader → loss, optimizer, schedule → checkpoint
# >
# > *You are here*: a model can be built. Now it gets weights, and an image.

# %%
# %load_ext autoreload
# %autoreload 2

# %%
import inspect

import numpy as np
import torch
from IPython.display import display
from PIL import Image

from workspace_lib import apis
from workspace_lib.checkpoint import read_checkpoint
from workspace_lib.datasets import Pipeline
from workspace_lib.datasets.decode import decode
from workspace_lib.tools import plots, widgets
from workspace_lib.tools.get_flops import config_cost
from workspace_lib.tools.photos import photograph
from workspace_lib.tools.vis_cam import cam_plot, class_activation_map

torch.set_num_threads(1)

# %%
def boundary(name, x):
    """What crosses from one part to the next: its shape, dtype and device."""
    print(f'{name:<34}{str(tuple(x.shape)):<20}{str(x.dtype):<16}{getattr(x, "device", "cpu")}')


# %% [markdown]
# ```mermaid
# flowchart LR
#   accTitle: From a file to a class name
#   accDescr {
#     The file is decoded to bytes, resized and cropped, made a batch of floats, and goes through backbone, neck and head to
#     scores, of which the largest is the answer. The weights come from a checkpoint.
#   }
#   file -- decode --> bytes["uint8 (H, W, 3), BGR"]
#   bytes -- "Resize, CenterCrop" --> crop["uint8 (224, 224, 3)"]
#   crop -- "Normalize, to RGB" --> batch["float32 (1, 3, 224, 224)"]
#   batch -- backbone --> maps["feature maps (1, 1280, 7, 7)"]
#   maps -- neck --> vector["(1, 1280)"]
#   vector -- "head: one linear layer" --> logits["(1, 1000)"]
#   logits -- softmax --> scores
#   checkpoint -. "state_dict" .-> maps
# ```
#
# ## 1. The model and its weights
#
# `init_model` is the first line of every demo script: config and checkpoint in, a model ready for use out. **Predict** what it has
# to do besides building the model. There are four things.

# %%
config, weights = 'efficientnet/efficientnet-lite0_in1k.py', 'packaged://efficientnet-lite0'
model = apis.init_model(config, weights, device='cpu')
print(type(model).__name__, '| training:', model.training, '|', len(model.CLASSES), 'classes')
assert not model.training and model.CLASSES[281] == 'tabby, tabby cat'

# %%
print(''.join(inspect.getsource(apis.init_model).split('"""')[2]))

# %% [markdown]
# The weights are loaded *strictly*, since a part that stayed random would predict nonsense without a word; the class names come
# from the checkpoint, or from the data set; the model moves to the device; and `eval()` switches dropout off and lets
# normalisations use the statistics that they learned instead of those of this batch.
#
# ## 2. What is in a checkpoint?
#
# > **checkpoint** → image → pipeline → network → name
#
# **Predict**: a dictionary of how many tensors, and do they make up as many numbers as the model has parameters?

# %%
saved = read_checkpoint(weights)['state_dict']
print(len(saved), 'tensors;', f'{sum(tensor.numel() for tensor in saved.values()):,} numbers')
print(f'{sum(parameter.numel() for parameter in model.parameters()):,} parameters')

# %%
for name in [*list(saved)[:6], *list(saved)[-2:]]:
    boundary(name.replace('backbone.timm_model', '...'), saved[name])

# %% [markdown]
# The names are paths: `conv_stem.weight` is the attribute `weight` of the attribute `conv_stem` of the backbone. There are more
# numbers than parameters, because running means and variances are kept too; they are learned without a gradient, and are
# called *buffers*.

# %%
buffers = sum(buffer.numel() for name, buffer in model.named_buffers() if 'num_batches' not in name)
counted = sum(tensor.numel() for name, tensor in saved.items() if 'num_batches' not in name)
assert counted == sum(parameter.numel() for parameter in model.parameters()) + buffers

# %% [markdown]
# What if the classifier has another number of classes than the file? With `strict` it is an error that names the key to set.

# %%
try:
    apis.init_model(config, weights, device='cpu', options={'model.head.num_classes': 10})
except RuntimeError as error:
    print(error)

# %% [markdown]
# ## 3. The pipeline, step by step
#
# > checkpoint → **image → pipeline** → network → name
#
# The config lists what is done to a file. **Predict**: at which step do the numbers stop being bytes, and at which step does the
# photograph lose its proportions?

# %%
chelsea = photograph('chelsea.png')
steps = model.cfg.data.test.pipeline
for step in steps:
    print(dict(step))

# %%
plots.pipeline_steps(Pipeline(steps), dict(img_prefix=None, img_info=dict(filename=str(chelsea))))

# %% [markdown]
# The proportions are never lost: `size=(256, -1)` resizes the *short* side, and the crop cuts. The bytes end at `Normalize`.
# Move the sliders to see what each number does; here with the steps of training, whose choices depend on the seed. (A page
# without a kernel shows no controls; the picture below is one setting.)

# %%
train_steps = [dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', size=224, scale=(0.08, 1.0)),
               dict(type='RandomFlip', flip_prob=0.5), dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4)]
one = widgets.seen_through(train_steps, chelsea, {'RandomResizedCrop.size': 160}, seed=3)
display(one, one.table)

# %% tags=["varies"]
display(widgets.pipeline_viewer(train_steps, ['chelsea.png', 'coffee.png', 'flower.jpg']))

# %%
assert [row[1] for row in one.table.rows] == ['300x451x3', '160x160x3', '160x160x3', '160x160x3'][:len(one.table.rows)]

# %% [markdown]
# Here are the same test steps by hand. OpenCV, and so the library, has blue first; the network was trained on red first. `backend='pillow'` in the
# config means an antialiased resize, as this network saw it in training; OpenCV's is not, and gives other pixels.

# %%
image = np.asarray(Image.open(chelsea))[..., ::-1]
boundary('decoded', image)
short = min(image.shape[:2])
size = [int(side * 256 / short) for side in image.shape[1::-1]]  # (width, height), rounded down
resized = np.asarray(Image.fromarray(image).resize(size, Image.BICUBIC))
top, left = ((side - 224 + 1) // 2 for side in resized.shape[:2])
crop = resized[top:top + 224, left:left + 224]
boundary('resized and cropped', crop)

# %%
mean, std = (np.array(steps[3][key], np.float32) for key in ('mean', 'std'))
floats = (crop[..., ::-1].astype(np.float32) - mean) / std
by_hand = torch.from_numpy(floats.transpose(2, 0, 1).copy())[None]
boundary('normalised, channels first', by_hand)

# %%
batch = apis.prepare_image(model, chelsea)
difference = (batch['img'] - by_hand).abs().max()
print('largest difference:', float(difference))
assert batch['img'].shape == (1, 3, 224, 224) and difference < 1e-6

# %% [markdown]
# ## 4. Through the network: shapes, parameters, cost
#
# > checkpoint → image → pipeline → **network** → name
#
# A *forward hook* is a function that a module calls with what it got and what it returns. Ten lines of it list the network.
# **Predict**: the image has 150,528 numbers. Which is the first of the four stages (`layer1` to `layer4`) whose maps have
# fewer?

# %%
def shapes_of(model, batch, depth=2):
    """(name, shape of the output) of the modules down to `depth`, in the order in which they are done."""
    seen, handles = [], []
    for name, module in model.named_modules():
        if name and name.count('.') < depth:
            handles.append(module.register_forward_hook(lambda module, args, output, name=name: seen.append((name, output))))
    with torch.no_grad():
        model(return_loss=False, **batch)
    for handle in handles:
        handle.remove()
    return [(name, tuple((output[-1] if isinstance(output, tuple | list) else output).shape)) for name, output in seen]


resnet = apis.init_model('resnet/resnet18_8xb32_in1k.py', device='cpu', options={'model.pretrained': None})
shapes = shapes_of(resnet, batch)
for name, shape in shapes:
    print(f'{name:<20}{str(shape):<22}{np.prod(shape) / batch["img"].numel():5.2f} of the image')

# %% [markdown]
# ResNet-18 without weights, because its stages are easier to see than EfficientNet's; the shapes depend on no weight. The library's
# table has the same shapes, and beside them what each part costs: parameters, multiply-adds, and the memory of its output, which
# training keeps for the backward pass. In a terminal: `workspace get_flops CONFIG`.

# %%
cost = config_cost('resnet/resnet18_8xb32_in1k.py')
cost.table

# %%
table = {part.name: part for part in cost.parts}
assert all(table[name].output == shape for name, shape in shapes)
assert table['backbone.conv1'].macs == 3 * 64 * 7 * 7 * 112 * 112  # each output pixel sums 3 x 7 x 7 products
assert table['backbone.conv1'].output == (1, 64, 112, 112)  # 5 times as many numbers as the image

# %% [markdown]
# ## 5. Logits, probabilities, a name
#
# > checkpoint → image → pipeline → network → **name**
#
# **Predict** the sum of the logits, and that of the scores.

# %%
with torch.no_grad():
    maps = model.extract_feat(batch['img'], 'backbone')
    features = model.extract_feat(batch['img'])
    logits = model.head.fc(features[-1])
for name, x in (('backbone: the last map', maps[-1]), ('neck: its average', features[-1]), ('head: logits', logits)):
    boundary(name, x)
assert torch.allclose(maps[-1].mean((2, 3)), features[-1])

# %%
probabilities = logits.softmax(dim=1)
print('sum of the logits', round(float(logits.sum()), 2), '| sum of the scores', round(float(probabilities.sum()), 6))
best = probabilities[0].topk(3)
print([(model.CLASSES[i], round(float(p), 3)) for p, i in zip(best.values, best.indices, strict=True)])

# %% [markdown]
# `model(return_loss=False, **batch)` is these lines, for a batch of any size, and `inference_model` is that with the pipeline
# before it and the largest score taken after it. Whether an image is alone or in a batch changes nothing in `eval()` mode:

# %%
names = ['chelsea.png', 'coffee.png', 'flower.jpg']
answers = [apis.inference_model(model, photograph(name)) for name in names]
together = model(return_loss=False, img=torch.cat([apis.prepare_image(model, photograph(name))['img'] for name in names]))
print(type(together).__name__, 'of', len(together))
boundary('each of them', together[0])

# %%
gallery = plots.predictions([decode(photograph(name)) for name in names], together, model.CLASSES, names)
display(gallery, gallery.table)

# %%
assert np.allclose(answers[0]['scores'], probabilities[0], atol=1e-6)
assert all(np.allclose(answer['scores'], scores, atol=1e-5) for answer, scores in zip(answers, together, strict=True))
assert answers[1]['pred_class'] == 'espresso'

# %% [markdown]
# In `train()` mode it would: a normalisation then uses the mean of the batch, so that a prediction depends on its neighbours.
# **Predict** what the cat becomes if somebody forgets `eval()`.

# %%
torch.manual_seed(0)
careless = apis.init_model(config, weights, device='cpu').train()
with torch.no_grad():
    wrong = careless(return_loss=False, **batch)[0]
print(model.CLASSES[int(wrong.argmax())], round(float(wrong.max()), 3))
assert not np.allclose(wrong, answers[0]['scores'], atol=0.1)

# %% [markdown]
# ## 6. Where did it look?
#
# Grad-CAM (Selvaraju et al. 2017, [arXiv:1610.02391](https://arxiv.org/abs/1610.02391)) asks how much the logit of a class would change with each
# map of the last layer: the average gradient of a map is its weight, and the weighted sum, without its negative part, is a picture
# of 7 x 7. **Predict** which part of the cat's face.

# %%
layer = 'backbone.timm_model.bn2'
kept = {}
module = model.get_submodule(layer)
handle = module.register_forward_hook(lambda module, args, output: kept.update(maps=output))
score = model.head.fc(model.extract_feat(batch['img'])[-1])[0].max()
handle.remove()

# %%
gradient, = torch.autograd.grad(score, kept['maps'])
importance = gradient.mean((2, 3), keepdim=True)  # (1, 1280, 1, 1)
cam = (importance * kept['maps']).sum(1).relu()[0].detach()
boundary('the picture', cam)

# %%
theirs, category, _ = class_activation_map(model, batch['img'], layers=[layer])
large = torch.nn.functional.interpolate(cam[None, None], (224, 224), mode='bilinear', align_corners=False)[0, 0]
assert np.allclose(theirs, large / large.max(), atol=1e-4) and category == int(logits.argmax())

# %%
looked = cam_plot(model, chelsea, layers=[layer])
display(looked, looked.table)

# %% [markdown]
# Below the eye on the left, and across the bridge of the nose; hardly on the other eye or the forehead.

# %% [markdown]
# ## 7. All of it in one command
#
# `workspace infer PHOTO CONFIG CHECKPOINT --out-file picture.png`, and `workspace vis_cam` with the same arguments. As in the
# tour, a command is a function that you can call. **Predict**: are its three names those of section 5, in that order?

# %%
from workspace_lib.tools import commands

ranked = commands.infer(str(chelsea), config, weights, device='cpu', topk=3)
for name, score in ranked:
    print(f'{score:8.4f}  {name}')
assert [name for name, _ in ranked] == [model.CLASSES[i] for i in best.indices]

# %% [markdown]
# ## Exercises
#
# **1. Modify.** mmclassification resizes to 256 and crops 224. Classify the coffee at 224 (no margin) and at 320. Which is surer?

# %% jupyter={"source_hidden": true} tags=["solution"]
found = {}
for size in (224, 256, 320):
    rows = widgets.seen_at(model, photograph('coffee.png'), size).table.rows
    found[size] = dict(zip((row[2] for row in rows), (row[3] for row in rows), strict=True))['espresso']
print({size: round(float(percent), 1) for size, percent in found.items()})
assert min(found.values()) > 30  # an espresso at every size; how sure it is depends on what else is on the table

# %% [markdown]
# **2. Break.** Feed the three photographs with blue and red exchanged. Nothing fails; what changes? How would you notice in a test
# over 50,000 images?

# %% jupyter={"source_hidden": true} tags=["solution"]
swapped = model(return_loss=False, img=torch.cat([apis.prepare_image(model, photograph(name))['img'].flip(1) for name in names]))
for name, right, scores in zip(names, answers, swapped, strict=True):
    print(f'{name:<14}{right["pred_class"]:<14}{right["pred_score"]:.3f}   {model.CLASSES[int(scores.argmax())]:<20}{scores.max():.3f}')
# No error, and often still the right class: a test would lose some points of accuracy, which looks like a bad model.
assert not np.allclose(swapped[1], together[1], atol=0.05)

# %% [markdown]
# **3. Extend.** Average the scores of the photograph and of its mirror image, which is called test-time augmentation. Is the
# espresso surer?

# %% jupyter={"source_hidden": true} tags=["solution"]
def mirrored_too(model, path):
    img = apis.prepare_image(model, path)['img']
    return np.mean(model(return_loss=False, img=torch.cat([img, img.flip(3)])), axis=0)


averaged = mirrored_too(model, photograph('coffee.png'))
print(round(float(averaged.max()), 3), 'instead of', round(answers[1]['pred_score'], 3))
assert model.CLASSES[int(averaged.argmax())] == 'espresso'

# %% [markdown]
# ## The same way with a debugger
#
# In VS Code open a photograph (any image file) and choose the launch entry **infer: the image open in the editor**. Three
# breakpoints:
#
# 1. `init_model` in `workspace_lib/apis.py`: step over `build_classifier` and `load_checkpoint`; look at `meta`.
# 2. `Pipeline.batch_of_one` in `workspace_lib/datasets/pipeline.py`: step into `item`, then into `prepare`; watch `img.shape`
#    and `img.dtype` while `self._transforms` act. `Normalize` follows, in `self.device_stage`.
# 3. `ImageClassifier.simple_test` in `workspace_lib/models/classifier.py`: step into `extract_feat`, then into the head.
#
# In mmclassification the same way is `demo/image_demo.py` → `mmcls/apis/inference.py`: `init_model`, `inference_model` → `mmcv.parallel.collate` and
# `scatter` → `mmcls/models/classifiers/base.py`: `forward_test` → `mmcls/models/heads/linear_head.py`: `simple_test`.
#
# Next: [05_test_loop](05_test_loop.ipynb), the same for a thousand images.
