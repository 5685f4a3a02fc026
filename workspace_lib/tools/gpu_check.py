"""``make gpu-check``: does PyTorch compute on the GPU that was asked for? Exit status 1 where it should and does not.

In: what was asked for. Out: one line a GPU, or the reason. The health of the lab is another matter: it serves without.
"""

from __future__ import annotations

import argparse
import os
import sys

import torch


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='make gpu-check')
    parser.add_argument('--wanted', choices=['gpu', 'cpu', 'auto'], default=os.environ.get('LAB_DEVICE', 'auto'))
    wanted = parser.parse_args(argv).wanted
    if wanted == 'cpu':
        print('No GPU was asked for: this lab runs on the CPU.')
        return 0
    if not torch.cuda.is_available():
        return _missing(wanted)
    for number in range(torch.cuda.device_count()):
        print(_checked(number))
    return 0


def _missing(wanted: str) -> int:
    try:
        torch.cuda.init()
        reason = 'no reason given'
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
    print(f'PyTorch {torch.__version__} sees no GPU: {reason}', file=sys.stderr)
    if wanted == 'gpu':
        print('make doctor says why and what mends it.', file=sys.stderr)
        return 1
    return 0


def _checked(number: int) -> str:
    """A product on the device against the one on the CPU: it is there, has code for us, and computes."""
    torch.manual_seed(0)
    a = torch.rand(256, 256, dtype=torch.float64)
    torch.testing.assert_close((a.to(f'cuda:{number}') @ a.to(f'cuda:{number}')).cpu(), a @ a)
    properties = torch.cuda.get_device_properties(number)
    return (
        f'cuda:{number}  {properties.name}, sm_{properties.major}{properties.minor}, '
        f'{properties.total_memory / 2**30:.0f} GiB: computes as the CPU does'
    )


if __name__ == '__main__':
    sys.exit(main())
