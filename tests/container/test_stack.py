"""The container stack on a machine without a GPU: from nothing to a healthy lab, who gets in, what survives what.

tests/container/run makes the engine, the base image and a checkout that belongs to uid 12345, named by LAB_CHECKOUT.
The tests stand in the order of a lab's life; each asks one thing.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shlex
import shutil
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import mini_ilsvrc as mini  # noqa: E402

CHECKOUT = Path(os.environ.get('LAB_CHECKOUT', '/nonexistent'))
NAME = 'workspace-lab'
OWNER, OTHER = 12345, 1000
RECIPE = 'lenet/lenet5_mnist5k.py'
pytestmark = [
    pytest.mark.container,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not CHECKOUT.exists(), reason='run by make test-container'),
]


def run(*words: str, check: bool = True, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, cwd=CHECKOUT, text=True, capture_output=True, stdin=subprocess.DEVNULL, **kwargs)
    assert not check or done.returncode == 0, f'{shlex.join(words)}\n{done.stdout}\n{done.stderr}'
    return done


def make(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run('make', *words, check=check)


def inside(command: str, check: bool = True) -> str:
    return run('docker', 'exec', NAME, 'bash', '-c', command, check=check).stdout.strip()


def inspect(template: str, what: str = NAME) -> str:
    return run('docker', 'inspect', '--format', template, what).stdout.strip()


def wait_until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f'{what}: not within {seconds:g} s'
        time.sleep(0.2)
    return found


class Api:
    """The lab's interface from the host, with a token of one's choice."""

    def __init__(self) -> None:
        self.port = int(inspect('{{(index (index .NetworkSettings.Ports "8888/tcp") 0).HostPort}}'))
        self.token = (CHECKOUT / '.lab' / 'token').read_text()

    def call(self, path: str, token: str = '', method: str = 'GET', body: Any = None) -> tuple[int, Any]:
        request = urllib.request.Request(
            f'http://127.0.0.1:{self.port}{path}',
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={'Authorization': f'token {token}'} if token else {},
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read() or b'null')
        except urllib.error.HTTPError as error:
            return error.code, None
        except (OSError, ValueError):
            return 0, None

    def healthy(self) -> bool:
        return self.call('/api')[0] == 200


@pytest.fixture(scope='module')
def up() -> Iterator[str]:
    """`make up` in the checkout of uid 12345."""
    said = make('up').stdout
    yield said
    if not os.environ.get('KEEP'):
        make('down', check=False)


@pytest.fixture
def api(up) -> Api:
    return Api()


class TestUp:
    def test_lane_is_said_and_the_url_printed(self, up):
        assert up.startswith('Lane: CPU container (Docker, but no NVIDIA GPU on this host)')
        assert 'http://127.0.0.1:' in up and '?token=' in up

    def test_health_is_what_docker_says_too(self, api):
        assert api.healthy() and inspect('{{.State.Health.Status}}') == 'healthy'

    @pytest.mark.parametrize(
        'path', ['/api/status', '/api/kernels', '/api/contents', '/api/sessions', '/api/terminals']
    )
    def test_only_the_token_gets_in(self, api, path):
        assert [api.call(path, token)[0] for token in ('', 'wrong', api.token)] == [403, 403, 200]

    def test_settings_are_private_and_the_persons(self, up):
        for name in ('.env', '.lab/token'):
            found = (CHECKOUT / name).stat()
            assert (found.st_mode & 0o777, found.st_uid) == (0o600, OWNER), name

    def test_second_up_changes_nothing(self, up):
        before = inspect('{{.Id}}'), (CHECKOUT / '.env').read_bytes()
        make('up')
        assert (inspect('{{.Id}}'), (CHECKOUT / '.env').read_bytes()) == before


class TestKernel:
    @pytest.fixture
    def kernel(self, api) -> Iterator[str]:
        _, made = api.call('/api/kernels', api.token, 'POST', {'name': 'python3'})
        yield made['id']
        api.call(f'/api/kernels/{made["id"]}', api.token, 'DELETE')

    def connect(self, api: Api, kernel: str, token: str) -> Any:
        websocket = pytest.importorskip('websocket')
        headers = {'Authorization': f'token {token}'} if token else {}
        url = f'ws://127.0.0.1:{api.port}/api/kernels/{kernel}/channels'
        return websocket.create_connection(url, timeout=120, header=headers, http_no_proxy=['127.0.0.1'])

    @pytest.mark.parametrize('token', ['', 'wrong'])
    def test_websocket_without_the_token_is_refused(self, api, kernel, token):
        with pytest.raises(Exception, match='403'):
            self.connect(api, kernel, token)

    def test_cell_imports_torch_and_the_library_from_the_mount(self, api, kernel):
        socket = self.connect(api, kernel, api.token)
        code = 'import torch, workspace_lib; print(torch.__version__, workspace_lib.__file__)'
        header = {
            'msg_id': uuid.uuid4().hex,
            'msg_type': 'execute_request',
            'username': '',
            'session': uuid.uuid4().hex,
            'version': '5.3',
        }
        socket.send(
            json.dumps(
                {
                    'header': header,
                    'parent_header': {},
                    'metadata': {},
                    'channel': 'shell',
                    'content': {'code': code, 'silent': False},
                }
            )
        )
        printed = ''
        while True:
            message = json.loads(socket.recv())
            if message.get('parent_header', {}).get('msg_id') != header['msg_id']:
                continue
            if message['msg_type'] == 'stream':
                printed += message['content']['text']
            if message['msg_type'] == 'execute_reply':
                assert message['content']['status'] == 'ok', message['content']
                break
        time.sleep(0.5)
        assert '/workspace/workspace_lib/__init__.py' in printed
        socket.close()


class TestBox:
    def test_nothing_is_published_beyond_loopback(self, up):
        ports = json.loads(inspect('{{json .NetworkSettings.Ports}}'))
        assert {binding['HostIp'] for bindings in ports.values() for binding in bindings or []} == {'127.0.0.1'}

    def test_no_process_is_root(self, up):
        rows = [line.split() for line in run('docker', 'top', NAME, '-eo', 'pid,uid,gid').stdout.splitlines()[1:]]
        assert {(row[1], row[2]) for row in rows} == {(str(OWNER), str(OWNER))}

    def test_no_capability_and_no_way_to_get_one(self, up):
        said = inside('grep -E "^(CapEff|CapBnd|NoNewPrivs)" /proc/1/status')
        assert said.split() == ['CapEff:', '0' * 16, 'CapBnd:', '0' * 16, 'NoNewPrivs:', '1'] or sorted(
            said.split('\n')
        ) == [f'CapBnd:\t{"0" * 16}', f'CapEff:\t{"0" * 16}', 'NoNewPrivs:\t1']

    def test_uid_has_a_name_and_a_home(self, up):
        assert (
            inside('id -un; python -c "import getpass, os; print(getpass.getuser(), os.path.expanduser(\'~\'))"')
            == f'lab\nlab /home/{OWNER}'
        )

    def test_shared_memory_is_what_was_asked_for(self, up):
        assert inside('df --block-size=1 --output=size /dev/shm | tail -1') == str(1024**3)

    def test_file_in_the_mount_is_the_persons(self, up):
        inside('touch /workspace/work_dirs/mine')
        found = (CHECKOUT / 'work_dirs' / 'mine').stat()
        assert (found.st_uid, found.st_gid) == (OWNER, OWNER)

    def test_dataset_is_read_only_but_for_the_service_that_prepares_it(self, up):
        assert 'Read-only' in run('docker', 'exec', NAME, 'touch', '/dataset/x', check=False).stderr
        done = run('scripts/front.sh', 'compose', '--', 'run', '--rm', '-T', 'prepare', 'touch', '/dataset/written')
        assert done.returncode == 0 and (CHECKOUT / 'datasets' / 'written').stat().st_uid == OWNER

    def test_service_prepares_imagenet_with_the_script_and_the_tree_is_the_persons(self, up):
        datasets = CHECKOUT / 'datasets'
        facts = mini.make(datasets / 'archives')
        mini.make_official(datasets / 'miniature', facts)
        words = ['scripts/front.sh', 'compose', '--', '--profile', 'prepare', 'run', '--rm', '-T']
        script = ['prepare', 'scripts/prepare_imagenet.sh', '/dataset/archives', '/dataset/imagenet', '--no-progress']
        refused = run(*words, *script, check=False)
        assert refused.returncode == 3 and 'the official ILSVRC2012_devkit_t12.tar.gz has 2,568,634' in refused.stderr
        done = run(*words, '-e', 'PYTHONPATH=/dataset/miniature', *script, '--resize', '24', '--workers', '2')
        assert f'/dataset/imagenet/train: {facts.train_images} files' in done.stdout

        tree = datasets / 'imagenet'
        found = {path.relative_to(tree / 'train').as_posix(): path.read_bytes() for path in tree.glob('train/*/*')}
        assert found == {f'{wnid}/{name}': data for label, wnid in enumerate(mini.wnids())
                         for name, data in mini.images_of(label).items()}
        assert len([*tree.glob('train_short24/*/*')]) == len(found)
        assert (tree / 'meta' / 'val.txt').read_text() == ''.join(
            f'ILSVRC2012_val_{number:08}.JPEG {label}\n' for number, label in enumerate(mini.val_labels(), 1))
        assert {(path.stat().st_uid, path.stat().st_gid) for path in (tree, *tree.rglob('*'))} == {(OWNER, OWNER)}
        assert run(*words, 'prepare', 'scripts/prepare_imagenet.sh', '/dataset/imagenet', '--verify').returncode == 0

    def test_token_is_in_no_inspection_no_history_no_log_no_command_line(self, api):
        texts = [
            run('docker', 'inspect', NAME).stdout,
            run('docker', 'inspect', f'{NAME}:cpu').stdout,
            run('docker', 'history', '--no-trunc', f'{NAME}:cpu').stdout,
            run('docker', 'top', NAME, '-eo', 'pid,args').stdout,
        ]
        log = run('docker', 'logs', NAME)
        assert all(api.token not in text for text in (*texts, log.stdout, log.stderr))

    def test_empty_token_is_refused(self, up, tmp_path):
        empty = tmp_path / 'token'
        empty.touch()
        done = run(
            'docker',
            'run',
            '--rm',
            '--user',
            '1:1',
            '-v',
            f'{empty}:/t:ro',
            '-e',
            'JUPYTER_TOKEN_FILE=/t',
            '-e',
            'HOME=/tmp',
            f'{NAME}:cpu',
            check=False,
        )
        assert done.returncode and 'let anyone in' in done.stderr

    def test_root_is_refused(self, up):
        done = run('docker', 'run', '--rm', '--user', '0:0', f'{NAME}:cpu', check=False)
        assert done.returncode and 'does not run as root' in done.stderr


class TestImage:
    def test_mmcv_ops_run_beside_mmcls(self, up):
        if os.environ.get('MMCV_OPS') == '0':
            pytest.skip('this image was built with MMCV_OPS=0')
        run('docker', 'cp', str(CHECKOUT / 'docker' / 'steps' / 'check_mmcv.py'), f'{NAME}:/tmp/check_mmcv.py')
        assert 'nms and RoIAlign equal torchvision' in inside('python /tmp/check_mmcv.py')

    def test_crops_are_decoded(self, up):
        """The library that the build compiled is that of the mounted source, and has no need of libjpeg's package."""
        assert inside('python -m workspace_lib.tools.jpeg_crop --check').startswith('crop decoding is on')
        assert 'libjpeg' not in inside('ldd /opt/venv/lib/workspace_lib/jpeg_crop-*.so')

    def test_lab_has_a_panel_for_the_gpu(self, up):
        said = inside('jupyter labextension list 2>&1')
        assert [line for line in said.splitlines() if 'nvdashboard' in line and 'enabled' in line and 'OK' in line], \
            said

    def test_ops_that_cannot_be_compiled_fail_the_build(self, up):
        """A GPU's architecture on a base without nvcc: not an image whose ops are silently for the CPU."""
        done = run('docker', 'build', '--file', 'docker/Dockerfile', '--target', 'mmcv', '--network', 'none',
                   '--build-arg', f'BASE_IMAGE={os.environ["CPU_BASE_IMAGE"]}', '--build-arg', 'OFFLINE=1',
                   '--build-arg', 'TORCH_CUDA_ARCH_LIST=9.0', '.', check=False)  # fmt: skip
        assert done.returncode and 'this base has no nvcc' in done.stdout + done.stderr

    def test_torch_is_the_bases_own(self, up):
        assert inside('python -c "import torch; print(torch.__file__)"').startswith('/usr/')

    def test_what_we_add_stays_under_1500_mb(self, up):
        sizes = [
            int(line)
            for line in run('docker', 'history', '--human=false', '--format', '{{.Size}}', f'{NAME}:cpu').stdout.split()
        ]
        base = [
            int(line)
            for line in run(
                'docker', 'history', '--human=false', '--format', '{{.Size}}', os.environ['CPU_BASE_IMAGE']
            ).stdout.split()
        ]
        ops = int(inside('du -sb /opt/venv/lib/python3*/site-packages/mmcv | cut -f1'))
        added = sum(sizes) - sum(base) - ops
        print(f'\nadded to the base: {added / 1e6:.0f} MB, and mmcv {ops / 1e6:.0f} MB')
        assert added < 1.5e9


class TestCompanyCertificate:
    """A package index that only a company's own certificate vouches for; the certificate is a secret of the build."""

    @pytest.fixture(scope='class')
    @classmethod
    def index(cls, tmp_path_factory) -> Iterator[tuple[int, Path]]:
        """The port of an https index with one package, and the certificate that vouches for it."""
        folder = tmp_path_factory.mktemp('index')
        folder.chmod(0o755)
        certificate, key = folder / 'ca.pem', folder / 'key.pem'
        subprocess.run(
            ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=a company',
             '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', str(key), '-out', str(certificate)],
            check=True, capture_output=True,
        )  # fmt: skip
        packages = folder / 'served' / 'simple' / 'a-companys-package'
        packages.mkdir(parents=True)
        with zipfile.ZipFile(packages / 'a_companys_package-1.0-py3-none-any.whl', 'w') as wheel:
            info = 'a_companys_package-1.0.dist-info'
            wheel.writestr(f'{info}/METADATA', 'Metadata-Version: 2.1\nName: a-companys-package\nVersion: 1.0\n')
            wheel.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
            wheel.writestr(f'{info}/RECORD', '')
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder / 'served'))
        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, certificate
        server.shutdown()

    def fetch(self, port: int, *options: str) -> subprocess.CompletedProcess[str]:
        """The pip step of the Dockerfile, in the image, against that index."""
        script = '/steps/pip.sh download --no-deps --dest /tmp/out a-companys-package && ls /tmp/out'
        return run(
            'docker', 'run', '--rm', '--network', 'host', '--user', f'{OTHER}:{OTHER}', '--entrypoint', 'bash',
            '-e', 'HOME=/tmp', '-e', f'PIP_INDEX_URL=https://127.0.0.1:{port}/simple', '-e', 'PIP_RETRIES=0',
            '-v', f'{CHECKOUT}/docker/steps:/steps:ro', *options, f'{NAME}:cpu', '-c', script, check=False,
        )  # fmt: skip

    def test_with_the_secret_the_index_is_trusted_and_without_it_not(self, index):
        port, certificate = index
        with_it = self.fetch(port, '-v', f'{certificate}:/run/secrets/ca:ro')
        assert with_it.returncode == 0 and 'a_companys_package-1.0' in with_it.stdout, with_it.stderr
        without = self.fetch(port)
        assert without.returncode and 'certificate verify failed' in (without.stdout + without.stderr).lower()

    def test_it_is_nowhere_in_what_was_built_with_it(self):
        """The stage that all stand on, as `make wheels` built it a while ago with this machine's certificate."""
        secret = Path(os.environ['WORK']) / 'ca.pem'
        if not secret.exists():
            pytest.skip('this machine trusts no certificate of its own')
        line = secret.read_text().splitlines()[2]
        base = ['--build-arg', f'BASE_IMAGE={os.environ["CPU_BASE_IMAGE"]}', '--build-arg', 'MMCV_OPS=1']
        run('docker', 'build', '--file', 'docker/Dockerfile', '--target', 'base', *base, '--build-arg',
            'TORCH_CUDA_ARCH_LIST=', '--secret', f'id=ca,src={secret}', '--tag', f'{NAME}:certified', '.')  # fmt: skip
        try:
            places = '/etc /opt /home /root /run /srv /tmp /var /usr/local'
            found = run('docker', 'run', '--rm', '--user', '0', '--entrypoint', 'grep', f'{NAME}:certified',
                        '-rlsF', '--', line, *places.split(), check=False)  # fmt: skip
            assert found.returncode == 1 and found.stdout == '', found.stdout + found.stderr
            assert line not in run('docker', 'history', '--no-trunc', f'{NAME}:certified').stdout
        finally:
            run('docker', 'rmi', '--no-prune', f'{NAME}:certified', check=False)


class TestCommands:
    def test_training_as_in_the_readme_leaves_the_persons_checkpoint(self, up):
        done = run(
            'docker',
            'exec',
            NAME,
            'workspace',
            'train',
            RECIPE,
            '--cfg-options',
            'runner.max_epochs=1',
            '--work-dir',
            'work_dirs/literal',
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = (CHECKOUT / 'work_dirs' / 'literal' / 'latest.pth').stat()
        assert (found.st_uid, found.st_gid) == (OWNER, OWNER)
        job = json.loads(max((CHECKOUT / '.lab' / 'jobs').glob('*/job.json'), key=os.path.getmtime).read_text())
        assert job['command'][:3] == ['workspace', 'train', RECIPE] and job['status'] == 0
        assert 'Epoch' in make('logs', f'JOB={job["name"]}').stdout

    def test_make_exec_takes_a_command(self, up):
        assert make('exec', 'CMD=echo "two words" | tr a-z A-Z; id -u').stdout == f'TWO WORDS\n{OWNER}\n'

    def test_gpu_check_fails_only_where_a_gpu_was_asked_for(self, up):
        assert make('gpu-check').returncode == 0
        assert make('gpu-check', 'DEVICE=gpu', check=False).returncode != 0

    def test_report_names_image_commit_and_packages(self, up):
        make('report')
        report = json.loads((CHECKOUT / 'work_dirs' / 'report.json').read_text())
        assert report['image_id'].startswith('sha256:') and report['commit']
        assert report['inside']['packages']['jupyterlab'] and report['inside']['lab_device'] == 'cpu'

    def test_tests_run_in_the_container(self, up):
        assert ' passed' in make('test', 'ARGS=tests/test_registry.py').stdout


class TestLifeAndDeath:
    def start_job(self, name: str, epochs: int) -> dict[str, Any]:
        """A detached training run; its record once it has begun."""
        before = {file.parent.name for file in (CHECKOUT / '.lab' / 'jobs').glob('*/job.json')}
        make(
            'train',
            f'CONFIG={RECIPE}',
            'DETACH=1',
            f'ARGS=--work-dir work_dirs/{name} --cfg-options runner.max_epochs={epochs}',
        )
        new = {file.parent.name for file in (CHECKOUT / '.lab' / 'jobs').glob('*/job.json')} - before
        return json.loads((CHECKOUT / '.lab' / 'jobs' / new.pop() / 'job.json').read_text())

    def processes(self, fields: str = 'pid,args') -> list[str]:
        return run('docker', 'top', NAME, '-eo', fields).stdout.splitlines()[1:]

    def jupyter(self) -> int | None:
        return next(
            (
                int(line.split()[0])
                for line in self.processes()
                if 'jupyter' in line and 'entrypoint' not in line and 'lab --no-browser' in line
            ),
            None,
        )

    def alive(self, job: dict[str, Any]) -> bool:
        return (
            inside(f'kill -0 {job["pid"]} && tr "\\0" " " < /proc/{job["pid"]}/cmdline', check=False).find('train') > 0
        )

    def test_killed_server_is_back_and_the_job_never_noticed(self, api):
        job = self.start_job('survivor', 400)
        time.sleep(5)
        server, started = self.jupyter(), inspect('{{.State.StartedAt}}')
        begin = time.monotonic()
        run('kill', '-9', str(server))
        wait_until(lambda: self.jupyter() not in (None, server) and api.healthy(), 15, 'healthy after kill -9')
        print(f'\nhealthy again after {time.monotonic() - begin:.1f} s')
        assert inspect('{{.State.StartedAt}}') == started, 'the container itself was restarted'
        assert self.alive(job)
        assert f'running (pid {job["pid"]})' in make('status').stdout
        assert 'Epoch' in make('logs', f'JOB={job["name"]}').stdout

    def test_killed_container_comes_back_and_the_job_is_listed_with_what_resumes_it(self, api):
        checkpoint = CHECKOUT / 'work_dirs' / 'survivor' / 'latest.pth'
        wait_until(checkpoint.exists, 120, 'a first checkpoint')
        run('kill', '-9', inspect('{{.State.Pid}}'))
        wait_until(api.healthy, 30, 'healthy after the death of the main process')
        said = make('status').stdout
        assert 'cut off' in said and '--resume-from work_dirs/survivor/latest.pth' in said

    def test_the_listed_command_resumes(self, api):
        line = next(line for line in make('status').stdout.splitlines() if 'make train' in line)
        words = shlex.split(line)
        make(*words[1:])
        wait_until(lambda: 'running (pid' in make('status').stdout, 20, 'the job runs')
        assert 'cut off' not in make('status').stdout
        job = json.loads(max((CHECKOUT / '.lab' / 'jobs').glob('*/job.json'), key=os.path.getmtime).read_text())
        log = CHECKOUT / '.lab' / 'jobs' / job['name'] / 'log'
        wait_until(lambda: 'resume' in log.read_text().lower(), 60, 'the log says that it resumed')
        inside(f'kill {job["pid"]}')

    def test_restarted_daemon_brings_the_lab_back(self, api):
        if not os.environ.get('ENGINE_IS_OURS'):
            pytest.skip('the Docker daemon of this machine is not restarted')
        root = Path(__file__).parents[2]
        subprocess.run(['bash', '-c', '. tests/container/machine.sh; stop_daemon; launch_daemon'], cwd=root, check=True)
        begin = time.monotonic()
        wait_until(api.healthy, 60, 'healthy after a restart of the daemon')
        print(f'\nhealthy {time.monotonic() - begin:.1f} s after the daemon answered')

    def test_restart_keeps_the_lane(self, api):
        assert make('restart').stdout.count('Lane: CPU container') == 1
        assert Api().healthy()

    def test_down_leaves_volumes_image_and_data(self, api):
        make('down')
        assert run('docker', 'ps', '--all', '--quiet', '--filter', f'name={NAME}').stdout == ''
        assert f'{NAME}_home' in run('docker', 'volume', 'ls', '--quiet').stdout
        assert inspect('{{.Id}}', f'{NAME}:cpu')
        assert (CHECKOUT / 'work_dirs' / 'literal' / 'latest.pth').exists()


class TestAnotherUser:
    """The same image, the same volume, another uid."""

    @pytest.fixture(scope='class', autouse=True)
    @classmethod
    def other(cls) -> Iterator[None]:
        run('chown', '-R', f'{OTHER}:{OTHER}', str(CHECKOUT))
        env = CHECKOUT / '.env'
        env.write_text(env.read_text().replace(str(OWNER), str(OTHER)))
        make('up')
        yield
        make('down')

    def test_it_trains_and_the_files_are_theirs(self):
        run(
            'docker',
            'exec',
            NAME,
            'workspace',
            'train',
            RECIPE,
            '--cfg-options',
            'runner.max_epochs=1',
            '--work-dir',
            'work_dirs/other',
        )
        found = (CHECKOUT / 'work_dirs' / 'other' / 'latest.pth').stat()
        assert (found.st_uid, found.st_gid) == (OTHER, OTHER)
        assert inside('id -u; touch ~/x && stat -c %u ~/x') == f'{OTHER}\n{OTHER}'


class TestGpuRequest:
    """There is no GPU here; what the engine was asked for, and what it hands to the hook, is on record."""

    @pytest.fixture(scope='class', autouse=True)
    @classmethod
    def gpu_image(cls) -> Iterator[None]:
        """Target gpu on the same stand-in base, whose torch is a CUDA build too; all but the last layers is there."""
        run('docker', 'build', '--file', 'docker/Dockerfile', '--target', 'gpu', '--tag', f'{NAME}:gpu', '--network',
            'none', '--build-arg', f'BASE_IMAGE={os.environ["CPU_BASE_IMAGE"]}', '--build-arg', 'OFFLINE=1',
            '--build-arg', f'MMCV_OPS={os.environ.get("MMCV_OPS", "1")}', '--build-arg', 'TORCH_CUDA_ARCH_LIST=',
            '.')  # fmt: skip
        yield
        run('docker', 'rmi', '--no-prune', f'{NAME}:gpu', check=False)

    def test_target_gpu_says_what_it_is(self):
        env = json.loads(inspect('{{json .Config.Env}}', f'{NAME}:gpu'))
        assert {'LAB_DEVICE=gpu', 'NVIDIA_DRIVER_CAPABILITIES=compute,utility'} <= set(env)

    def test_service_lab_asks_for_every_gpu(self):
        try:
            run('docker', 'compose', 'create', '--no-build', 'lab')
            asked = json.loads(inspect('{{json .HostConfig.DeviceRequests}}'))
            limits = json.loads(inspect('{{json .HostConfig.Ulimits}}'))
        finally:
            run('docker', 'compose', 'down')
        assert [(r['Driver'], r['Count'], r['Capabilities']) for r in asked] == [('nvidia', -1, [['gpu']])]
        assert {(limit['Name'], limit['Hard']) for limit in limits} == {('memlock', -1), ('stack', 67108864)}

    def hooked(self) -> Path:
        if not os.environ.get('ENGINE_IS_OURS'):
            pytest.skip('the stand-in hook must be on the PATH of the daemon')
        return Path(os.environ['WORK'])

    def test_container_with_a_gpu_request_reaches_the_hook(self):
        work = self.hooked()
        run('docker', 'run', '--rm', '--gpus', 'all', '--user', '1:1', '-e', 'HOME=/tmp', f'{NAME}:cpu', 'true')
        recorded = json.loads((work / 'hook-record').read_text())
        assert recorded['argv'] == ['prestart'] and 'NVIDIA_VISIBLE_DEVICES=all' in recorded['env']

    def test_service_lab_starts_through_the_hook(self, tmp_path):
        """All of the service but its limits, which a machine without CAP_SYS_RESOURCE refuses."""
        work = self.hooked()
        limits = tmp_path / 'limits.yml'
        limits.write_text('services:\n  lab:\n    ulimits: !reset {}\n')
        files = ['--file', 'docker-compose.yml', '--file', str(limits)]
        try:
            run('docker', 'compose', *files, 'up', '--detach', '--no-build', '--wait', 'lab')
            assert json.loads((work / 'hook-record').read_text())['id'] == inspect('{{.Id}}')
            assert inspect('{{.State.Health.Status}}') == 'healthy' and Api().healthy()
            check = run('docker', 'exec', NAME, 'python', '-m', 'workspace_lib.tools.gpu_check', check=False)
            assert check.returncode, 'a lab that was asked for a GPU and has none passes gpu-check'
        finally:
            run('docker', 'compose', *files, 'down')

    @pytest.mark.parametrize(
        'error, symptom',
        [
            ('nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0', 'cuda-too-new'),
            (
                'nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: cannot open '
                'shared object file',
                'driver-libraries',
            ),
        ],
    )
    def test_refusal_of_the_hook_is_a_symptom_that_doctor_knows(self, error, symptom):
        refuse = self.hooked() / 'hook-refuse'
        refuse.write_text(error)
        try:
            done = run('docker', 'run', '--rm', '--gpus', 'all', '--user', '1:1', f'{NAME}:cpu', 'true', check=False)
        finally:
            refuse.unlink()
        assert done.returncode
        said = run('scripts/doctor.sh', '--json', '--explain', done.stderr, check=False).stdout
        assert symptom in said

    def test_without_the_hook_docker_says_what_doctor_knows(self):
        from workspace_lib.tools.doctor import recognise

        done = run('docker', 'run', '--rm', '--gpus', 'all,capabilities=nonesuch', f'{NAME}:cpu', 'true', check=False)
        assert done.returncode
        assert [found.symptom.key for found in recognise(done.stderr)][:1] == ['toolkit-missing'], done.stderr


def test_browser_opens_the_lab_in_the_container():
    """The same browser test as in the local lane: token page, tour, Run All."""
    if not any(shutil.which(name) for name in ('chromium', 'chromium-browser', 'google-chrome')):
        pytest.skip('no Chromium on the PATH')
    make('up')
    try:
        url = make('url').stdout.strip()
        root = Path(__file__).parents[2]
        python = os.environ.get('PYTHON', '.venv/bin/python')
        done = subprocess.run(
            [python, '-m', 'pytest', '-q', '-m', 'browser', 'tests/browser'],
            cwd=root,
            text=True,
            capture_output=True,
            env={**os.environ, 'LAB_URL': url},
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    finally:
        make('down')
