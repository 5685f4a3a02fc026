# %% [markdown]
# # 5분 만에 끝까지 가 보기
#
# [English](00_tour.ipynb)
#
# **config 파일에서 테스트를 마친 분류기까지, 그 사이에 무슨 일이 일어날까요?** config를 불러와 값이 어디에서 왔는지 묻고, 레지스트리가
# 모델을 만드는 과정을 지켜보고, 실제 ImageNet 가중치로 사진을 분류하고, 실제 손글씨 숫자로 LeNet-5를 학습하고, 가장 크게 틀린 답을
# 살펴보고, 체크포인트를 열어 본 다음, 다시 테스트합니다.
#
# **시간**: 읽는 데 5분, 셀 실행은 CPU에서 1분이 안 걸립니다. **준비물**: 이 환경뿐입니다. GPU도 네트워크도 내려받을 것도 필요 없습니다.
#
# > config → registry → inference → test loop → train loop → checkpoint → test again
# >
# > *현재 위치*: 줄의 맨 앞입니다. 다 읽고 나면 맨 끝에 와 있습니다.
#
# 각 절에서는 먼저 **예상**하고 나서 **실행**합니다. 그다음에 **설명**이 나오고, 그 설명이 맞는지 셀이 **assert**로 확인합니다. 무엇이든
# 바꿔 보십시오. 라이브러리는 editable로 설치되어 있어서 `workspace_lib/`를 고치면 autoreload가 다음 셀부터 이 노트북에 반영합니다.

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

torch.set_num_threads(1)  # 코어가 더 많은 컴퓨터에서도 같은 숫자가 나오도록
runs = tempfile.TemporaryDirectory()  # 체크아웃에는 아무것도 남지 않는다

# %%
def boundary(name, x):
    """What crosses from one part to the next: its shape, dtype and device."""
    print(f'{name:<30}{str(tuple(x.shape)):<20}{str(x.dtype):<16}{x.device}')


# %% [markdown]
# 전체를 그림 하나로 보면 이렇습니다. 화살표 위에는 호출되는 함수, 또는 그 화살표를 따라 넘어가는 것이 적혀 있습니다.
#
# ```mermaid
# flowchart TD
#   accTitle: config 파일에서 체크포인트까지
#   accDescr {
#     config 파일이 Config가 된다. 그것으로 레지스트리가 데이터셋과 모델을 만든다. 로더는 float 배치를 모델에 보낸다.
#     test loop는 점수를 모으고, train loop는 체크포인트를 저장하며, 모델은 그 체크포인트에서 다시 시작한다.
#   }
#   file["config 파일"] -- "Config.fromfile" --> cfg["cfg: 중첩된 dict"]
#   cfg -- "build_dataset" --> dataset["데이터셋"]
#   dataset -- "uint8 (H, W, C)" --> loader
#   cfg -- "build_classifier" --> model["backbone → neck → head"]
#   loader -- "float32 (N, C, H, W)" --> model
#   model -- "scores (N, classes)" --> test["test loop"]
#   model -- "loss" --> train["train loop"]
#   train -- "state_dict" --> checkpoint
#   checkpoint --> model
# ```
#
# ## 1. Config: 값은 어디에서 오는가?
#
# > **config** → registry → inference → test loop → train loop → checkpoint → test again
#
# **예상**: 아래가 레시피의 전부입니다. 학습률은 여기에 없습니다. 그러면 학습률은 어디에서 올까요?

# %%
cfg = apis.load_config('lenet/lenet5_mnist5k.py')
print(Path(cfg.filename).read_text())

# %%
print(cfg.pretty_text)

# %% [markdown]
# `_base_`에 적힌 파일들을 먼저 읽고, 그 위에 레시피 자신의 키를 병합합니다. 결과는 하나의 중첩된 딕셔너리이며, 키를 속성처럼 쓸 수도
# 있습니다. 다른 코드 베이스라면 누가 `lr`을 정했는지 알아내려고 파일 네 개를 뒤져야 합니다. 여기서는 config가 기억하고 있습니다.

# %%
print(cfg.optimizer.lr, 'set in', cfg.origin('optimizer.lr'))

# %%
origin = cfg.origin('checkpoint_config.interval')
print(cfg.checkpoint_config.interval, 'set in', origin, 'over', *origin.overrides)

# %%
assert cfg.optimizer.lr == cfg['optimizer']['lr']
assert origin.file.endswith('lenet5_mnist5k.py') and origin.overrides[0].file.endswith('default_runtime.py')

# %% [markdown]
# OpenMMLab의 로더도 이 파일을 똑같이 읽을까요? 바로 이런 질문에 답하려고 mmcv 1.7.2가 라이브러리 옆에 설치되어 있습니다.

# %%
with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # mmcv는 자기 후속 버전을 알리고 ...
    logging.disable()  # ... CUDA 컴파일러를 찾는다
    from mmcv import Config as MMCVConfig

    logging.disable(logging.NOTSET)

# %%
assert MMCVConfig.fromfile(cfg.filename)._cfg_dict.to_dict() == cfg.to_dict()

# %% [markdown]
# ## 2. Registry: 누가 무엇을 만드는가?
#
# > config → **registry** → inference → test loop → train loop → checkpoint → test again
#
# `cfg.model`은 데이터입니다. `type='LeNet5'`는 문자열일 뿐입니다. 레지스트리는 그런 문자열을 클래스에 대응시키는 딕셔너리입니다.
# **예상**: `build_classifier(cfg.model)`은 객체를 몇 개 만들고, 그중 무엇을 가장 먼저 만들까요?

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
# classifier가 맨 먼저 만들어지고, 자기 부품을 스스로 만듭니다. 트리가 한 단계 깊어질 때마다 생성자 안에서 `build`가 한 번 더 호출된
# 것입니다. 위의 *arguments*를 펼치면 각각이 무엇을 받았는지 보입니다.
#
# 그런데 딕셔너리는 `LeNet5`라는 이름을 언제 알게 되었을까요? import할 때, 아래의 사슬을 따라서입니다. 마지막 줄이 그 클래스입니다.

# %%
for line in MODELS.registered_by('LeNet5'):
    print(shown(line))

# %% [markdown]
# backbone이 이미지 배치로 하는 일은 그 파일의 네 줄입니다.

# %%
print(inspect.getsource(type(model.backbone).forward))

# %%
built = [record.type for record in trace.records]
assert built == ['ImageClassifier', 'LeNet5', 'ClsHead', 'CrossEntropyLoss']
assert trace.records[0].parameters == 61_706
assert type(model.backbone) is BACKBONES.get('LeNet5')

# %% [markdown]
# ## 3. Inference: 사진이 이름이 되기까지
#
# > config → registry → **inference** → test loop → train loop → checkpoint → test again
#
# EfficientNet-Lite0와 그 ImageNet 가중치입니다. 가중치는 패키지에 들어 있습니다. 먼저 test 파이프라인이 파일 하나에 무엇을 하는지
# 봅니다. **예상**: 값이 더 이상 바이트가 아니게 되는 단계는 어디일까요?

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
# crop까지 이미지는 uint8이고, 메모리는 float32의 4분의 1입니다. GPU로 가는 길이라면 워커는 이 바이트를 그대로 보내고,
# `Normalize`는 장치에서 배치 전체에 한 번에 적용됩니다. config의 단계를 없앤 것이 아니라 옮긴 것입니다. 이제 같은 이미지를 모델의 각
# 부분에 통과시킵니다.

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
# `inference_model`은 이 단계들을 한 번의 호출로 묶은 것입니다.

# %%
names = ['chelsea.png', 'coffee.png', 'flower.jpg']
answers = [apis.inference_model(classifier, photograph(name)) for name in names]

# %%
images = [decode(photograph(name)) for name in names]  # uint8 (H, W, 3), OpenCV처럼 BGR
scores = [answer['scores'] for answer in answers]
photos = plots.predictions(images, scores, classifier.CLASSES, names)
display(photos, photos.table)

# %% [markdown]
# 꽃은 달리아입니다. ImageNet에는 그런 클래스가 없어서, 모델은 자기가 아는 것들에 조금씩 나누어 겁니다.

# %% [markdown]
# 이번에는 직접 움직여 볼 차례입니다. 짧은 변을 `size`로 줄이거나 늘린 다음, 가운데 224픽셀을 잘라 냅니다. 672에서는 고양이
# 사진의 7 %만 남습니다. **예상**: `size`가 커질수록 신경망은 더 확신할까요, 덜 확신할까요? (커널이 없는 페이지에는 조작 도구가
# 나타나지 않습니다. 위의 사진들이 그중 한 가지 설정입니다.)

# %% tags=["varies"]
display(widgets.crop_explorer(classifier, names))

# %%
height, width = images[0].shape[:2]
surest = {}
for size in (224, 448, 672):
    label, surest[size] = widgets.seen_at(classifier, chelsea, size).table.rows[0][2:4]
    print(f'{size}: {224 ** 2 / (size * (width * size // height)):.0%} of the picture, {label} {surest[size]:.0f} %')
assert surest[224] < surest[448] > surest[672]  # 눈 하나까지는 더 확신하고, 눈 반쪽이면 덜 확신함
cats = {label for label, _ in plots.top_k(scores[0], classifier.CLASSES, 3)}
assert cats == {'tabby', 'tiger cat', 'Egyptian cat'}
assert answers[1]['pred_class'] == 'espresso'

# %% [markdown]
# ## 4. Test loop: 배열의 리스트
#
# > config → registry → inference → **test loop** → train loop → checkpoint → test again
#
# 아직 학습하지 않은 LeNet-5로 돌아갑니다. 그리고 학습에는 한 번도 쓰이지 않는 실제 숫자 1,000장이 있습니다. 정확도를 **예상**해 보십시오.

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
# 클래스는 열 개, 클래스마다 숫자가 100장씩입니다. 찍기만 해도 1,000장 중 100장쯤은 맞힙니다. 무작위 가중치는 운에 따라 이보다 조금 더
# 맞히거나 덜 맞힙니다. 정확도에 신비한 것은 없습니다. 손으로 쓰면 한 줄이고, 라이브러리의 값과 같습니다.

# %%
by_hand = 100 * (np.stack(untrained).argmax(axis=1) == labels).mean()
assert np.isclose(before, by_hand) and before < 30

# %% [markdown]
# ## 5. Train loop: 여섯 에폭
#
# > config → registry → inference → test loop → **train loop** → checkpoint → test again
#
# 이 레시피는 20 에폭을 학습하여 98 %에 이릅니다. 여섯 에폭이면 어디까지 갈지 **예상**해 보십시오. config의 어떤 값이든 경로로 덮어쓸 수
# 있으며, 여기서나 명령줄에서나 마찬가지입니다(`workspace train CONFIG --cfg-options runner.max_epochs=6`).

# %%
work_dir = Path(runs.name) / 'lenet'
brief = {'runner.max_epochs': 6, 'log_level': 'ERROR'}
recipe = 'lenet/lenet5_mnist5k.py'
if not work_dir.exists():  # 실행 기록이 있는 폴더는 절대 덮어쓰지 않는다
    runner = commands.train(recipe, str(work_dir), seed=0, device='cpu', options=brief)

# %%
print(sorted(path.name.replace(runner.timestamp, 'TIME') for path in work_dir.iterdir() if path.suffix != '.patch'))

# %% [markdown]
# 이 폴더에는 그 실행의 모든 것이 있습니다. 최종 config, 버전, 로그, 같은 내용의 JSON lines, 체크포인트입니다. 아래 그림에서 왼쪽은 로그
# 항목마다의 손실, 오른쪽은 에폭이 끝날 때마다 따로 떼어 둔 데이터로 잰 정확도입니다.

# %% tags=["varies"]
curves = plots.learning_curves(plots.read_log(work_dir))
display(curves, curves.table)

# %% [markdown]
# 학습 한 스텝은 네 가지 일입니다. 배치를 하나 꺼내고, `model.train_step`을 부르고, 로그를 남기고, 훅을 호출합니다. 역전파와
# 옵티마이저의 스텝도 훅입니다. 바로 `OptimizerHook`입니다. 방금 실행된 루프는 이것입니다.

# %%
print(inspect.getsource(type(runner).train), inspect.getsource(type(runner)._iterate), sep='\n')

# %%
assert runner.epoch == 6 and runner.iter == 6 * 63  # 숫자 4,000장은 최대 64장짜리 배치 63개
assert curves.table.rows[-1][2] > 90 and curves.table.rows[-1][1] < curves.table.rows[0][1] / 5

# %% [markdown]
# ## 6. Checkpoint: 파일 안에 무엇이 있는가?
#
# > config → registry → inference → test loop → train loop → **checkpoint** → test again
#
# **예상**: 이 파일은 딕셔너리입니다. 분류하는 데 필요한 키는 무엇이고, 학습을 이어 가는 데만 필요한 키는 무엇일까요?

# %%
from workspace_lib.checkpoint import read_checkpoint

saved = read_checkpoint(work_dir / 'latest.pth')
print({key: len(value) for key, value in saved.items()})
print(sorted(saved['meta']))

# %%
for name, tensor in saved['state_dict'].items():
    boundary(name, tensor)

# %% [markdown]
# 분류에는 `state_dict`만 있으면 됩니다. `optimizer`(여기서는 모멘텀), `random`(난수 생성기들의 상태), 그리고 `meta`에 든 카운터는
# `--resume-from`을 위한 것입니다. 텐서의 이름은 모델 안의 경로이고 mmclassification의 이름과 같아서, 그쪽 체크포인트를 여기서도 불러올 수
# 있습니다. 파일을 읽을 때는 그 안에 들어 있을지 모르는 코드를 실행하지 않습니다.

# %%
assert set(saved) == {'meta', 'state_dict', 'optimizer', 'random'} and saved['meta']['epoch'] == 6
assert sum(tensor.numel() for tensor in saved['state_dict'].values()) == 61_706

# %% [markdown]
# ## 7. 다시 테스트: 어떤 오답이 남았는가?
#
# > config → registry → inference → test loop → train loop → checkpoint → **test again**
#
# 새 모델에 파일의 가중치를 넣습니다. **예상**: 어떤 두 숫자를 가장 많이 혼동할까요?

# %%
trained = apis.init_model(cfg, str(work_dir / 'latest.pth'), device='cpu')
results = apis.single_gpu_test(trained, loader)
after = dataset.evaluate(results, 'accuracy', dict(topk=1))['accuracy']

# %% tags=["varies"]
confusion = plots.confusion_matrix(results, labels, dataset.CLASSES)
display(confusion, confusion.table)

# %% [markdown]
# 행은 실제 숫자, 열은 모델이 무엇이라고 보았는지입니다. 파란색은 정답, 주황색은 오답이며, 가장 진한 주황색이 앞의 질문에 대한 답입니다.
# 그리고 아래는 틀린 답 중에서 모델이 가장 확신했던 것들입니다. 몇 개는 사람이라도 틀렸을 것입니다.

# %%
worst = plots.worst_mistakes(dataset, results)
display(worst, HTML(worst.table._repr_html_()))

# %%
latest = str(work_dir / 'latest.pth')
same = commands.test(recipe, latest, ['accuracy'], dict(topk=1), device='cpu')
assert after > 90 > before and after == same['accuracy']  # `workspace test`의 답도 같다
assert np.isclose(after, curves.table.rows[-1][2])  # 학습 중의 평가도 같았다

# %% [markdown]
# ## 연습 문제
#
# 풀이는 각 문제 아래에 접혀 있으며, 노트북과 함께 실행된 것입니다.
#
# **1. 바꾸기.** mmclassification의 MNIST 레시피는 학습률이 0.01입니다. 값을 덮어써서 그 학습률로 두 에폭, 이 저장소의 학습률로 두 에폭을
# 학습해 보십시오. 어느 쪽의 손실이 더 낮을까요? 그리고 왜 그것으로 60,000장의 경우를 말할 수 없을까요?

# %% jupyter={"source_hidden": true} tags=["solution"]
losses = {}
for lr in (0.01, 0.1):
    folder = tempfile.mkdtemp(dir=runs.name)
    options = {**brief, 'runner.max_epochs': 2, 'optimizer.lr': lr}
    commands.train(recipe, folder, seed=0, device='cpu', validate=False, options=options)
    losses[lr] = plots.read_log(folder)[-1]['loss']
print({lr: round(loss, 2) for lr, loss in losses.items()})
assert losses[0.1] < losses[0.01]  # 60,000장이라면 두 에폭의 스텝 수가 열다섯 배

# %% [markdown]
# **2. 망가뜨리기.** `type='LeNet5'`를 `LeNet`으로, 그다음에는 `num_classes`를 `num_clases`로 잘못 써 보십시오. 두 오류는 각각 무엇을
# 짚어 줄까요?

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
# **3. 확장하기.** 선형 레이어 하나로 된 backbone을 작성하여 등록하고, config에 그 이름을 적어 두 에폭 동안 학습해 보십시오. backbone은
# 튜플을 반환하며, neck이 없으면 그 마지막 원소를 `ClsHead`가 logit으로 씁니다.

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
assert plots.read_log(folder)[-1]['accuracy_top-1'] > 75  # 숫자 인식은 레이어 하나로도 꽤 멀리 간다

# %% [markdown]
# ## 같은 길을 디버거로
#
# 위의 모든 화살표는 평범한 함수 호출이므로, 그 안으로 들어가 볼 수 있습니다. VS Code의 *Run and Debug*에서 실행 구성 **train**을 고르고
# `lenet/lenet5_mnist5k.py`를 지정합니다. 중단점은 세 곳입니다.
#
# 1. `workspace_lib/registry.py`의 `build_from_cfg`: 부품을 하나 만들 때마다 멈춥니다. `cfg`와 `registry.name`, 그리고 지금 누구의
#    생성자 안에 있는지 보여 주는 호출 스택을 보십시오.
# 2. `workspace_lib/runner.py`의 `EpochBasedRunner._iterate`: 학습 한 스텝입니다. 시작할 때 `batch['img'].shape`를, `forward`
#    다음에는 `self.outputs`를 보십시오.
# 3. `workspace_lib/datasets/base.py`의 `BaseDataset.evaluate`: `len(results)`와 `results[0].shape`를 보십시오.
#
# mmclassification에서 같은 길은 `tools/train.py` → `mmcls/apis/train.py` → `mmcv/runner/epoch_based_runner.py`입니다. VS Code가 없다면
# JupyterLab의 디버거를 켜거나(오른쪽 위의 벌레 모양), 멈추고 싶은 곳에 `breakpoint()`를 적으십시오. 예외가 난 뒤에는 `%debug`가 그 일이
# 일어난 프레임을 열어 줍니다.
#
# ## 다음에 갈 곳
#
# - 같은 길을 직접 걸어 보십시오: `workspace config CONFIG --origin`, `workspace train`, `workspace test`,
#   `workspace infer PHOTO CONFIG CHECKPOINT`. `make demo`는 이 이야기를 남에게 보낼 수 있는 한 페이지로 만들어 줍니다.
# - 코드를 실행된 순서대로 읽어 보십시오: `apis.py`, `registry.py`, `runner.py`, `loops.py`, `checkpoint.py`.
# - 다음 노트북: 이 모든 것이 무엇 위에서 실행되는지 보는 [01_environment](01_environment.ipynb). 곧장 [02_config](02_config.ipynb)로
#   가도 됩니다.

# %%
runs.cleanup()
