# %% [markdown]
# # Test loop: from a folder of images to one number
#
# **What does "98.0 % accuracy" count, and can you trust it?** You will open `single_gpu_test`, compute every metric by hand in a
# line or two and compare it with the library's, read a confusion matrix and open its images, look at the worst mistakes,
# and do the same for images with several labels.
#
# **Time**: twenty minutes to read; the cells take about half a minute. **Needs**: notebook 04; no GPU, no network.
#
# > config → registry → inference → **test loop** → train loop → data loader → loss, optimizer, schedule → checkpoint
# >
# > *You are here*: one image has a name. Now a thousand, and a judgement.

# %%
# %load_ext autoreload
# %autoreload 2

# %%
import inspect
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from IPython.display import display

from workspace_lib import apis, metrics
from workspace_lib.datasets import build_dataset
from workspace_lib.tools import commands, mistakes, plots

torch.set_num_threads(1)
runs = tempfile.TemporaryDirectory()

# %%
def boundary(name, x):
    """What crosses from one part to the next: its shape, dtype and device."""
    print(f'{name:<34}{str(tuple(x.shape)):<20}{str(x.dtype):<16}{getattr(x, "device", "cpu")}')


# %% [markdown]
# ```mermaid
# flowchart LR
#   accTitle: From a data set to metrics
#   accDescr {
#     The loader takes the data set in its order and gives batches to the model, which answers with a list of score arrays.
#     The loop collects them in order. The data set compares them with its labels.
#   }
#   dataset["data set: image i, label i"] -- "loader, in order" --> batch["batch (N, C, H, W)"]
#   batch -- "model(return_loss=False, **batch)" --> list["N arrays (classes,)"]
#   list -- "results.extend" --> results["results[i] belongs to image i"]
#   results -- "dataset.evaluate" --> metrics
#   dataset -- "get_gt_labels()" --> metrics
# ```
#
# A classifier to test: LeNet-5 after two epochs on real digits. It takes some seconds, and is bad enough to be interesting.

# %%
recipe, work_dir = 'lenet/lenet5_mnist5k.py', Path(runs.name) / 'lenet'
brief = {'runner.max_epochs': 2, 'log_level': 'ERROR'}
if not work_dir.exists():
    _ = commands.train(recipe, str(work_dir), seed=0, device='cpu', validate=False, options=brief)

# %%
cfg = apis.load_config(recipe)
model = apis.init_model(cfg, str(work_dir / 'latest.pth'), device='cpu')
dataset = build_dataset(cfg.data.test, dict(test_mode=True))
loader = apis.build_loader(cfg, 'test', dataset, torch.device('cpu'))
print(len(dataset), 'images,', len(loader), 'batches of up to', cfg.data.samples_per_gpu)

# %% [markdown]
# ## 1. The loop, opened up
#
# > **loader → model → list** → metrics
#
# This is all of it; the rest of the function draws a progress bar and pictures. **Predict**: how long is the list at the end, and
# what does each element look like?

# %%
model.eval()
results = []
with torch.no_grad():
    for batch in loader:
        result = model(return_loss=False, img=batch['img'])
        results.extend(result)

# %%
boundary('the last batch', batch['img'])
print(f'{"its result":<34}{type(result).__name__} of {len(result)}')
boundary('one of them', result[0])
print(len(results), 'results in all')

# %% [markdown]
# Under the debugger, in `single_gpu_test` of mmclassification, this is the moment at which people find a list of 32 arrays of
# shape (1000,): 32 is `cfg.data.samples_per_gpu`, 1000 the classes. The library's loop, under `inference_mode` (a stricter
# `no_grad`), gives the same list:

# %%
theirs = apis.single_gpu_test(model, loader)
assert len(results) == len(dataset) == 1000 and results[0].shape == (10,)
assert all(np.array_equal(a, b) for a, b in zip(results, theirs, strict=True))
assert len(result) == 1000 - (len(loader) - 1) * cfg.data.samples_per_gpu  # the last batch is what is left

# %%
print(inspect.getsource(apis.single_gpu_test).split('"""')[2])

# %% [markdown]
# Three things make the number right: `eval()`, so that no answer depends on its neighbours; no shuffling, so that `results[i]` belongs
# to image `i`; and no sample dropped or repeated to fill a batch, in one process or in several. The last is where test
# loops go wrong most often: with 2 processes and 1,003 images, padding to 1,004 counts one image twice.
#
# ## 2. Every metric by hand
#
# > loader → model → list → **metrics**

# %%
scores, labels = np.stack(results), dataset.get_gt_labels()
predicted = scores.argmax(axis=1)
boundary('scores', scores)
boundary('labels', labels)

# %% [markdown]
# **Accuracy**: the share of images whose first guess is right; top-5: whose label is among the first five. **Predict** top-5 of this
# classifier.

# %%
top1 = 100 * (predicted == labels).mean()
order = (-scores).argsort(axis=1)
top5 = 100 * (order[:, :5] == labels[:, None]).any(axis=1).mean()
print(f'top-1 {top1:.1f} %, top-5 {top5:.1f} %')

# %%
found = dataset.evaluate(results, 'accuracy', dict(topk=(1, 5)))
assert np.isclose(found['accuracy_top-1'], top1) and np.isclose(found['accuracy_top-5'], top5)

# %% [markdown]
# **Precision** of a class: of the images that were called so, how many are? **Recall**: of the images that are, how many were called
# so? **F1** is their harmonic mean, **support** the number of images. All three come from one table of counts.

# %%
counts = np.zeros((10, 10), int)
np.add.at(counts, (labels, predicted), 1)  # row: what it is; column: what it was called
hits = counts.diagonal()
precision, recall = 100 * hits / counts.sum(axis=0), 100 * hits / counts.sum(axis=1)
f1 = 2 * precision * recall / (precision + recall)
print('recall by class', recall.round(1))

# %%
by_class = dataset.evaluate(results, ['precision', 'recall', 'f1_score', 'support'], dict(average_mode='none'))
for name, by_hand in (('precision', precision), ('recall', recall), ('f1_score', f1), ('support', counts.sum(axis=1))):
    assert np.allclose(by_class[name], by_hand), name

# %% [markdown]
# One number for all classes is their plain average (`average_mode='macro'`), whatever their size. **Predict**: when are macro recall
# and accuracy the same number?

# %%
macro = dataset.evaluate(results, ['recall', 'accuracy'], dict(topk=1))
print(macro)
assert np.isclose(macro['recall'], recall.mean()) and len(set(counts.sum(axis=1))) == 1

# %% [markdown]
# Here they agree, because each digit has 100 images; on data with rare classes they tell different stories.
#
# **Thresholds**: with `thrs` a guess below the threshold counts as none. Precision rises, recall falls.

# %%
curve = {thr: dataset.evaluate(results, ['precision', 'recall'], dict(thrs=thr)) for thr in (0.0, 0.5, 0.9)}
for thr, values in curve.items():
    print(thr, {name: round(value, 1) for name, value in values.items()})

# %%
sure = scores.max(axis=1) > 0.9
assert np.isclose(curve[0.9]['recall'], np.mean([100 * ((predicted == k) & sure)[labels == k].mean() for k in range(10)]))
assert curve[0.9]['precision'] > curve[0.0]['precision'] and curve[0.9]['recall'] < curve[0.0]['recall']

# %% [markdown]
# ## 3. Counts add, averages do not
#
# Over 16 batches, or 8 processes, a metric may not be the average of each part's metric. **Predict** which of the two lines below
# agrees with the accuracy of all images.

# %%
parts = np.split(np.arange(1000), [700, 950])  # three parts of different size
print('average of averages', np.mean([100 * (predicted[part] == labels[part]).mean() for part in parts]))

# %%
whole = metrics.SingleLabelCounts(10)
for part in parts:
    counted = metrics.SingleLabelCounts(10)
    counted.update(torch.from_numpy(scores[part]), torch.from_numpy(labels[part]).long())
    whole.merge(counted)
print('counts that were added', float(whole.accuracy()[0, 0]), 'of', int(whole.samples))

# %%
assert np.isclose(float(whole.accuracy()[0, 0]), top1)
assert np.array_equal(whole.labelled.numpy(), counts.sum(axis=1)) and np.array_equal(whole.hits[0].numpy(), hits)

# %% [markdown]
# ## 4. What is confused with what?
#
# The table of counts is the confusion matrix. **Predict** the two digits that are confused most.

# %%
confusion = plots.confusion_matrix(results, labels, dataset.CLASSES)
display(confusion, confusion.table)

# %%
assert np.array_equal(mistakes.calculate_confusion_matrix(scores, labels).numpy(), counts)
mistakes.pair_table(scores, labels, dataset.CLASSES, count=5)

# %% [markdown]
# A cell is a number of images, so look at them. Choose a true class and what it was taken for. (A page without a kernel shows no
# controls; below it stands one choice.)

# %% tags=["varies"]
display(mistakes.confusion_explorer(dataset, results))

# %%
i, j = np.unravel_index((counts - np.diag(hits)).argmax(), counts.shape)
cell = mistakes.cell_plot(dataset, results, i, j, count=6)
display(cell, cell.table)

# %%
assert len(plots.find_cell(results, labels, i, j)) == counts[i, j]
assert all(labels[row[0]] == i and predicted[row[0]] == j for row in cell.table.rows)

# %% [markdown]
# ## 5. The worst mistakes
#
# Of all wrong answers, those of which the model was most sure. They tell more than a number: a wrong label, a digit that nobody
# could read, or a class that the model has not understood.

# %%
worst = plots.worst_mistakes(dataset, results)
display(worst, worst.table)

# %%
wrong = np.flatnonzero(predicted != labels)
surest = wrong[scores[wrong].max(axis=1).argmax()]
assert worst.table.rows[0][0] == surest and len(wrong) == 1000 - hits.sum()

# %% [markdown]
# **Predict**: how often is it right, when it says how sure it is? A well calibrated classifier that says 90 % is right in nine of
# ten cases.

# %%
confidence, right = scores.max(axis=1), predicted == labels
for low, high in ((0.0, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 0.99), (0.99, 1.01)):
    inside = (confidence >= low) & (confidence < high)
    print(f'said {100 * low:3.0f} to {min(100, 100 * high):3.0f} %: {inside.sum():4d} images, {100 * right[inside].mean():5.1f} % right')
assert right.mean() > confidence.mean()

# %% [markdown]
# This one is right more often than it says: after two epochs it is still modest. A network that was trained until its loss is almost
# 0 mostly errs the other way, which label smoothing (notebook 08) holds back. Exercise 3 makes one number of this table.
#
# ## 6. Several labels an image
#
# On a photograph there may be a dog *and* a bicycle. Labels are then rows of 0 and 1, the head ends in one sigmoid for each class
# instead of a softmax, and there is no argmax: a class is predicted where its score is at least 0.5. **mAP**, the measure of VOC
# and COCO, needs no threshold: for each class sort all images by score, and average the precision at each of its positives.
# **Predict**: are OP, the precision over all classes in one pot, and CP, its average by class, far apart where classes are
# equally frequent?

# %%
from workspace_lib import multi_label_metrics

rng = np.random.default_rng(0)
many_labels = (rng.random((200, 4)) < 0.3).astype(int)
many_scores = np.clip(0.35 * many_labels + rng.random((200, 4)) * 0.65, 0, 1).astype(np.float32)
boundary('labels', many_labels)


# %%
def average_precision(score, label):
    ranked = label[np.argsort(-score, kind='stable')]
    precision_at = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return precision_at[ranked == 1].mean()


by_hand = 100 * np.mean([average_precision(many_scores[:, k], many_labels[:, k]) for k in range(4)])
print('mAP', round(by_hand, 3))

# %%
called = many_scores >= 0.5
op = 100 * (called & (many_labels == 1)).sum() / called.sum()  # overall precision: all classes in one pot
cp = 100 * np.mean([(called[:, k] & (many_labels[:, k] == 1)).sum() / called[:, k].sum() for k in range(4)])  # by class
print('OP', round(op, 2), 'CP', round(cp, 2))
assert abs(op - cp) < 1

# %%
found = multi_label_metrics.evaluate(many_scores, many_labels, ['mAP', 'CP', 'OP'])
print({name: round(float(value), 3) for name, value in found.items()})
assert np.isclose(found['mAP'], by_hand) and np.isclose(found['OP'], op) and np.isclose(found['CP'], cp)

# %% [markdown]
# ## 7. In a terminal, and the file that it leaves
#
# `workspace test CONFIG CHECKPOINT --metrics accuracy precision recall f1_score support --out result.json`. **Predict** what the
# file has to hold, so that a question that comes tomorrow needs no GPU. `workspace analyze result.json --config CONFIG` makes one
# page of it.

# %%
out = Path(runs.name) / 'result.json'
names = ['accuracy', 'precision', 'recall', 'f1_score', 'support']
values = commands.test(recipe, str(work_dir / 'latest.pth'), names, dict(topk=1), str(out), device='cpu')
print({name: round(value, 2) for name, value in values.items()})

# %%
stored = json.loads(out.read_text())
print({name: type(value).__name__ + (f' of {len(value)}' if isinstance(value, list) else '') for name, value in stored.items()})
assert np.allclose(stored['class_scores'], scores) and np.isclose(stored['accuracy'], top1)

# %% [markdown]
# And mmclassification's own functions, on these scores:

# %%
import logging
import warnings

with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    logging.disable()
    from mmcls.core.evaluation import precision_recall_f1
    from mmcls.models.losses import accuracy

    logging.disable(logging.NOTSET)

# %%
assert np.isclose(accuracy(scores, labels, topk=1).item(), top1)
for ours, other in zip((precision, recall, f1), precision_recall_f1(scores, labels, average_mode='none'), strict=True):
    assert np.allclose(ours, other)

# %% [markdown]
# ## Exercises
#
# **1. Modify.** Which accuracy has the classifier if it may refuse one image in ten, those of which it is least sure?

# %% jupyter={"source_hidden": true} tags=["solution"]
kept = np.argsort(-confidence, kind='stable')[:900]
print(f'{100 * right[kept].mean():.1f} % of 900, instead of {top1:.1f} % of 1,000')
assert right[kept].mean() > right.mean()

# %% [markdown]
# **2. Break.** Test with a shuffled loader. No error; what is the accuracy, and why?

# %% jupyter={"source_hidden": true} tags=["solution"]
from workspace_lib.datasets import build_dataloader

shuffled = apis.single_gpu_test(model, build_dataloader(dataset, 64, 0, shuffle=True, seed=0))
print(dataset.evaluate(shuffled, 'accuracy', dict(topk=1)))  # as good as guessing: results[i] is of another image
assert dataset.evaluate(shuffled, 'accuracy', dict(topk=1))['accuracy'] < 20

# %% [markdown]
# **3. Extend.** The expected calibration error: over ten bins of confidence, the average distance between confidence and accuracy,
# weighted by the images in the bin.

# %% jupyter={"source_hidden": true} tags=["solution"]
def calibration_error(confidence, right, bins=10):
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    return sum(abs(confidence[which == b].mean() - right[which == b].mean()) * (which == b).mean() for b in set(which))


print(f'{100 * calibration_error(confidence, right):.2f} %')
assert calibration_error(np.array([1.0, 1.0]), np.array([True, False])) == 0.5

# %% [markdown]
# ## The same way with a debugger
#
# In VS Code choose the launch entry **test** (*Run and Debug*), with `lenet/lenet5_mnist5k.py` and the checkpoint of a training of it.
# Three breakpoints:
#
# 1. `single_gpu_test` in `workspace_lib/loops.py`: stop at `results.extend(result)`; look at `len(result)`, `result[0].shape`.
# 2. `BaseDataset.evaluate` in `workspace_lib/datasets/base.py`: look at `results`, at `self.get_gt_labels()`, at `metric`.
# 3. `SingleLabelCounts.update` in `workspace_lib/metrics.py`: step through the counts; every metric above is made of them.
#
# In mmclassification the same way is `tools/test.py` → `mmcls/apis/test.py`: `single_gpu_test`, `multi_gpu_test` →
# `mmcls/datasets/base_dataset.py`: `evaluate` → `mmcls/core/evaluation/eval_metrics.py`.
#
# Next: [06_train_loop](06_train_loop.ipynb), how the weights became what was tested here.

# %%
runs.cleanup()
