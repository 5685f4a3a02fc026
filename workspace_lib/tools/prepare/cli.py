"""The command line of data preparation. In: arguments. Out: an exit status, one message on stderr where it is not 0."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from .coco import MIRROR, CocoFacts
from .disk import Disk
from .errors import MEANING, PrepareError, Status, bytes_text
from .run import prepare_coco, prepare_imagenet, verify_tree
from .sources import ImageNetFacts

SHOWN = 20  # differences; the count is of all


def main(argv: Sequence[str] | None = None, facts: ImageNetFacts | CocoFacts | None = None,
         disk: Disk | None = None) -> int:
    """Run one preparation; `facts` and `disk` are for tests."""
    parser, args = parse(sys.argv[1:] if argv is None else argv)
    if args.dataset == 'imagenet' and not (args.archives or args.verify or args.short or args.long):
        parser.error('give both ARCHIVES and DEST; DEST alone goes with --verify, --resize and --max-size')
    try:
        if args.verify:
            return _verify(args)
        given: dict[str, Any] = {'facts': facts, 'disk': disk or Disk()}
        manifest = (_imagenet if args.dataset == 'imagenet' else _coco)(args, given)
    except PrepareError as error:
        print(f'error: {error}', file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print('interrupted; what is finished stays: run the same command again to go on', file=sys.stderr)
        return Status.INTERRUPTED
    for part, about in manifest.get('parts', {}).items():
        print(f'{args.dest}/{part}: {about["images"]:,} files, {bytes_text(about["bytes"])}')
    for pack in manifest.get('packs', {}):
        print(f'{args.dest}/{pack}: raw map')
    return Status.DONE


def parse(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The parser of the data set that is named first, and what it makes of the rest, in any order."""
    commands = build_parsers()
    if argv and argv[0] in commands:
        parser = commands[argv[0]]
        return parser, parser.parse_intermixed_args(argv[1:], argparse.Namespace(dataset=argv[0]))
    parser = argparse.ArgumentParser(prog='prepare', description='Prepare a data set once, verified, never half-done.')
    parser.add_argument('dataset', metavar='DATASET', choices=[*commands], help=f'{" or ".join(commands)}; then its '
                        'own arguments, which DATASET --help lists')
    parser.parse_args(argv)
    parser.error('DATASET comes first')


def build_parsers() -> dict[str, argparse.ArgumentParser]:
    statuses = '\n'.join(f'  {status:<4}{meaning}' for status, meaning in MEANING.items())
    look: Any = {'formatter_class': argparse.RawDescriptionHelpFormatter, 'epilog': f'exit status:\n{statuses}'}
    one = argparse.ArgumentParser('scripts/prepare_imagenet.sh', description=(
        'ILSVRC2012 from the official archives, or from the download of Kaggle.\n'
        'Run it again at any time: it goes on where it was.'), **look)
    one.add_argument('archives', metavar='ARCHIVES', nargs='?',
                     help='folder with the three archives, or with Kaggle\'s ILSVRC; not needed for --verify, and to '
                          'add copies to a finished tree')
    one.add_argument('--val-layout', choices=['flat', 'folders'], default='flat',
                     help='val images in one folder (default), or in one for each class; meta/val.txt matches')
    one.add_argument('--subset', metavar='N', help='a trial: 10 (the first ten classes), 10x50 (fifty images of each), '
                                                   'x50 (fifty images of every class)')
    one.add_argument('--test', action='store_true', help='the test images, too (they have no labels)')
    two = argparse.ArgumentParser('scripts/prepare_coco.sh', description=(
        'COCO 2017: downloaded, unpacked, multi-label annotations.\n'
        'Run it again at any time: it goes on where it was.'), **look)
    two.add_argument('--archives', metavar='DIR', help='where the zips lie or are put; default DEST/archives')
    two.add_argument('--mirror', metavar='URL', default=MIRROR, help=f'default {MIRROR}')
    two.add_argument('--splits', type=lambda text: text.split(','), default=['train', 'val'], metavar='SPLITS',
                     help='train, val, or train,val (default); another can be added later')
    for command in (one, two):
        _add_common(command)
    return {'imagenet': one, 'coco': two}


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('dest', metavar='DEST', help='target folder, such as datasets/imagenet or /dataset/imagenet')
    parser.add_argument('--resize', dest='short', type=int, metavar='SHORT',
                        help='also write a training copy whose shorter side has SHORT pixels, re-encoded once')
    parser.add_argument('--max-size', dest='long', type=int, metavar='LONG',
                        help='also write a training copy whose longer side has LONG pixels')
    parser.add_argument('--pack', action='store_true',
                        help='also write each such copy as one raw uint8 map (large; the fastest to read)')
    parser.add_argument('--workers', type=int, metavar='N',
                        help='cores to use; default: all. Above 1, a spare process has the core of one that waits')
    parser.add_argument('--remove-archives', action='store_true', help='delete the archives at the end (default: kept)')
    parser.add_argument('--no-progress', dest='progress', action='store_false', help='no bars')
    parser.add_argument('--dry-run', action='store_true', help='say sizes and times, write nothing')
    parser.add_argument('--verify', action='store_true', help='read a finished tree and name all that differs')


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    names = ('short', 'long', 'pack', 'workers', 'progress', 'remove_archives', 'dry_run')
    return {name: getattr(args, name) for name in names}


def _imagenet(args: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    return prepare_imagenet(args.archives, args.dest, val_layout=args.val_layout, subset=args.subset, test=args.test,
                            **_settings(args), **given)


def _coco(args: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    return prepare_coco(args.dest, archives=args.archives, mirror=args.mirror, splits=args.splits, **_settings(args),
                        **given)


def _verify(args: argparse.Namespace) -> int:
    found = verify_tree(args.dest, workers=args.workers, progress=args.progress)
    for line in found[:SHOWN]:
        print(line)
    if len(found) > SHOWN:
        print(f'... and {len(found) - SHOWN:,} more')
    print(f'{len(found):,} differences' if found else f'{args.dest}: every file is as it was made')
    return Status.DIFFERENT if found else Status.DONE
