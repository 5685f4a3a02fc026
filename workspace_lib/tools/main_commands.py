"""``workspace train|test|infer|config``: what they take and what they print. The work is in ``commands``.

Nothing here loads torch before a command runs; ``config`` does without it.
"""
from __future__ import annotations

import argparse

from . import launch
from .arguments import add_checkpoint, add_config, add_device, add_metrics
from .options import DictAction


def add_train(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument('--work-dir', help='folder of the run; default work_dirs/<config name>')
    parser.add_argument('--resume-from', help='checkpoint of this run to go on from; auto: the newest in its folder '
                                              'that is whole, or a new run where there is none')
    parser.epilog = ('On SIGTERM or SIGUSR1 the run saves after the next iteration and ends with exit status 85: start '
                     'it again with --resume-from auto.')
    parser.add_argument('--load-from', help='checkpoint whose weights to start from')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate between epochs')
    parser.add_argument('--seed', type=int, help='default: a fresh one, named in the log')
    parser.add_argument('--deterministic', action='store_true', help='reproducible CUDA kernels (slower)')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='lr times the images of an optimizer step, divided by those it is for')
    parser.add_argument('--diff-seed', action='store_true', help=argparse.SUPPRESS)  # ranks draw differently anyway
    add_device(parser, default=None)
    launch.add_launch(parser)
    parser.set_defaults(run=_train)


def add_test(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_checkpoint(parser)
    add_metrics(parser)
    parser.add_argument('--out', help='result file: .json, .yaml or .pkl')
    parser.add_argument('--out-items', nargs='+', default=['all'], metavar='ITEM',
                        choices=['all', 'none', 'class_scores', 'pred_score', 'pred_label', 'pred_class'],
                        help='what besides metrics goes into --out: class_scores pred_score pred_label pred_class, '
                             'all (default), none')
    parser.add_argument('--show', action='store_true', help='open each image with its prediction')
    parser.add_argument('--show-dir', help='folder for the images with their predictions')
    parser.add_argument('--show-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='how they are drawn: font_scale=1 text_color=yellow row_width=30')
    parser.add_argument('--tmpdir', help=argparse.SUPPRESS)  # mmcv's ways to gather; the group has its own
    parser.add_argument('--gpu-collect', action='store_true', help=argparse.SUPPRESS)
    add_device(parser)
    launch.add_launch(parser)
    parser.set_defaults(run=_test)


def add_infer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('image')
    add_config(parser)
    add_checkpoint(parser)
    parser.add_argument('--out-file', help='write the image with its prediction here')
    parser.add_argument('--topk', type=int, default=5, help='how many classes to print (default 5)')
    add_device(parser)
    parser.set_defaults(run=_infer)


def add_config_command(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument('--origin', action='store_true', help='beside each value the file and line that set it')
    how.add_argument('--changes', action='store_true', help='only what --cfg-options changes, and from what')
    how.add_argument('--search', metavar='TEXT', help='only the values with TEXT in their key, value or place')
    parser.set_defaults(run=_config, logs=False)


def _train(args: argparse.Namespace) -> None:
    from . import commands, jobs
    rest = [word for word in args.words[1:] if word != args.config]
    with jobs.noted(['workspace', 'train', args.config, *rest]):
        if _is_started(args):
            return
        commands.train(args.config, args.work_dir, args.resume_from, args.load_from, not args.no_validate, args.seed,
                       args.deterministic, args.device, args.cfg_options, args.launcher, args.auto_scale_lr)
        launch.leave()


def _is_started(args: argparse.Namespace) -> bool:
    """Whether the command ran in processes of its own, as --gpus asks; what is one of them already runs it here."""
    if launch.joins(args) or (args.gpus in (None, 1) and args.nnodes == '1'):
        return False
    launch.start(args)
    return True


def _test(args: argparse.Namespace) -> None:
    if _is_started(args):
        return
    from . import commands
    values = commands.test(args.config, args.checkpoint, args.metrics, args.metric_options, args.out, args.out_items,
                           args.show, args.show_dir, args.device, args.cfg_options, args.show_options, args.launcher)
    print_metrics(values)
    launch.leave()


def print_metrics(values: dict[str, object]) -> None:
    """One `name : value` a line, as mmclassification prints them: two decimals, arrays as lists."""
    for name, value in values.items():
        print(f'{name} : {_rounded(value)}')


def _rounded(value: object) -> object:
    rounded = value.round(2) if hasattr(value, 'round') else round(value, 2) if isinstance(value, float) else value
    return rounded.tolist() if hasattr(rounded, 'tolist') else rounded


def _infer(args: argparse.Namespace) -> None:
    from . import commands
    for name, score in commands.infer(args.image, args.config, args.checkpoint, args.device, args.topk,
                                      args.out_file, args.cfg_options):
        print(f'{score:8.4f}  {name}')


def _config(args: argparse.Namespace) -> None:
    from ..recipes import load_config
    from .annotate import annotate
    from .config_view import changes_table, search
    cfg = load_config(args.config, None if args.changes else args.cfg_options)
    if args.changes:
        print(changes_table(cfg, args.cfg_options or {}))
    elif args.search is not None:
        print(search(cfg, args.search))
    else:
        print(annotate(cfg) if args.origin else cfg.pretty_text)
