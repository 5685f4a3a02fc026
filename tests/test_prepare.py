"""ImageNet prepared from a miniature: the right tree, labels, copies; every failure a message and a status."""
from __future__ import annotations

import errno
import faulthandler
import fcntl
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import mini_ilsvrc as mini
import numpy as np
import pytest

from workspace_lib.datasets import ImageNet, decode
from workspace_lib.tools.prepare import PrepareError, Status, cli, engine, images, prepare_imagenet, units, verify_tree
from workspace_lib.tools.prepare import archives as archives_module
from workspace_lib.tools.prepare.archives import Tar
from workspace_lib.tools.prepare.disk import Disk
from workspace_lib.tools.prepare.errors import MEANING, system_errors
from workspace_lib.tools.prepare.pool import Meter, Pool
from workspace_lib.tools.prepare.sources import ImageNetFacts, find_source, read_devkit

ROOT = Path(engine.__file__).parents[3]


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageNetFacts]:
    """Archives, not to be changed."""
    folder = tmp_path_factory.mktemp('made')
    return folder, mini.make(folder)


@pytest.fixture
def archives(made: tuple[Path, ImageNetFacts], tmp_path: Path) -> tuple[Path, ImageNetFacts]:
    """Archives of one's own."""
    shutil.copytree(made[0], tmp_path / 'archives')
    return tmp_path / 'archives', made[1]


@pytest.fixture(scope='module')
def whole(made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tree, not to be changed."""
    dest = tmp_path_factory.mktemp('whole') / 'tree'
    prepare(made, dest, short=24, pack=True)
    return dest


def prepare(made: tuple[Path, ImageNetFacts], dest: Path, **settings: Any) -> dict[str, Any]:
    return prepare_imagenet(made[0], dest, **{**dict(facts=made[1], workers=1, progress=False), **settings})


def refused(made: tuple[Path, ImageNetFacts], dest: Path, status: Status, **settings: Any) -> str:
    """The message of a run that ends with `status`."""
    with pytest.raises(PrepareError) as caught:
        prepare(made, dest, **settings)
    assert caught.value.status == status, caught.value
    return str(caught.value)


def labels_of(path: Path) -> dict[str, int]:
    return {name: int(label) for name, label in (line.split() for line in path.read_text().splitlines())}


# The tree

def test_every_image_is_there_byte_for_byte_and_no_other_file(whole):
    expected = {f'{wnid}/{name}': data for label, wnid in enumerate(mini.wnids())
                for name, data in mini.images_of(label).items()}
    found = {str(path.relative_to(whole / 'train')): path.read_bytes()
             for path in (whole / 'train').rglob('*') if path.is_file()}
    assert found == expected
    assert {path.name: path.read_bytes() for path in (whole / 'val').iterdir()} == mini.val_images()


def test_val_labels_follow_the_official_mapping(whole):
    found = labels_of(whole / 'meta/val.txt')
    assert found == {f'ILSVRC2012_val_{number:08}.JPEG': label for number, label in enumerate(mini.val_labels(), 1)}
    assert [*found] == sorted(found)
    by_id = {name: mini.id_of(label) - 1 for name, label in found.items()}
    assert sum(by_id[name] == found[name] for name in found) <= 4  # ID - 1 would be another labelling


def test_the_devkit_gives_classes_in_the_order_of_wnids(made):
    truth = read_devkit(made[0] / made[1].devkit.name, made[1])
    assert truth.wnids == mini.wnids()  # inner nodes of the tree are none
    assert truth.words[3] == 'class 3, kind 3'
    assert truth.val == mini.val_labels()


PUBLISHED = {490: (65, 'n01751748'), 361: (970, 'n09193705'), 171: (230, 'n02105855'), 822: (809, 'n04263257')}


def test_the_first_val_images_have_their_published_labels(tmp_path):
    """ILSVRC2012_val_00000001 to 4, whose IDs are the first lines of the official ground truth, among all wnids."""
    wnids = sorted(pytest.importorskip('timm.data').ImageNetInfo('imagenet-1k').label_names())
    ids = [number for number in range(1, 1001) if number not in PUBLISHED]
    others = [wnid for wnid in wnids if wnid not in {wnid for _, wnid in PUBLISHED.values()}]
    classes = {**{number: wnid for number, (_, wnid) in PUBLISHED.items()},
               **dict(zip(ids, reversed(others), strict=True))}
    mini.write_devkit(tmp_path / 'devkit', [(number, wnid, '', 0) for number, wnid in classes.items()],
                      [*PUBLISHED, *ids])
    truth = read_devkit(tmp_path / 'devkit', ImageNetFacts(val_images=1000))
    assert [(label, truth.wnids[label]) for label in truth.val[:4]] == [*PUBLISHED.values()]


def test_our_imagenet_loads_the_tree(whole):
    for part in ('train', 'val'):
        dataset = ImageNet(str(whole / part), [], ann_file=str(whole / f'meta/{part}.txt'))
        shapes = {dataset.load_image(index).shape for index in range(len(dataset))}
        assert shapes <= {(36, 48, 3), (48, 36, 3)}
    train = ImageNet(str(whole / 'train'), [], classes=mini.wnids())
    assert labels_of(whole / 'meta/train.txt') == {
        info['img_info']['filename']: int(info['gt_label']) for info in train.data_infos}


def test_val_in_class_folders(made, tmp_path):
    prepare(made, tmp_path / 'tree', val_layout='folders')
    found = labels_of(tmp_path / 'tree/meta/val.txt')
    assert {name.split('/')[0]: label for name, label in found.items()} == {
        wnid: label for label, wnid in enumerate(mini.wnids())}
    dataset = ImageNet(str(tmp_path / 'tree/val'), [], classes=mini.wnids())
    assert {info['img_info']['filename']: int(info['gt_label']) for info in dataset.data_infos} == found


def test_the_manifest_has_counts_and_hashes(whole, made):
    manifest = json.loads((whole / 'meta/manifest.json').read_text())
    assert manifest['parts']['train']['images'] == made[1].train_images == 90
    assert manifest['parts']['train']['units'] == 20 and manifest['parts']['val']['images'] == 40
    assert manifest['archives']['ILSVRC2012_img_train.tar']['md5'] == made[1].train.md5
    unit = manifest['units']['train/n01440764']
    assert unit['images'] == 3 and len(unit['sha256']) == 64
    assert {*manifest['meta']} == {'train.txt', 'val.txt', 'classes.txt'}


def test_the_numbers_of_workers_make_no_difference(made, whole, tmp_path):
    prepare(made, tmp_path / 'tree', short=24, pack=True, workers=3)
    assert mini.tree_of(tmp_path / 'tree') == mini.tree_of(whole)


def test_kaggles_folders_give_the_same_images_and_labels(whole, tmp_path):
    (tmp_path / 'kaggle').mkdir()
    facts = mini.make_kaggle(tmp_path / 'kaggle')
    before = mini.tree_of(tmp_path / 'kaggle')
    prepare((tmp_path / 'kaggle', facts), tmp_path / 'tree', test=True)
    for part in ('train', 'val', 'meta/train.txt', 'meta/val.txt', 'meta/classes.txt'):
        if (whole / part).is_dir():
            assert mini.tree_of(tmp_path / 'tree' / part) == mini.tree_of(whole / part)
        else:
            assert (tmp_path / 'tree' / part).read_text() == (whole / part).read_text()
    assert len((tmp_path / 'tree/meta/test.txt').read_text().splitlines()) == 40
    assert mini.tree_of(tmp_path / 'kaggle') == before


def test_a_finished_tree_is_left_as_it_is(made, whole):
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for part in ('train', 'val', 'train_short24', 'train_short24.pack')
                for path in (whole / part).rglob('*')}
    before = times()
    prepare(made, whole, short=24, pack=True)
    assert times() == before


def test_archives_are_kept_unless_told_otherwise(archives, tmp_path):
    before = mini.tree_of(archives[0])
    prepare(archives, tmp_path / 'tree')
    assert mini.tree_of(archives[0]) == before
    prepare(archives, tmp_path / 'tree', remove_archives=True)
    assert mini.tree_of(archives[0]) == {}
    assert prepare((None, None), tmp_path / 'tree', short=24, dry_run=True) == {}
    assert not (tmp_path / 'tree/train_short24').exists()
    manifest = prepare((None, None), tmp_path / 'tree', short=24)  # a copy can be added all the same
    assert manifest['parts']['train_short24']['images'] == 90
    assert manifest['archives']['ILSVRC2012_img_train.tar']['md5'] == archives[1].train.md5
    assert verify_tree(tmp_path / 'tree', workers=1, progress=False) == []


def test_archives_of_a_trial_are_never_deleted(archives, tmp_path):
    before = mini.tree_of(archives[0])
    assert 'of which --subset leaves only a part' in refused(archives, tmp_path / 'tree', Status.USAGE, subset='2',
                                                             remove_archives=True)
    assert mini.tree_of(archives[0]) == before and not (tmp_path / 'tree').exists()


def test_kaggles_folders_are_not_deleted_and_that_is_said(tmp_path):
    (tmp_path / 'kaggle').mkdir()
    facts = mini.make_kaggle(tmp_path / 'kaggle')
    assert 'yours to delete' in refused((tmp_path / 'kaggle', facts), tmp_path / 'tree', Status.USAGE,
                                        remove_archives=True)
    assert not (tmp_path / 'tree').exists()


def test_a_run_killed_between_two_deletions_is_ended_by_the_next(archives, tmp_path):
    folder, facts = archives
    tree = tmp_path / 'tree'
    manifest = prepare(archives, tree)
    (folder / facts.devkit.name).unlink()
    assert 'lacks ILSVRC2012_devkit' in refused(archives, tmp_path / 'new', Status.ARCHIVE, remove_archives=True)
    assert 'lacks ILSVRC2012_devkit' in refused(archives, tree, Status.ARCHIVE)
    assert prepare(archives, tree, remove_archives=True, dry_run=True) == {}
    assert (folder / facts.train.name).exists()
    assert prepare(archives, tree, remove_archives=True) == manifest
    assert mini.tree_of(folder) == {}
    assert prepare(archives, tree, remove_archives=True) == manifest  # and once more


def test_a_file_that_is_not_the_archive_is_not_deleted(archives, tmp_path):
    folder, facts = archives
    prepare(archives, tmp_path / 'tree')
    (folder / facts.devkit.name).unlink()
    os.truncate(folder / facts.train.name, 1000)
    assert 'incomplete' in refused(archives, tmp_path / 'tree', Status.ARCHIVE, remove_archives=True)
    assert {path.name for path in folder.iterdir()} == {facts.train.name, facts.val.name}


def test_copies_are_not_made_of_an_unfinished_tree(made, tmp_path):
    assert 'not finished' in refused((None, None), tmp_path / 'tree', Status.DIFFERENT, short=24)
    prepare(made, tmp_path / 'tree', subset='2')
    assert 'was made with --subset 2, ' in refused((None, None), tmp_path / 'tree', Status.USAGE, short=24)
    shutil.rmtree(tmp_path / 'tree/train' / mini.wnids()[1])
    message = refused((None, None), tmp_path / 'tree', Status.DIFFERENT, short=24, subset='2')
    assert f'lacks train/{mini.wnids()[1]}; give ARCHIVES' in message


def test_any_folder_of_kaggles_download_may_be_given(tmp_path):
    facts = mini.make_kaggle(tmp_path)
    for name in ('', 'ILSVRC', 'ILSVRC/Data', 'ILSVRC/Data/CLS-LOC'):
        assert find_source(tmp_path / name, facts).folder == tmp_path
    with pytest.raises(PrepareError, match='lacks ILSVRC2012_devkit'):
        find_source(tmp_path / 'ILSVRC/Data/CLS-LOC/train', facts)


# Subsets

@pytest.mark.parametrize('subset, classes, images', [('5', 5, None), ('5x2', 5, 2), ('x1', 20, 1)])
def test_a_subset_is_the_first_classes_and_images(made, whole, tmp_path, subset, classes, images):
    manifest = prepare(made, tmp_path / 'tree', subset=subset)
    train, val = (labels_of(tmp_path / f'tree/meta/{part}.txt') for part in ('train', 'val'))
    assert {*train.values()} == {*val.values()} == {*range(classes)}
    counts = np.bincount([*train.values()])
    assert counts.tolist() == [min(3 + label % 4, images or 9) for label in range(classes)]
    assert len(val) == classes * min(2, images or 2) == manifest['parts']['val']['images']
    assert train.items() <= labels_of(whole / 'meta/train.txt').items()
    assert val.items() <= labels_of(whole / 'meta/val.txt').items()


@pytest.mark.parametrize('subset', ['', '0', 'x', '5x', '5x0', '-1', 'five', '1.5'])
def test_a_subset_that_says_nothing_is_refused(made, tmp_path, subset):
    assert 'CLASSESxIMAGES' in refused(made, tmp_path / 'tree', Status.USAGE, subset=subset)


def test_a_tree_is_not_mixed_of_different_options(made, tmp_path):
    prepare(made, tmp_path / 'tree', subset='2')
    message = refused(made, tmp_path / 'tree', Status.USAGE, subset='3')
    assert 'was made with --subset 2, and this run is for --subset 3;' in message and 'another folder' in message
    message = refused(made, tmp_path / 'tree', Status.USAGE, val_layout='folders')
    assert 'with --subset 2, --val-layout flat, and this run is for no --subset, --val-layout folders' in message


# Copies

def test_a_resized_copy_has_the_colours_of_the_originals(made, tmp_path):
    prepare(made, tmp_path / 'tree', short=24)
    for path in sorted((tmp_path / 'tree/train').rglob('*.JPEG')):
        copy = tmp_path / 'tree/train_short24' / path.relative_to(tmp_path / 'tree/train')
        assert copy.read_bytes()[:2] == b'\xff\xd8'  # the PNG, too
        expected = decode(path)  # CMYK as colour, EXIF's rotation done
        expected = cv2.resize(expected, (expected.shape[1] * 2 // 3, expected.shape[0] * 2 // 3),
                              interpolation=cv2.INTER_AREA)
        got = decode(copy)
        assert got.shape == expected.shape
        assert np.abs(got.astype(int) - expected).mean() < 8, path  # JPEG; channels swapped give 60


def test_the_longer_side_is_limited(made, tmp_path):
    prepare(made, tmp_path / 'tree', long=24, subset='4')
    shapes = {decode(path).shape for path in (tmp_path / 'tree/train_long24').rglob('*.JPEG')}
    assert shapes == {(18, 24, 3), (24, 18, 3)}


def test_what_is_small_enough_is_kept_to_the_byte_unless_it_is_odd(made, tmp_path):
    prepare(made, tmp_path / 'tree', short=100, subset='4')
    changed = {path.name for path in (tmp_path / 'tree/train').rglob('*.JPEG') if path.read_bytes() != (
        tmp_path / 'tree/train_short100' / path.relative_to(tmp_path / 'tree/train')).read_bytes()}
    kinds = {name: mini.kind_of(label, number) for label in range(4)
             for number, name in enumerate(mini.images_of(label))}
    assert {kinds[name] for name in changed} == {'png', 'cmyk', 'exif'} and len(changed) == 3


@pytest.mark.parametrize('kind', ['color', 'gray', 'cmyk', 'png', 'exif'])
def test_pictures_are_read_as_the_loader_reads_them(kind):
    data = mini.picture(3, kind)
    np.testing.assert_array_equal(images.pixels_of(data, 'x'), decode(data))
    assert images.shape_of(data, images.Size('short', 18), 'x') == ((24, 18) if kind == 'exif' else (18, 24))


def test_a_copy_can_be_added_later_and_earlier_ones_stay_in_the_manifest(made, tmp_path):
    prepare(made, tmp_path / 'tree', subset='2', short=24)
    manifest = prepare(made, tmp_path / 'tree', subset='2', long=24, pack=True)
    assert {*manifest['parts']} == {'train', 'val', 'train_short24', 'train_long24'}
    assert [*manifest['packs']] == ['train_long24.pack']
    shutil.rmtree(tmp_path / 'tree/train_short24')
    assert 'train_short24' not in prepare(made, tmp_path / 'tree', subset='2')['parts']
    assert verify_tree(tmp_path / 'tree', workers=1, progress=False) == []


def test_a_picture_that_cannot_be_read_is_named(made, tmp_path):
    folder = tmp_path / 'kaggle'
    folder.mkdir()
    facts = mini.make_kaggle(folder)
    name = [*mini.images_of(2)][1]
    (folder / 'ILSVRC/Data/CLS-LOC/train' / mini.wnids()[2] / name).write_bytes(mini.picture(1)[:700])
    assert name in refused((folder, facts), tmp_path / 'tree', Status.ARCHIVE, short=24)


@pytest.mark.parametrize('dry_run', [True, False])
def test_a_damaged_picture_among_the_samples_is_named(made, tmp_path, dry_run):
    folder = tmp_path / 'kaggle'
    folder.mkdir()
    facts = mini.make_kaggle(folder)
    path = folder / 'ILSVRC/Data/CLS-LOC/train' / mini.wnids()[0] / [*mini.images_of(0)][2]  # a sample
    path.write_bytes(mini.picture(1)[:700])
    message = refused((folder, facts), tmp_path / 'tree', Status.ARCHIVE, short=24, dry_run=dry_run)
    assert f'{path.name}: the JPEG is truncated' in message and f'{path.parent}' in message
    assert 'leave the copy out' in message
    assert not (tmp_path / 'tree/train').exists()


@pytest.mark.parametrize('content', ['', '[]', '{"a": 1}', '{'])
def test_damaged_sums_are_taken_anew(archives, tmp_path, content):
    prepare(archives, tmp_path / 'tree', subset='1')
    store = tmp_path / 'tree/.prepare/md5.json'
    before = store.read_text()
    store.write_text(content)
    prepare(archives, tmp_path / 'tree', subset='1')
    assert json.loads(before)[archives[1].devkit.name] == json.loads(store.read_text())[archives[1].devkit.name]


@pytest.mark.parametrize('name, content', [('options.json', ''), ('units/train/n01440764.txt', 'mangled\n'),
                                           ('units/train/n01440764.txt', 'a few words\n')])
def test_a_damaged_record_is_named_with_the_way_out(made, tmp_path, name, content):
    prepare(made, tmp_path / 'tree', subset='1')
    path = tmp_path / 'tree/.prepare' / name
    path.write_text(content)
    message = refused(made, tmp_path / 'tree', Status.DIFFERENT, subset='1')
    assert message.startswith(f'{path} is damaged (') and 'remove it' in message
    path.unlink()
    if name != 'options.json':
        shutil.rmtree(tmp_path / 'tree/train/n01440764')
    prepare(made, tmp_path / 'tree', subset='1')
    assert verify_tree(tmp_path / 'tree', workers=1, progress=False) == []


@pytest.mark.parametrize('workers', ['-3', '0'])
def test_a_number_of_workers_that_makes_no_sense_is_refused(made, tree, workers, capsys):
    for argv in (['imagenet', str(tree), '--verify'], ['imagenet', str(made[0]), str(tree)]):
        assert cli.main([*argv, '--workers', workers], made[1]) == Status.USAGE
        assert f'{workers} workers; give 1 or more' in capsys.readouterr().err


def test_a_name_that_the_terminal_cannot_show_does_not_end_a_run(tree, tmp_path):
    dest = tree.rename(tmp_path / '写真')
    done = subprocess.run([sys.executable, '-m', 'workspace_lib.tools.prepare', 'imagenet', str(dest), '--verify',
                           '--no-progress'], capture_output=True, cwd=ROOT, env={
                               **os.environ, 'PYTHONIOENCODING': 'latin-1', 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert b'\\u5199\\u771f: every file is as it was made' in done.stdout


def test_a_pack_needs_a_size(made, tmp_path):
    assert '--resize or --max-size' in refused(made, tmp_path / 'tree', Status.USAGE, pack=True)


# Archives that are not what they should be

def test_a_missing_archive_is_named(archives, tmp_path):
    (archives[0] / archives[1].val.name).unlink()
    message = refused(archives, tmp_path / 'tree', Status.ARCHIVE)
    assert 'lacks ILSVRC2012_img_val.tar' in message and 'image-net.org' in message
    assert not (tmp_path / 'tree').exists()


def test_the_official_sizes_are_the_default(archives, tmp_path):
    message = refused((archives[0], None), tmp_path / 'tree', Status.ARCHIVE)
    assert 'has 2,568,634: it is incomplete' in message


def test_a_truncated_tar_is_found_by_its_size(archives, tmp_path):
    path = archives[0] / archives[1].train.name
    os.truncate(path, path.stat().st_size - 5000)
    assert 'incomplete' in refused(archives, tmp_path / 'tree', Status.ARCHIVE)
    assert not (tmp_path / 'tree').exists()


@pytest.mark.parametrize('part', ['train', 'val', 'devkit'])
def test_a_flipped_byte_is_found_before_anything_is_unpacked(archives, tmp_path, part):
    path = archives[0] / getattr(archives[1], part).name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    message = refused(archives, tmp_path / 'tree', Status.ARCHIVE)
    assert f'{path} has the MD5' in message and 'fetch it again' in message
    assert {path.name for path in (tmp_path / 'tree').iterdir()} == {'.prepare'}
    assert path.read_bytes() == data


def test_a_dry_run_finds_a_flipped_byte_of_the_devkit_as_the_run_does(archives, tmp_path):
    path = archives[0] / archives[1].devkit.name
    whole = path.read_bytes()
    for at in range(12, len(whole), len(whole) // 9):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1:])
        dry = refused(archives, tmp_path / 'tree', Status.ARCHIVE, dry_run=True)
        assert not (tmp_path / 'tree').exists()
        assert dry == refused(archives, tmp_path / 'tree', Status.ARCHIVE) and f'{path} has the MD5' in dry
        shutil.rmtree(tmp_path / 'tree')


def test_a_damaged_devkit_without_a_sum_never_reaches_its_parser(archives, tmp_path, monkeypatch):
    monkeypatch.setattr('workspace_lib.tools.prepare.sources._classes', lambda meta: pytest.fail('was parsed'))
    path = archives[0] / archives[1].devkit.name
    whole = path.read_bytes()
    for at in range(64, len(whole), len(whole) // 30):  # behind the name of the file, which nothing hangs on
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1:])
        with pytest.raises(PrepareError, match='is damaged') as caught:
            read_devkit(path, archives[1])
        assert caught.value.status == Status.ARCHIVE


@pytest.mark.parametrize('error', [NotImplementedError('newer'), TypeError('odd'), KeyError('synsets')])
def test_whatever_a_parser_raises_is_called_damage(made, monkeypatch, error):
    import scipy.io

    def loadmat(*args: Any, **kwargs: Any) -> None:
        raise error
    monkeypatch.setattr(scipy.io, 'loadmat', loadmat)
    with pytest.raises(PrepareError, match=f'is damaged: {type(error).__name__}') as caught:
        read_devkit(made[0] / made[1].devkit.name, made[1])
    assert caught.value.status == Status.ARCHIVE


def test_md5_sums_are_kept_until_a_file_changes(archives, tmp_path, monkeypatch):
    prepare(archives, tmp_path / 'tree')
    shutil.rmtree(tmp_path / 'tree/train' / mini.wnids()[0])
    monkeypatch.setattr('workspace_lib.tools.prepare.archives._md5', lambda meter, path: 'not read again')
    prepare(archives, tmp_path / 'tree')  # the class is made anew
    shutil.rmtree(tmp_path / 'tree/train' / mini.wnids()[0])
    os.utime(archives[0] / archives[1].train.name)
    assert 'has the MD5 not read again' in refused(archives, tmp_path / 'tree', Status.ARCHIVE)


def with_true_facts(archives: tuple[Path, ImageNetFacts]) -> tuple[Path, ImageNetFacts]:
    """As if the archives were official as they are."""
    return archives[0], mini.facts_of(archives[0])


def test_a_tar_cut_off_within_an_image_is_found_without_sums(archives, tmp_path):
    path = archives[0] / archives[1].val.name
    os.truncate(path, 41_000)
    assert 'is damaged: it ends within ILSVRC2012_val_' in refused(
        with_true_facts(archives), tmp_path / 'tree', Status.ARCHIVE)
    assert not (tmp_path / 'tree/val').exists()


def test_a_tar_with_a_damaged_header_is_found_without_sums(archives, tmp_path):
    path = archives[0] / archives[1].val.name
    data = bytearray(path.read_bytes())
    data[data.index(b'ILSVRC2012_val_00000030') + 148] ^= 0x44  # its checksum: tarfile would take it for the end
    path.write_bytes(data)
    assert 'is damaged' in refused(with_true_facts(archives), tmp_path / 'tree', Status.ARCHIVE)


def test_a_tar_without_its_end_is_found_without_sums(archives, tmp_path):
    path = archives[0] / archives[1].val.name
    os.truncate(path, path.read_bytes().index(b'ILSVRC2012_val_00000030'))
    assert 'no end mark' in refused(with_true_facts(archives), tmp_path / 'tree', Status.ARCHIVE)


LINKS = {
    'a symbolic link': ('n01440764_1.JPEG', b'', dict(type=tarfile.SYMTYPE, linkname='/etc/passwd')),
    'a hard link': ('n01440764_1.JPEG', b'', dict(type=tarfile.LNKTYPE, linkname='../../outside')),
    'a device': ('n01440764_1.JPEG', b'', dict(type=tarfile.CHRTYPE)),
}
NAMES = {'above': '../n01440764_1.JPEG', 'far above': '../../../outside.JPEG', 'absolute': '/tmp/outside.JPEG',
         'within': 'a/../../n01440764_1.JPEG'}


def unpack_with(tmp_path: Path, member: tuple[str, bytes, dict]) -> str:
    """The message about a train archive with an odd member; asserts that nothing of its class was made."""
    folder = tmp_path / 'odd'
    facts = mini.make(folder, {0: [member]})
    before = mini.tree_of(tmp_path)
    message = refused((folder, facts), tmp_path / 'a/tree', Status.ARCHIVE)
    after = {name: digest for name, digest in mini.tree_of(tmp_path).items() if name.split('/')[0] != 'a'}
    assert after == before, 'something was written outside the target'
    assert {path.name for path in (tmp_path / 'a').iterdir()} == {'tree'}
    assert not (tmp_path / 'a/tree/train' / mini.wnids()[0]).exists()
    return message


@pytest.mark.parametrize('kind', LINKS)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    assert "holds 'n01440764_1.JPEG', which is a link or no plain file" in unpack_with(tmp_path, LINKS[kind])


@pytest.mark.parametrize('kind', NAMES)
def test_names_that_lead_outside_are_refused(tmp_path, kind):
    assert 'would land outside the target' in unpack_with(tmp_path, (NAMES[kind], b'data', {}))


def test_a_name_twice_in_a_tar_is_refused(tmp_path):
    name = [*mini.images_of(0)][0]
    assert f'holds {name} twice' in unpack_with(tmp_path, (name, b'data', {}))


def test_a_strange_file_in_a_class_is_refused(tmp_path):
    assert "'notes.txt' is no image of the class n01440764" in unpack_with(tmp_path, ('notes.txt', b'data', {}))


def test_a_missing_class_is_named(archives, tmp_path):
    path = archives[0] / archives[1].train.name
    with tarfile.open(path, 'w') as tar:
        for label, wnid in enumerate(mini.wnids()[:-2]):
            mini.add(tar, f'{wnid}.tar', mini.inner_tar(label))
    message = refused(with_true_facts(archives), tmp_path / 'tree', Status.ARCHIVE)
    assert f'missing: {mini.wnids()[-2]}, {mini.wnids()[-1]}' in message


def test_a_missing_val_image_is_named(archives, tmp_path):
    with tarfile.open(archives[0] / archives[1].val.name, 'w') as tar:
        for name, data in [*mini.val_images().items()][:-1]:
            mini.add(tar, name, data)
    assert 'lacks 1 val images, such as number 40' in refused(
        with_true_facts(archives), tmp_path / 'tree', Status.ARCHIVE)


def with_test_images(made: tuple[Path, ImageNetFacts], tmp_path: Path, images: dict[str, bytes]) -> tuple[
        Path, ImageNetFacts]:
    shutil.copytree(made[0], tmp_path / 'with_test')
    mini.make_test(tmp_path / 'with_test', images)
    return tmp_path / 'with_test', made[1]


def test_the_test_images_are_all_there_byte_for_byte(made, tmp_path):
    source = with_test_images(made, tmp_path, mini.test_images())
    manifest = prepare(source, tmp_path / 'tree', test=True, subset='1')
    assert {path.name: path.read_bytes() for path in (tmp_path / 'tree/test').iterdir()} == mini.test_images()
    assert (tmp_path / 'tree/meta/test.txt').read_text().split() == [*mini.test_images()]
    assert manifest['parts']['test']['images'] == 40


def test_a_missing_test_image_is_named(made, tmp_path):
    images = mini.test_images()
    del images['ILSVRC2012_test_00000017.JPEG']
    source = with_test_images(made, tmp_path, images)
    assert 'lacks 1 test images, such as number 17' in refused(source, tmp_path / 'tree', Status.ARCHIVE, test=True)
    assert not (tmp_path / 'tree/test').exists()


@pytest.mark.parametrize('name', ['notes.txt', 'ILSVRC2012_val_00000001.JPEG', 'ILSVRC2012_test_00000041.JPEG',
                                  'ILSVRC2012_test_00000000.JPEG', 'test/ILSVRC2012_test_00000001.JPEG'])
def test_a_foreign_file_among_the_test_images_is_refused(made, tmp_path, name):
    source = with_test_images(made, tmp_path, {**mini.test_images(), name: b'mine'})
    assert f"'test/{name}' is no test image: they are ILSVRC2012_test_00000001.JPEG to 00000040" in refused(
        source, tmp_path / 'tree', Status.ARCHIVE, test=True)
    assert not (tmp_path / 'tree/test').exists()


def test_there_are_so_many_official_test_images():
    assert ImageNetFacts().test_images == 100_000


def test_an_image_too_few_is_found_by_the_count(made, tmp_path):
    facts = replace(made[1], train_images=91)
    assert 'lists 90 images; ILSVRC2012 has 91' in refused((made[0], facts), tmp_path / 'tree', Status.ARCHIVE)
    assert not (tmp_path / 'tree/meta/manifest.json').exists()


def test_a_download_of_kaggles_that_is_completed_later_is_taken(whole, tmp_path):
    folder, tree, said = tmp_path / 'kaggle', tmp_path / 'tree', list[str]()
    folder.mkdir()
    facts, wnid = mini.make_kaggle(folder), mini.wnids()[5]
    image = folder / 'ILSVRC/Data/CLS-LOC/train' / wnid / [*mini.images_of(5)][1]
    data = image.read_bytes()
    image.unlink()
    assert f'{folder} is incomplete' in refused((folder, facts), tree, Status.ARCHIVE)
    others = {path.name: path.stat().st_ino for path in (tree / 'train').iterdir() if path.name != wnid}
    image.write_bytes(data)
    prepare((folder, facts), tree, say=said.append)
    assert f'other files than before in the source, so made anew: train/{wnid}' in said
    assert mini.tree_of(tree / 'train') == mini.tree_of(whole / 'train')
    assert others.items() <= {path.name: path.stat().st_ino for path in (tree / 'train').iterdir()}.items()


@pytest.mark.parametrize('part', ['train/n01440764/n01440764_5.JPEG', 'val/ILSVRC2012_val_00000033.JPEG'])
@pytest.mark.parametrize('data', [b'', b'<html>no image</html>'])
def test_a_file_of_kaggles_that_is_no_image_is_refused(tmp_path, part, data):
    (tmp_path / 'kaggle').mkdir()
    facts = mini.make_kaggle(tmp_path / 'kaggle')
    (tmp_path / 'kaggle/ILSVRC/Data/CLS-LOC' / part).write_bytes(data)
    message = refused((tmp_path / 'kaggle', facts), tmp_path / 'tree', Status.ARCHIVE)
    assert f'{part} is no JPEG or PNG file ({len(data)} bytes)' in message


def test_a_link_in_kaggles_folders_is_refused(tmp_path):
    folder = tmp_path / 'kaggle'
    folder.mkdir()
    facts = mini.make_kaggle(folder)
    (folder / 'ILSVRC/Data/CLS-LOC/train' / mini.wnids()[0] / 'n01440764_77.JPEG').symlink_to('/etc/passwd')
    assert 'n01440764_77.JPEG is a link' in refused((folder, facts), tmp_path / 'tree', Status.ARCHIVE)


# The disk

class Statvfs(Disk):
    def __init__(self, size: int, inodes: int | None) -> None:
        self.size, self.inodes = size, inodes

    def free(self, path: Path) -> tuple[int, int | None]:
        return self.size, self.inodes


def test_too_little_space_is_found_before_anything_is_unpacked(made, tmp_path):
    message = refused(made, tmp_path / 'tree', Status.SPACE, disk=Statvfs(100_000, 10**9))
    assert '100.0 kB free' in message and 'B too few' in message
    assert 'or try --subset' in message
    assert {path.name for path in (tmp_path / 'tree').iterdir()} == {'.prepare'}
    assert {path.name for path in (tmp_path / 'tree/.prepare').iterdir()} == {'lock', 'md5.json'}


def test_too_few_inodes_are_found_before_anything_is_unpacked(made, tmp_path):
    message = refused(made, tmp_path / 'tree', Status.SPACE, disk=Statvfs(10**12, 50))
    assert '50 inodes left' in message and 'df -i' in message


def test_a_file_system_that_does_not_count_inodes_is_fine(made, tmp_path):
    prepare(made, tmp_path / 'tree', disk=Statvfs(10**12, None), subset='1')


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Bytes and files of each check of the room."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(engine.Job, 'check_space', lambda self, size, files, *place: found.append((size, files)))
    return found


def test_a_half_made_copy_needs_room_for_what_it_lacks(made, tmp_path, asked):
    tree = tmp_path / 'tree'
    prepare(made, tree)
    refused(made, tree, Status.FAILED, short=24, disk=Failing(errno.EIO, 45))
    (whole_size, whole_files), done = asked[-1], len([*(tree / '.prepare/work/copies/train_short24').iterdir()])
    prepare(made, tree, short=24)
    size, files = asked[-1]
    assert files == whole_files * (20 - done) // 20 > 0
    assert 0 < size < whole_size * (23 - done) / 20  # classes are of unequal sizes, and samples other pictures
    prepare(made, tree, short=24)
    assert asked[-1] == (0, 0)


class FailingMap(Disk):
    def write_at(self, path: Path, offset: int, data: Any) -> None:
        raise OSError(errno.EIO, 'Input/output error', str(path))


def test_a_raw_map_whose_blocks_are_reserved_is_not_counted_again(made, whole, tmp_path):
    prepare(made, tmp_path / 'tree', short=24)
    refused(made, tmp_path / 'tree', Status.FAILED, short=24, pack=True, disk=FailingMap())
    prepare(made, tmp_path / 'tree', short=24, pack=True, disk=Statvfs(0, 0))
    assert mini.tree_of(tmp_path / 'tree') == mini.tree_of(whole)


class Watcher(Disk):
    """Notes which descriptors were open when the first file of a unit was written, and whether that is synced."""

    open: set[int] | None = None

    def write(self, path: Path, chunks: Any) -> None:
        if path.suffix == '.JPEG':
            self.note()
        super().write(path, chunks)

    def write_at(self, path: Path, offset: int, data: Any) -> None:
        self.note()
        super().write_at(path, offset, data)

    def note(self) -> None:
        there = Path('/proc/self/fd')  # listing it opens one more for a moment
        self.open = self.open or {int(name) for name in os.listdir(there) if (there / name).exists()}


def test_errors_of_late_writes_are_told_to_the_unit_that_wrote(made, tmp_path, monkeypatch):
    from workspace_lib.tools.prepare import disk
    watcher, early = Watcher(), list[bool]()

    def syncfs(file: int) -> int:
        if watcher.open:
            early.append(file in watcher.open)
        watcher.open = None
        return 0
    monkeypatch.setattr(disk, '_libc', SimpleNamespace(syncfs=syncfs))
    prepare(made, tmp_path / 'tree', subset='2', short=24, pack=True, disk=watcher)
    assert early == [True] * (2 + 1 + 2 + 2)  # classes, val, classes of the copy, and of the raw map


def test_packing_takes_little_memory_however_large_a_class_is(tmp_path):
    import tracemalloc

    from workspace_lib.tools.prepare import copies
    data, tree = mini.picture(1, size=(600, 600)), units.Tree(tmp_path)
    job = engine.Job(tmp_path, {}, 1, Disk(), show_progress=False, say=lambda line: None)
    names = [f'n0_{number}.JPEG' for number in range(40)]  # 43 MB of pixels

    def fill(writer: units.Writer) -> None:
        for name in names:
            writer.add(name, data)
    with job:
        job.build([units.Unit('train/n0', 1, 40, fill)], '')
        packed = copies.Packed(job, ['train/n0'], 'train_short600.pack', images.Size('short', 600))
        tracemalloc.start()
        packed.make()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (tree.folder('train_short600.pack') / 'pixels.bin').stat().st_size == 40 * 600 * 600 * 3
    assert peak < 12e6


class Failing(Disk):
    """Raises an error at its `at`-th write."""

    def __init__(self, code: int, at: int = 30) -> None:
        self.code, self.left = code, at

    def write(self, path: Path, chunks: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(self.code, os.strerror(self.code), str(path))
        super().write(path, chunks)


@pytest.mark.parametrize('code, status, text', [
    (errno.ENOSPC, Status.SPACE, 'the disk is full at'), (errno.EDQUOT, Status.SPACE, 'the disk is full at'),
    (errno.EROFS, Status.TARGET, 'Read-only file system'), (errno.EIO, Status.FAILED, 'Input/output error')])
@pytest.mark.parametrize('workers', [1, 2])
def test_a_disk_that_fails_on_the_way_loses_nothing(made, whole, tmp_path, code, status, text, workers):
    message = refused(made, tmp_path / 'tree', status, disk=Failing(code), workers=workers)
    assert text in message and ('run the same command again' in message or status == Status.TARGET)
    assert not any((tmp_path / 'tree/.prepare/work').rglob('*.JPEG')), 'half a class is left on a full disk'
    prepare(made, tmp_path / 'tree', short=24, pack=True)
    assert mini.tree_of(tmp_path / 'tree') == mini.tree_of(whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB of one's own."""
    place = tmp_path / 'small'
    place.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f'no right to mount a file system: {mounted.stderr.decode().strip()}')
    yield place
    subprocess.run(['umount', str(place)], check=True)


class Unaware(Disk):
    def free(self, path: Path) -> tuple[int, int | None]:
        return 10**12, None


def test_a_real_disk_that_fills_up_on_the_way(made, small_disk):
    before = mini.tree_of(made[0])
    assert 'too few' in refused(made, small_disk / 'tree', Status.SPACE)
    message = refused(made, small_disk / 'tree', Status.SPACE, disk=Unaware(), workers=2)
    assert 'the disk is full at' in message and 'df -h' in message
    subprocess.run(['mount', '-o', 'remount,size=8m', str(small_disk)], check=True)
    prepare(made, small_disk / 'tree')
    assert verify_tree(small_disk / 'tree', workers=1, progress=False) == []
    assert mini.tree_of(made[0]) == before


def test_a_real_read_only_target(made, small_disk):
    subprocess.run(['mount', '-o', 'remount,ro', str(small_disk)], check=True)
    message = refused(made, small_disk / 'tree', Status.TARGET)
    assert 'must be writable' in message and 'make prepare' in message


def explained(error: OSError, dest: Path) -> PrepareError:
    with pytest.raises(PrepareError) as caught, system_errors(dest):
        raise error
    return caught.value


def test_an_archive_that_cannot_be_read_is_not_a_matter_of_the_target(archives, tmp_path, monkeypatch):
    path = archives[0] / 'ILSVRC2012_img_val.tar'
    monkeypatch.setattr(os, 'access', lambda place, mode: not (Path(place) == path and mode == os.R_OK))  # root may all
    error = explained(PermissionError(errno.EACCES, 'Permission denied', str(path)), tmp_path / 'tree')
    assert error.status == Status.ARCHIVE and f'{path}: Permission denied; it must be readable' in str(error)
    part = archives[0] / 'train2017.zip.part'
    error = explained(PermissionError(errno.EACCES, 'Permission denied', str(part)), tmp_path / 'tree')
    assert error.status == Status.TARGET and f'{archives[0]} must be writable' in str(error)


def test_a_part_on_another_disk_is_explained(made, tmp_path):
    class OtherDisk(Disk):
        def rename(self, source: Path, target: Path) -> None:
            if target.parent == tmp_path / 'tree/train':
                raise OSError(errno.EXDEV, 'Invalid cross-device link', str(source), None, str(target))
            super().rename(source, target)
    message = refused(made, tmp_path / 'tree', Status.TARGET, disk=OtherDisk())
    assert f'{tmp_path}/tree/train/' in message and f'is on another disk than {tmp_path}/tree/.prepare' in message
    assert 'Remove that link' in message


@pytest.mark.parametrize('dest', ['file', 'file/tree'])
def test_a_file_in_the_place_of_the_target_is_named(made, tmp_path, dest):
    (tmp_path / 'file').write_text('mine')
    message = refused(made, tmp_path / dest, Status.TARGET)
    assert f'{tmp_path}/file' in message and 'Give another DEST' in message
    assert (tmp_path / 'file').read_text() == 'mine'


def test_a_second_run_at_the_same_time_is_refused(made, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, 'LOCK_PATIENCE', 0.1)
    (tmp_path / 'tree/.prepare').mkdir(parents=True)
    with (tmp_path / 'tree/.prepare/lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write('process 4711 on there\n')
        lock.flush()
        message = refused(made, tmp_path / 'tree', Status.BUSY)
    assert 'another run is at work here (process 4711 on there' in message
    assert {path.name for path in (tmp_path / 'tree').iterdir()} == {'.prepare'}


def test_a_folder_that_someone_else_made_is_left_alone(made, tmp_path):
    mine = tmp_path / 'tree/train' / mini.wnids()[4]
    mine.mkdir(parents=True)
    (mine / 'my.txt').write_text('mine')
    message = refused(made, tmp_path / 'tree', Status.DIFFERENT)
    assert f'{mine} is there already' in message
    assert (mine / 'my.txt').read_text() == 'mine'


def test_a_class_that_lost_a_file_is_not_passed_over(made, tmp_path):
    prepare(made, tmp_path / 'tree', subset='3')
    folder = tmp_path / 'tree/train' / mini.wnids()[1]
    gone = sorted(folder.iterdir())[0]
    gone.unlink()
    assert f'{folder} has changed since it was made: {gone.name}' in refused(
        made, tmp_path / 'tree', Status.DIFFERENT, subset='3')
    shutil.rmtree(folder)
    prepare(made, tmp_path / 'tree', subset='3')
    assert gone.exists()


# --verify

@pytest.fixture
def tree(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / 'tree')
    return tmp_path / 'tree'


def test_verify_of_a_finished_tree_finds_nothing(tree):
    assert verify_tree(tree, workers=2, progress=False) == []


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize('name', [
    'train/n01440764/n01440764_5.JPEG', 'val/ILSVRC2012_val_00000033.JPEG', 'train_short24/n01440764/n01440764_5.JPEG',
    'meta/val.txt', 'train_short24.pack/index.npy', 'train_short24.pack/about.json'])
def test_verify_names_a_flipped_byte(tree, name):
    flip(tree / name)
    assert verify_tree(tree, workers=1, progress=False) == [f'changed: {tree / name}']


def test_verify_names_the_part_of_a_raw_map(tree):
    flip(tree / 'train_short24.pack/pixels.bin')
    found, = verify_tree(tree, workers=1, progress=False)
    assert found.startswith(f'changed: {tree}/train_short24.pack/pixels.bin, the ') and mini.wnids()[-1] in found


def test_verify_names_a_missing_and_an_extra_file(tree):
    gone = tree / 'val/ILSVRC2012_val_00000033.JPEG'
    gone.unlink()
    shutil.rmtree(tree / 'train' / mini.wnids()[0])
    extra = ['train/n01448683/mine.JPEG', 'train/other', 'meta/mine.txt', 'train_short24.pack/mine']
    for name in extra:
        (tree / name).write_text('mine')
    expected = [f'missing: {gone}', *(f'missing: {tree}/train/{mini.wnids()[0]}/{name}' for name in mini.images_of(0)),
                *(f'extra: {tree / name}' for name in extra)]
    assert verify_tree(tree, workers=1, progress=False) == sorted(expected)


def told(tree: Path) -> list[str]:
    return verify_tree(tree, workers=1, progress=False)


@pytest.mark.parametrize('archives_given', [True, False])
@pytest.mark.parametrize('name', ['meta/val.txt', 'train_short24.pack/index.npy', 'train_short24.pack/about.json'])
def test_a_later_run_never_declares_damage_to_be_right(made, tree, name, archives_given):
    before = (tree / name).read_bytes()
    flip(tree / name, -2)
    if name.startswith('meta') and archives_given:  # it is written anew, and is as it was
        prepare(made, tree)
        assert (tree / name).read_bytes() == before and told(tree) == []
        return
    message = refused(made if archives_given else (None, None), tree, Status.DIFFERENT, long=30)
    assert f'changed: {tree / name}' in message
    assert not (tree / 'train_long30').exists(), 'hours of work before it is said'
    assert told(tree) == [f'changed: {tree / name}']


@pytest.mark.parametrize('name', ['index.npy', 'about.json'])
def test_a_raw_map_that_was_damaged_before_its_manifest_is_not_taken(made, tmp_path, monkeypatch, name):
    tree = tmp_path / 'tree'
    with monkeypatch.context() as patched:
        patched.setattr('workspace_lib.tools.prepare.plan.write_manifest', lambda *args: {})
        prepare(made, tree, subset='2', short=24, pack=True)
    flip(tree / 'train_short24.pack' / name)
    assert f'{name} has changed since it was made' in refused(made, tree, Status.DIFFERENT, subset='2', short=24,
                                                              pack=True)
    shutil.rmtree(tree / 'train_short24.pack')
    prepare(made, tree, subset='2', short=24, pack=True)
    assert told(tree) == []


def test_a_copy_that_lost_a_class_is_not_forgotten_by_a_later_run(made, tree):
    shutil.rmtree(tree / 'train_short24' / mini.wnids()[3])
    prepare(made, tree)
    assert told(tree) == [f'missing: {tree}/train_short24/{mini.wnids()[3]}/{name}' for name in sorted(
        mini.images_of(3))]


def test_an_extra_file_in_meta_stays_extra(made, tree):
    (tree / 'meta/mine.txt').write_text('mine')
    prepare(made, tree)
    assert told(tree) == [f'extra: {tree}/meta/mine.txt']


def test_what_an_earlier_run_had_besides_stays_in_the_manifest(tmp_path):
    (tmp_path / 'kaggle').mkdir()
    facts = mini.make_kaggle(tmp_path / 'kaggle')
    prepare((tmp_path / 'kaggle', facts), tmp_path / 'tree', test=True)
    manifest = prepare((tmp_path / 'kaggle', facts), tmp_path / 'tree')
    assert 'test' in manifest['parts'] and 'test.txt' in manifest['meta'] and told(tmp_path / 'tree') == []


def test_a_copy_has_its_name_only_when_all_of_it_is_there(made, tmp_path):
    tree = tmp_path / 'tree'
    prepare(made, tree)
    refused(made, tree, Status.FAILED, short=24, disk=Failing(errno.EIO, 45))
    assert not (tree / 'train_short24').exists()
    done = [*(tree / '.prepare/work/copies/train_short24').iterdir()]
    assert 2 < len(done) < 20
    times = {path.name: path.stat().st_ino for path in done}
    prepare(made, tree, short=24)  # goes on with the classes that are missing
    assert times.items() <= {path.name: path.stat().st_ino for path in (tree / 'train_short24').iterdir()}.items()
    assert told(tree) == [] and not (tree / '.prepare/work').exists()


def test_verify_names_a_copy_that_no_finished_run_made(made, tmp_path, monkeypatch):
    tree = tmp_path / 'tree'
    prepare(made, tree)
    with monkeypatch.context() as patched:
        patched.setattr('workspace_lib.tools.prepare.plan.write_manifest', lambda *args: {})
        prepare(made, tree, short=24)
    shutil.rmtree(tree / 'train_short24' / mini.wnids()[3])
    assert told(tree) == [f'extra: {tree}/train_short24 (no finished run made it; run again with the options of that '
                          'copy)']
    prepare(made, tree, short=24)
    assert told(tree) == []


def test_verify_of_an_unfinished_tree_says_so(tmp_path):
    with pytest.raises(PrepareError, match='not finished.* both ARCHIVES and DEST') as caught:
        verify_tree(tmp_path, workers=1)
    assert caught.value.status == Status.DIFFERENT


def test_a_forgotten_dest_is_told_how_to_go_on(archives, capsys):
    assert cli.main(['imagenet', str(archives[0]), '--resize', '24'], archives[1]) == Status.DIFFERENT
    message = capsys.readouterr().err
    assert f'{archives[0]} is not its folder' in message and 'both ARCHIVES and DEST' in message
    assert '--verify' not in message


# The command line

def test_statuses_and_messages_of_the_command_line(made, tmp_path, capfd):
    argv = ['imagenet', str(made[0]), str(tmp_path / 'tree'), '--workers', '1', '--no-progress', '--subset', '2x2']
    assert cli.main(argv, made[1]) == 0
    assert f'{tmp_path}/tree/train: 4 files' in capfd.readouterr().out
    assert cli.main(['imagenet', str(tmp_path / 'tree'), '--verify', '--no-progress']) == 0
    assert 'every file is as it was made' in capfd.readouterr().out
    flip(tmp_path / 'tree/train/n01440764/n01440764_5.JPEG')
    assert cli.main(['imagenet', str(tmp_path / 'tree'), '--verify', '--no-progress']) == 7
    out = capfd.readouterr().out
    assert 'changed: ' in out and '1 differences' in out
    assert cli.main(['imagenet', str(tmp_path / 'nowhere'), str(tmp_path / 'x')]) == 3
    assert capfd.readouterr().err.startswith(f'error: {tmp_path}/nowhere lacks ILSVRC2012_devkit')


def test_a_dry_run_says_sizes_and_times_and_writes_nothing(made, tmp_path, capsys):
    argv = ['imagenet', str(made[0]), str(tmp_path / 'tree'), '--resize', '24', '--pack', '--dry-run']
    assert cli.main(argv, made[1]) == 0
    out = capsys.readouterr().out
    for text in ('ILSVRC2012_img_train.tar: 327.7 kB, MD5 to be checked', 'train_short24: about ', '.pack: about ',
                 'time       about MD5 1 s', 'Nothing was written'):
        assert text in out
    assert not (tmp_path / 'tree').exists()
    with pytest.raises(PrepareError) as caught:
        prepare(made, tmp_path / 'tree', dry_run=True, disk=Statvfs(1000, None))
    assert caught.value.status == Status.SPACE


def test_options_may_stand_anywhere(made, tmp_path, capsys):
    assert cli.main(['imagenet', str(made[0]), '--dry-run', str(tmp_path / 'tree'), '--subset', '2'], made[1]) == 0
    assert f'to write   {tmp_path}/tree' in capsys.readouterr().out
    for argv in ([], ['mnist'], ['imagenet'], ['imagenet', 'a', 'b', 'c']):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv, made[1])
        assert caught.value.code == Status.USAGE


def test_a_dry_run_is_refused_for_what_the_run_would_be(made, tmp_path, monkeypatch):
    prepare(made, tmp_path / 'tree', subset='2')
    assert 'with --subset 2' in refused(made, tmp_path / 'tree', Status.USAGE, subset='3', dry_run=True)
    (tmp_path / 'file').write_text('mine')
    assert 'Give another DEST' in refused(made, tmp_path / 'file/tree', Status.TARGET, dry_run=True)
    monkeypatch.setattr(os, 'access', lambda place, mode: not (Path(place) == tmp_path and mode & os.W_OK))
    message = refused(made, tmp_path / 'other/tree', Status.TARGET, dry_run=True)
    assert f'{tmp_path}/other/tree must be writable' in message
    assert not (tmp_path / 'other').exists()


def test_the_readme_lists_every_status_and_option():
    text = (ROOT / 'datasets/README.md').read_text()
    for status in Status:
        assert f'\n| {status.value} | {MEANING[status].split(";")[0].split(", or ")[0]}' in text
    for option in ('--val-layout', '--subset', '--test', '--resize', '--max-size', '--pack', '--remove-archives',
                   '--dry-run', '--verify', '--mirror', '--archives', '--splits'):
        assert option in text


def test_help_lists_the_exit_statuses(capsys):
    with pytest.raises(SystemExit):
        cli.main(['imagenet', '--help'])
    out = capsys.readouterr().out
    for status in Status:
        assert f'\n  {status.value:<4}' in out


def test_the_script_hands_over_and_nothing_loads_torch(tmp_path):
    code = 'import sys, workspace_lib.tools.prepare.cli; sys.exit("torch" in sys.modules or "cv2" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
    if not (ROOT / '.venv/bin/python').exists():
        pytest.skip('no .venv beside the checkout')
    env = {key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'LAB_DEVICE')}
    for script in ('prepare_imagenet.sh', 'prepare_coco.sh'):
        done = subprocess.run([f'../scripts/{script}', '--help'], cwd=ROOT / 'tests', env=env, capture_output=True,
                              text=True)
        assert done.returncode == 0 and f'usage: scripts/{script}' in done.stdout, done.stderr
    done = subprocess.run([str(ROOT / 'scripts/prepare_imagenet.sh'), str(tmp_path), str(tmp_path / 'tree')], env=env,
                          capture_output=True, text=True)
    assert done.returncode == 3 and 'lacks ILSVRC2012_devkit_t12.tar.gz' in done.stderr


def test_the_script_prepares_a_whole_tree(made, whole, tmp_path):
    if not (ROOT / '.venv/bin/python').exists():
        pytest.skip('no .venv beside the checkout')
    mini.make_official(tmp_path / 'miniature', made[1])
    env = {key: value for key, value in os.environ.items() if key != 'LAB_DEVICE'}
    done = subprocess.run([str(ROOT / 'scripts/prepare_imagenet.sh'), str(made[0]), str(tmp_path / 'tree'), '--pack',
                           '--resize', '24'], env={**env, 'PYTHONPATH': str(tmp_path / 'miniature')},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert mini.tree_of(tmp_path / 'tree') == mini.tree_of(whole)


def test_a_container_uses_its_own_python(tmp_path):
    (tmp_path / 'python').write_text('#!/bin/sh\necho "the container\'s: $*"\n')
    (tmp_path / 'python').chmod(0o755)
    env = {**os.environ, 'LAB_DEVICE': 'cpu', 'PATH': f'{tmp_path}:{os.environ["PATH"]}'}
    done = subprocess.run([str(ROOT / 'scripts/prepare_coco.sh'), '/dataset/coco'], env=env, capture_output=True,
                          text=True)
    assert done.stdout == "the container's: -m workspace_lib.tools.prepare coco /dataset/coco\n"


def test_ctrl_c_is_said_and_ends_with_its_status(made, tmp_path, monkeypatch, capsys):
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt
    monkeypatch.setattr(cli, 'prepare_imagenet', interrupted)
    assert cli.main(['imagenet', str(made[0]), str(tmp_path / 'tree')]) == 130
    assert 'run the same command again' in capsys.readouterr().err


def test_the_bar_shows_a_rate_and_the_time_left(made, tmp_path, capfd):
    prepare(made, tmp_path / 'tree', progress=True, workers=2)
    assert 'images: 100%' in (err := capfd.readouterr().err) and 'B/s]' in err and '<00:00' in err


def test_a_zero_size_member_is_an_empty_file(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as tar:
        mini.add(tar, 'a', b'')
        mini.add(tar, 'b', b'1')
    (tmp_path / 'x.tar').write_bytes(out.getvalue())
    assert [(name, read()) for name, read in Tar(tmp_path / 'x.tar').images()] == [('a', b''), ('b', b'1')]


@pytest.mark.parametrize('form', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_read_as_tarfile_reads_it(tmp_path, form):
    long, settings = f'{"x" * 99}/{"y" * 90}', {'comment': 'for all'} if form == tarfile.PAX_FORMAT else None
    with tarfile.open(tmp_path / 'x.tar', 'w', format=form, pax_headers=settings) as tar:
        for name in ('b', 'a', f'd/{"n" * 98}', long, '\u00e9', 'c'):
            mini.add(tar, name, name.encode() * 300)
    with tarfile.open(tmp_path / 'x.tar') as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar]
    assert [*Tar(tmp_path / 'x.tar').members()] == expected


@pytest.mark.parametrize('at, value', [(124, b'8'), (148, b'9'), (0, b'z'), (257, b'x'), (156, b'Q')])
def test_a_changed_byte_in_a_header_is_found(tmp_path, at, value):
    with tarfile.open(tmp_path / 'x.tar', 'w') as tar:
        for name in 'abc':
            mini.add(tar, name, b'1')
    data = bytearray((tmp_path / 'x.tar').read_bytes())
    data[1024 + at:1025 + at] = value
    (tmp_path / 'x.tar').write_bytes(data)
    with pytest.raises(PrepareError, match='is damaged: .* at byte 1,024') as caught:
        [*Tar(tmp_path / 'x.tar').members()]
    assert caught.value.status == Status.ARCHIVE


def with_checksum(header: bytes) -> bytes:
    return header[:148] + b'%06o\0 ' % (sum(header[:148]) + sum(header[156:512]) + 8 * 32) + header[156:]


def header_of(name: str, size: bytes = b'%011o\0' % 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    header = tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT)
    return with_checksum(header[:124] + size + header[136:156] + kind + header[157:])


def pax(settings: dict[str, str], kind: bytes = b'x') -> bytes:
    """A PAX header of settings for the next member."""
    lines = b''
    for key, value in settings.items():
        line = f' {key}={value}\n'.encode()
        length = next(n for n in range(len(line), len(line) + 9) if len(str(n)) + len(line) == n)
        lines += str(length).encode() + line
    return header_of('pax', b'%011o\0' % len(lines), kind) + lines.ljust(-(-len(lines) // 512) * 512, b'\0')


def refused_tar(path: Path, data: bytes) -> str:
    """The message about a tar with one plain file before and one after `data`; it comes at once."""
    plain = header_of('plain', b'%011o\0' % 1) + b'1'.ljust(512, b'\0')
    path.write_bytes(plain + data + plain + bytes(1024))
    before = signal.signal(signal.SIGALRM, lambda *args: pytest.fail('it goes on for ever'))
    signal.alarm(20)
    try:
        with pytest.raises(PrepareError) as caught:
            for count, _ in enumerate(Tar(path).members()):
                assert count < 5, 'it goes on for ever'
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert caught.value.status == Status.ARCHIVE
    return str(caught.value)


@pytest.mark.parametrize('form', [['--format=oldgnu'], ['--format=gnu'], ['--format=pax', '--sparse-version=0.0'], [
    '--format=pax', '--sparse-version=0.1'], ['--format=pax', '--sparse-version=1.0']])
def test_a_sparse_file_in_a_tar_is_refused(tmp_path, form):
    with (tmp_path / 'n01440764_1.JPEG').open('wb') as file:
        for at in range(0, 40 << 20, 4 << 20):  # more holes than a header of the old form has room for
            file.seek(at)
            file.write(b'data')
    done = subprocess.run(['tar', '--sparse', *form, '-cf', 'x.tar', 'n01440764_1.JPEG'], cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / 'x.tar').stat().st_size < 1 << 20, 'it is not sparse'
    with pytest.raises(PrepareError, match="holds 'n01440764_1.JPEG', which is a sparse file") as caught:
        [*Tar(tmp_path / 'x.tar').members()]
    assert caught.value.status == Status.ARCHIVE


def test_numbers_of_a_sparse_file_that_are_none_are_damage(tmp_path):
    member = pax({'GNU.sparse.major': '1', 'GNU.sparse.minor': '0', 'GNU.sparse.size': 'x'}) + header_of('a')
    assert 'is damaged' in refused_tar(tmp_path / 'x.tar', member)


NEGATIVE = b'\xff' * 10 + b'\xfe\0'  # -512, as GNU writes what octal digits cannot
NEGATIVES = {'a file': header_of('odd', NEGATIVE), 'PAX': pax({'size': '-512'}) + header_of('odd'),
             'PAX, far': pax({'size': '-51200'}) + header_of('odd'), 'a long name': header_of('odd', NEGATIVE, b'L'),
             'far': header_of('odd', b'\xff' * 9 + b'\xf0\0\0'), 'a folder': header_of('odd/', NEGATIVE, b'5'),
             'a PAX header': header_of('odd', NEGATIVE, b'x'), 'an unknown kind': header_of('odd', NEGATIVE, b'Q')}


@pytest.mark.parametrize('where', NEGATIVES)
def test_a_negative_size_in_a_tar_is_damage(tmp_path, where):
    assert 'is damaged: ' in refused_tar(tmp_path / 'x.tar', NEGATIVES[where])


def test_a_negative_size_of_the_first_member_is_damage(tmp_path):
    (tmp_path / 'x.tar').write_bytes(header_of('odd', NEGATIVE) + bytes(1024))
    with pytest.raises(PrepareError, match="is damaged: 'odd' has a size of -512 bytes"):
        next(Tar(tmp_path / 'x.tar').members())


def test_a_name_in_a_tar_that_is_not_utf8_is_refused(tmp_path):
    header = header_of('n01440764_X.JPEG').replace(b'X', b'\xff')
    assert "holds 'n01440764_\\udcff.JPEG', whose name is not UTF-8" in refused_tar(
        tmp_path / 'x.tar', with_checksum(header))


def test_what_was_read_leaves_the_page_cache_and_nothing_else_does(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / 'x.tar', 'w') as tar:
        for number in range(20):
            mini.add(tar, f'{number}', bytes(5000))
    calls, at = [], [0]

    def advise(file: int, start: int, size: int, advice: int) -> None:
        assert os.readlink(f'/proc/self/fd/{file}') == str(tmp_path / 'x.tar')
        calls.append((start, size, advice, at[0]))
    monkeypatch.setattr(os, 'posix_fadvise', advise)
    monkeypatch.setattr(archives_module, 'BEHIND', 20_000)
    for number, (_, read) in enumerate(Tar(tmp_path / 'x.tar').images(), 1):
        assert len(read()) == 5000
        at[0] = number * 5632  # where what has been read ends: a header and 10 blocks each
    ends = [start + size for start, size, *_ in calls]
    assert [start for start, *_ in calls] == [0, *ends[:-1]], 'a gap, or twice'
    assert {advice for *_, advice, _ in calls} == {os.POSIX_FADV_DONTNEED}
    assert all(size > 20_000 for _, size, *_ in calls) and len(calls) == 4
    assert all(end == read_to + 512 for end, (*_, read_to) in zip(ends, calls, strict=True))  # the next one's header


three = multiprocessing.get_context('fork').Barrier(3)


def meet(meter: Meter) -> int:
    """Comes back once three processes are here."""
    return three.wait(30)


def test_a_spare_process_works_while_another_waits_for_the_disk():
    assert sorted(Pool(2, show_progress=False).run(meet, [()] * 3)) == [0, 1, 2]


def end_by(meter: Meter, code: int) -> None:
    faulthandler.disable()
    if code:
        os.kill(os.getpid(), code)
    os._exit(3)


@pytest.mark.parametrize('code, text', [(signal.SIGSEGV, 'by signal 11 (Segmentation fault)'), (
    signal.SIGKILL, 'by signal 9 (Killed)'), (0, 'with exit status 3')])
def test_how_a_worker_ended_is_told(code, text):
    with pytest.raises(PrepareError, match='run the same command again') as caught:
        Pool(2, show_progress=False).aside(end_by, code)
    assert f'a worker process ended {text} in end_by' in str(caught.value)


@pytest.mark.parametrize('workers', [1, 2])
def test_all_that_was_done_is_counted_though_not_at_once(workers, capsys):
    Pool(workers).run(add_ones, [(700,), (77,)], 'counted', 777, ' images')
    assert '777/777' in capsys.readouterr().err


def add_ones(meter: Meter, count: int) -> None:
    for _ in range(count):
        meter.add(1)


def test_lines_are_written_in_blocks(monkeypatch):
    monkeypatch.setattr(units, 'BLOCK', 10)
    assert [*units.gathered([b'12345', b'678', b'', b'9012', b'3'])] == [b'123456789012', b'3']


def test_opencv_has_its_threads_again_after_a_copy(whole, tmp_path):
    from workspace_lib.tools.prepare import copies
    before, tree, seen = cv2.getNumThreads(), units.Tree(whole), []

    def work(*args: Any) -> None:
        seen.append(cv2.getNumThreads())
    for _ in copies._pictures(work, tree, f'train/{mini.wnids()[0]}', images.Size('short', 24), 1):
        pass
    assert {*seen} == {1} and cv2.getNumThreads() == before
