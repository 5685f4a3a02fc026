"""COCO prepared from a miniature behind a local server: downloads that break off, archives, annotations."""
from __future__ import annotations

import fcntl
import hashlib
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mini_ilsvrc as mini
import numpy as np
import pytest

from workspace_lib.tools.prepare import (
    PrepareError,
    Status,
    cli,
    download,
    engine,
    prepare_coco,
    run,
    slim,
    verify_tree,
)
from workspace_lib.tools.prepare.archives import Archive
from workspace_lib.tools.prepare.coco import CocoFacts
from workspace_lib.tools.prepare.disk import Disk

COUNTS = {'train': 12, 'val': 5}
CATEGORIES = [(1, 'person'), (3, 'car'), (90, 'toothbrush')]


def instances(split: str, spaces: bool = False) -> dict[str, Any]:
    images = [dict(id=1000 - number, file_name=f'{number:012}.jpg', width=48, height=36, license=1, flickr_url='x' * 90)
              for number in range(COUNTS[split])]
    annotations = [dict(id=number, image_id=1000 - number % COUNTS[split], category_id=CATEGORIES[number // 3 % 3][0],
                        iscrowd=int(number % 7 == 0), area=1.5, bbox=[0.5, 1, 2e1, -3],
                        segmentation=[[1.5, 2.25] * 40]) for number in range(20)]
    return dict(info=dict(year=2017, note='] } "images": ['), licenses=[dict(id=1, name='é, "quoted"')], images=images,
                annotations=annotations,
                categories=[dict(id=id, name=name, supercategory='thing') for id, name in CATEGORIES])


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def images(split: str) -> dict[str, bytes]:
    return {f'{number:012}.jpg': mini.picture(number + 70 * (split == 'val')) for number in range(COUNTS[split])}


class Server:
    """Serves `files`; breaks off after `limit` bytes as often as `breaks` says; knows ranges if told to."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.limit, self.breaks, self.ranges = 0, 0, True
        self.on_break: Callable[[], object] = lambda: None
        self.asked: list[tuple[str, str | None]] = []

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        name, asked = handler.path.lstrip('/'), handler.headers.get('Range')
        self.asked.append((name, asked))
        if name not in self.files:
            handler.send_error(404)
            return
        data = self.files[name]
        start = int(asked.removeprefix('bytes=').rstrip('-')) if asked and self.ranges else 0
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header('Content-Range', f'bytes {start}-{len(data) - 1}/{len(data)}')
        handler.send_header('Content-Length', str(len(data) - start))
        handler.end_headers()
        breaks = self.breaks > 0 and len(data) - start > self.limit
        self.breaks -= breaks
        handler.wfile.write(data[start:start + self.limit] if breaks else data[start:])
        if breaks:
            handler.wfile.flush()
            self.on_break()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, str, CocoFacts]]:
    serving = Server()
    contents = {'train': zipped({'train2017/': b'', **{f'train2017/{k}': v for k, v in images('train').items()}}),
                'val': zipped({f'val2017/{k}': v for k, v in images('val').items()}),
                'annotations': zipped({f'annotations/{kind}_{split}2017.json': json.dumps(instances(split)).encode()
                                       for kind in ('captions', 'instances') for split in COUNTS})}
    official = CocoFacts()
    archives = {key: Archive(getattr(official, key).name, len(data), hashlib.md5(data).hexdigest())
                for key, data in contents.items()}
    for key, data in contents.items():
        serving.files[f'{"annotations" if key == "annotations" else "zips"}/{archives[key].name}'] = data
    facts = CocoFacts(**archives, train_images=12, val_images=5, categories=3, annotation_bytes=30_000)
    monkeypatch.setattr(download, 'WAITS', (0.01, 0.01))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            serving.answer(self)

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield serving, f'http://127.0.0.1:{running.server_port}', facts
        running.shutdown()


def prepare(server: tuple[Server, str, CocoFacts], dest: Path, **settings: Any) -> dict[str, Any]:
    return prepare_coco(dest, **{**dict(mirror=server[1], facts=server[2], workers=1, progress=False), **settings})


def refused(server: tuple[Server, str, CocoFacts], dest: Path, status: Status, **settings: Any) -> str:
    with pytest.raises(PrepareError) as caught:
        prepare(server, dest, **settings)
    assert caught.value.status == status, caught.value
    return str(caught.value)


def test_it_downloads_unpacks_and_verifies(server, tmp_path):
    manifest = prepare(server, tmp_path / 'coco')
    for split, count in COUNTS.items():
        assert manifest['parts'][f'{split}2017']['images'] == count
        assert {path.name: path.read_bytes() for path in (tmp_path / f'coco/{split}2017').iterdir()} == images(split)
        path = tmp_path / f'coco/annotations/instances_{split}2017.json'
        assert json.loads(path.read_text()) == instances(split)
    assert {path.name for path in (tmp_path / 'coco/annotations').iterdir()} == {
        f'{kind}_{split}2017.json' for kind in ('instances', 'multilabel') for split in COUNTS}
    assert verify_tree(tmp_path / 'coco', workers=1, progress=False) == []
    (tmp_path / 'coco/val2017/000000000003.jpg').write_bytes(b'x')
    assert verify_tree(tmp_path / 'coco', workers=1, progress=False) == [
        f'changed: {tmp_path}/coco/val2017/000000000003.jpg']


def test_the_small_annotations_have_the_form_of_the_large_ones(server, tmp_path):
    prepare(server, tmp_path / 'coco', splits=['val'])
    small = json.loads((tmp_path / 'coco/annotations/multilabel_val2017.json').read_text())
    large = instances('val')
    assert {*small} == {'images', 'annotations', 'categories'} and small['categories'] == large['categories']
    for key in ('images', 'annotations'):
        assert len(small[key]) == len(large[key])
        assert all(entry.items() <= other.items() for entry, other in zip(small[key], large[key], strict=True))
    assert small['annotations'][0].keys() == {'id', 'image_id', 'category_id', 'iscrowd'}


def test_our_coco_reads_them(server, tmp_path):
    from workspace_lib.datasets import DATASETS
    if 'COCO' not in DATASETS:
        pytest.skip('there is no data set COCO')
    prepare(server, tmp_path / 'coco', short=24, pack=True)
    made = [DATASETS.build(dict(type='COCO', data_prefix=str(tmp_path / 'coco' / prefix), pipeline=[],
                                ann_file=str(tmp_path / f'coco/annotations/{kind}_train2017.json')))
            for prefix in ('train2017', 'train2017_short24', 'train2017_short24.pack')
            for kind in ('instances', 'multilabel')]
    for one in made:
        np.testing.assert_array_equal(one.get_gt_labels(), made[0].get_gt_labels())
    expected = np.zeros((12, 3), int)
    for item in instances('train')['annotations']:
        expected[1000 - item['image_id'], [id for id, _ in CATEGORIES].index(item['category_id'])] = 1
    np.testing.assert_array_equal(made[0].get_gt_labels(), expected)
    assert made[-1].load_image(3).shape == (24, 32, 3)


def test_a_download_that_breaks_off_goes_on_where_it_was(server, tmp_path):
    serving = server[0]
    serving.limit, serving.breaks = 4000, 3
    prepare(server, tmp_path / 'coco')
    assert len(serving.asked) == 3 + 3  # archives, and what broke off
    assert any(asked == 'bytes=4000-' for _, asked in serving.asked)


def test_what_has_come_is_kept_for_the_next_run(server, tmp_path):
    serving = server[0]
    serving.limit, serving.breaks, have = 0, 99, 500
    part = tmp_path / 'coco/archives/annotations_trainval2017.zip.part'
    part.parent.mkdir(parents=True)
    part.write_bytes(serving.files['annotations/annotations_trainval2017.zip'][:have])
    message = refused(server, tmp_path / 'coco', Status.DOWNLOAD)
    assert 'could not be fetched' in message and f'{have:,} bytes are kept in {part}' in message
    assert part.stat().st_size == have
    serving.breaks = 0
    prepare(server, tmp_path / 'coco')
    assert ('annotations/annotations_trainval2017.zip', f'bytes={have}-') in serving.asked
    assert not part.exists()


def test_a_server_without_ranges_is_asked_from_the_start(server, tmp_path):
    serving = server[0]
    serving.ranges, serving.limit, serving.breaks = False, 4000, 1
    prepare(server, tmp_path / 'coco')
    assert verify_tree(tmp_path / 'coco', workers=1, progress=False) == []


def test_a_server_that_cannot_be_reached(server, tmp_path):
    message = refused(server, tmp_path / 'coco', Status.DOWNLOAD, mirror='http://127.0.0.1:1')
    assert 'could not be fetched: [Errno 111]' in message and '--mirror' in message


@pytest.mark.parametrize('mirror', ['nonsense', 'file:///data', 'http://', 'http://[::1', 'http://host:port/'])
@pytest.mark.parametrize('dry_run', [True, False])
def test_an_address_that_is_none_is_refused(server, tmp_path, mirror, dry_run):
    message = refused(server, tmp_path / 'coco', Status.USAGE, mirror=mirror, dry_run=dry_run)
    assert f'--mirror {mirror}: ' in message and 'write it as' in message
    assert not (tmp_path / 'coco').exists()


def test_a_missing_file_on_the_server(server, tmp_path):
    del server[0].files['zips/val2017.zip']
    assert 'val2017.zip could not be fetched: ' in refused(server, tmp_path / 'coco', Status.DOWNLOAD)


def test_a_file_of_another_size_is_not_fetched(server, tmp_path):
    server[0].files['zips/val2017.zip'] += b'more'
    assert 'nothing was fetched' in refused(server, tmp_path / 'coco', Status.DOWNLOAD)


def test_a_wrong_file_is_deleted(server, tmp_path):
    data = bytearray(server[0].files['zips/val2017.zip'])
    data[300] ^= 1
    server[0].files['zips/val2017.zip'] = bytes(data)
    message = refused(server, tmp_path / 'coco', Status.DOWNLOAD)
    assert 'gave a wrong val2017.zip, which was deleted' in message and 'has the MD5' in message
    assert {path.name for path in (tmp_path / 'coco/archives').iterdir()} == {'annotations_trainval2017.zip', run.LOCK}


@pytest.fixture
def archives(server: tuple[Server, str, CocoFacts], tmp_path: Path) -> Path:
    """The archives, there already."""
    folder = tmp_path / 'archives'
    folder.mkdir()
    for name, data in server[0].files.items():
        (folder / name.rpartition('/')[2]).write_bytes(data)
    return folder


def test_archives_that_are_there_are_not_downloaded(server, archives, tmp_path):
    before = mini.tree_of(archives)
    prepare(server, tmp_path / 'coco', archives=archives)
    assert server[0].asked == [] and mini.tree_of(archives) == before


def test_an_archive_of_ones_own_that_is_wrong_is_kept(server, archives, tmp_path):
    data = bytearray((archives / 'val2017.zip').read_bytes())
    data[300] ^= 1
    (archives / 'val2017.zip').write_bytes(data)
    assert 'has the MD5' in refused(server, tmp_path / 'coco', Status.ARCHIVE, archives=archives)
    assert (archives / 'val2017.zip').read_bytes() == data


def facts_of(facts: CocoFacts, archives: Path) -> CocoFacts:
    """As if the archives were official as they are."""
    data = (archives / 'val2017.zip').read_bytes()
    return CocoFacts(**{**vars(facts), 'val': Archive('val2017.zip', len(data), hashlib.md5(data).hexdigest())})


@pytest.mark.parametrize('change, message', [
    ({'val2017/../../outside.jpg': b'x'}, 'would land outside the target'),
    ({'/tmp/outside.jpg': b'x'}, 'would land outside the target'),
    ({'val2017/000000000009.jpg': b'x'}, 'unexpected: 000000000009.jpg')])
def test_odd_members_of_a_zip_are_refused(server, archives, tmp_path, change, message):
    (archives / 'val2017.zip').write_bytes(zipped({**{f'val2017/{k}': v for k, v in images('val').items()}, **change}))
    before = mini.tree_of(tmp_path)
    assert message in refused(server, tmp_path / 'a/coco', Status.ARCHIVE, archives=archives, splits=['val'],
                              facts=facts_of(server[2], archives))
    assert {k: v for k, v in mini.tree_of(tmp_path).items() if k.split('/')[0] != 'a'} == before


def test_a_link_in_a_zip_is_refused(server, archives, tmp_path):
    with zipfile.ZipFile(archives / 'val2017.zip', 'a') as archive:
        link = zipfile.ZipInfo('val2017/000000000008.jpg')
        link.external_attr = 0o120777 << 16
        archive.writestr(link, '/etc/passwd')
    assert 'which is a link' in refused(server, tmp_path / 'coco', Status.ARCHIVE, archives=archives, splits=['val'],
                                        facts=facts_of(server[2], archives))


def test_a_damaged_member_is_found_by_the_zips_own_sums(server, archives, tmp_path):
    data = bytearray((archives / 'val2017.zip').read_bytes())
    data[300] ^= 1
    (archives / 'val2017.zip').write_bytes(data)
    assert 'is damaged' in refused(server, tmp_path / 'coco', Status.ARCHIVE, archives=archives, splits=['val'],
                                   facts=facts_of(server[2], archives))
    assert not (tmp_path / 'coco/val2017').exists()


class TwoDisks(Disk):
    """`archives` is a disk of its own."""

    def __init__(self, archives: int, tree: int) -> None:
        self.room = {True: archives, False: tree}

    def device(self, path: Path) -> int:
        return int('archives' in path.parts)

    def free(self, path: Path) -> tuple[int, int | None]:
        return self.room['archives' in path.parts], None


def test_downloads_need_room_on_the_disk_that_they_go_to(server, tmp_path):
    folder = tmp_path / 'archives'
    folder.mkdir()
    total = sum(map(len, server[0].files.values()))
    message = refused(server, tmp_path / 'coco', Status.SPACE, archives=folder, disk=TwoDisks(total - 1, 10**9))
    assert message.startswith(f'{folder} has ') and server[0].asked == []
    name = 'train2017.zip'
    (folder / f'{name}.part').write_bytes(server[0].files[f'zips/{name}'][:-10])
    have = len(server[0].files[f'zips/{name}']) - 10
    assert 'too few' in refused(server, tmp_path / 'coco', Status.SPACE, archives=folder,
                                disk=TwoDisks(total - have - 1, 10**9))
    prepare(server, tmp_path / 'coco', archives=folder, disk=TwoDisks(total - have, 10**9))


def test_copies_of_a_tree_that_is_there_need_room(server, tmp_path):
    prepare(server, tmp_path / 'coco')
    assert 'too few' in refused(server, tmp_path / 'coco', Status.SPACE, short=24, disk=TwoDisks(0, 100))
    assert not (tmp_path / 'coco/train2017_short24').exists()


@pytest.mark.parametrize('text, message', [
    ('{"images": [', 'cut off'), ('{"images": [[1]]}', "an entry of 'images' is not of COCO's form"),
    (json.dumps({**instances('val'), 'categories': []}), 'expected 3 categories')])
def test_annotations_that_are_none_are_named(server, archives, tmp_path, text, message):
    path = archives / 'annotations_trainval2017.zip'
    path.write_bytes(zipped({'annotations/instances_train2017.json': json.dumps(instances('train')).encode(),
                             'annotations/instances_val2017.json': text.encode()}))
    facts = CocoFacts(**{**vars(server[2]), 'annotations': Archive(path.name)})
    found = refused(server, tmp_path / 'coco', Status.ARCHIVE, archives=archives, splits=['val'], facts=facts)
    assert f'{path}: instances_val2017.json: ' in found and message in found and 'etch' in found
    assert not (tmp_path / 'coco/annotations').exists()


def test_copies_of_a_flat_split_use_several_threads(server, tmp_path):
    prepare(server, tmp_path / 'one', short=24, pack=True)
    prepare(server, tmp_path / 'two', short=24, pack=True, workers=4)
    for tree in ('one', 'two'):
        (tmp_path / tree / '.prepare/md5.json').unlink()  # inodes of its own archives
    assert mini.tree_of(tmp_path / 'one') == mini.tree_of(tmp_path / 'two')


@pytest.mark.parametrize('splits', [['val'], ['train']])
def test_one_split_alone(server, tmp_path, splits):
    manifest = prepare(server, tmp_path / 'coco', splits=splits, short=24)
    assert {*manifest['parts']} == {'annotations', f'{splits[0]}2017', f'{splits[0]}2017_short24'}


def test_too_little_space_for_coco_names_no_option_of_imagenet(server, tmp_path):
    class Full(Disk):
        def free(self, path: Path) -> tuple[int, int | None]:
            return 100, None
    message = refused(server, tmp_path / 'coco', Status.SPACE, disk=Full())
    assert '0.1 kB free' in message and 'subset' not in message


@pytest.mark.parametrize('first, then', [('val', ['train', 'val']), ('val', ['train']), ('train', ['val'])])
def test_a_split_can_be_added(server, tmp_path, first, then):
    prepare(server, tmp_path / 'both')
    prepare(server, tmp_path / 'coco', splits=[first], remove_archives=True)
    server[0].asked.clear()
    prepare(server, tmp_path / 'coco', splits=then)
    assert [name for name, _ in server[0].asked] == [f'zips/{"train" if first == "val" else "val"}2017.zip']
    assert verify_tree(tmp_path / 'coco', workers=1, progress=False) == []
    assert without_archives(tmp_path / 'coco') == without_archives(tmp_path / 'both')
    prepare(server, tmp_path / 'coco', splits=['val'])
    assert without_archives(tmp_path / 'coco') == without_archives(tmp_path / 'both')


def without_archives(dest: Path) -> dict[str, str | None]:
    return {name: digest for name, digest in tree_of(dest).items() if not name.startswith('archives')}


def test_splits_do_not_swallow_the_target(server, tmp_path, capsys):
    argv = ['coco', '--mirror', server[1], '--no-progress', '--splits']
    assert cli.main([*argv, 'val', str(tmp_path / 'coco')], server[2]) == 0
    assert {path.name for path in (tmp_path / 'coco').iterdir()} >= {'val2017'}
    assert not (tmp_path / 'coco/train2017').exists()
    assert cli.main([*argv, 'train,val', str(tmp_path / 'coco')], server[2]) == 0
    assert (tmp_path / 'coco/train2017').exists()
    assert cli.main([*argv, 'both', str(tmp_path / 'coco')], server[2]) == Status.USAGE
    assert 'splits are train and val' in capsys.readouterr().err


def test_a_dry_run_downloads_nothing(server, tmp_path, capsys):
    argv = ['coco', str(tmp_path / 'coco'), '--mirror', server[1], '--dry-run', '--resize', '24']
    assert cli.main(argv, server[2]) == 0
    assert 'to download, MD5 to be checked' in capsys.readouterr().out
    assert server[0].asked == [] and not (tmp_path / 'coco').exists()


# Killed, or at work twice

def program(server: tuple[Server, str, CocoFacts], folder: Path, dest: Path, kill: str = '0') -> subprocess.Popen:
    """The command line of a process of its own, which ends as `mini_ilsvrc` says; its log lies in `folder`."""
    (folder / 'facts').write_text(mini.facts_text(server[2]))
    command = [sys.executable, mini.__file__, str(folder / 'facts'), kill, 'coco', str(dest), '--mirror', server[1],
               '--resize', '24', '--no-progress']
    return subprocess.Popen(command, env={**os.environ, 'PYTHONPATH': str(Path(engine.__file__).parents[3])})


def tree_of(dest: Path) -> dict[str, str | None]:
    """All but the times and inodes of its own archives."""
    return {name: digest for name, digest in mini.tree_of(dest).items() if name != '.prepare/md5.json'}


@pytest.fixture
def reference(server, tmp_path: Path) -> tuple[dict[str, str | None], str]:
    """What an uninterrupted run leaves, and the log of its operations."""
    assert program(server, tmp_path, tmp_path / 'reference').wait(60) == 0
    return tree_of(tmp_path / 'reference'), (tmp_path / 'facts.log').read_text()


def killed_and_run_again(server: Any, folder: Path, reference: tuple[dict[str, str | None], str], kill: str) -> None:
    dest = folder / 'killed' / kill
    assert program(server, folder, dest, kill).wait(60) == -signal.SIGKILL, f'{kill} had ended before it was killed'
    assert tree_of(dest) != reference[0], f'{kill} was finished when it was killed'
    assert program(server, folder, dest).wait(60) == 0
    assert tree_of(dest) == reference[0], f'killed at {kill}'


def test_coco_killed_six_times_and_run_again_ends_with_the_same_tree(server, tmp_path, reference):
    for where in ('', 'checks.write'):
        count = mini.count_of(reference[1], where) - 1
        for number in range(3):
            killed_and_run_again(server, tmp_path, reference, f'{where}:{count * (1 + 2 * number) // 6 + 1}')


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_coco_killed_at_any_operation_and_run_again_ends_with_the_same_tree(server, tmp_path, reference):
    for at in range(1, mini.count_of(reference[1], '')):  # after the last the tree is complete
        killed_and_run_again(server, tmp_path, reference, f':{at}')


def test_killed_within_a_download_it_goes_on_where_it_was(server, tmp_path, reference):
    serving, dest = server[0], tmp_path / 'killed'
    part = dest / 'archives/annotations_trainval2017.zip.part'

    def kill() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (part.exists() and part.stat().st_size == serving.limit):
            time.sleep(0.01)
        process.kill()
        process.wait(60)
    serving.limit, serving.breaks, serving.on_break = 4000, 1, kill
    process = program(server, tmp_path, dest)
    assert process.wait(60) == -signal.SIGKILL
    assert part.stat().st_size == serving.limit
    assert program(server, tmp_path, dest).wait(60) == 0
    assert serving.asked[-3] == ('annotations/annotations_trainval2017.zip', 'bytes=4000-')
    assert tree_of(dest) == reference[0]


class Recording(Disk):
    """Remembers what is done to the disk, and raises at a rename that is not to be."""

    def __init__(self, no_rename_of: str = 'none') -> None:
        self.done: list[tuple[str, str]] = []
        self.no_rename_of = no_rename_of

    def sync_file(self, path: Path) -> None:
        super().sync_file(path)
        self.done.append(('sync_file', path.name))

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        self.done.append(('sync_folder', path.name))

    def rename(self, source: Path, target: Path) -> None:
        if target.name == self.no_rename_of:
            raise KeyboardInterrupt
        super().rename(source, target)
        self.done.append(('rename', target.name))


def test_an_archive_has_its_name_once_it_is_on_the_disk(server, tmp_path):
    prepare(server, tmp_path / 'coco', disk=(disk := Recording()))
    for name in ('train2017.zip', 'val2017.zip', 'annotations_trainval2017.zip'):
        at = disk.done.index(('rename', name))
        assert ('sync_file', f'{name}.part') in disk.done[:at]
        assert disk.done[at + 1] == ('sync_folder', 'archives')


def test_a_download_that_was_found_right_is_not_read_again(server, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        prepare(server, tmp_path / 'coco', disk=Recording('train2017.zip'))
    assert (tmp_path / 'coco/archives/train2017.zip.part').exists()
    monkeypatch.setattr('workspace_lib.tools.prepare.archives._md5', lambda meter, path: 'read again')
    asked = len(server[0].asked)
    prepare(server, tmp_path / 'coco')
    assert len(server[0].asked) == asked
    assert (tmp_path / 'coco/archives/train2017.zip').exists()


def test_two_runs_do_not_fetch_into_the_same_folder(server, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, 'LOCK_PATIENCE', 0.1)
    shared = tmp_path / 'shared'
    shared.mkdir()
    with (shared / run.LOCK).open('w') as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert f'{shared}/{run.LOCK}' in refused(server, tmp_path / 'coco', Status.BUSY, archives=shared)
    assert server[0].asked == []
    prepare(server, tmp_path / 'coco', archives=shared)
    prepare(server, tmp_path / 'other', archives=shared)
    assert len(server[0].asked) == 3


def test_what_another_run_brought_meanwhile_is_not_fetched_but_checked(server, tmp_path, monkeypatch):
    shared, real = tmp_path / 'shared', run.lock

    def late(path: Path) -> int:
        if path.parent == shared:
            (shared / 'val2017.zip').write_bytes(server[0].files['zips/val2017.zip'][:-1] + b'x')
        return real(path)
    monkeypatch.setattr(run, 'lock', late)
    message = refused(server, tmp_path / 'coco', Status.ARCHIVE, archives=shared, splits=['val'])
    assert f'{shared}/val2017.zip has the MD5' in message
    assert [name for name, _ in server[0].asked] == ['annotations/annotations_trainval2017.zip']


# Annotations read piece by piece

@pytest.mark.parametrize('chunk', [1, 7, 1000])
@pytest.mark.parametrize('indent', [None, 2])
def test_slim_annotations_do_not_depend_on_where_pieces_end(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(slim, 'CHUNK', chunk)
    (tmp_path / 'x.json').write_text(json.dumps(instances('train'), indent=indent))
    small = json.loads(b''.join(slim.slim_annotations(tmp_path / 'x.json', 3)))
    assert [entry['category_id'] for entry in small['annotations']] == [
        entry['category_id'] for entry in instances('train')['annotations']]
    assert len(small['images']) == 12


@pytest.mark.parametrize('text', ['', '{', '[]', '{"images": [{"id": 1}', '{"images": [{"id": 1}, x]}', '{"images" 1}',
                                  '{"images": [{"id": 1}], "annotations": [], "categories": []}',
                                  '{"images": ["abc"]}', '{"images": [null]}', '{"images": [{"id": 1}]}'])
def test_an_annotation_file_of_another_form_is_refused(tmp_path, text):
    (tmp_path / 'x.json').write_text(text)
    with pytest.raises(ValueError):
        b''.join(slim.slim_annotations(tmp_path / 'x.json', 3))


def test_memory_for_annotations_does_not_grow_with_the_file(tmp_path, monkeypatch):
    import tracemalloc
    content = instances('train')
    content['annotations'] = content['annotations'] * 400
    (tmp_path / 'x.json').write_text(json.dumps(content))
    assert os.path.getsize(tmp_path / 'x.json') > 4e6
    del content
    monkeypatch.setattr(slim, 'CHUNK', 1 << 16)
    tracemalloc.start()
    size = sum(map(len, slim.slim_annotations(tmp_path / 'x.json', 3)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size < 1e6 and peak < 1e6
