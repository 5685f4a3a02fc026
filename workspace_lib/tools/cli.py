"""The command line, as one table: ``workspace COMMAND``. Each command's module adds its arguments and does the work.

A module is imported when its command is chosen, so that ``workspace --help`` and ``workspace config`` load no torch.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

_PLAIN_ERRORS = (ValueError, KeyError, TypeError, OSError, RuntimeError, ImportError, SyntaxError)

#: group -> (names, where the arguments are added, summary). `add_arguments(parser)` sets `run`, which takes what was
#: parsed and returns the exit status, or None for 0. The second name is mmclassification's; an underscored name has a
#: hyphenated twin.
COMMANDS: dict[str, list[tuple[str, str, str]]] = {
    'run': [
        ('train', 'main_commands:add_train', 'train a classifier'),
        ('rerun', 'rerun', 'repeat a run from its folder, and name what is not as it was'),
        ('test', 'main_commands:add_test', 'evaluate a checkpoint on the test set'),
        ('infer image_demo', 'main_commands:add_infer', 'classify one image'),
        ('gpu', 'gpu', 'what every GPU does, who uses it, what holds it back'),
    ],
    'before a training': [
        ('config print_config', 'main_commands:add_config_command', 'print the resolved config'),
        ('registry', 'registry_view', 'what a config can name, where it is written, which import brought it in'),
        ('get_flops', 'get_flops', 'multiply-adds and parameters, of the whole model and of its parts'),
        ('verify_dataset', 'verify_dataset', 'decode every file, list what is broken, missing or odd'),
        ('vis_pipeline', 'vis_pipeline', 'draw real samples after each step of their pipeline'),
        ('vis_batch', 'vis_batch', 'draw a batch as the model gets it, with its labels'),
        ('loader_speed', 'loader_speed', 'images a second by the number of workers, and where their time goes'),
        ('vis_hooks', 'vis_hooks', 'which hook does what when in a run, and how long it takes'),
        ('lr_find', 'lr_find', 'the loss while the learning rate grows: where to begin'),
        ('vis_lr', 'vis_lr', 'draw the learning rate of a whole run'),
        ('profile', 'profile', "where a step's time goes, what limits it, which key to change"),
    ],
    'after a training': [
        ('analyze_logs', 'analyze_logs', 'learning curves and iteration times of several runs'),
        ('checkpoint', 'checkpoint_view', 'what is in a checkpoint file, and whether it is whole'),
        ('eval_metric', 'eval_metric', 'metrics of a stored result file'),
        ('analyze analyze_results', 'analyze', 'one page: classes, confusions, worst mistakes, learning curves'),
        ('vis_cam', 'vis_cam', 'draw where on an image a class was seen (Grad-CAM)'),
        ('convert', 'convert', 'names of mmcls, torchvision or timm for weights that have the names of another'),
        ('export pytorch2onnx', 'export', 'write a model as ONNX, and compare the two'),
    ],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; 0 on success, 1 with a one-paragraph error, 2 for a wrong command line, 130 for Ctrl-C."""
    # Read when torch is loaded, below: threads that spin while they wait made LeNet-5 on two busy cores 6 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    args = argparse.Namespace(traceback=False)
    try:
        args = build_parser().parse_args(argv)
        args.words = list(sys.argv[1:] if argv is None else argv)
        if args.logs:
            from .logs import get_root_logger
            get_root_logger()
        return args.run(args) or 0
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


def describe_error(error: BaseException) -> str:
    """The message with its notes; the class as well where the message alone may say little."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if not message or not isinstance(error, _PLAIN_ERRORS):
        message = f'{type(error).__name__}: {message}'
    lines = [message, *getattr(error, '__notes__', []), '--traceback shows the calls that led here']
    return '\n  '.join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='workspace', description=_overview(), usage='workspace COMMAND ...',
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog='workspace COMMAND --help tells what a command takes.')
    commands = parser.add_subparsers(prog='workspace', metavar='COMMAND', required=True, help=argparse.SUPPRESS,
                                     parser_class=_CommandParser)
    for names, place, summary in (row for group in COMMANDS.values() for row in group):
        name, *others = names.split()
        twins = [name.replace('_', '-') for name in names.split() if '_' in name]
        commands.add_parser(name, aliases=others + twins, description=summary, place=place)
    return parser


class _CommandParser(argparse.ArgumentParser):
    """The parser of one command; `place`, 'module:function', fills it once it is used."""

    def __init__(self, place: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.place: str | None = place

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.place:
            self.set_defaults(logs=True)
            _function(self.place)(self)
            self.add_argument('--traceback', action='store_true', help='on an error show the whole Python traceback')
            self.place = None
        return super().parse_known_args(args, namespace)


def _function(place: str) -> Callable[[argparse.ArgumentParser], None]:
    module, _, function = place.partition(':')
    try:
        return getattr(import_module(f'{__package__}.{module}'), function or 'add_arguments')
    except ModuleNotFoundError as error:
        error.add_note(f"this command needs it: pip install {error.name}, or all that the tools need: "
                       "pip install 'workspace-lib[lab]'")
        raise


def _overview() -> str:
    rows = {names: names.replace(' ', ' (') + ')' * (' ' in names)
            for group in COMMANDS.values() for names, *_ in group}
    width = max(map(len, rows.values()))
    lines = ['Train, test and take apart image classifiers.']
    for title, group in COMMANDS.items():
        lines += ['', f'{title}:', *(f'  {rows[names]:<{width}}  {summary}' for names, _, summary in group)]
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
