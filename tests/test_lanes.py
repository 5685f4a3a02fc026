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

    @pytest.fixture
    def in_container(self, tmp_path, monkeypatch):
        monkeypatch.setenv('LAB_DEVICE', 'cpu')
        monkeypatch.delenv(jobs.NOTED, raising=False)
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
