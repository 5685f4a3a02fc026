"""The command line of ``doctor``: ``python3 -m workspace_lib.tools.doctor``, ``scripts/doctor.sh``, ``make doctor``."""
from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .checks import choose_lane, diagnose
from .facts import Facts
from .fixes import apply_fixes
from .host import Host
from .render import as_dict, as_text, exit_status, explained, explained_as_dict
from .symptoms import SYMPTOMS, recognise

CHECKOUT = Path(__file__).resolve().parents[3]


def main(argv: Sequence[str] | None = None, host: Host | None = None) -> int:
    """Exit status: 0 the lane will work; else that of its first fault (``--symptoms`` lists them); 2 wrong usage."""
    try:
        return run(build_parser().parse_args(argv), host)
    except BrokenPipeError:  # `make doctor | head`
        sys.stderr.close()
        return 1


def run(args: argparse.Namespace, host: Host | None = None) -> int:
    if args.symptoms:
        print('\n'.join(f'{s.status:3}  {s.key:<20} {s.title}' for s in SYMPTOMS))
        return 0
    if args.explain is not None:
        return explain(args.explain, args.json)
    host = host or Host()
    root = os.path.abspath(args.root)
    facts = Facts(host, root)
    lane = args.lane or choose_lane(facts, args.device, args.engine)
    fixes = apply_fixes(facts, lane) if args.fix else []
    done = [fix.said for fix in fixes if fix.level == 'ok']
    facts = Facts(host, root)  # after mending, everything is looked up anew
    findings = [*(fix for fix in fixes if fix.level != 'ok'), *diagnose(facts, lane, args.device)]
    if args.json:
        print(json.dumps({**as_dict(facts, lane, findings), 'fixed': done}, indent=2))
    else:
        print('\n'.join([*(f'mended: {line}' for line in done), as_text(lane, findings)]))
    return exit_status(findings)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='make doctor', description='Will the lab start here? Why not?')
    parser.add_argument('--lane', choices=['gpu', 'cpu', 'local'],
                        help='which lane to check; default: what make up takes')
    parser.add_argument('--device', choices=['auto', 'cpu', 'gpu'], default='auto', help='as for make up')
    parser.add_argument('--engine', choices=['auto', 'local', 'docker'], default='auto', help='as for make up')
    parser.add_argument('--json', action='store_true', help='for programs')
    parser.add_argument('--fix', action='store_true',
                        help='mend what is safe: missing keys of .env, folders, file modes')
    parser.add_argument('--explain', metavar='TEXT|FILE|-',
                        help='say what an error message or a log means, and no more')
    parser.add_argument('--symptoms', action='store_true', help='list what is known, with the exit statuses')
    parser.add_argument('--root', default=str(CHECKOUT), help='the checkout')
    return parser


def explain(source: str, as_json: bool) -> int:
    """A message, the name of a file with one, or - for standard input. 1 if it is not known."""
    if source == '-':
        text = sys.stdin.read()
    elif len(source) < 4096 and os.path.isfile(source):
        text = Path(source).read_text(errors='replace')
    else:
        text = source
    found = recognise(text)
    if as_json:
        print(json.dumps(explained_as_dict(found), indent=2))
    elif found:
        print(explained(found))
    else:
        print('Not among the symptoms known here (--symptoms lists them). What the machine itself says: '
              'make doctor')
    return found[0].symptom.status if found else 1
