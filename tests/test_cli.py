"""The command line from end to end on a tiny data set of files, and what it says when something is wrong."""
from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from workspace_lib.datasets.loader import Loader
from workspace_lib.jpeg_crop import decoder
from workspace_lib.loops import single_gpu_test
from workspace_lib.models.drawing import draw_result
from workspace_lib.tools.cli import COMMANDS, main
from workspace_lib.tools.results import read_results

CLASSES = ('disc', 'square', 'stripes')

CONFIG = '''
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, base_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=64, topk=(1, ),
              loss=dict(type='CrossEntropyLoss')))
img_norm_cfg = dict(mean=[127., 127., 127.], std=[60., 60., 60.], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', size=32), dict(type='RandomFlip', flip_prob=0.5),
    dict(type='Normalize', **img_norm_cfg), dict(type='ImageToTensor', keys=['img']),
    dict(type='ToTensor', keys=['gt_label']), dict(type='Collect', keys=['img', 'gt_label'])]
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', size=(32, 32)),
    dict(type='Normalize', **img_norm_cfg), dict(type='ImageToTensor', keys=['img']),
    dict(type='Collect', keys=['img'])]
data = dict(
    samples_per_gpu=6, workers_per_gpu=0,
    train=dict(type='CustomDataset', data_prefix='{root}/train', pipeline=train_pipeline),
    val=dict(type='CustomDataset', data_prefix='{root}/val', pipeline=test_pipeline),
    test=dict(type='CustomDataset', data_prefix='{root}/val', pipeline=test_pipeline))
optimizer = dict(type='SGD', lr=0.05, momentum=0.9)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy='CosineAnnealing', min_lr=0)
runner = dict(type='EpochBasedRunner', max_epochs=2)
checkpoint_config = dict(interval=1)
log_config = dict(interval=2, hooks=[dict(type='TextLoggerHook')])
evaluation = dict(interval=1, metric='accuracy', metric_options=dict(topk=(1, )), save_best='auto')
workflow = [('train', 1)]
'''


def draw(kind: str, rng: np.random.Generator) -> np.ndarray:
    image = rng.integers(0, 40, (40, 48, 3), dtype=np.uint8)
    if kind == 'disc':
        cv2.circle(image, (24, 20), 12, (220, 60, 60), -1)
    elif kind == 'square':
        cv2.rectangle(image, (12, 8), (36, 32), (60, 220, 60), -1)
    else:
        image[::4] = (60, 60, 220)
    return image


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A data set of 3 x 6 + 3 x 3 drawn JPEGs, its config, and a trained run."""
    root = tmp_path_factory.mktemp('world')
    rng = np.random.default_rng(0)
    for split, count in (('train', 6), ('val', 3)):
        for kind in CLASSES:
            folder = root / split / kind
            folder.mkdir(parents=True)
            for i in range(count):
                cv2.imwrite(str(folder / f'{i}.jpg'), draw(kind, rng))
    config = root / 'tiny.py'
    config.write_text(CONFIG.replace('{root}', str(root)))
    assert main(['train', str(config), '--work-dir', str(root / 'run'), '--seed', '0', '--device', 'cpu']) == 0
    return root


@pytest.fixture
def variant(world, tmp_path):
    """A copy of the config with one piece of text replaced."""
    def make(old: str, new: str) -> str:
        text = (world / 'tiny.py').read_text()
        assert old in text
        path = tmp_path / 'variant.py'
        path.write_text(text.replace(old, new))
        return str(path)
    return make


def fails(capsys, *argv: str) -> str:
    """Run a command that must fail: exit status 1, and its message on stderr without a traceback."""
    assert main([str(a) for a in argv]) == 1
    said = capsys.readouterr().err
    assert said.startswith('error: ') and 'Traceback' not in said
    return said


def test_a_run_leaves_everything_that_it_was(world):
    run = world / 'run'
    names = {re.sub(r'^\d{8}_\d{6}', 'TIME', p.name) for p in run.iterdir()}
    assert {'tiny.py', 'report.json', 'TIME.log', 'TIME.log.json', 'epoch_1.pth', 'epoch_2.pth',
            'latest.pth'} <= names
    assert len([n for n in names if n.startswith('best_accuracy_top-1_epoch_')]) == 1
    report = json.loads((run / 'report.json').read_text())
    assert report['torch'] == torch.__version__.split('+')[0] or report['torch'] == torch.__version__
    from workspace_lib.config import Config
    dumped = Config.fromfile(str(run / 'tiny.py'))
    assert dumped.optimizer.lr == 0.05 and dumped.seed == 0
    meta = torch.load(run / 'latest.pth', weights_only=True)['meta']
    assert tuple(meta['CLASSES']) == CLASSES and meta['seed'] == 0 and "type='ResNet'" in meta['config']


def test_the_log_and_the_report_say_how_jpegs_are_decoded(world):
    said = json.loads((world / 'run' / 'report.json').read_text())['run']['crop_decoding']
    assert said.startswith('crop decoding is on' if decoder() else 'crop decoding is off: ')
    log = next(path for path in (world / 'run').glob('*.log')).read_text()
    assert log.count(f'INFO - {said}\n') == 1


def test_json_lines_hold_training_and_evaluation(world):
    lines = [json.loads(line) for line in next((world / 'run').glob('*.log.json')).read_text().splitlines()]
    assert [(line['epoch'], line['mode']) for line in lines[1:] if line['mode'] == 'val'] == [(1, 'val'), (2, 'val')]
    assert all('accuracy_top-1' in line for line in lines[1:] if line['mode'] == 'val')
    assert {'loss', 'lr', 'time', 'data_time'} <= set(lines[1])


def test_test_writes_the_result_file_of_mmclassification(world, tmp_path, capsys):
    out = tmp_path / 'result.json'
    assert main(['test', str(world / 'tiny.py'), str(world / 'run' / 'latest.pth'), '--out', str(out), '--metrics',
                 'accuracy', 'precision', 'recall', 'f1_score', 'support', '--metric-options', 'topk=(1,2)',
                 '--device', 'cpu']) == 0
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert list(result) == ['accuracy_top-1', 'accuracy_top-2', 'support', 'precision', 'recall', 'f1_score',
                            'class_scores', 'pred_score', 'pred_label', 'pred_class']
    scores = np.array(result['class_scores'])
    assert scores.shape == (9, 3) and np.allclose(scores.sum(1), 1, atol=1e-5)
    truth = np.repeat([0, 1, 2], 3)
    assert result['pred_label'] == scores.argmax(1).tolist()
    assert result['pred_class'] == [CLASSES[label] for label in result['pred_label']]
    assert result['accuracy_top-1'] == pytest.approx(100 * (scores.argmax(1) == truth).mean())
    assert result['support'] == 9
    assert f'accuracy_top-1 : {round(result["accuracy_top-1"], 2)}' in printed


def write_a_good_head(world, path: str) -> None:
    """The run's checkpoint, with a head that tells the first image of each class from the others."""
    from workspace_lib.apis import init_model, prepare_image
    model = init_model(str(world / 'tiny.py'), str(world / 'run' / 'epoch_2.pth'), 'cpu')
    with torch.no_grad():
        features = torch.cat([model.extract_feat(prepare_image(model, str(world / 'val' / kind / '0.jpg'))['img'])[-1]
                              for kind in CLASSES])
    mean = features.mean(0)
    weight = (features - mean) / (features - mean).norm(dim=1, keepdim=True) ** 2
    run = torch.load(world / 'run' / 'epoch_2.pth', weights_only=True)
    run['state_dict'].update({'head.fc.weight': weight, 'head.fc.bias': -weight @ mean})
    torch.save(run, path)


@pytest.mark.parametrize('ending', ['json', pytest.param('pkl', marks=pytest.mark.slow)])
def test_the_result_file_is_that_of_mmclassifications_own_script(world, tmp_path, ending):
    """Key by key and value by value, to the last bit; the script runs on this data set, config and checkpoint."""
    mmcls = importlib.util.find_spec('mmcls')
    if mmcls is None or mmcls.origin is None:
        pytest.skip('mmcls is not installed (extra: lab)')
    script = Path(mmcls.origin).parent / '.mim' / 'tools' / 'test.py'
    config, weights = tmp_path / 'theirs.py', str(tmp_path / 'decided.pth')
    write_a_good_head(world, weights)  # two epochs leave one that takes all for the same class
    config.write_text((world / 'tiny.py').read_text().replace('workers_per_gpu=0',
                                                              'workers_per_gpu=0, persistent_workers=False'))
    asked = ['--metrics', 'accuracy', 'precision', 'recall', 'f1_score', 'support', '--metric-options', 'topk=(1,2)',
             '--device', 'cpu']
    done = subprocess.run([sys.executable, '-W', 'ignore', str(script), str(config), weights, '--out',
                           str(tmp_path / f'theirs.{ending}'), *asked], capture_output=True, text=True,
                          env={**os.environ, 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1'})  # the checkpoint is our own
    assert done.returncode == 0, done.stderr
    assert main(['test', str(config), weights, '--out', str(tmp_path / f'ours.{ending}'), *asked]) == 0
    theirs, ours = (read_results(tmp_path / f'{whose}.{ending}') for whose in ('theirs', 'ours'))
    assert list(theirs) == list(ours) and len(ours) == 10
    for name in ours:
        assert np.array_equal(theirs[name], ours[name]), name
    assert len({*ours['pred_label']}) > 1 and len({*ours['pred_score']}) == 9  # not all alike


def test_a_checkpoint_without_class_names_takes_those_of_the_data_set(world, variant, tmp_path):
    bare, out = tmp_path / 'bare.pth', tmp_path / 'result.json'
    torch.save({'state_dict': torch.load(world / 'run' / 'epoch_2.pth', weights_only=True)['state_dict']}, bare)
    config = variant(f"test=dict(type='CustomDataset', data_prefix='{world}/val'",
                     f"test=dict(type='CustomDataset', classes={list(CLASSES)}, data_prefix='{world}/val'")
    assert main(['test', config, str(bare), '--out', str(out), '--device', 'cpu']) == 0
    assert set(json.loads(out.read_text())['pred_class']) <= set(CLASSES)


def test_metrics_of_both_kinds_reach_the_data_set(world, tmp_path, monkeypatch):
    asked = ['accuracy', 'precision', 'recall', 'f1_score', 'support', 'mAP', 'CP', 'CR']
    seen = []
    monkeypatch.setattr('workspace_lib.datasets.BaseDataset.evaluate',
                        lambda self, results, metric, *args, **kwargs: seen.append(metric) or {})
    assert main(['test', str(world / 'tiny.py'), str(world / 'run' / 'latest.pth'), '--metrics', *asked,
                 '--device', 'cpu']) == 0
    assert seen and all(metric == asked for metric in seen)


def test_show_options_say_how_pictures_are_drawn(world, tmp_path):
    pictures = []
    for width in ('14', '60'):
        folder = tmp_path / width
        assert main(['test', str(world / 'tiny.py'), str(world / 'run' / 'latest.pth'), '--show-dir', str(folder),
                     '--show-options', f'row_width={width}', '--device', 'cpu']) == 0
        pictures.append(cv2.imread(str(folder / 'disc' / '0.jpg')))
    assert not np.array_equal(*pictures)


def loads(module: str, *argv: str) -> bool:
    """Whether a command line loads `module`; in a process of its own."""
    code = (f'import sys; from workspace_lib.tools.cli import main\n'
            f'try: main({list(argv)})\nexcept SystemExit: pass\nprint({module!r} in sys.modules)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1] == 'True'


@pytest.mark.parametrize('argv', [['--help'], ['train', '--help'], ['test', '--help'], ['nonsense'],
                                  ['config', 'lenet/lenet5_mnist5k.py', '--origin']], ids=' '.join)
def test_what_computes_nothing_loads_no_torch(argv):
    assert not loads('torch', *argv)
    assert not loads('matplotlib', *argv)


def test_the_overview_has_every_command_in_its_group(capsys):
    with pytest.raises(SystemExit):
        main(['--help'])
    shown = capsys.readouterr().out
    for group, rows in COMMANDS.items():
        section = shown.partition(f'{group}:\n')[2].partition('\n\n')[0]
        assert len(section.splitlines()) == len(rows)
        for (names, _, summary), line in zip(rows, section.splitlines(), strict=True):
            assert line.split()[0] == names.split()[0] and line.endswith(summary)


@pytest.mark.parametrize('name', [name for rows in COMMANDS.values() for names, *_ in rows for name in names.split()])
def test_every_command_has_help_under_all_its_names(name, capsys):
    for spelling in {name, name.replace('_', '-')}:
        with pytest.raises(SystemExit) as ended:
            main([spelling, '--help'])
        assert ended.value.code == 0
        assert '--traceback' in capsys.readouterr().out


def test_a_package_that_a_command_needs_is_named_with_the_way_to_it(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, 'workspace_lib.tools.vis_lr', raising=False)
    monkeypatch.delitem(sys.modules, 'workspace_lib.tools.plots', raising=False)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    said = fails(capsys, 'vis_lr', 'lenet/lenet5_mnist5k.py')
    assert 'pip install matplotlib' in said and 'workspace-lib[lab]' in said


def test_out_items_choose_what_is_written(world, tmp_path):
    out = tmp_path / 'result.yaml'
    assert main(['test', str(world / 'tiny.py'), str(world / 'run' / 'latest.pth'), '--out', str(out),
                 '--out-items', 'pred_label', '--device', 'cpu']) == 0
    assert out.read_text().startswith('pred_label:')


def test_show_dir_holds_every_image_with_its_prediction(world, tmp_path):
    assert main(['test', str(world / 'tiny.py'), str(world / 'run' / 'latest.pth'), '--show-dir', str(tmp_path),
                 '--device', 'cpu']) == 0
    pictures = [p for p in tmp_path.rglob('*') if p.is_file()]
    assert len(pictures) == 9
    assert all(cv2.imread(str(p)) is not None for p in pictures)


def test_pictures_of_images_without_a_file_stay_in_the_folder(tmp_path):
    class Arrays(Dataset):
        data_prefix, CLASSES = 'data/mnist', ['a', 'b']
        filename = staticmethod('MNIST[{}]'.format)

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return dict(img=torch.zeros(1, 4, 4))

        def load_image(self, index):
            return np.zeros((64, 64), np.uint8)

    class Model(torch.nn.Linear):
        CLASSES = Arrays.CLASSES
        show_result = staticmethod(draw_result)

        def forward(self, img, return_loss):
            return [np.array([.2, .8], np.float32)] * len(img)

    folder = tmp_path / 'a' / 'b' / 'pictures'
    single_gpu_test(Model(1, 1), Loader(Arrays(), 2), out_dir=folder, progress=False)
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob('*') if p.is_file()) == [
        Path('a/b/pictures/MNIST[0].png'), Path('a/b/pictures/MNIST[1].png')]


def test_infer_prints_the_best_classes_and_draws(world, tmp_path, capsys):
    image, picture = world / 'val' / 'disc' / '0.jpg', tmp_path / 'out.png'
    assert main(['infer', str(image), str(world / 'tiny.py'), str(world / 'run' / 'latest.pth'), '--topk', '2',
                 '--out-file', str(picture), '--device', 'cpu']) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r'\s+\d\.\d{4}  ', line)]
    assert len(lines) == 2 and lines[0].split()[1] in CLASSES
    assert float(lines[0].split()[0]) >= float(lines[1].split()[0])
    assert cv2.imread(str(picture)) is not None


def test_config_prints_what_can_be_read_back(world, capsys):
    assert main(['config', str(world / 'tiny.py'), '--cfg-options', 'optimizer.lr=0.5']) == 0
    from workspace_lib.config import Config
    assert Config.fromstring(capsys.readouterr().out, '.py').optimizer.lr == 0.5


def test_config_origin_names_file_and_line(world, capsys):
    assert main(['config', str(world / 'tiny.py'), '--origin']) == 0
    number = next(n for n, line in enumerate((world / 'tiny.py').read_text().splitlines(), 1) if 'min_lr' in line)
    assert re.search(rf'min_lr.*tiny\.py:{number}\b', capsys.readouterr().out)


def test_packaged_configs_are_found_by_name(capsys):
    assert main(['config', 'lenet/lenet5_mnist5k.py']) == 0
    assert "type='LeNet5'" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_weights_and_another_does_not(world, tmp_path):
    for name, seed in (('a', '7'), ('b', '7'), ('c', '8')):
        assert main(['train', str(world / 'tiny.py'), '--work-dir', str(tmp_path / name), '--seed', seed,
                     '--device', 'cpu', '--cfg-options', 'runner.max_epochs=1']) == 0
    weights = {name: torch.load(tmp_path / name / 'latest.pth', weights_only=True)['state_dict'] for name in 'abc'}
    assert all(torch.equal(weights['a'][key], weights['b'][key]) for key in weights['a'])
    assert not torch.equal(weights['a']['head.fc.weight'], weights['c']['head.fc.weight'])


def test_resuming_goes_on_to_the_same_weights(world, tmp_path):
    run = str(tmp_path / 'run')
    assert main(['train', str(world / 'tiny.py'), '--work-dir', run, '--seed', '0', '--device', 'cpu']) == 0
    whole = torch.load(world / 'run' / 'epoch_2.pth', weights_only=True)['state_dict']
    assert all(torch.equal(v, whole[k]) for k, v in
               torch.load(f'{run}/epoch_2.pth', weights_only=True)['state_dict'].items())
    assert main(['train', str(world / 'tiny.py'), '--work-dir', str(tmp_path / 'resumed'), '--seed', '0', '--device',
                 'cpu', '--resume-from', f'{run}/epoch_1.pth']) == 0
    resumed = torch.load(tmp_path / 'resumed' / 'epoch_2.pth', weights_only=True)['state_dict']
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_dropout_goes_on_where_it_was_and_the_seed_comes_from_the_checkpoint(world, variant, tmp_path):
    (tmp_path / 'dropping.py').write_text(
        'import torch\nfrom workspace_lib.registry import BACKBONES\nfrom workspace_lib.models import ResNet\n'
        '@BACKBONES.register_module(force=True)\nclass Dropping(ResNet):\n    def forward(self, x):\n'
        '        return tuple(torch.nn.functional.dropout(y, 0.5, self.training) for y in super().forward(x))\n')
    sys.path.insert(0, str(tmp_path))
    try:
        config = variant("backbone=dict(type='ResNet'", "backbone=dict(type='Dropping'")
        Path(config).write_text(Path(config).read_text() + "custom_imports = dict(imports=['dropping'])\n")
        more = ['--device', 'cpu']
        assert main(['train', config, '--work-dir', str(tmp_path / 'whole'), *more]) == 0
        assert main(['train', config, '--work-dir', str(tmp_path / 'other'), '--resume-from',
                     str(tmp_path / 'whole' / 'epoch_1.pth'), *more]) == 0
    finally:
        sys.path.remove(str(tmp_path))
    whole, resumed = (torch.load(tmp_path / name / 'epoch_2.pth', weights_only=True) for name in ('whole', 'other'))
    assert whole['meta']['seed'] == resumed['meta']['seed']
    assert all(torch.equal(v, resumed['state_dict'][k]) for k, v in whole['state_dict'].items())


def test_a_resumed_run_keeps_its_best_and_its_newest(world, tmp_path):
    run = tmp_path / 'run'
    more = ['--work-dir', str(run), '--device', 'cpu', '--cfg-options', 'checkpoint_config.max_keep_ckpts=1']
    assert main(['train', str(world / 'tiny.py'), '--seed', '0', *more]) == 0
    assert main(['train', str(world / 'tiny.py'), '--resume-from', str(run / 'latest.pth'), *more,
                 'runner.max_epochs=4']) == 0
    assert [p.name for p in run.glob('epoch_*.pth')] == ['epoch_4.pth']
    best, = run.glob('best_*.pth')
    lines = [json.loads(line) for path in sorted(run.glob('*.log.json')) for line in path.read_text().splitlines()]
    top = max(line['accuracy_top-1'] for line in lines if line.get('mode') == 'val')
    assert torch.load(best, weights_only=True)['meta']['best_score'] == pytest.approx(top, abs=1e-4)


def test_a_checkpoint_cannot_name_a_file_to_delete(world, tmp_path):
    victim = tmp_path / 'victim.pth'
    victim.write_text('precious')
    crafted = torch.load(world / 'run' / 'epoch_1.pth', weights_only=True)
    crafted['meta']['hook_msgs'] = dict(best_score=0.0, best_ckpt=str(victim))
    torch.save(crafted, tmp_path / 'crafted.pth')
    assert main(['train', str(world / 'tiny.py'), '--work-dir', str(tmp_path / 'run'), '--device', 'cpu',
                 '--resume-from', str(tmp_path / 'crafted.pth')]) == 0
    assert victim.read_text() == 'precious'


def test_resuming_another_run_does_not_write_over_this_one(world, capsys, tmp_path):
    elsewhere = tmp_path / 'epoch_1.pth'
    elsewhere.write_bytes((world / 'run' / 'epoch_1.pth').read_bytes())
    before = (world / 'run' / 'epoch_2.pth').read_bytes()
    said = fails(capsys, 'train', world / 'tiny.py', '--work-dir', world / 'run', '--resume-from', elsewhere)
    assert 'already holds a run' in said and (world / 'run' / 'epoch_2.pth').read_bytes() == before


def test_a_finished_run_has_nothing_to_resume(world, capsys, tmp_path):
    said = fails(capsys, 'train', world / 'tiny.py', '--work-dir', tmp_path / 'w', '--resume-from',
                 world / 'run' / 'epoch_2.pth')
    assert 'raise runner.max_epochs' in said and not (tmp_path / 'w').exists()


def test_options_of_compile_as_one_word_are_refused_and_not_left_out(world, capsys, tmp_path):
    said = fails(capsys, 'train', world / 'tiny.py', '--work-dir', tmp_path / 'w', '--device', 'cpu', '--cfg-options',
                 "compile=dict(mode='reduce-overhead')")
    assert "compile is \"dict(mode='reduce-overhead')\"" in said and 'compile.mode=NAME' in said


def test_compile_is_a_config_key(world, tmp_path):
    import torch._dynamo
    torch._dynamo.utils.counters.clear()
    assert main(['train', str(world / 'tiny.py'), '--work-dir', str(tmp_path / 'run'), '--device', 'cpu', '--seed', '0',
                 '--no-validate', '--cfg-options', 'compile.backend=eager', 'runner.max_epochs=1']) == 0
    assert torch._dynamo.utils.counters['stats']['calls_captured'] > 20
    logs = {path: next(path.glob('*.log')).read_text() for path in (tmp_path / 'run', world / 'run')}
    said = ', float32, compiled (the first step of each shape may take minutes): '
    assert [said in log for log in logs.values()] == [True, False]
    compiled, plain = (torch.load(path / 'epoch_1.pth', weights_only=True)['state_dict']
                       for path in (tmp_path / 'run', world / 'run'))
    torch.testing.assert_close(dict(compiled), dict(plain))


def test_bf16_channels_last_and_accumulation_are_config_keys(world, tmp_path):
    assert main(['train', str(world / 'tiny.py'), '--work-dir', str(tmp_path / 'run'), '--device', 'cpu',
                 '--cfg-options', 'bf16=True', 'channels_last=True', 'optimizer_config.cumulative_iters=2']) == 0
    state = torch.load(tmp_path / 'run' / 'latest.pth', weights_only=True)['state_dict']
    assert state['backbone.conv1.weight'].dtype is torch.float32
    assert state['backbone.conv1.weight'].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.isfinite(v).all() for v in state.values())


def test_fp16_recipe_runs_on_the_cpu_in_float32_and_says_so_once(world, tmp_path, capsys):
    assert main(['train', str(world / 'tiny.py'), '--work-dir', str(tmp_path / 'run'), '--device', 'cpu',
                 '--cfg-options', 'fp16.loss_scale=512.', 'runner.max_epochs=1']) == 0
    assert capsys.readouterr().out.count('computes in float32') == 1


def test_workflow_with_validation_logs_its_loss(world, tmp_path):
    assert main(['train', str(world / 'tiny.py'), '--work-dir', str(tmp_path / 'run'), '--device', 'cpu',
                 '--no-validate', '--cfg-options', 'workflow=[(train,1),(val,1)]', 'runner.max_epochs=1',
                 'data.val.pipeline=None']) == 0
    lines = [json.loads(line) for line in next((tmp_path / 'run').glob('*.log.json')).read_text().splitlines()]
    assert [line['mode'] for line in lines[1:]].count('val') == 1 and lines[-1]['loss'] > 0


def test_scripts_are_the_same_commands(world):
    script = Path(__file__).parents[1] / 'scripts' / 'image_demo.py'
    done = subprocess.run([sys.executable, str(script), str(world / 'val/disc/0.jpg'), str(world / 'tiny.py'),
                           str(world / 'run' / 'latest.pth'), '--device', 'cpu'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert any(name in done.stdout for name in CLASSES)


# What goes wrong: each a clear error, exit status 1, nothing overwritten.

def test_unknown_type(variant, capsys, tmp_path):
    said = fails(capsys, 'train', variant("type='ResNet'", "type='ResNeet'"), '--work-dir', tmp_path / 'w')
    assert 'ResNeet is not in the models registry' in said and 'ResNet' in said and 'variant.py:4' in said
    assert not (tmp_path / 'w').exists()


def test_misspelt_argument(variant, capsys, tmp_path):
    said = fails(capsys, 'train', variant('depth=18', 'dpeth=18'), '--work-dir', tmp_path / 'w')
    assert "'dpeth'" in said and "did you mean 'depth'" in said and 'variant.py:4' in said
    assert not (tmp_path / 'w').exists()


def test_misspelt_top_level_key(variant, capsys):
    said = fails(capsys, 'train', variant('optimizer = dict', 'optimzer = dict'))
    line = 1 + CONFIG[:CONFIG.index('optimizer = dict')].count('\n')
    assert "'optimzer'" in said and "did you mean 'optimizer'" in said and f'variant.py:{line}' in said


def test_misspelt_key_of_data(variant, capsys, tmp_path):
    said = fails(capsys, 'train', variant('samples_per_gpu=6', 'sample_per_gpu=6'), '--work-dir', tmp_path / 'w')
    assert not (tmp_path / 'w').exists()
    assert 'sample_per_gpu' in said and 'samples_per_gpu' in said


def test_misspelt_option(world, capsys):
    assert 'modle' in fails(capsys, 'train', world / 'tiny.py', '--cfg-options', 'modle.backbone.depth=50')


@pytest.mark.parametrize('old, new, named', [
    ("optimizer = dict(type='SGD', lr", "optimizer = dict(type='SGD', learning_rate", "'learning_rate'"),
    ("policy='CosineAnnealing'", "policy='CosineAnealing'", 'CosineAnnealing'),
    ("checkpoint_config = dict(interval=1)", "checkpoint_config = dict(intervall=1)", "did you mean 'interval'"),
    ("data_prefix='{root}/val', pipeline=test_pipeline),\n    test",
     "data_prefix='/nowhere', pipeline=test_pipeline),\n    test", '/nowhere'),
    ("metric='accuracy'", "metric='acuracy'", 'acuracy'),
    ("save_best='auto'", "save_best='foo'", 'accuracy_top-1'),
    ('evaluation = dict(interval=1', 'evaluation = dict(intervall=1', 'known: interval'),
    ('evaluation = dict(interval=1', 'evaluation = dict(interval=0', 'starts at 1'),
    ("workflow = [('train', 1)]", "workflow = [('train', 1)]\nlog_level = 'LOUD'", 'DEBUG'),
    ("workflow = [('train', 1)]", "workflow = [('train', 1)]\nload_from = __file__ + '.none'", 'does not exist'),
    ("workflow = [('train', 1)]", "workflow = [('train', 1)]\nseed = -1", 'out of range'),
    ("workflow = [('train', 1)]", "workflow = [('train', 1)]\ncustom_hooks = dict(type='X')", 'list of dicts'),
    ('samples_per_gpu=6', 'samples_per_gpu=0', 'starts at 1'),
    ('samples_per_gpu=6', 'samples_per_gpu=100, drop_last=True', 'drop_last'),
    ('max_epochs=2', 'max_epochs=0', 'at least 1'),
    ("optimizer = dict(type='SGD', lr=0.05, momentum=0.9)", "optimizer = 'SGD'", 'must be a dict')])
def test_mistakes_are_found_before_anything_is_written(variant, world, capsys, tmp_path, old, new, named):
    said = fails(capsys, 'train', variant(old.replace('{root}', str(world)), new), '--work-dir', tmp_path / 'w')
    assert named in said
    assert not (tmp_path / 'w').exists()


def test_value_out_of_range(variant, capsys):
    said = fails(capsys, 'train', variant('depth=18', 'depth=19'))
    assert '19' in said and '18, 34, 50, 101, 152' in said and 'variant.py:4' in said


def test_missing_config(capsys):
    assert 'nowhere.py' in fails(capsys, 'train', 'nowhere.py')


def test_circular_base(tmp_path, capsys):
    (tmp_path / 'a.py').write_text("_base_ = './b.py'\n")
    (tmp_path / 'b.py').write_text("_base_ = './a.py'\n")
    said = fails(capsys, 'config', tmp_path / 'a.py')
    assert 'a.py' in said and 'b.py' in said


@pytest.mark.parametrize('command', ['train', 'test'])
def test_wrong_number_of_classes(variant, world, capsys, tmp_path, command):
    config = variant('num_classes=3', 'num_classes=4')
    more = ['--work-dir', tmp_path / 'w'] if command == 'train' else [world / 'run' / 'latest.pth',
                                                                      '--metrics', 'accuracy']
    said = fails(capsys, command, config, *more)
    assert 'num_classes' in said and '4' in said and '3' in said
    assert not (tmp_path / 'w').exists()


def test_truncated_jpeg_is_named(world, variant, capsys, tmp_path):
    broken = tmp_path / 'val' / 'disc'
    broken.mkdir(parents=True)
    for kind in CLASSES[1:]:
        (tmp_path / 'val' / kind).mkdir()
        (tmp_path / 'val' / kind / '0.jpg').write_bytes((world / 'val' / kind / '0.jpg').read_bytes())
    (broken / 'half.jpg').write_bytes((world / 'val' / 'disc' / '0.jpg').read_bytes()[:600])
    config = variant(str(world / 'val'), str(tmp_path / 'val'))
    out = tmp_path / 'result.json'
    out.write_text('earlier')
    said = fails(capsys, 'test', config, world / 'run' / 'latest.pth', '--metrics', 'accuracy', '--out', out)
    assert 'half.jpg' in said
    assert out.read_text() == 'earlier'


def test_empty_annotation_file(world, variant, capsys, tmp_path):
    (tmp_path / 'empty.txt').write_text('')
    config = variant("type='CustomDataset', data_prefix='" + str(world / 'train') + "'",
                     "type='CustomDataset', ann_file='" + str(tmp_path / 'empty.txt')
                     + "', data_prefix='" + str(world / 'train') + "'")
    assert 'empty.txt' in fails(capsys, 'train', config, '--work-dir', tmp_path / 'w')
    assert not (tmp_path / 'w').exists()


def test_checkpoint_of_another_model(world, capsys, tmp_path):
    other = tmp_path / 'other.pth'
    torch.save(dict(state_dict={'encoder.weight': torch.zeros(2)}), other)
    said = fails(capsys, 'test', world / 'tiny.py', other, '--metrics', 'accuracy')
    assert 'encoder.weight' in said and 'backbone' in said


def test_checkpoint_that_wants_to_run_code(world, capsys, tmp_path):
    evil, trace = tmp_path / 'evil.pth', tmp_path / 'executed'

    class Payload:
        def __reduce__(self):
            return exec, (f'open({str(trace)!r}, "w")',)

    evil.write_bytes(pickle.dumps(dict(state_dict=Payload())))
    said = fails(capsys, 'test', world / 'tiny.py', evil, '--metrics', 'accuracy')
    assert 'evil.pth' in said and 'exec' in said
    assert not trace.exists()


def test_missing_checkpoint(world, capsys):
    assert 'nothing.pth' in fails(capsys, 'test', world / 'tiny.py', world / 'nothing.pth', '--metrics', 'accuracy')


def test_a_folder_with_a_run_is_not_written_over(world, capsys):
    before = (world / 'run' / 'epoch_2.pth').read_bytes()
    said = fails(capsys, 'train', world / 'tiny.py', '--work-dir', world / 'run')
    assert '--resume-from' in said and '--work-dir' in said
    assert (world / 'run' / 'epoch_2.pth').read_bytes() == before


def test_a_device_that_is_not_there(world, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    said = fails(capsys, 'test', world / 'tiny.py', world / 'run' / 'latest.pth', '--metrics', 'accuracy',
                 '--device', 'cuda')
    assert 'cuda' in said and '--device cpu' in said


def test_result_file_problems_are_found_before_the_test(world, capsys):
    for out, said in (('result.txt', '.json'), ('/nowhere/at/all/result.json', 'does not exist')):
        assert said in fails(capsys, 'test', world / 'tiny.py', world / 'run' / 'latest.pth', '--out', out)


def test_unknown_metric_is_found_before_the_test(world, capsys, monkeypatch):
    monkeypatch.setattr('workspace_lib.tools.commands.single_gpu_test', lambda *args: pytest.fail('it was run'))
    said = fails(capsys, 'test', world / 'tiny.py', world / 'run' / 'latest.pth', '--metrics', 'acuracy')
    assert 'acuracy' in said and 'accuracy' in said


def test_wrong_number_of_classes_in_a_backbone_that_classifies(capsys, tmp_path):
    said = fails(capsys, 'train', 'lenet/lenet5_mnist5k.py', '--work-dir', tmp_path / 'w', '--cfg-options',
                 'model.backbone.num_classes=20')
    assert 'num_classes=20' in said and 'model.backbone.num_classes=10' in said
    assert not (tmp_path / 'w').exists()


def test_a_digit_from_a_file_is_read_in_grey(capsys, tmp_path):
    cv2.imwrite(str(tmp_path / 'digit.png'), np.zeros((28, 28), np.uint8))
    from workspace_lib.apis import init_model, prepare_image
    model = init_model('lenet/lenet5_mnist5k.py', device='cpu')
    assert prepare_image(model, str(tmp_path / 'digit.png'))['img'].shape == (1, 1, 32, 32)


def test_traceback_is_there_on_request(world):
    with pytest.raises(FileNotFoundError):
        main(['config', 'nowhere.py', '--traceback'])
