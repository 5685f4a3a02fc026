"""Every row of the lane table, on machines that are not there; the settings file; jobs, whole and cut off."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from machine import SMI_FAILED, FakeHost

from workspace_lib.tools import containers, dotenv, jobs
from workspace_lib.tools.containers import Stack
from workspace_lib.tools.doctor.facts import Facts
from workspace_lib.tools.lanes import LaneError, choose_lane

NO_DAEMON = 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?'
DENIED = (
    'permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: '
    'dial unix /var/run/docker.sock: connect: permission denied'
)
ROOT = Path(containers.__file__).parents[2]


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def lane(host: FakeHost, device: str = 'auto', engine: str = 'auto', no_image: str = ''):
    chosen = choose_lane(Facts(host, host.root), device, engine, lambda device: no_image)
    return chosen.engine, chosen.device, chosen.why


class TestGpuHost:
    def test_gpu_container_with_the_card_named(self, host):
        assert lane(host) == ('docker', 'gpu', 'NVIDIA H100 PCIe, driver 580.65.06')

    @pytest.mark.parametrize(
        'device, engine, expected',
        [
            ('gpu', 'auto', ('docker', 'gpu')),
            ('auto', 'docker', ('docker', 'gpu')),
            ('cpu', 'auto', ('docker', 'cpu')),
            ('cpu', 'docker', ('docker', 'cpu')),
            ('auto', 'local', ('local', 'auto')),
            ('gpu', 'local', ('local', 'gpu')),
        ],
    )
    def test_forced(self, host, device, engine, expected):
        assert lane(host, device, engine)[:2] == expected

    def test_docker_that_cannot_hand_it_over_is_no_silent_fallback(self, host):
        host.give_docker(Runtimes={'runc': {}})
        with pytest.raises(LaneError, match='nvidia-ctk runtime configure(?s:.*)make up DEVICE=cpu'):
            lane(host)

    def test_driver_that_does_not_answer_is_no_silent_fallback(self, host):
        host.give_gpu(SMI_FAILED, 9)
        with pytest.raises(LaneError, match="couldn't communicate(?s:.*)To mend it(?s:.*)make up DEVICE=cpu"):
            lane(host)

    def test_broken_gpu_does_not_matter_to_device_cpu(self, host):
        host.give_gpu(SMI_FAILED, 9)
        assert lane(host, 'cpu')[:2] == ('docker', 'cpu')

    def test_image_that_cannot_be_had_is_no_silent_fallback(self, host):
        with pytest.raises(LaneError, match='no such host(?s:.*)DEVICE=cpu'):
            lane(host, no_image='no such host')

    def test_builder_that_is_missing_is_named_before_the_build(self, host):
        host.commands['docker version --format'] = (0, '28.2.2')
        host.commands.pop('docker buildx version', None)
        with pytest.raises(LaneError, match='buildx, which is not here'):
            Stack(Path(host.root), 'cpu', host)._check_builder()
        host.commands['docker buildx version'] = (0, 'github.com/docker/buildx v0.24.0')
        Stack(Path(host.root), 'cpu', host)._check_builder()
        host.commands.pop('docker buildx version')
        host.commands['docker version --format'] = (0, '20.10.24')  # builds by itself
        Stack(Path(host.root), 'cpu', host)._check_builder()

    def test_without_docker_the_local_lane_on_the_gpu(self, host):
        host.no_docker()
        assert lane(host) == ('local', 'auto', 'no Docker on this host')
        assert lane(host, 'gpu')[:2] == ('local', 'gpu')


class TestHostWithoutGpu:
    @pytest.fixture(autouse=True)
    def without(self, host):
        host.no_gpu()

    def test_cpu_container_with_the_reason(self, host):
        assert lane(host) == ('docker', 'cpu', 'Docker, but no NVIDIA GPU on this host')

    def test_gpu_by_name_is_refused_with_the_way_on(self, host):
        for engine in ('auto', 'docker'):
            with pytest.raises(LaneError, match='no NVIDIA GPU(?s:.*)DEVICE=cpu'):
                lane(host, 'gpu', engine)

    def test_image_that_cannot_be_had_means_the_local_lane_and_is_said(self, host):
        engine, device, why = lane(host, no_image='python: no such host')
        assert (engine, device) == ('local', 'auto') and 'no such host' in why

    @pytest.mark.parametrize('device, engine', [('auto', 'docker'), ('cpu', 'auto'), ('cpu', 'docker')])
    def test_image_that_cannot_be_had_is_an_error_where_something_was_forced(self, host, device, engine):
        with pytest.raises(LaneError, match='no such host(?s:.*)ENGINE=local'):
            lane(host, device, engine, no_image='no such host')

    def test_no_docker_means_the_local_lane(self, host):
        host.no_docker()
        assert lane(host) == ('local', 'auto', 'no Docker on this host')

    def test_no_docker_and_gpu_by_name_is_refused(self, host):
        host.no_docker()
        with pytest.raises(LaneError, match='no NVIDIA GPU'):
            lane(host, 'gpu')


class TestDocker:
    def test_engine_docker_without_docker_is_refused(self, host):
        host.no_docker()
        with pytest.raises(LaneError, match='not installed(?s:.*)setup_ubuntu'):
            lane(host, engine='docker')

    @pytest.mark.parametrize(
        'error, mended_by', [(NO_DAEMON, 'systemctl enable --now docker'), (DENIED, 'usermod -aG docker')]
    )
    @pytest.mark.parametrize('device', ['auto', 'cpu'])
    def test_stopped_or_denied_never_falls_back(self, host, error, mended_by, device):
        host.no_daemon(error)
        host.owners['/var/run/docker.sock'] = host.owner(host.root)
        with pytest.raises(LaneError, match=f'{mended_by}(?s:.*)ENGINE=local'):
            lane(host, device)

    def test_client_with_no_daemon_to_talk_to_is_no_docker(self, host):
        host.no_daemon(NO_DAEMON)
        del host.commands['dockerd']
        assert lane(host) == ('local', 'auto', 'no Docker on this host')

    def test_without_compose_it_says_which_package(self, host):
        del host.commands['docker compose version --short']
        with pytest.raises(LaneError, match='docker-compose-plugin'):
            lane(host)

    def test_engine_local_asks_nobody(self, host):
        host.no_daemon(DENIED)
        assert lane(host, engine='local')[0] == 'local'
        assert host.calls == []


class TestSettings:
    def test_new_file_is_private_and_documented(self, tmp_path):
        file = tmp_path / '.env'
        assert dotenv.add_missing(file, [dotenv.Setting('A', '1', 'what it is')]) == ['A']
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert '# what it is\nA=1\n' in file.read_text()

    def test_what_is_there_stays_to_the_letter(self, tmp_path):
        file = tmp_path / '.env'
        file.write_text('A=mine  # my reason\nexport B="two words"')
        wanted = [dotenv.Setting(key, 'new', 'c') for key in 'ABC']
        assert dotenv.add_missing(file, wanted) == ['C']
        assert file.read_text().startswith('A=mine  # my reason\nexport B="two words"\n')
        before = file.read_text()
        assert dotenv.add_missing(file, wanted) == []
        assert file.read_text() == before and stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_failure_leaves_the_old_file(self, tmp_path, monkeypatch):
        file = tmp_path / '.env'
        file.write_text('A=1\n')
        monkeypatch.setattr(os, 'fsync', lambda number: (_ for _ in ()).throw(OSError('disk full')))
        with pytest.raises(OSError, match='disk full'):
            dotenv.add_missing(file, [dotenv.Setting('B', '2', 'c')])
        assert file.read_text() == 'A=1\n'

    def test_gpu_lane_names_base_image_and_architecture(self, host, tmp_path):
        found = {s.key: s.value for s in Stack(tmp_path, 'gpu', host).wanted_settings(1000, 1000)}
        assert found['BASE_IMAGE'].endswith('cuda13.0-cudnn9-devel') and found['TORCH_CUDA_ARCH_LIST'] == '9.0'
        assert (found['LAB_UID'], found['SHM_SIZE']) == ('1000', '8gb')

    def test_prepare_makes_what_docker_would_make_as_root(self, host, tmp_path, monkeypatch):
        monkeypatch.delenv('JUPYTER_PORT', raising=False)
        stack = Stack(tmp_path, 'cpu', host)
        stack.prepare()
        for folder in ('.lab', 'work_dirs', 'third_party', 'datasets'):
            assert (tmp_path / folder).is_dir()
        assert stat.S_IMODE((tmp_path / '.lab' / 'token').stat().st_mode) == 0o600
        assert not (tmp_path / '.lab' / 'token').read_text().endswith('\n')

    def test_data_folder_that_is_not_mounted_is_not_made(self, host, tmp_path):
        (tmp_path / '.env').write_text('DATASET_DIR=/no/such/disk\n')
        with pytest.raises(LaneError, match='findmnt'):
            Stack(tmp_path, 'cpu', host).prepare()

    def test_architecture_of_no_gpu_is_not_written(self, host, tmp_path):
        """It would stay, empty, when the GPU comes."""
        host.no_gpu()
        assert 'TORCH_CUDA_ARCH_LIST' not in {s.key for s in Stack(tmp_path, 'gpu', host).wanted_settings(1, 1)}

    def test_the_hosts_network_is_for_trainings_alone_and_what_is_published_is_on_loopback(self):
        services = yaml.safe_load((ROOT / 'docker-compose.yml').read_text())['services']
        assert {name for name, service in services.items() if 'network_mode' in service} == {'train', 'train-cpu'}
        for service in services.values():
            assert all(port.startswith('127.0.0.1:') for port in service.get('ports', []))
        for name in ('train', 'train-cpu'):
            assert services[name]['network_mode'] == 'host' and services[name]['profiles'] == ['train']
            assert not {'ports', 'networks', 'secrets', 'command'} & set(services[name])
        assert services['train']['deploy'] == services['lab']['deploy'] and 'deploy' not in services['train-cpu']

    def test_every_variable_of_compose_is_written_or_has_a_default(self, host, tmp_path):
        import re

        text = (ROOT / 'docker-compose.yml').read_text()
        assert re.findall(r'\$\{\w+\}', text) == []


class TestPerson:
    @pytest.mark.parametrize(
        'uid, environ, owner, expected',
        [(1234, {}, 7, 1234), (0, {'SUDO_UID': '1001', 'SUDO_GID': '1002'}, 7, 1001), (0, {}, 7, 7), (0, {}, 0, 1000)],
    )
    def test_who_the_lab_runs_as_is_never_root(self, host, monkeypatch, uid, environ, owner, expected):
        class Folder:
            def stat(self):
                return os.stat_result((0, 0, 0, 0, owner, owner, 0, 0, 0, 0))

        host.environ = environ
        monkeypatch.setattr(os, 'getuid', lambda: uid)
        monkeypatch.setattr(os, 'getgid', lambda: uid)
        found, _, why = containers.person(host, Folder())  # type: ignore[arg-type]
        assert found == expected and bool(why) == (uid == 0)


class TestJobs:
    TRAIN = ['workspace', 'train', 'lenet/lenet5.py', '--seed', '1']

    def record(self, root: Path, name: str, **fields: object) -> None:
        folder = jobs.folder_of(name, root)
        folder.mkdir(parents=True)
        record = {
            'name': name,
            'command': self.TRAIN,
            'place': 'host',
            'pid': 1,
            'start': 'x',
            'began': 1.0,
            'ended': None,
            'status': None,
            **fields,
        }
        (folder / 'job.json').write_text(json.dumps(record))

    def states(self, root: Path, alive=None) -> dict[str, str]:
        return {job['name']: job['state'] for job in jobs.states(root, alive)}

    @pytest.mark.parametrize('code, state', [('print(7)', 'done'), ('raise SystemExit(3)', 'failed')])
    def test_log_and_end_are_recorded(self, tmp_path, code, state):
        command = [sys.executable, '-c', code]
        status = subprocess.run(
            [
                sys.executable,
                '-c',
                (
                    f'import sys; from workspace_lib.tools import jobs; from pathlib import Path; '
                    f'sys.exit(jobs.run("j", {command!r}, Path({str(tmp_path)!r})))'
                ),
            ]
        ).returncode
        assert self.states(tmp_path) == {'j': state}
        assert status == (0 if state == 'done' else 3)
        assert (jobs.folder_of('j', tmp_path) / 'log').read_text() == ('7\n' if state == 'done' else '')

    def test_killed_job_is_cut_off_and_running_one_runs(self, tmp_path):
        code = (
            f'from workspace_lib.tools import jobs; from pathlib import Path; '
            f'jobs.run("j", ["sleep", "60"], Path({str(tmp_path)!r}))'
        )
        process = subprocess.Popen([sys.executable, '-c', code])
        file = jobs.folder_of('j', tmp_path) / 'job.json'
        end = time.monotonic() + 20
        while not file.exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert self.states(tmp_path) == {'j': 'running'}
        process.kill()  # as a stopped container does, to both
        os.kill(json.loads(file.read_text())['pid'], signal.SIGKILL)
        process.wait()
        while self.states(tmp_path)['j'] == 'running' and time.monotonic() < end:
            time.sleep(0.05)
        assert self.states(tmp_path) == {'j': 'cut off'}

    def test_cut_off_job_comes_with_the_command_that_resumes_it(self, tmp_path):
        self.record(tmp_path, 'j')
        said = jobs.told(jobs.states(tmp_path), tmp_path)
        assert "make train CONFIG=lenet/lenet5.py ARGS='--seed 1' DETACH=1" in said
        (tmp_path / 'work_dirs' / 'lenet5').mkdir(parents=True)
        (tmp_path / 'work_dirs' / 'lenet5' / 'latest.pth').touch()
        said = jobs.told(jobs.states(tmp_path), tmp_path)
        assert "ARGS='--seed 1 --resume-from work_dirs/lenet5/latest.pth' DETACH=1" in said

    def test_job_in_a_container_that_is_gone_is_cut_off(self, tmp_path):
        self.record(tmp_path, 'j', place='container', pid=os.getpid())
        assert self.states(tmp_path) == {'j': 'cut off'}
        assert self.states(tmp_path, {'j': 'running'}) == {'j': 'running'}

    def test_job_that_was_taken_up_again_is_no_longer_listed(self, tmp_path):
        self.record(tmp_path, 'j')
        self.record(tmp_path, 'k', began=2.0, ended=3.0, status=0)
        assert 'cut off' not in jobs.told(jobs.states(tmp_path), tmp_path)

    @pytest.mark.parametrize('got_further', [False, True])
    def test_only_a_failed_one_that_got_further_took_it_up(self, tmp_path, got_further):
        self.record(tmp_path, 'j')
        self.record(tmp_path, 'k', began=1000.0, ended=3000.0, status=1)
        checkpoint = tmp_path / 'work_dirs' / 'lenet5' / 'latest.pth'
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        os.utime(checkpoint, (2000, 2000) if got_further else (500, 500))
        assert ('cut off' in jobs.told(jobs.states(tmp_path), tmp_path)) != got_further

    def test_job_in_a_container_that_says_nothing_is_unknown(self, tmp_path):
        self.record(tmp_path, 'j', place='container')
        states = jobs.states(tmp_path, {}, silent='unknown')
        assert states[0]['state'] == 'unknown'
        said = jobs.told(states, tmp_path)
        assert 'j  unknown: the container does not answer' in said and 'cut off' not in said

    def test_two_of_one_config_in_one_second_have_two_names(self, tmp_path, monkeypatch):
        monkeypatch.setattr(time, 'strftime', lambda form: '0101-000000')
        names = [jobs.claim('a/lenet5.py', tmp_path) for _ in range(3)]
        assert names == ['lenet5-0101-000000', 'lenet5-0101-000000-2', 'lenet5-0101-000000-3']

    def test_a_job_never_overwrites_another(self, tmp_path):
        self.record(tmp_path, 'j')
        with pytest.raises(FileExistsError, match='was here before'):
            jobs.run('j', ['true'], tmp_path)

    @pytest.fixture
    def in_container(self, tmp_path, monkeypatch):
        monkeypatch.setenv('LAB_DEVICE', 'cpu')
        for name in (jobs.NOTED, 'LOCAL_RANK'):  # the second is left by mmclassification's own script
            monkeypatch.delenv(name, raising=False)
        (tmp_path / '.lab').mkdir()

    def test_training_started_by_hand_in_the_container_is_listed_too(self, tmp_path, in_container):
        with jobs.noted(self.TRAIN, tmp_path):
            (name,) = self.states(tmp_path).keys()
            assert self.states(tmp_path) == {name: 'running'}
        assert self.states(tmp_path) == {name: 'done'}

    def test_and_so_is_one_that_ended_in_an_error(self, tmp_path, in_container):
        with pytest.raises(RuntimeError), jobs.noted(self.TRAIN, tmp_path):
            raise RuntimeError
        assert list(self.states(tmp_path).values()) == ['failed']

    def test_its_log_is_that_of_the_run(self, tmp_path, in_container):
        (tmp_path / 'work_dirs' / 'lenet5').mkdir(parents=True)
        log = tmp_path / 'work_dirs' / 'lenet5' / '20260101_000000.log'
        log.touch()
        with jobs.noted(self.TRAIN, tmp_path):
            (name,) = self.states(tmp_path).keys()
            assert jobs.log_of(name, tmp_path) == log
        assert jobs.log_of('another', tmp_path) is None

    @pytest.mark.parametrize('where', ['host', 'job', 'folder elsewhere', 'never up'])
    def test_nothing_is_noted_where_it_would_mislead(self, tmp_path, in_container, monkeypatch, where):
        command = self.TRAIN
        if where == 'host':
            monkeypatch.delenv('LAB_DEVICE')
        if where == 'job':
            monkeypatch.setenv(jobs.NOTED, 'j')
        if where == 'folder elsewhere':
            command = [*self.TRAIN, '--work-dir', '/somewhere/else']
        if where == 'never up':
            (tmp_path / '.lab').rmdir()
        with jobs.noted(command, tmp_path):
            assert self.states(tmp_path) == {}

    @pytest.mark.parametrize(
        'command, folder',
        [
            (['workspace', 'train', 'a/b.py'], 'work_dirs/b'),
            (['workspace', 'train', 'b.py', '--work-dir', 'x'], 'x'),
            (['workspace', 'train', 'b.py', '--work-dir=x'], 'x'),
        ],
    )
    def test_folder_of_a_run(self, command, folder):
        assert jobs.work_dir(command) == folder

    def test_resuming_again_names_one_checkpoint(self, tmp_path):
        (tmp_path / 'x').mkdir()
        (tmp_path / 'x' / 'latest.pth').touch()
        command = ['workspace', 'train', 'b.py', '--resume-from', 'x/epoch_1.pth', '--work-dir', 'x']
        assert (
            jobs.resume_command(command, tmp_path)
            == "make train CONFIG=b.py ARGS='--work-dir x --resume-from x/latest.pth' DETACH=1"
        )


def test_the_front_door_needs_the_standard_library_alone():
    """A host with Docker needs no .venv."""
    code = 'import sys, workspace_lib.tools.front; print([m for m in ("torch", "numpy", "yaml") if m in sys.modules])'
    assert (
        subprocess.run([sys.executable, '-S', '-c', code], capture_output=True, text=True, cwd=ROOT).stdout.strip()
        == '[]'
    )


class TestFront:
    def test_lane_is_the_noted_one_and_engine_local_has_its_way(self, tmp_path):
        from workspace_lib.tools.front import Front

        assert Front(tmp_path, 'auto', 'auto').lane() == ('local', 'auto')
        with pytest.raises(LaneError, match='make up ENGINE=docker'):
            Front(tmp_path, 'auto', 'docker').lane()
        (tmp_path / '.lab').mkdir()
        (tmp_path / '.lab' / 'lane.json').write_text('{"engine": "docker", "device": "gpu"}')
        assert Front(tmp_path, 'auto', 'auto').lane() == ('docker', 'gpu')
        assert Front(tmp_path, 'auto', 'local').lane() == ('local', 'auto')

    def test_words_after_the_dashes_are_the_commands_own(self, tmp_path, monkeypatch):
        from workspace_lib.tools import front

        seen = []
        monkeypatch.setattr(front.Front, 'run', lambda self, command: seen.append(command) or 0)
        assert front.main(['run', '--root', str(tmp_path), '--device', 'cpu', '--', 'pytest', '-q', '--', '-x']) == 0
        assert seen == [['pytest', '-q', '--', '-x']]


DOCKER = """#!/bin/bash
# What the daemon would do, as far as files in $FAKE say so: id and state of the container, errors, jobs.
cd "$FAKE" && echo "$*" >> calls
case "$*" in
    inspect*State.Status*) cat state ;;
    inspect*HostPort*) echo 8888 ;;
    inspect*:cpu | inspect*:gpu) cat image ;;
    inspect*) cat id ;;
    *' config '*) cat config ;;
    *' up '*)
        [ ! -e up-sleeps ] || sleep 60
        [ ! -e up-makes ] || mv up-makes id
        [ ! -e up-error ] || { cat up-error >&2; exit 1; } ;;
    *' rm '* | *' down '*)
        [ ! -e rm-error ] || { cat rm-error >&2; exit 1; }
        rm -f id state ;;
    exec*alive) cat alive ;;
esac
"""


class FakeDocker:
    """A `docker` on the PATH; the test writes what it knows, and reads what it was asked."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root

    def set(self, **files: str) -> None:
        for name, text in files.items():
            (self.folder / name.replace('_', '-')).write_text(text)

    def run_lab(self) -> None:
        self.set(state=f'running {self.root}', id='old')

    def asked(self, word: str) -> list[str]:
        return [line for line in (self.folder / 'calls').read_text().splitlines() if f' {word}' in f' {line}']


@pytest.fixture
def docker(tmp_path, monkeypatch) -> FakeDocker:
    fake = tmp_path / 'fake docker'
    fake.mkdir()
    (fake / 'docker').write_text(DOCKER)
    (fake / 'docker').chmod(0o755)
    monkeypatch.setenv('FAKE', str(fake))
    monkeypatch.setenv('PATH', f'{fake}{os.pathsep}{os.environ["PATH"]}')
    for name in ('FORCE', 'JUPYTER_PORT', 'TORCH_CUDA_ARCH_LIST', 'MMCV_OPS', 'LAB_NAME', 'TENSORBOARD_PORT'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(containers, 'get', lambda port, path, token='': (200 if token else 403, None))
    root = tmp_path / 'checkout'
    root.mkdir()
    docker = FakeDocker(fake, root)
    docker.set(config='{"services": {"lab": {}, "lab-cpu": {"ports": 1}}}', image='image', calls='')
    return docker


class TestUp:
    @pytest.fixture
    def stack(self, docker, tmp_path) -> Stack:
        stack = Stack(docker.root, 'cpu', FakeHost(tmp_path))
        stack.prepare()
        return stack

    def job(self, root: Path) -> None:
        TestJobs().record(root, 'week', place='container')

    def test_first_error_survives_a_second_one(self, docker, stack):
        docker.set(up_makes='new', up_error='no space left on device', rm_error='and the daemon is gone')
        with pytest.raises(LaneError, match='no space left(?s:.*)And then(?s:.*)daemon is gone'):
            stack.up()

    def test_what_this_call_started_is_removed(self, docker, stack):
        docker.set(up_makes='new', up_error='unhealthy')
        with pytest.raises(LaneError, match='unhealthy'):
            stack.up()
        assert docker.asked('rm --stop --force lab-cpu') and not docker.asked('down')

    def test_what_ran_before_is_left_alone(self, docker, stack):
        docker.run_lab()
        docker.set(up_error='the daemon is busy')
        with pytest.raises(LaneError, match='busy'):
            stack.up()
        assert not docker.asked('rm') and not docker.asked('down')

    def test_no_limit_of_composes_own_but_one_of_ours(self, docker, stack, monkeypatch):
        monkeypatch.setattr(containers, 'START_SECONDS', 0.5)
        docker.set(up_sleeps='')
        begin = time.monotonic()
        with pytest.raises(LaneError, match='not done after 0.5 s'):
            stack.up()
        assert time.monotonic() - begin < 20  # not the child's 60, which holds our pipe
        assert '--wait' in docker.asked('up')[0].split() and 'timeout' not in docker.asked('up')[0]

    @pytest.mark.parametrize('change', [{'image': 'another'}, {'config': '{"services": {"lab-cpu": {"ports": 2}}}'}])
    def test_change_that_would_end_a_job_is_refused_with_the_ways_on(self, docker, stack, change, monkeypatch):
        docker.run_lab()
        stack.up()
        self.job(docker.root)
        docker.set(alive='{"week": "running"}', **change)
        with pytest.raises(LaneError, match='week(?s:.*)FORCE=1, or make down'):
            stack.up()
        assert len(docker.asked('up')) == 1
        monkeypatch.setenv('FORCE', '1')
        stack.up()
        assert '--no-recreate' not in docker.asked('up')[1]

    def test_container_that_does_not_tell_of_its_jobs_is_not_replaced(self, docker, stack):
        docker.run_lab()
        stack.up()
        self.job(docker.root)
        docker.set(image='another')
        with pytest.raises(LaneError, match='week'):
            stack.up()

    def test_second_up_beside_a_job_changes_nothing(self, docker, stack):
        docker.run_lab()
        stack.up()
        self.job(docker.root)
        docker.set(alive='{"week": "running"}')
        stack.up()
        assert '--no-recreate' in docker.asked('up')[1]

    def test_ended_jobs_are_in_nobodys_way(self, docker, stack):
        docker.run_lab()
        stack.up()
        self.job(docker.root)
        docker.set(alive='{"week": "cut off"}', image='another')
        stack.up()
        assert '--no-recreate' not in docker.asked('up')[1]

    @pytest.mark.parametrize('answer', [0, 403])
    def test_server_too_busy_to_answer_is_not_taken_for_an_open_one(self, docker, stack, monkeypatch, answer):
        docker.run_lab()
        monkeypatch.setattr(containers, 'get', lambda port, path, token='': (answer, None))
        with pytest.raises(LaneError, match='refuses our token, or nobody does'):
            stack.up()
        assert not docker.asked('rm') and not docker.asked('down')

    def test_server_open_to_visitors_is_stopped(self, docker, stack, monkeypatch):
        docker.set(up_makes='new')
        monkeypatch.setattr(containers, 'get', lambda port, path, token='': (200, None))
        with pytest.raises(LaneError, match='let a visitor in'):
            stack.up()
        assert docker.asked('rm --stop')

    def test_a_training_with_other_machines_runs_beside_the_lab(self, stack):
        words = stack.beside_words(detach=True)
        assert words[words.index('run'):] == ['run', '--rm', '--no-deps', '--detach', 'train-cpu']
        assert words[words.index('train') - 1] == '--profile'

    def test_words_that_are_captured_take_no_terminal(self, stack, monkeypatch):
        """docker exec --tty refuses an input that is none: at a terminal make status called every job cut off."""
        monkeypatch.setattr(sys.stdin, 'isatty', lambda: True)
        monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
        assert '--tty' in stack.exec_words('bash')
        assert '--tty' not in stack.exec_words('true', captured=True)


class TestBuildElsewhere:
    """Image and wheels are made on a host with a network, which has no GPU, for one that has it."""

    @pytest.fixture
    def front(self, docker, tmp_path, monkeypatch):
        from workspace_lib.tools.front import Front

        self.built: list[str] = []
        monkeypatch.setattr(Stack, 'build', lambda stack, fresh: self.built.append(stack.device))
        monkeypatch.setattr(Stack, '_docker_build', lambda stack, *words: self.built.append(stack.device))
        host = FakeHost(tmp_path)
        host.no_gpu()
        return lambda device: Front(docker.root, device, 'auto', host)

    @pytest.mark.parametrize('device, expected', [('gpu', 'gpu'), ('cpu', 'cpu'), ('auto', 'cpu')])
    def test_device_is_taken_at_its_word(self, front, device, expected):
        assert front(device).build() == 0 and front(device).wheels() == 0
        assert self.built == [expected, expected]

    def test_docker_that_does_not_answer_is_an_error(self, front):
        asked = front('gpu')
        asked.host.no_daemon(NO_DAEMON)
        with pytest.raises(LaneError, match='systemctl enable --now docker'):
            asked.wheels()

    def test_architecture_of_the_ops_is_asked_for_before_the_build(self, docker, tmp_path, monkeypatch):
        stack = Stack(docker.root, 'gpu', FakeHost(tmp_path))
        with pytest.raises(LaneError, match='TORCH_CUDA_ARCH_LIST=9.0(?s:.*)MMCV_OPS=0'):
            stack.build()
        assert docker.asked('build') == []
        for key, value in (('TORCH_CUDA_ARCH_LIST', '8.9'), ('MMCV_OPS', '0')):
            with monkeypatch.context() as patch:
                patch.setenv(key, value)
                stack.require_architecture()


class TestNothingUp:
    """No lab is up here, or never was: nothing falls back in silence, and only what is meant to installs."""

    @pytest.fixture
    def ran(self, monkeypatch) -> list[str]:
        """What would be done, in order."""
        from workspace_lib.tools import front

        ran: list[str] = []
        monkeypatch.setattr(front.Front, '_venv', lambda self: ran.append('install'))
        monkeypatch.setattr(front.Front, '_lab', lambda self, *words: ran.append(' '.join(words)) or 0)
        monkeypatch.setattr(front, '_become', lambda words, env=None: ran.append(' '.join(words)) or 0)
        return ran

    @pytest.fixture
    def front(self, docker, host, ran):
        from workspace_lib.tools.front import Front

        return lambda device='auto', engine='auto': Front(docker.root, device, engine, host)

    def give_venv(self, docker: FakeDocker) -> None:
        python = docker.root / '.venv' / 'bin' / 'python'
        python.parent.mkdir(parents=True)
        python.touch()

    @pytest.mark.parametrize('call', ['run', 'train', 'report'])
    @pytest.mark.parametrize('with_docker', [True, False])
    def test_commands_say_how_to_begin_instead_of_installing(self, front, ran, host, call, with_docker):
        if not with_docker:
            host.no_docker()
        words = {'run': [['true']], 'train': ['a.py', '', False], 'report': []}[call]
        with pytest.raises(LaneError, match='make up(?s:.*)ENGINE=local'):
            getattr(front(), call)(*words)
        assert ran == []

    def test_venv_that_is_there_is_used_and_said(self, front, ran, docker, capsys):
        self.give_venv(docker)
        assert front().run(['true']) == 0
        assert ran == ['install', 'true']  # brought up to date, as a rule in no time
        assert capsys.readouterr().err == 'Lane: .venv (no lab is up here; start one with: make up)\n'

    def test_engine_local_installs(self, front, ran, capsys):
        assert front(engine='local').run(['true']) == 0
        assert ran == ['install', 'true'] and capsys.readouterr().err == ''

    def test_make_test_on_a_host_without_docker_installs_and_says_why(self, front, ran, host, capsys):
        host.no_docker()
        assert front().set_up_and_run(['pytest']) == 0
        assert ran == ['install', 'pytest']
        assert capsys.readouterr().err == 'Lane: local environment (no Docker on this host)\n'

    def test_make_test_on_a_host_with_docker_brings_the_lab_up(self, front, ran, docker):
        docker.run_lab()
        assert front().set_up_and_run(['pytest']) == 0
        assert ran == ['docker exec workspace-lab pytest'] and docker.asked('up --detach')

    def test_make_test_on_a_gpu_that_docker_cannot_hand_over_is_an_error(self, front, ran, host):
        host.give_docker(Runtimes={'runc': {}})
        with pytest.raises(LaneError, match='nvidia-ctk'):
            front().set_up_and_run(['pytest'])
        assert ran == []

    def test_make_test_in_a_venv_that_is_there_asks_no_docker(self, front, ran, docker, host):
        self.give_venv(docker)
        host.no_daemon(NO_DAEMON)
        assert front().set_up_and_run(['pytest']) == 0
        assert ran == ['install', 'pytest']

    def test_restart_with_no_lab_is_up_with_the_callers_wishes(self, front, monkeypatch):
        asked = front('cpu', 'docker')
        monkeypatch.setattr(asked, 'up', lambda: [asked.device, asked.engine])
        assert asked.restart() == ['cpu', 'docker']

    @pytest.mark.parametrize('wish, port', [('', '8877'), ('9000', '9000')])
    def test_local_restart_keeps_port_and_device(self, front, ran, docker, monkeypatch, wish, port):
        self.give_venv(docker)
        (docker.root / '.lab').mkdir()
        state = {'pid': 1, 'start': 'another', 'port': 8877, 'device': 'cpu', 'asked': 'cpu', 'since': 0}
        (docker.root / '.lab' / 'state.json').write_text(json.dumps(state))
        monkeypatch.setattr(os, 'environ', {**os.environ, **({'JUPYTER_PORT': wish} if wish else {})})
        assert front().restart() == 0
        assert ran == ['down', 'install', 'up --device cpu --why as before'] and os.environ['JUPYTER_PORT'] == port

    @pytest.mark.parametrize('call, ends', [('tensorboard', '--host 127.0.0.1 --port 6006'), ('prepare', 'bash')])
    def test_services_have_a_local_form(self, front, ran, docker, host, call, ends):
        self.give_venv(docker)
        host.no_docker()
        assert getattr(front(), call)() == 0
        assert ran[-1].endswith(ends) and 'docker' not in ran[-1].split()[0].rpartition('/')[2]

    @pytest.mark.parametrize('call', ['tensorboard', 'prepare'])
    def test_services_in_a_container_have_their_image_built(self, front, ran, docker, monkeypatch, call):
        docker.set(image='')
        monkeypatch.setattr(Stack, 'no_image', lambda stack: '')
        monkeypatch.setattr(Stack, 'build', lambda stack: ran.append(f'build {stack.image}'))
        assert getattr(front(), call)() == 0
        assert ran[0] == 'build workspace-lab:gpu'

    def test_status_tells_jobs_of_a_silent_container_as_unknown(self, front, docker, capsys):
        docker.run_lab()
        (docker.root / '.lab').mkdir()
        (docker.root / '.lab' / 'lane.json').write_text('{"engine": "docker", "device": "cpu"}')
        TestJobs().record(docker.root, 'week', place='container')
        assert front().status() == 0
        assert 'week  unknown' in capsys.readouterr().out


def test_jupyter_that_keeps_failing_never_ends_the_container(tmp_path):
    """For jobs run in it: it is tried again, ever more slowly, until the container is stopped."""
    programs = {
        'id': 'echo 1234',
        'getent': 'exit 0',
        'jupyter': f'echo try >> "{tmp_path}/tries"; exit 7',
        # The ninth pause is where somebody stops the container.
        'sleep': f'echo "$1" >> "{tmp_path}/pauses"; [ $(wc -l < "{tmp_path}/pauses") -lt 9 ] || kill -TERM $PPID',
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f'#!/bin/bash\n{script}\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / 'token').write_text('t')
    env = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'HOME': str(tmp_path), 'JUPYTER_TOKEN_FILE': f'{tmp_path}/token'}
    done = subprocess.run(['bash', str(ROOT / 'docker' / 'entrypoint.sh'), 'lab'], env=env, capture_output=True,
                          text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0
    assert (tmp_path / 'pauses').read_text().split() == ['0', '1', '1', '2', '60', '60', '60', '60', '60']
    assert 'status 7' in done.stderr and 'again in 60 s' in done.stderr
