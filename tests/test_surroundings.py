"""A notebook finds out where it runs: machines that are played, and this one."""
from __future__ import annotations

import os

import pytest
from machine import GIB, FakeHost

from workspace_lib.tools.doctor.host import Space
from workspace_lib.tools.surroundings import mount_of, surroundings

LOCAL = '/dev/sda1 / ext4 rw,relatime 0 0\ntmpfs /dev/shm tmpfs rw,nosuid 0 0\n'
CONTAINER = ('overlay / overlay rw,relatime 0 0\nshm /dev/shm tmpfs rw,nosuid,size=8388608k 0 0\n'
             '/dev/sda1 /workspace ext4 rw,relatime 0 0\n/dev/sdb1 /dataset ext4 ro,relatime 0 0\n')


@pytest.fixture
def host(tmp_path) -> FakeHost:
    host = FakeHost(tmp_path)
    host.files['/proc/mounts'] = LOCAL
    return host


def here(place) -> dict[str, str]:
    return {row[0]: row[1] for row in place.table.rows}


def test_local_lane(host, tmp_path):
    host.spaces['/dev/shm'] = Space(32 * GIB, 30 * GIB, 0, 0)
    place = surroundings(host, tmp_path, '/home/ada/.venv')
    assert not place.in_container and place.uid == host.uid
    assert here(place)['/dev/shm'] == '32.0 GiB' and here(place)['Python'] == '/home/ada/.venv'
    assert here(place)['data set'] == f'{tmp_path}/datasets in / (ext4, writable)'
    assert here(place)['GPU'] == 'NVIDIA H100 PCIe'


def test_container_with_its_read_only_data_set(host):
    host.environ['LAB_DEVICE'] = 'gpu'
    host.files['/proc/mounts'] = CONTAINER
    place = surroundings(host, '/workspace')
    assert place.in_container and here(place)['lane'] == 'GPU container'
    assert here(place)['checkout'] == '/workspace (ext4, writable)'
    assert here(place)['data set'] == '/dataset (ext4, read-only)'


def test_a_card_that_was_not_handed_over_is_told_from_none(host, tmp_path):
    host.commands = {}
    assert surroundings(host, tmp_path).gpu == 'on the bus, but no driver answers here'
    host.no_gpu()
    assert surroundings(host, tmp_path).gpu == 'none'


def test_the_data_folder_is_that_of_the_settings(host, tmp_path):
    (tmp_path / '.env').write_text('DATASET_DIR=/data/images\n')
    assert surroundings(host, tmp_path).dataset.path == '/data/images'


@pytest.mark.parametrize(('path', 'point'), [('/data/a', '/data'), ('/database', '/'), ('/data', '/data')])
def test_the_mount_of_a_path_is_the_nearest_above_it(host, path, point):
    host.files['/proc/mounts'] = LOCAL + '/dev/sdb1 /data xfs ro 0 0\n'
    assert mount_of(host, path).point == point


def test_of_two_mounts_on_one_point_the_later_counts(host):
    host.files['/proc/mounts'] = LOCAL + '/dev/sdb1 /data xfs ro 0 0\n/dev/sdc1 /data ext4 rw 0 0\n'
    assert mount_of(host, '/data/a').kind == 'ext4'


def test_a_system_without_a_list_of_mounts_says_so(host, tmp_path):
    del host.files['/proc/mounts']
    assert here(surroundings(host, tmp_path))['checkout'] == 'not told'


def test_this_machine():
    place = surroundings()
    assert place.uid == int(os.environ.get('SUDO_UID') or os.getuid())
    assert [row[0] for row in place.table.rows] == ['lane', 'user', 'Python', 'checkout', 'data set', '/dev/shm', 'GPU']
    assert all(len(row) == 4 and all(row) for row in place.table.rows)
