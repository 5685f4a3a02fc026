"""Checks of one lane each: Docker, Compose, port, token, mounts, memory, disks. Those of the GPU are in `checks_gpu`.

In: `Facts`, the lane (gpu, cpu, local). Out: findings, in an order where the first fault is nearest to the cause.
"""
from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .checks_gpu import check_base_image, check_driver, check_handover, check_local_gpu, check_toolkit, running
from .facts import Facts, byte_count, version_number
from .findings import Finding, fault, fault_from_text, ok

if TYPE_CHECKING:  # as a value this needs a Python newer than 3.8
    from collections.abc import Callable
    Check = Callable[[Facts, str], Iterator[Finding]]

GIB = 1024 ** 3
COMPOSE_WANTED = (2, 3)  # the first that takes `name:` in a Compose file; `up --wait` came in 2.1.1
CAP_SYS_RESOURCE = 24
# What the loader allocates in /dev/shm for a large recipe: two batches for each of four workers and three more, 256
# images of 3x224x224 in uint8. In numbers, as the doctor runs where there is no torch.
SHM_WANTED = (4 * 2 + 3) * 256 * 3 * 224 * 224
DOCKERS_OWN_SHM = 64 * 1024 ** 2
# Free GiB for what is not there yet: the CUDA devel image with ours on top, the small image, .venv.
NEEDED = {'gpu': 35, 'cpu': 8, 'local': 9}


def choose_lane(facts: Facts, device: str = 'auto', engine: str = 'auto') -> str:
    """What ``make up`` would take: containers where Docker is installed, the GPU where there is one."""
    if engine == 'local' or (engine == 'auto' and not facts.docker_installed):
        return 'local'
    return 'gpu' if device == 'gpu' or (device == 'auto' and facts.gpu_on_bus) else 'cpu'


def diagnose(facts: Facts, lane: str, device: str = 'auto') -> list[Finding]:
    """All findings of a lane; it will work if none of them has level ``fail``."""
    further = [check for check in FURTHER[lane] if check is not check_local_gpu or device != 'cpu']
    return [finding for check in (*_gates(lane, device), *further) for finding in check(facts, lane)]


def first_hindrance(facts: Facts, lane: str, device: str = 'auto') -> Finding | None:
    """Why ``make up`` refuses a lane, before it builds or writes anything; None if it goes on."""
    findings = (finding for check in _gates(lane, device) for finding in check(facts, lane))
    return next((finding for finding in findings if finding.level == 'fail'), None)


def _gates(lane: str, device: str) -> tuple[Check, ...]:
    return (check_driver, *GATES[lane]) if lane == 'local' and device == 'gpu' else GATES[lane]


def check_docker(facts: Facts, lane: str) -> Iterator[Finding]:
    docker, host = facts.docker, facts.host
    if not docker.client:
        yield fault('docker-missing', seen=docker.error)
    elif not facts.docker_installed:
        yield fault('docker-missing', seen=docker.error, cause='The docker command is here, a Docker Engine is not.')
    elif docker.error:
        found = fault_from_text(docker.error, 'docker-stopped', user=facts.user)
        if found.symptom == 'docker-permission' and _in_docker_group(facts):
            found = fault('docker-permission', seen=found.seen, way_out=[
            'newgrp docker    # or log out and in again'],
                          cause=f'{facts.user} is in the group docker, but only since after this login.')
        if found.symptom == 'docker-stopped' and host.environ.get('DOCKER_HOST'):
            found = fault('docker-stopped', seen=found.seen, way_out=['unset DOCKER_HOST', *found.way_out],
                          cause=f'Nothing answers at DOCKER_HOST={host.environ["DOCKER_HOST"]}.')
        yield found
    elif version_number(docker.version) < (20, 10):
        yield fault('docker-old', f'Docker Engine {docker.version}; 20.10 or newer is needed')
    else:
        yield ok(f'Docker Engine {docker.version}')


def _in_docker_group(facts: Facts) -> bool:
    group = re.search(r'^docker:[^:]*:\d*:(.*)$', facts.host.read('/etc/group') or '', re.MULTILINE)
    listed = bool(group) and facts.user in group.group(1).split(',')  # type: ignore[union-attr]
    return listed and 'docker' not in facts.host.run('id', '-nG').text.split()


def check_compose(facts: Facts, lane: str) -> Iterator[Finding]:
    if not facts.docker.client:
        return
    said = facts.compose_version
    version = version_number(said.text.lstrip('v'))
    if not said.ok or version < COMPOSE_WANTED:
        yield fault('compose-missing', seen=said.text)
        return
    error = facts.compose[1]
    if error:
        yield fault_from_text(error, 'settings', 'Compose refuses docker-compose.yml with this .env')
        return
    yield ok(f'Docker Compose {said.text}')


def check_buildx(facts: Facts, lane: str) -> Iterator[Finding]:
    """A client from 23 on builds with the plugin buildx alone; one before has BuildKit in itself."""
    if not facts.docker.client or version_number(facts.client_version) < (23,):
        return
    said = facts.buildx_version
    if said.ok:
        yield ok(f'Docker client {facts.client_version} with buildx')
    else:
        yield fault('buildx-missing', seen=said.text, level='warn' if facts.built(lane) else 'fail')


def check_port_number(facts: Facts, lane: str) -> Iterator[Finding]:
    if not facts.port:
        yield fault('settings', f'JUPYTER_PORT={facts.settings["JUPYTER_PORT"]} is no port number (1 to 65535)',
                    cause='It stands in .env or in the environment.', way_out=['make up JUPYTER_PORT=8888'])


def check_port(facts: Facts, lane: str) -> Iterator[Finding]:
    port, host = facts.port, facts.host
    if not port:
        return
    if not host.port_taken(port):
        yield ok(f'port {port} is free')
        return
    owner = _port_owner(facts, port)
    token = (host.read(_token_file(facts)) or '').strip()
    if token and host.get(port, '/api/status', token)[0] == 200:
        yield ok(f'port {port}: this lab answers there')
        return
    # Without a wish for a port the local lane takes the next free one.
    level = 'warn' if lane == 'local' and 'JUPYTER_PORT' not in facts.settings else 'fail'
    code, answer = host.get(port, '/api')
    if code == 200 and isinstance(answer, dict) and 'version' in answer:
        yield fault('other-jupyter', f'another Jupyter answers on port {port}{owner}', level=level, port=port)
        return
    yield fault('port-taken', f'port {port} is taken{owner}', level=level, port=port)


def _port_owner(facts: Facts, port: int) -> str:
    container = facts.host.run('docker', 'ps', '--filter', f'publish={port}', '--format', '{{.Names}}')
    if container.ok and container.text:
        return f' by the container {container.text.splitlines()[0]}'
    program = re.search(r'users:\(\("([^"]+)",pid=(\d+)', facts.host.run('ss', '-ltnpH', f'sport = :{port}').text)
    return f' by {program.group(1)} (pid {program.group(2)})' if program else ''


def _token_file(facts: Facts) -> str:
    for secret in facts.compose[0].get('secrets', {}).values():
        if 'file' in secret:
            return secret['file']
    return facts.path('.lab', 'token')


def check_private_files(facts: Facts, lane: str) -> Iterator[Finding]:
    """Token and .env: readable by their owner alone, the token not empty."""
    token = _token_file(facts)
    for path in (token, facts.path('.env')):
        owner = facts.host.owner(path)
        if not owner:
            continue
        if path == token and owner.uid == facts.host.uid and not (facts.host.read(path) or '').strip():
            yield fault('token-empty', f'{path} is empty', path=path)
        elif owner.mode & 0o077:
            yield Finding('warn', f'{path} can be read by others (mode {owner.mode:04o})',
                          way_out=[f'chmod 600 {path}    # or: make doctor FIX=1'])


def mounts(facts: Facts, lane: str) -> list[tuple[str, str, bool]]:
    """(folder on the host, path inside, writable) of the service's bind mounts; without Compose, the checkout."""
    volumes = [v for v in facts.service(lane).get('volumes', []) if v.get('type') == 'bind']
    return [(v['source'], v.get('target', ''), not v.get('read_only')) for v in volumes] or [
        (facts.root, '/workspace', True)]


def check_mounts(facts: Facts, lane: str) -> Iterator[Finding]:
    folders = [source for source, _, writable in mounts(facts, lane) if writable]
    folders += [facts.path(name) for name in ('work_dirs', '.lab')]
    me = facts.uid_inside if lane != 'local' else facts.host.uid
    if me == 0 and lane != 'local' and 'LAB_UID' in facts.settings:
        yield fault('settings', 'LAB_UID=0: the lab does not run as root', way_out=[
            'in .env: LAB_UID and LAB_GID of a person (id -u; id -g), then: make up'])
    owners = {folder: facts.host.owner(folder) for folder in dict.fromkeys(folders)}
    strangers = {folder: owner.uid for folder, owner in owners.items() if owner and me not in (owner.uid, 0)}
    for folder, uid in strangers.items():
        by_root = ' (root: made by Docker or through sudo)' if uid == 0 else ''
        # Root may keep a checkout of its own: the lab then reads it, and writes to the folders that are given to it.
        mine = uid == 0 and facts.host.uid == 0
        yield fault('mount-permission', f'{folder} belongs to uid {uid}{by_root}, the lab is {me}', path=folder, uid=me,
                    level='warn' if mine else 'fail')
    if not strangers:
        yield ok('the folders that are written to are yours')


def check_rlimit(facts: Facts, lane: str) -> Iterator[Finding]:
    """The service asks for memlock without limit; where process 1 lacks the right, so does the daemon."""
    bounds = re.search(r'^CapBnd:\s*([0-9a-f]+)', facts.host.read('/proc/1/status') or '', re.MULTILINE)
    if not bounds or int(bounds.group(1), 16) >> CAP_SYS_RESOURCE & 1:
        return
    limits = facts.service(lane).get('ulimits', {'memlock': -1})
    if limits:
        yield fault('rlimit', limit=', '.join(limits))


def check_shm(facts: Facts, lane: str) -> Iterator[Finding]:
    if lane == 'local':
        space = facts.host.space('/dev/shm')
        size, way_out = (space.free if space else None), ['sudo mount -o remount,size=8G /dev/shm']
    else:
        asked = facts.service(lane).get('shm_size') or facts.settings.get('SHM_SIZE') or '8gb'
        size, way_out = byte_count(asked), ['in .env: SHM_SIZE=8gb, then: make up']
        if size is None:
            yield fault('settings', f'SHM_SIZE={asked} is no size', way_out=way_out)
    if size is None:
        return
    said = (f'/dev/shm: {size / GIB:.2f} GiB; 4 workers with batches of 256 images of 224x224 need '
            f'{SHM_WANTED / GIB:.2f} GiB there')
    if size >= SHM_WANTED:
        yield ok(said)
        return
    yield fault('shm', said, level='fail' if size <= DOCKERS_OWN_SHM else 'warn', way_out=[
        *way_out, '--cfg-options data.workers_per_gpu=0   # or smaller batches'], shm=f'{size / GIB:.2f} GiB')


def check_dataset(facts: Facts, lane: str) -> Iterator[Finding]:
    folder, host = facts.dataset, facts.host
    asked = folder != facts.path('datasets')
    unmounted = _unmounted(facts, folder)
    if unmounted:
        yield fault('dataset-empty', f'{folder}: its disk is not mounted', path=folder,
                    level='fail' if asked else 'warn',
                    cause=f'/etc/fstab lists {unmounted}, but it is not mounted: what is seen is the empty '
                          f'folder below.',
                    way_out=[f'sudo mount {unmounted}    # its error says what is wrong with the disk',
                             'make down && make up    # a container sees the disk only when made anew'])
        return
    if [path for path in host.glob(os.path.join(folder, '*')) if not path.endswith('README.md')]:
        yield ok(f'data in {folder}')
        if asked and host.run('findmnt', '-no', 'TARGET', '-T', folder).text == '/':
            yield Finding('warn', f'{folder} is on the root disk, which data sets fill up',
                          way_out=['scripts/setup_ubuntu.sh disk   # a data disk of its own, in /etc/fstab'])
    elif asked:
        what = f'{folder} is empty' if host.owner(folder) else f'{folder} does not exist'
        yield fault('dataset-empty', what, path=folder)
    else:
        yield ok(f'no data set in {folder} yet; the built-in digits need none')


def _unmounted(facts: Facts, folder: str) -> str:
    """The mount point of /etc/fstab that should hold the folder, if nothing is mounted there."""
    wanted = [point for point in _mount_points(facts, '/etc/fstab')
              if point != '/' and f'{folder}/'.startswith(point.rstrip('/') + '/')]
    mounted = _mount_points(facts, '/proc/mounts')
    return next((point for point in wanted if point.rstrip('/') not in mounted), '')


def _mount_points(facts: Facts, table: str) -> list[str]:
    rows = [line.split() for line in (facts.host.read(table) or '').splitlines() if not line.lstrip().startswith('#')]
    return [row[1] for row in rows if len(row) > 2 and row[1].startswith('/')]


def check_disk(facts: Facts, lane: str) -> Iterator[Finding]:
    docker_root = facts.docker.root if lane != 'local' else ''
    places = {facts.root: _needed_in_checkout(facts, lane)}
    if docker_root and not facts.docker.error:
        places[docker_root] = _needed_by_docker(facts, lane)
    for path, needed in places.items():
        space = facts.host.space(path)
        if not space or not space.total:
            continue
        said = f'{path}: {space.free / GIB:.0f} GiB free'
        if space.inodes and space.inodes_free < max(1000, space.inodes // 1000):
            yield fault('inodes', f'{said}, but {space.inodes_free} of {space.inodes} inodes', path=path)
        elif space.free < needed * GIB:
            yield fault('disk-full', f'{said}, {needed} needed', path=path, root=docker_root or facts.root)
        else:
            yield ok(said)


def _needed_in_checkout(facts: Facts, lane: str) -> int:
    return NEEDED['local'] if lane == 'local' and not facts.host.owner(facts.path('.venv', '.installed')) else 1


def _needed_by_docker(facts: Facts, lane: str) -> int:
    return 1 if facts.built(lane) or running(facts) else NEEDED[lane]


def check_python(facts: Facts, lane: str) -> Iterator[Finding]:
    if facts.host.owner(facts.path('.venv', '.installed')):
        yield ok('.venv is installed')
        return
    said = facts.host.run(facts.path('scripts', 'find_python.sh'))
    if said.ok:
        yield ok(f'Python for the .venv: {said.text}')
        return
    yield fault('python-missing', seen=said.text, way_out=[line.strip() for line in said.text.splitlines()
                                                           if line.startswith('    ')] or None)


def check_crop_decoder(facts: Facts, lane: str) -> Iterator[Finding]:
    """Training is slower without it, and the same. The image has it built in."""
    if not facts.host.owner(facts.path('.venv', '.installed')):
        return
    said = facts.host.run(facts.path('.venv', 'bin', 'python'), '-m', 'workspace_lib.tools.jpeg_crop', '--check')
    yield ok(said.text) if said.ok else fault('crop-decoding', level='warn', seen=said.text)


# What decides whether a lane can be had at all: `make up` refuses it on the first fault of these.
_CONTAINER = (check_port_number, check_docker, check_compose, check_buildx)
GATES: dict[str, tuple[Check, ...]] = {
    'gpu': (check_driver, *_CONTAINER, check_base_image, check_toolkit, check_rlimit),
    'cpu': _CONTAINER,
    'local': (check_port_number,),
}
_EVERYWHERE = (check_shm, check_port, check_private_files, check_mounts, check_dataset, check_disk)
FURTHER: dict[str, tuple[Check, ...]] = {
    'gpu': (check_handover, *_EVERYWHERE),
    'cpu': _EVERYWHERE,
    'local': (check_python, check_crop_decoder, check_local_gpu, *_EVERYWHERE),
}
