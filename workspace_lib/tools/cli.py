"""The command line: ``workspace train|test|infer|config``. Parsing and printing only; the work is in ``commands``."""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ..config import DictAction
from .convert import add_command as add_convert

_PLAIN_ERRORS = (ValueError, KeyError, TypeError, OSError, RuntimeError, ImportError, SyntaxError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; 0 on success, 1 with a one-paragraph error, 2 for a wrong command line, 130 for Ctrl-C."""
    args = build_parser().parse_args(argv)
    # Read when torch is loaded, below: threads that spin while they wait made LeNet-5 on two busy cores 6 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    try:
        if args.run is not _config:  # which needs no torch
            from ..log_hooks import get_root_logger
            get_root_logger()
        args.run(args)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    except BrokenPipeError:  # `workspace config X | head`
        sys.stderr.close()
        return 0
    except Exception as error:
        if args.traceback:
            raise
        print(f'error: {describe_error(error)}', file=sys.stderr)
        return 1
    return 0


def describe_error(error: BaseException) -> str:
    """The message with its notes; the class as well where the message alone may say little."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if not message or not isinstance(error, _PLAIN_ERRORS):
        message = f'{type(error).__name__}: {message}'
    lines = [message, *getattr(error, '__notes__', []), '--traceback shows the calls that led here']
    return '\n  '.join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='workspace', description='Train, test and take apart image classifiers.')
    commands = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    _add_train(commands)
    _add_test(commands)
    _add_infer(commands)
    _add_config(commands)
    add_convert(commands)
    return parser


def _command(commands: argparse._SubParsersAction, name: str, run: object, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.add_argument('--traceback', action='store_true', help='on an error show the whole Python traceback')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='override values of the config: optimizer.lr=0.01 data.samples_per_gpu=64')
    parser.set_defaults(run=run)
    return parser


def _add_config_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help='path of a config, or its name below workspace_lib/configs')


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--device', default=None, help='auto (default), cpu, cuda or cuda:N')


def _add_train(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, 'train', _train, 'train a classifier')
    _add_config_argument(parser)
    parser.add_argument('--work-dir', help='folder of the run; default work_dirs/<config name>')
    parser.add_argument('--resume-from', help='checkpoint of this run to go on from')
    parser.add_argument('--load-from', help='checkpoint whose weights to start from')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate between epochs')
    parser.add_argument('--seed', type=int, help='default: a fresh one, named in the log')
    parser.add_argument('--deterministic', action='store_true', help='reproducible CUDA kernels (slower)')
    _add_device(parser)


def _add_test(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, 'test', _test, 'evaluate a checkpoint on the test set')
    _add_config_argument(parser)
    parser.add_argument('checkpoint', help='path, or packaged://NAME')
    parser.add_argument('--metrics', nargs='+', help='accuracy precision recall f1_score support')
    parser.add_argument('--metric-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='topk=(1,5) thrs=(0.1,0.5) average_mode=none')
    parser.add_argument('--out', help='result file: .json, .yaml or .pkl')
    parser.add_argument('--out-items', nargs='+', default=['all'], metavar='ITEM',
                        choices=['all', 'none', 'class_scores', 'pred_score', 'pred_label', 'pred_class'],
                        help='what besides metrics goes into --out: class_scores pred_score pred_label pred_class, '
                             'all (default), none')
    parser.add_argument('--show', action='store_true', help='open each image with its prediction')
    parser.add_argument('--show-dir', help='folder for the images with their predictions')
    _add_device(parser)


def _add_infer(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, 'infer', _infer, 'classify one image')
    parser.add_argument('image')
    _add_config_argument(parser)
    parser.add_argument('checkpoint', help='path, or packaged://NAME')
    parser.add_argument('--out-file', help='write the image with its prediction here')
    parser.add_argument('--topk', type=int, default=5, help='how many classes to print (default 5)')
    _add_device(parser)


def _add_config(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, 'config', _config, 'print the resolved config')
    _add_config_argument(parser)
    parser.add_argument('--origin', action='store_true', help='beside each value the file and line that set it')


def _train(args: argparse.Namespace) -> None:
    from . import commands
    commands.train(args.config, args.work_dir, args.resume_from, args.load_from, not args.no_validate, args.seed,
                   args.deterministic, args.device, args.cfg_options)


def _test(args: argparse.Namespace) -> None:
    from . import commands
    values = commands.test(args.config, args.checkpoint, args.metrics, args.metric_options, args.out, args.out_items,
                           args.show, args.show_dir, args.device or 'auto', args.cfg_options)
    for name, value in values.items():
        print(f'{name} : {_rounded(value)}')


def _rounded(value: object) -> object:
    rounded = value.round(2) if hasattr(value, 'round') else round(value, 2) if isinstance(value, float) else value
    return rounded.tolist() if hasattr(rounded, 'tolist') else rounded


def _infer(args: argparse.Namespace) -> None:
    from . import commands
    for name, score in commands.infer(args.image, args.config, args.checkpoint, args.device or 'auto', args.topk,
                                      args.out_file, args.cfg_options):
        print(f'{score:8.4f}  {name}')


def _config(args: argparse.Namespace) -> None:
    from ..recipes import load_config
    from .annotate import annotate
    cfg = load_config(args.config, args.cfg_options)
    print(annotate(cfg) if args.origin else cfg.pretty_text)


if __name__ == '__main__':
    sys.exit(main())
