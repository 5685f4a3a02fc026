# %% [markdown]
# # Environment: what this notebook stands on
#
# **Where does this code run, and what of that can change a result or end a training?** You will find out whether you are in a
# container, as whom, on which mounts; which versions decide a number; how much shared memory the loader's workers have, and how a
# training dies when it is too little; what NVIDIA's management library says of a GPU; and how to read the error messages of all this.
# Everything here works with and without a container, with and without a GPU: what is not here is played from a file.
#
# **Time**: fifteen minutes to read; the cells take about fifteen seconds. **Needs**: notebook 00; no GPU, no network.
#
# > **environment** → config → registry → inference → test loop → train loop → data loader → loss, optimizer, schedule → checkpoint
# > → batches and processes → speed
# >
# > *You are here*: below the first line of Python.

# %%
# %load_ext autoreload
# %autoreload 2

# %%
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import yaml
from IPython.display import display

from workspace_lib.datasets import loader as loading
from workspace_lib.datasets.loader import Loader
from workspace_lib.tools import gpu, gpu_panel
from workspace_lib.tools.doctor import SYMPTOMS, Facts, Host, recognise
from workspace_lib.tools.doctor.checks import check_shm
from workspace_lib.tools.doctor.host import Space
from workspace_lib.tools.nvml import open_nvml
from workspace_lib.tools.surroundings import CHECKOUT, surroundings
from workspace_lib.tools.table import Table
from workspace_lib.tools.versions import collect_versions

torch.set_num_threads(1)
MIB, GIB = 2**20, 2**30


# %%
def boundary(name, x):
    """What crosses from one part to the next: its shape, dtype and device."""
    print(f'{name:<30}{str(tuple(x.shape)):<20}{str(x.dtype):<16}{x.device}')


# %% [markdown]
# ```mermaid
# flowchart LR
#   accTitle: What a container is given
#   accDescr {
#     The host gives the container the checkout to write in, the data set to read, a volume for the homes, a file system in memory
#     for the loader's workers, the GPUs and one port on loopback. Everything else inside is the image's.
#   }
#   checkout["checkout"] -- "bind mount, writable" --> workspace["/workspace"]
#   dataset["DATASET_DIR"] -- "bind mount, read-only" --> data["/dataset"]
#   volume["volume home"] --> home["/home/UID"]
#   memory["memory, at most SHM_SIZE"] --> shm["/dev/shm"]
#   driver["NVIDIA driver"] -- "toolkit" --> gpus["/dev/nvidia0 ..., libcuda"]
#   port["127.0.0.1:8888"] --> jupyter["JupyterLab, behind a token"]
# ```
#
# ## 1. Which of three lanes is it?
#
# `make up` takes the first of these that the machine allows: a container with GPUs, a container without, a virtual environment
# beside the checkout. **Predict**: in which one are you, and by what could a program tell?

# %%
place = surroundings()

# %% tags=["varies"]
place.table

# %%
assert place.in_container == os.path.exists('/opt/lab/entrypoint.sh')  # what the image starts with
assert place.uid == int(os.environ.get('SUDO_UID') or os.getuid())
assert not place.in_container or place.uid != 0

# %% [markdown]
# A container is a process like any other, with a view of its own: other files at `/`, a list of mounts, a uid. Nothing in Python
# behaves otherwise in it; the lab's images set the variable `LAB_DEVICE`, by which a program can tell. The second column is what a
# program finds here, the others what it would find elsewhere; the differences that matter are the next sections.
#
# ## 2. Mounts, and who owns what is written
#
# > lane → **mounts, user** → versions → shared memory → GPU
#
# Compose's file is the whole truth about the container; YAML is all that it takes to read it. **Predict**: which of its mounts can a
# training damage?

# %%
services = yaml.safe_load((CHECKOUT / 'docker-compose.yml').read_text())['services']
lab = services['lab']
for volume in lab['volumes']:
    print(f'{volume["source"]:<28}{volume["target"]:<13}{"read-only" if volume.get("read_only") else "writable"}')

# %%
for key in ('user', 'shm_size', 'ports', 'cap_drop'):
    print(f'{key:<10}{lab[key]}')

# %%
assert {volume['target']: bool(volume.get('read_only')) for volume in lab['volumes']} == {
    '/workspace': False, '/dataset': True, '/home': False}
assert all(port.startswith('127.0.0.1:') for port in lab['ports'])  # nobody else on the network gets in

# %% [markdown]
# `${NAME:-default}` is filled in from `.env`. The user is *yours*: what a training writes below `/workspace` belongs on the host to
# whoever called `make up`. With root inside, the next `git pull` outside would stop at files that it may not touch.

# %%
with tempfile.NamedTemporaryFile() as file:
    assert os.stat(file.name).st_uid == os.getuid()
for field in sorted(set(services['lab']) ^ set(services['lab-cpu'])):
    print('of one of the two containers alone:', field)

# %% [markdown]
# The two lanes differ by these lines. `deploy` reserves the GPUs: with it a host without a GPU refuses the container, which is why
# there are two services. `profiles` keeps the CPU's from starting by itself. `ulimits`, the GPU service's alone, lifts the limit on
# locked ("pinned") memory, from which a GPU fetches by itself.
#
# ## 3. Versions
#
# > lane → mounts, user → **versions** → shared memory → GPU
#
# The same seed gives the same numbers only on the same versions. **Predict** which of these can change a result without any change in
# this repository.

# %%
versions = collect_versions()
print(', '.join(versions))

# %%
assert tuple(map(int, versions['torch'].split('.')[:2])) >= (2, 11)
assert versions['mmcls'] == '0.25.0' and (versions['mmcv'] or versions['mmcv-full']).startswith('1.7')
assert all(importlib.metadata.version(name) == versions[name] for name in ('torch', 'numpy', 'timm'))

# %% [markdown]
# All of them: torch and cuDNN choose other kernels, OpenCV and simplejpeg decode to other bytes, the CPU's instruction set adds in
# another order. Each training writes them into `report.json` beside its log, and `workspace rerun` compares them first.
#
# mmcv and mmcls are here to compare with; the library does not import them. In OpenMMLab's world a package that was compiled against
# another torch is the first thing that breaks. The library needs none of that (the image compiles mmcv's operators for the comparisons, and
# `make venv` a page of C that decodes only the crop of a photograph; both can be missing). A fresh process shows that it imports neither:

# %%
script = "import sys, workspace_lib.apis; print('torch' in sys.modules, 'mmcv' in sys.modules, 'mmcls' in sys.modules)"
said = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True).stdout
print(said)
assert said.split() == ['True', 'False', 'False']


# %% [markdown]
# ## 4. Shared memory
#
# > lane → mounts, user → versions → **shared memory** → GPU
#
# A worker is a process of its own; its batches must get into yours. Through a pipe each byte would be copied twice, so images go through
# `/dev/shm`, a file system whose files are memory, which both processes map; labels are small enough for the pipe. **Predict**: how
# many bytes lie there when four workers make batches of 256 images of 224 pixels?

# %%
class Photographs(torch.utils.data.Dataset):
    """As many black ones as wanted: their size is what counts here."""

    def __len__(self):
        return 2048

    def __getitem__(self, index):
        return dict(img=np.zeros((224, 224, 3), np.uint8), gt_label=np.int64(index % 10))


# %%
def mapping(x):
    """Of this process's mappings, as the kernel lists them, the one that holds a tensor: (rights, file)."""
    for line in Path('/proc/self/maps').read_text().splitlines():
        addresses, rights, _, _, _, *file = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split('-'))
        if start <= x.data_ptr() < end:
            return rights, re.sub(r'torch_\w+', 'torch_...', ''.join(file))


# %%
few = Loader(Photographs(), 4, num_workers=1)
batch = next(iter(few))
boundary('img, from a worker', batch['img'])
print(*mapping(batch['img']))

# %%
assert mapping(batch['img']) == ('rw-s', '/dev/shm/torch_... (deleted)')  # s: shared
assert mapping(batch['gt_label'])[0] == 'rw-p'  # p: private; it came through the pipe
assert mapping(next(iter(Loader(Photographs(), 4)))['img'])[0] == 'rw-p'  # without workers nothing has to cross
del few, batch

# %% [markdown]
# "(deleted)": the file is opened, its name is removed at once, the open handle is passed on. So `ls /dev/shm` shows nothing while it is
# full; `df -h /dev/shm` counts right.
#
# The loader allocates all of it once, before the workers start, in slots of one batch, and uses them over and over: two for each worker
# (`prefetch_factor`) and three more, for a batch that has just come, one in use, and one whose copy to a GPU may not be done. For a
# GPU the batch crosses as uint8, and becomes float32 there; for a CPU it crosses as float32, four times as large.

# %%
image = 3 * 224 * 224
rows = [(workers, size, slots * size * image / MIB, slots * size * image * 4 / MIB)
        for workers, size in ((2, 32), (4, 256), (8, 256)) for slots in [workers * 2 + 3]]
Table(('workers', 'batch', 'uint8 (MiB)', 'float32 (MiB)'), rows)

# %% [markdown]
# Docker's own default for `/dev/shm` is 64 MiB: of this table only two workers with small uint8 batches fit. **Predict** what happens with
# the others: an error, a wait, a slow training?
#
# It depends on how the memory was asked for. A file is made as long as it has to be, and mapped; its pages come at the first write. If
# none are left then, no call is there that could fail: the write itself does, and the kernel sends the signal SIGBUS. The same
# happens with any mapped file that has no room behind it:

# %%
script = '''
import mmap, os, resource, tempfile
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
with tempfile.TemporaryFile() as file:
    os.ftruncate(file.fileno(), mmap.PAGESIZE)
    mapped = mmap.mmap(file.fileno(), mmap.PAGESIZE)
    os.ftruncate(file.fileno(), 0)
    mapped[0] = 1
'''
died = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
print('status', died.returncode, '| words of farewell:', repr(died.stderr))

# %%
import signal

assert died.returncode == -signal.SIGBUS and died.stderr == ''

# %% [markdown]
# No traceback, no `except` that could catch it. With the torch of mmclassification's time a training then ends with "DataLoader worker
# (pid ...) is killed by signal: Bus error", minutes or hours after its start. Today's torch asks for all pages of a tensor at
# once, which may fail with an error, as here, where we ask for more than there is in all:

# %%
script = '''
import shutil, torch
torch.UntypedStorage._new_shared(shutil.disk_usage('/dev/shm').total + 2**20, device='cpu')
'''
with subprocess.Popen([sys.executable, '-c', script], stderr=subprocess.PIPE, text=True) as failed:
    said = failed.communicate()[1]
print(re.sub(r'</torch_\w+>', '<a file>', said.splitlines()[-1]))
for empty in Path('/dev/shm').glob(f'torch_{failed.pid}_*'):  # torch leaves its name behind
    empty.unlink()

# %%
assert failed.returncode == 1 and [found.symptom.key for found in recognise(said)] == ['shm']

# %% [markdown]
# Better, but still late; and where it strikes the thread that sends a finished batch, the batch is lost and the training waits for it
# without end. So the library's loader, before it starts a worker, takes the bytes of a batch from the first sample (`_batch_bytes`),
# counts the slots, and compares with what is free:

# %%
print(inspect.getsource(Loader.shortage))

# %% [markdown]
# We tell it that 64 MiB are free. (On the device `meta` a tensor has a shape and no memory: batches travel there as uint8, as they do
# to a GPU, and no GPU is needed.)


# %%
def with_shm(free, device='cpu', workers=4, batch_size=256):
    """What the loader says in front of so much free shared memory; '' where its batches fit."""
    memory = SimpleNamespace(free=free, used=0)
    with warnings.catch_warnings(), mock.patch.object(loading.shutil, 'disk_usage', lambda path: memory):
        warnings.simplefilter('ignore')  # torch, of more workers than cores
        return Loader(Photographs(), batch_size, workers, device=device).shortage()


print(with_shm(64 * MIB))

# %%
assert '1617 MiB in all' in with_shm(64 * MIB) and 'SHM_SIZE=8gb' in with_shm(64 * MIB)
assert '404 MiB in all' in with_shm(64 * MIB, device='meta')  # uint8: a quarter
assert with_shm(64 * MIB, workers=0) == '' and with_shm(64 * MIB, 'meta', 2, 32) == ''

# %% [markdown]
# These are the ways out: more (`SHM_SIZE` in `.env`), fewer workers or none, smaller batches. `ipc: host` would help too, and share all
# the host's memory segments with the container. `make doctor` asks before anything starts. It asks everything of a `Host`, so
# any machine can be played:


# %%
class Played(Host):
    """This machine with another /dev/shm."""

    shm = 64 * MIB

    def space(self, path):
        return Space(self.shm, self.shm, 0, 0)


# %%
for Played.shm in (64 * MIB, 256 * MIB, 8 * GIB):
    finding = next(check_shm(Facts(Played(), str(CHECKOUT)), 'local'))
    print(f'{finding.level:<6}{finding.said}')

# %%
assert finding.level == 'ok'
assert f'need {(4 * 2 + 3) * 256 * image / GIB:.2f} GiB' in finding.said  # by our own arithmetic

# %% [markdown]
# ## 5. The GPU, through nvidia-ml-py
#
# > lane → mounts, user → versions → shared memory → **GPU**
#
# The driver has a library of its own that tells what each card does: NVML, by which `nvidia-smi` works too, in Python `pynvml` of the
# package nvidia-ml-py. It needs no torch and takes no memory of the card. **Predict** what it says here, and what torch says.

# %% tags=["varies"]
try:
    print(gpu.as_text(gpu.look(open_nvml())))
except RuntimeError as error:
    print(error)
print('\ntorch:', torch.cuda.device_count(), 'devices;', {name: value for name, value in versions.items() if value})

# %% [markdown]
# Without a card, a session from a file answers instead: two cards over thirty seconds, written after NVML's documentation, not recorded
# from hardware. `look` does not know the difference.

# %%
sys.path.insert(0, str(CHECKOUT / 'tests'))
from nvml_replay import Replay

session = open_nvml(Replay())
looks = [(float(second), gpu.look(session)) for second in range(30)]
print(gpu.as_text([replace(card, processes=()) for card in looks[16][1]]))

# %% [markdown]
# "busy" is the share of the last moment in which *any* kernel ran; a kernel on one of 132 multiprocessors counts as 100 %. Whether the
# card does *much* shows in watts and clocks. GPU 0 is slowed by heat here: the same training takes longer, though it is "busy".

# %%
history = gpu_panel.gpu_history(looks)
display(history, history.table)

# %%
hot = looks[16][1][0].sample
assert hot.held_back and any('heat' in reason for reason in hot.held_back)
assert hot.sm_clock < looks[8][1][0].sample.sm_clock and hot.utilisation > 90

# %% [markdown]
# A card that does not tell something (GPU 1 has no wattmeter) gives `None`, never 0. The panel looks at the cards of this machine every
# second while its button is pressed. (A page without a kernel shows no controls; the figure above is what it collects.)

# %% tags=["varies"]
display(gpu_panel.GPUPanel())

# %% [markdown]
# In a training, `GPUMonitorHook` samples the same values and, at most once an epoch, says what holds it up. From the played samples,
# had the loop waited 40 % of its time for batches:

# %%
from workspace_lib.tools.gpu_hook import advice

idle = [replace(cards[0].sample, utilisation=55) for _, cards in looks[4:14]]
print(advice(idle, 0.4)[0].partition('. ')[0])
assert 'loader' in advice(idle, 0.4)[0] and not any('loader' in line for line in advice(idle, 0.0))

# %% [markdown]
# ## 6. An error message, read
#
# Container, driver, mounts and memory fail with messages that name none of these. The doctor has a table of them, each with its cause and
# the way out: `make doctor EXPLAIN='...'`, or a log file. **Predict** the cause of each.

# %%
for text in ('RuntimeError: DataLoader worker (pid 46794) is killed by signal: Bus error.',
             'could not select device driver "" with capabilities: [[gpu]]',
             "PermissionError: [Errno 13] Permission denied: '/workspace/work_dirs/lenet5'"):
    cause, way_out = (found := recognise(text)[0]).symptom.told(**found.values)
    print(f'{found.symptom.title}\n  {cause}\n  {way_out[0]}\n')

# %%
assert recognise('all went well') == []
assert len({symptom.status for symptom in SYMPTOMS}) == len(SYMPTOMS)  # `make doctor` ends with the status of its finding

# %% [markdown]
# ## Exercises
#
# **1. Modify.** With Docker's 64 MiB and ResNet-50's recipe (batches of 32, uint8 to a GPU): how many workers are possible? Work it out,
# then let the loader confirm it.

# %% jupyter={"source_hidden": true} tags=["solution"]
slots = 64 * MIB // (32 * image)
most = (slots - 3) // 2
print(slots, 'slots,', most, 'workers')
assert with_shm(64 * MIB, 'meta', most, 32) == '' and 'free, but' in with_shm(64 * MIB, 'meta', most + 1, 32)

# %% [markdown]
# **2. Break.** Ask for a GPU that no machine has (`select_device('cuda:99')`). Why is this an error, while `auto` falls back on the CPU?

# %% jupyter={"source_hidden": true} tags=["solution"]
from workspace_lib.device import select_device

try:
    select_device('cuda:99')
except RuntimeError as error:
    print(str(error).partition(',')[0])  # who names a device would rather not train a week on the CPU unawares
assert select_device('auto').type in ('cuda', 'cpu')

# %% [markdown]
# **3. Extend.** The doctor does not know "CUDA out of memory". Write a row of its table that does, with the size that was asked for in
# its cause.

# %% jupyter={"source_hidden": true} tags=["solution"]
from workspace_lib.tools.doctor.symptoms import Symptom

row = Symptom('gpu-memory', 45, 'the GPU has no memory left', (r'out of memory\. Tried to allocate (?P<wanted>[\d.]+ \w+)',),
              'A tensor of {wanted} found no room beside weights, gradients and what the backward pass needs.',
              ('--cfg-options data.samples_per_gpu=16   # and lower optimizer.lr by as much',))
match = row.match('torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.20 GiB. GPU 0 has ...')
print(row.told(**match.groupdict())[0])
assert match['wanted'] == '1.20 GiB' and not {row.status} & {symptom.status for symptom in SYMPTOMS}

# %% [markdown]
# ## The same way with a debugger
#
# In VS Code open `notebooks/01_environment.py` and choose the launch entry **the file open in the editor** (*Run and Debug*): the script is
# this notebook. Three breakpoints, in the order in which they are reached:
#
# 1. `surroundings` in `workspace_lib/tools/surroundings.py`: look at `lane`, at `facts.root`; step into `mount_of`.
# 2. `Loader.prepare` in `workspace_lib/datasets/loader.py`: look at `self._slots`; step into `shortage`, at `needed` and `free`.
# 3. `select_device` in `workspace_lib/device.py`: look at `name`, and at `torch.cuda.device_count()`. The entry **train** comes by here
#    as well, and there the call stack shows who asks.
#
# In mmclassification: `tools/train.py` → `mmcls/utils/collect_env.py`; `torch.cuda.device_count` decides there by itself, and of shared memory
# nobody speaks. Next: [02_config](02_config.ipynb), where the first thing of your own comes in.
