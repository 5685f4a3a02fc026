# %% [markdown]
# # Loss, optimizer, schedule: three lines of a config that decide a week
#
# **What does a training minimise, in which steps, and how large?** You will compute the cross entropy by hand, soften its labels,
# mix images and labels, write SGD with momentum in four lines and compare it with torch's, see which parameters a
# weight-decay rule spares, draw schedules before anything is trained, and measure which learning rate a network can bear.
#
# **Time**: twenty minutes to read; the cells take about half a minute. **Needs**: notebook 03; no GPU, no network.
#
# > config → registry → inference → test loop → train loop → data loader → **loss, optimizer, schedule** → checkpoint
# >
# > *You are here*: a batch went through the network and came out as logits.

# %%
# %load_ext autoreload
# %autoreload 2

# %%
import random

import numpy as np
import torch
from IPython.display import display

from workspace_lib import apis
from workspace_lib.datasets import build_dataset
from workspace_lib.datasets.mixing import BatchCutMix, BatchMixup
from workspace_lib.models import build_classifier, build_loss
from workspace_lib.optim import build_optimizer
from workspace_lib.schedules import lr_schedule
from workspace_lib.tools import lr_find, plots
from workspace_lib.tools.vis_lr import lr_plot

torch.set_num_threads(1)


# %%
def boundary(name, x):
    """What crosses from one part to the next: its shape, dtype and device."""
    print(f'{name:<34}{str(tuple(x.shape)):<20}{str(x.dtype):<16}{getattr(x, "device", "cpu")}')


# %% [markdown]
# ```mermaid
# flowchart LR
#   accTitle: One step of training
#   accDescr {
#     Logits and labels make a loss; its backward pass makes gradients; the optimizer moves the weights by them, as far as the
#     schedule says at this iteration.
#   }
#   logits["logits (N, C)"] -- "head.loss" --> loss["loss ()"]
#   labels["labels (N,) or (N, C)"] --> loss
#   loss -- "backward" --> gradients["gradient of each weight"]
#   gradients -- "optimizer.step" --> weights
#   schedule["schedule(base_lr, iter)"] -- "lr" --> weights
# ```
#
# ## 1. Cross entropy
#
# > **loss** → optimizer → schedule
#
# The loss of one image is minus the logarithm of the probability that its right class got. **Predict** the loss of a network that
# knows nothing of 10 classes.

# %%
logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
labels = torch.tensor([0, 2])
by_hand = -logits.softmax(1)[torch.arange(2), labels].log()
print(by_hand, 'mean', round(by_hand.mean().item(), 4), '| of 10 classes without a clue', round(float(np.log(10)), 4))

# %%
loss = build_loss(dict(type='CrossEntropyLoss', loss_weight=1.0))
assert torch.allclose(loss(logits, labels), by_hand.mean())
assert torch.allclose(by_hand[1], torch.tensor(3.0).log())

# %% [markdown]
# Its gradient is the simplest that there is: what the network said, minus what it should have said. **Predict** the sum of each row.

# %%
logits.requires_grad_(True)
loss(logits, labels).backward()
should = torch.nn.functional.one_hot(labels, 3)
print(logits.grad)
assert torch.allclose(logits.grad, (logits.detach().softmax(1) - should) / 2)

# %% [markdown]
# Each row sums to 0: what the right logit gains, the others lose. A right and sure answer hardly pulls at the weights, a wrong and
# sure one pulls as hard as it can. (The 2 is the batch: a mean, so that the gradient does not grow with its size.)
#
# ## 2. Softer labels
#
# With the label 1 for the right class the loss falls as long as the logits grow, and the network becomes surer than it should be. *Label
# smoothing* ([arXiv:1512.00567](https://arxiv.org/abs/1512.00567)) takes epsilon of the 1 and deals it out to all classes.

# %%
smooth = build_loss(dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=3))
print(smooth.smooth_label(labels, 3))

# %%
soft = 0.9 * should + 0.1 / 3
expected = -(soft * logits.detach().log_softmax(1)).sum(1).mean()
assert torch.allclose(smooth(logits.detach(), labels), expected)
assert torch.allclose(torch.nn.functional.cross_entropy(logits.detach(), labels, label_smoothing=0.1), expected)

# %% [markdown]
# How far does it pay to be sure? **Predict** where the minimum of each curve is.

# %%
margins = torch.linspace(0, 8, 9)
rows = torch.stack([margins, torch.zeros(9), torch.zeros(9)], 1)
for margin, row in zip(margins, rows, strict=True):
    hard, softened = (part(row[None], labels[:1]).item() for part in (loss, smooth))
    print(f'the right logit leads by {margin:.0f}:  cross entropy {hard:.3f}   smoothed {softened:.3f}')

# %% [markdown]
# The plain loss has none, and so pulls at the weights for ever; the smoothed one turns upward at a lead of 3.3, where the
# probabilities equal the softened label. The first exercise asks for the formula.
#
# ## 3. Mixed images
#
# *Mixup* ([arXiv:1710.09412](https://arxiv.org/abs/1710.09412)) blends two images and, by the same share, their labels; *CutMix*
# ([arXiv:1905.04899](https://arxiv.org/abs/1905.04899)) pastes a rectangle, and mixes labels by its area. Here the loader does it, on the
# whole batch, on the device. **Predict**: which row sums do the labels have afterwards?

# %%
cfg = apis.load_config('lenet/lenet5_mnist5k.py')
cfg.merge_from_dict({'seed': 0, 'data.workers_per_gpu': 0})
dataset = build_dataset(cfg.data.train)
batch = next(iter(apis.build_loader(cfg, 'train', dataset, torch.device('cpu'))))
digits, digit_labels = batch['img'][:8], batch['gt_label'][:8]
boundary('a batch', digits)
boundary('its labels', digit_labels)

# %%
mixed, mixed_labels = BatchMixup(alpha=1.0, num_classes=10)(digits.clone(), digit_labels, random.Random(0))
cut, cut_labels = BatchCutMix(alpha=1.0, num_classes=10)(digits.clone(), digit_labels, random.Random(1))
boundary('labels of mixup', mixed_labels)
print(mixed_labels[0].numpy().round(2), cut_labels[0].numpy().round(2), sep='\n')

# %%
from matplotlib.figure import Figure


def rows_of_images(named):
    figure = Figure(figsize=(8, 3.4))
    for axes_row, (name, images) in zip(figure.subplots(len(named), 8), named.items(), strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            axes.imshow(image[0], cmap='gray')
            axes.set(xticks=[], yticks=[])
        axes_row[0].set_ylabel(name)
    return plots.Plot(figure, 'Eight digits: as they are, blended in pairs, with a rectangle of another.', None)


rows_of_images({'as it is': digits, 'mixup': mixed, 'cutmix': cut})

# %%
assert torch.allclose(mixed_labels.sum(1), torch.ones(8)) and torch.allclose(cut_labels.sum(1), torch.ones(8))
share = mixed_labels[0].max()
assert any(torch.allclose(mixed[0], torch.lerp(other, digits[0], weight), atol=1e-4)
           for other in digits for weight in (share, 1 - share))

# %% [markdown]
# A label that is a row of probabilities needs no new loss: cross entropy against a row is the mixed loss of both labels.

# %%
scores = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
rows_loss = loss(scores, mixed_labels)
assert torch.allclose(rows_loss, -(mixed_labels * scores.log_softmax(1)).sum(1).mean())

# %% [markdown]
# ## 4. SGD with momentum, by hand
#
# > loss → **optimizer** → schedule
#
# torch's formula, with weight decay: `g = gradient + wd * w`, `v = momentum * v + g`, `w = w - lr * v`. **Predict**: after ten steps with the
# same gradient and momentum 0.9, how many times as far as with plain SGD?

# %%
def sgd_step(w, gradient, v, lr, momentum, weight_decay):
    g = gradient + weight_decay * w
    v = momentum * v + g
    return w - lr * v, v


w, v = torch.tensor([1.0]), torch.tensor([0.0])
for _ in range(10):
    w, v = sgd_step(w, torch.tensor([1.0]), v, lr=0.01, momentum=0.9, weight_decay=0.0)
print('moved by', round(1 - w.item(), 3), 'instead of', 0.1)

# %%
torch.manual_seed(0)
model = build_classifier(cfg.model)
optimizer = build_optimizer(model, dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
mine = {name: (p.detach().clone(), torch.zeros_like(p)) for name, p in model.named_parameters()}
for _ in range(3):
    optimizer.zero_grad()
    model.train_step(dict(img=digits, gt_label=digit_labels))['loss'].backward()
    mine = {name: sgd_step(*(mine[name][0], p.grad, mine[name][1]), 0.1, 0.9, 1e-4) for name, p in model.named_parameters()}
    optimizer.step()

# %%
assert all(torch.allclose(mine[name][0], p, atol=1e-6) for name, p in model.named_parameters())
print('the same after three steps,', sum(p.numel() for p in model.parameters()), 'weights')

# %% [markdown]
# ## 5. Which weights are decayed?
#
# Decay pulls weights towards 0, which does a convolution good and a normalisation's scale no good. `paramwise_cfg` gives factors by rule.
# **Predict** how many of ResNet-50's 25.6 million parameters this rule spares.

# %%
resnet = build_classifier(apis.load_config('resnet/resnet50_8xb32_in1k.py').model)
rule = dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
by_rule = build_optimizer(resnet, dict(type='SGD', lr=0.1, weight_decay=1e-4, paramwise_cfg=rule))
for group in by_rule.param_groups:
    count = sum(parameter.numel() for parameter in group['params'])
    print(f'lr {group["lr"]}, weight decay {group["weight_decay"]}: {len(group["params"])} tensors, {count:,} weights')

# %%
spared = {id(p) for group in by_rule.param_groups if group['weight_decay'] == 0 for p in group['params']}
one_dimensional = {id(p) for p in resnet.parameters() if p.dim() < 2}
assert spared == one_dimensional  # in this network "norms and biases" is "whatever is no matrix"

# %% [markdown]
# `custom_keys` goes by name: a pretrained backbone that learns ten times slower than its new head.

# %%
slow = build_optimizer(resnet, dict(type='SGD', lr=0.1, paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1)})))
print([(round(group['lr'], 3), len(group['params'])) for group in slow.param_groups])
assert sorted({round(group['lr'], 3) for group in slow.param_groups}) == [0.01, 0.1]

# %% [markdown]
# ## 6. Schedules, before anything is trained
#
# > loss → optimizer → **schedule**
#
# Here a schedule is a pure function of the iteration, so that beside the iteration and the rate it began with nothing has to
# be saved, and a resumed run cannot be off by one. **Predict** the learning rate of both schedules half-way through 100
# epochs.

# %%
step = lr_schedule(dict(policy='step', step=[30, 60, 90]), max_epochs=100, iters_per_epoch=10)
cosine = lr_schedule(dict(policy='CosineAnnealing', min_lr=0, warmup='linear', warmup_iters=50, warmup_ratio=0.1), 100, 10)
print('epoch  iteration     step   cosine')
for epoch in (0, 1, 4, 5, 29, 30, 50, 60, 90):
    print(f'{epoch:5}  {10 * epoch:9}  {step(0.1, 10 * epoch):.5f}  {cosine(0.1, 10 * epoch):.5f}')

# %%
half = 0.1 / 2  # of a cosine, half-way is half
assert np.isclose(cosine(0.1, 500), half) and np.isclose(step(0.1, 300), 0.01)

# %%
for policy in (dict(policy='step', step=[30, 60, 90]), dict(policy='CosineAnnealing', min_lr=0, warmup='linear', warmup_iters=500)):
    recipe = apis.load_config('resnet/resnet50_8xb32_in1k.py')
    recipe.lr_config = policy
    display(lr_plot(recipe, iters_per_epoch=100))

# %% [markdown]
# A run that is resumed at iteration 500 asks for iteration 500: the checkpoint holds that number and, in the optimizer's groups, the
# rate that the config began with (`initial_lr`, as in mmcv). The rest is the formula.
#
# `workspace vis_lr CONFIG` draws the same in a terminal. The steps of `step` are in epochs and `warmup_iters` in iterations, unless the
# config says otherwise; the picture shows what you wrote, not what you meant.
#
# ## 7. How large may the learning rate be?
#
# The *range test* ([arXiv:1506.01186](https://arxiv.org/abs/1506.01186)): train a hundred steps, each with a rate a little larger, and watch the
# loss. It falls, is lowest, and then the steps are too large. **Predict** that rate for LeNet-5 on digits; its recipe says 0.1.

# %%
rates, losses = lr_find.lr_range_test('lenet/lenet5_mnist5k.py', low=1e-4, high=10, iters=100, device='cpu',
                                      options={'data.workers_per_gpu': 0})
found = lr_find.lr_range_plot(rates, losses, 'LeNet-5, digits')

# %% tags=["varies"]
display(found, found.table)

# %%
suggestion = lr_find.suggested(rates, losses)
assert 0.003 < suggestion < 0.3 and rates[-1] < 10  # it ended before the last rate: the loss was lost
assert losses[-1] > 3 * losses.min()

# %% [markdown]
# The suggestion is a tenth of the rate at which the loss was lowest: room for the hundred epochs that the test did not make. With another
# batch size it is another number: four times the batch has half the noise, and a common rule scales the rate with the batch
# ([arXiv:1706.02677](https://arxiv.org/abs/1706.02677)). In a terminal: `workspace lr_find CONFIG`.
#
# ## Exercises
#
# **1. Modify.** Which lead of the right logit minimises the smoothed loss of 1,000 classes with epsilon 0.1? (There is a formula.)

# %% jupyter={"source_hidden": true} tags=["solution"]
def best_lead(classes, eps):
    return np.log((1 - eps + eps / classes) / (eps / classes))


lead = torch.tensor(float(best_lead(1000, 0.1)))
smooth1000 = build_loss(dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=1000))
around = [smooth1000(torch.nn.functional.pad((lead + d).reshape(1, 1), (0, 999)), torch.tensor([0])).item() for d in (-0.1, 0, 0.1)]
print(round(lead.item(), 3), [round(value, 5) for value in around])
assert around[1] < around[0] and around[1] < around[2]

# %% [markdown]
# **2. Break.** Forget `zero_grad` between three backward passes of a linear layer, which no optimizer moves. What is the
# third gradient, compared with the right one?

# %% jupyter={"source_hidden": true} tags=["solution"]
def third_gradient(forget):
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 2)
    x = torch.ones(1, 4)
    for _ in range(3):
        if not forget:
            net.zero_grad()
        net(x).sum().backward()  # the same gradient each time: no optimizer moves the weights
    return net.weight.grad


print((third_gradient(True) / third_gradient(False)).unique())
assert torch.equal(third_gradient(True), 3 * third_gradient(False))  # gradients add up until somebody clears them

# %% [markdown]
# **3. Extend.** Write AdamW's step by hand (Loshchilov and Hutter, [arXiv:1711.05101](https://arxiv.org/abs/1711.05101)) and compare with torch's.

# %% jupyter={"source_hidden": true} tags=["solution"]
def adamw_step(w, g, m, s, t, lr, betas, eps, weight_decay):
    m, s = betas[0] * m + (1 - betas[0]) * g, betas[1] * s + (1 - betas[1]) * g * g
    direction = (m / (1 - betas[0] ** t)) / ((s / (1 - betas[1] ** t)).sqrt() + eps)
    return w - lr * weight_decay * w - lr * direction, m, s


weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
adamw = build_optimizer(torch.nn.ParameterList([weight]), dict(type='AdamW', lr=0.1, weight_decay=0.01))
w, m, s = weight.detach().clone(), torch.zeros(2), torch.zeros(2)
for t in (1, 2, 3):
    weight.grad = torch.tensor([0.5, 3.0]) * t
    adamw.step()
    w, m, s = adamw_step(w, weight.grad, m, s, t, 0.1, (0.9, 0.999), 1e-8, 0.01)
print(w, weight.detach())
assert torch.allclose(w, weight)

# %% [markdown]
# ## The same way with a debugger
#
# In VS Code choose the launch entry **train** (*Run and Debug*), with `lenet/lenet5_mnist5k.py`. Three breakpoints:
#
# 1. `Loss.forward` in `workspace_lib/models/losses.py`, which `CrossEntropyLoss` inherits: look at `cls_score.shape`,
#    `label`.
# 2. `LrUpdaterHook.before_train_iter` in `workspace_lib/hooks.py`: watch `group['lr']` over the first iterations.
# 3. `OptimizerHook.after_train_iter` in the same file: step over `_backward`; look at `next(runner.model.parameters()).grad`
#    before and after it.
#
# In mmclassification the same way is `mmcls/models/losses/cross_entropy_loss.py`, `mmcv/runner/hooks/lr_updater.py` (a class for each policy, which
# counts for itself), `mmcv/runner/hooks/optimizer.py`, and `mmcv/runner/optimizer/default_constructor.py`.
#
# Next: [09_checkpoints](09_checkpoints.ipynb), what is kept of all this.
