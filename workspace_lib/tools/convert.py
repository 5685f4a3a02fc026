"""``workspace convert``: its arguments, apart from the work so that parsing a command line needs no torch."""
from __future__ import annotations

import argparse

LAYOUTS = ('mmcls', 'torchvision', 'timm')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('source', metavar='IN', help='path, address or name of a checkpoint')
    parser.add_argument('target', metavar='OUT', help='file to write')
    parser.add_argument('--to', choices=LAYOUTS, help='whose names to give them; default the names they have')
    parser.add_argument('--from', dest='layout', choices=LAYOUTS, help='whose names they have; default found out')
    parser.add_argument('--ema', action='store_true', help='take the averaged weights (model_ema, state_dict_ema)')
    parser.add_argument('--publish', action='store_true',
                        help='add the date and the first digits of the hash to the name: OUT_20261124-0a1b2c3d.pth')
    parser.add_argument('--force', action='store_true', help='write over an existing file')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from .conversion import convert_file

    for line in convert_file(args.source, args.target, args.to, args.layout, args.ema, args.publish, args.force):
        print(line)
