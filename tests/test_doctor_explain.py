"""``doctor --explain`` on messages as they are printed, and the choice of the base image."""
from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

import workspace_lib
from workspace_lib.tools import doctor
from workspace_lib.tools.doctor import choose_base_image, recognise
from workspace_lib.tools.doctor.base_image import arch_list
from workspace_lib.tools.doctor.facts import Driver, Gpu, byte_count, capability, parse_env
from workspace_lib.tools.doctor.symptoms import BY_KEY

ROOT = Path(workspace_lib.__file__).parents[1]

RUNC = ('Error response from daemon: failed to create task for container: failed to create shim task: OCI runtime '
        'create failed: runc create failed: unable to start container process: error during container init: ')
MESSAGES = [
    ('docker-permission', 'permission denied while trying to connect to the docker API at '
                          'unix:///var/run/docker.sock'),
    ('docker-permission', 'docker: Got permission denied while trying to connect to the Docker daemon socket at '
                          'unix:///var/run/docker.sock: dial unix /var/run/docker.sock: connect: permission denied.'),
    ('docker-stopped', 'Cannot connect to the Docker daemon at unix:///home/ada/.docker/desktop/docker.sock. Is the '
                       'docker daemon running?'),
    ('docker-stopped', 'error during connect: dial unix /var/run/docker.sock: connect: connection refused'),
    ('docker-missing', 'bash: docker: command not found'),
    ('docker-missing', "Command 'docker' not found, but can be installed with:"),
    ('compose-missing', "docker: 'compose' is not a docker command."),
    ('compose-missing', 'docker: unknown command: docker compose'),
    ('compose-missing', 'unknown flag: --wait'),
    ('compose-missing', '(root) Additional property name is not allowed'),
    ('buildx-missing', 'ERROR: BuildKit is enabled but the buildx component is missing or broken.\n'
                       '       Install the buildx component to build images with BuildKit:\n'
                       '       https://docs.docker.com/go/buildx/'),
    ('buildx-missing', "docker: 'buildx' is not a docker command.\nSee 'docker --help'"),
    ('buildx-missing', 'docker: unknown command: docker buildx\n\nRun \'docker --help\' for more information'),
    ('buildx-missing', 'DEPRECATED: The legacy builder is deprecated and will be removed in a future release.\n'
                       '            Install the buildx component to build images with BuildKit:'),
    ('image-missing', "Error response from daemon: pull access denied for workspace-lab, repository does not exist or "
                      "may require 'docker login': denied: requested access to the resource is denied"),
    ('image-missing', 'failed to resolve reference "docker.io/library/workspace-lab:gpu": pull access denied, '
                      'repository does not exist or may require authorization: server message: insufficient_scope: '
                      'authorization failed'),
    ('image-missing', 'Error response from daemon: No such image: workspace-lab:gpu'),
    ('no-network', 'Error response from daemon: Get "https://registry-1.docker.io/v2/": dial tcp: lookup '
                   'registry-1.docker.io on 127.0.0.53:53: no such host'),
    ('no-network', 'Error response from daemon: Get "https://registry-1.docker.io/v2/": dial tcp: lookup '
                   'registry-1.docker.io: no such host'),
    ('docker-stopped', 'error during connect: Get "http://lab-host:2375/v1.50/info": dial tcp: lookup lab-host: no '
                       'such host'),
    ('pull-limit', 'Error response from daemon: toomanyrequests: You have reached your pull rate limit. You may '
                   'increase the limit by authenticating and upgrading: '
                   'https://www.docker.com/increase-rate-limit'),
    ('pull-limit', 'toomanyrequests: You have reached your unauthenticated pull rate limit. '
                   'https://www.docker.com/increase-rate-limit'),
    ('rlimit', 'OCI runtime create failed: crun: setrlimit `RLIMIT_MEMLOCK`: Operation not permitted'),
    ('rlimit', 'error: rlimit: operation not permitted'),
    ('token-missing', 'Error response from daemon: invalid mount config for type "bind": bind source path does not '
                      'exist: /home/ada/lab/.lab/token'),
    ('token-missing', 'open /home/ada/lab/.lab/token: no such file or directory'),
    ('docker-old', 'Error response from daemon: client version 1.24 is too old. Minimum supported API version is '
                   '1.44'),
    ('driver-mismatch', 'Failed to initialize NVML: Driver/library version mismatch'),
    ('driver-mismatch', 'NVRM: API mismatch: the client has the version 580.82, but this kernel module has 580.65'),
    ('driver-unreachable', "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."),
    ('driver-unreachable', "stderr: Auto-detected mode as 'legacy' nvidia-container-cli: initialization error: nvml "
                           'error: driver not loaded: unknown'),
    ('driver-unreachable', "modprobe: ERROR: could not insert 'nvidia': Key was rejected by service"),
    ('driver-unreachable', 'RuntimeError: Found no NVIDIA driver on your system. Please check that you have an '
                           'NVIDIA GPU'),
    ('nvml-unknown', 'Failed to initialize NVML: Unknown Error'),
    ('toolkit-missing', 'Error response from daemon: could not select device driver "nvidia" with capabilities: '
                        '[[gpu]]'),
    ('toolkit-missing', 'docker: Error response from daemon: could not select device driver "" with capabilities: '
                        '[[gpu]].'),
    ('toolkit-missing', 'docker: Error response from daemon: unknown or invalid runtime name: nvidia.'),
    ('toolkit-missing', 'docker: Error response from daemon: failed to discover GPU vendor from CDI: no known GPU '
                        'vendor found'),
    ('cuda-too-new', 'nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8, please update your '
                     'driver to a newer version, or use an earlier cuda container: unknown'),
    ('cuda-too-new', 'The NVIDIA driver on your system is too old (found version 12040).'),
    ('cuda-too-new', 'CUDA driver version is insufficient for CUDA runtime version'),
    ('driver-libraries', 'nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: '
                         'cannot open shared object file: no such file or directory: unknown'),
    ('gpu-architecture', 'RuntimeError: CUDA error: no kernel image is available for execution on the device'),
    ('gpu-architecture', 'NVIDIA GeForce GTX 1080 with CUDA capability sm_61 is not compatible with the current '
                         'PyTorch installation.'),
    ('shm', 'RuntimeError: DataLoader worker (pid 46794) is killed by signal: Bus error. It is possible that '
            "dataloader's workers are out of shared memory. Please try to raise your shared memory limit."),
    ('shm', 'ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory '
            '(shm).'),
    ('shm', 'RuntimeError: unable to write to file </torch_2151_1>: No space left on device (28): torch_2151_1'),
    ('port-taken', 'Error response from daemon: driver failed programming external connectivity on endpoint '
                   'workspace-lab (42ca468f): Bind for 127.0.0.1:8888 failed: port is already allocated'),
    ('port-taken', 'Error starting userland proxy: listen tcp4 127.0.0.1:8888: bind: address already in use'),
    ('port-taken', 'failed to bind host port 127.0.0.1:8888/tcp: address already in use'),
    ('port-taken', 'ERROR: the port 8888 is already in use, please stop the other server'),
    ('other-jupyter', 'Invalid credentials'),
    ('rlimit', RUNC + 'error setting rlimits for ready process: error setting rlimit type 8: operation not '
                      'permitted'),
    ('dataset-empty', "FileNotFoundError: [Errno 2] No such file or directory: '/dataset/imagenet/train'"),
    ('disk-full', 'failed to register layer: write /opt/conda/lib/libcublas.so: no space left on device'),
    ('disk-full', 'OSError: [Errno 28] No space left on device'),
    ('mount-permission', "PermissionError: [Errno 13] Permission denied: '/workspace/work_dirs/lenet5'"),
    ('mount-permission', "mkdir: cannot create directory '/workspace/work_dirs/x': Permission denied"),
    ('settings', 'error while interpolating services.lab.image: required variable BASE_IMAGE is missing a value'),
    ('settings', 'entrypoint: the lab does not run as root; set LAB_UID and LAB_GID in .env'),
    ('mount-permission', 'entrypoint: cannot make the home folder /home/1000: the volume below /home belongs to '
                         'another user'),
    ('token-empty', 'entrypoint: the token is empty, which would let anyone in; delete .lab/token and call make up'),
    ('dataset-empty', 'Error response from daemon: invalid mount config for type "bind": bind source path does not '
                      'exist: /data/imagenet'),
    ('torch-cpu', 'AssertionError: Torch not compiled with CUDA enabled'),
    ('no-gpu', 'No devices were found'),
    ('no-compiler', 'torch.compile failed, so this run goes on without it: InductorError: InvalidCxxCompiler: '
                    "No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')"),
    ('no-compiler', 'torch.compile failed, so this run goes on without it: InductorError: RuntimeError: Failed to '
                    'find C compiler. Please specify via CC environment variable or set triton.knobs.build.impl.'),
    ('no-compiler', 'torch._inductor.exc.InvalidCxxCompiler: Compiler: g++-12 is not found.'),
]


@pytest.mark.parametrize('key, message', MESSAGES, ids=[f'{i}-{key}' for i, (key, _) in enumerate(MESSAGES)])
def test_message(key, message):
    assert recognise(message)[0].symptom.key == key


def test_what_torch_and_triton_say_without_a_compiler(monkeypatch, capsys):
    from torch._inductor.exc import InvalidCxxCompiler
    said = [str(InvalidCxxCompiler())]
    build = pytest.importorskip('triton.runtime.build', reason='this torch came without Triton')
    monkeypatch.setattr(build.shutil, 'which', lambda name: None)
    for key, language in (('CC', 'c'), ('CXX', 'c++')):
        monkeypatch.delenv(key, raising=False)
        with pytest.raises(RuntimeError) as error:
            build._find_compiler.__wrapped__(language)
        said.append(str(error.value))
    for message in said:
        assert recognise(message)[0].symptom.key == 'no-compiler'
        doctor.main(['--explain', message])
        assert 'apt-get install -y g++' in capsys.readouterr().out


def test_every_row_of_the_design_is_met():
    rows = {'docker-permission', 'driver-unreachable', 'driver-mismatch', 'toolkit-missing', 'cuda-too-new',
            'nvml-unknown', 'gpu-architecture', 'shm', 'port-taken', 'other-jupyter', 'mount-permission',
            'dataset-empty', 'disk-full', 'rlimit'}
    assert rows <= {key for key, _ in MESSAGES}


def test_ordinary_output_is_not_taken_for_a_fault():
    assert not recognise('Epoch [1][100/157] lr: 1.000e-01, eta: 0:00:12, loss: 0.3512\nAccuracy: 98.2\n'
                         '[I ServerApp] 302 GET /lab (127.0.0.1) 0.61ms')


def test_what_the_message_names_goes_into_the_answer(capsys):
    assert doctor.main(['--explain', 'Bind for 127.0.0.1:9123 failed: port is already allocated']) == 31
    said = capsys.readouterr().out
    assert 'port 9123' in said and "'sport = :9123'" in said


@pytest.mark.parametrize('message, told', [
    (RUNC + 'error setting rlimits for ready process: error setting rlimit type 8: operation not permitted',
     'the limit (8;'),
    ('pull access denied for my-lab, repository does not exist', 'has my-lab.'),
    ('dial tcp: lookup registry-1.docker.io on 127.0.0.53:53: no such host', 'getent hosts registry-1.docker.io ')])
def test_the_limit_the_image_and_the_server_are_named(message, told, capsys):
    doctor.main(['--explain', message])
    assert told in ' '.join(capsys.readouterr().out.split())


def test_the_line_to_drop_is_that_of_the_compose_file():
    (named,) = [line for line in BY_KEY['rlimit'].way_out if 'docker-compose.yml' in line]
    lines = (ROOT / 'docker-compose.yml').read_text().splitlines()
    assert '`ulimits:`' in named and len([line for line in lines if line.strip().startswith('ulimits:')]) == 1


def test_a_log_is_read_from_a_file_and_its_first_fault_gives_the_status(tmp_path, capsys):
    log = tmp_path / 'up.log'
    log.write_text('Container workspace-lab  Starting\nError: could not select device driver "nvidia" with '
                   'capabilities: [[gpu]]\nno space left on device\n')
    assert doctor.main(['--explain', str(log)]) == 23
    said = capsys.readouterr().out
    assert said.index('toolkit-missing') < said.index('disk-full')


def test_standard_input_wrapped_by_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr('sys.stdin', io.StringIO('nvidia-container-cli: requirement error: unsatisfied\n'
                                                 'condition: cuda>=13.0, please update'))
    assert doctor.main(['--explain', '-']) == 24


def test_json_of_an_explanation(capsys):
    doctor.main(['--explain', 'Bus error (core dumped)', '--json'])
    said = json.loads(capsys.readouterr().out)
    assert said['status'] == 30 and said['findings'][0]['way_out']


def test_an_unknown_message_says_so(capsys):
    assert doctor.main(['--explain', 'segmentation fault']) == 1
    assert 'Not among the symptoms' in capsys.readouterr().out


@pytest.mark.parametrize('version, capabilities, variant', [
    ('580.65.06', ['9.0'], 'cuda13.0'), ('595.71.05', ['12.0'], 'cuda13.0'), ('580.65.06', ['7.5', '8.9'], 'cuda13.0'),
    ('570.133.20', ['8.6'], 'cuda12.6'), ('535.183.01', ['8.0'], 'cuda12.6'), ('525.60.13', ['8.0'], 'cuda12.6'),
    ('580.65.06', ['6.1'], 'cuda12.6'), ('580.65.06', ['7.0'], 'cuda12.6'), ('580.65.06', ['7.0', '9.0'], 'cuda12.6'),
    ('525.60.11', ['8.0'], None), ('470.256.02', ['3.7'], None), ('570.133.20', ['12.0'], None),
    ('580.65.06', ['6.1', '12.0'], None)])
def test_variant_of_the_base_image(version, capabilities, variant):
    choice = choose_base_image(Driver(version, [Gpu('card', capability(text)) for text in capabilities]))
    assert choice.variant == variant
    assert choice.reason
    assert choice.image == (variant and f'pytorch/pytorch:2.14.0-{variant}-cudnn9-devel')


def test_arch_list_of_two_kinds():
    assert arch_list([Gpu('a', (8, 9)), Gpu('b', (7, 5)), Gpu('c', (8, 9))]) == '7.5;8.9'


def test_env_file_as_compose_reads_it():
    text = '# c\nexport A=1\nB="two words" # c\nC=x # c\nD=\'#no\'\nE=\nbroken line\nF=a#b\n'
    assert parse_env(text) == {'A': '1', 'B': 'two words', 'C': 'x', 'D': '#no', 'E': '', 'F': 'a#b'}


@pytest.mark.parametrize('text, count', [('8gb', 8 << 30), ('8G', 8 << 30), ('512m', 512 << 20), (1024, 1024),
                                         ('1.5g', 3 << 29), ('64kib', 64 << 10), ('lots', None)])
def test_sizes(text, count):
    assert byte_count(text) == count
