"""NVML from a file: what a driver answered to each call, errors included, is answered again without one.

In: a module like pynvml, or a recorded JSON file. Out: the file, or a module-like `Replay`. To record a real machine:

    python tests/nvml_replay.py OUT.json [SECONDS]
"""
from __future__ import annotations

import json
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SESSION = Path(__file__).parent / 'nvml' / 'two_cards.json'


class NVMLError(Exception):
    """As pynvml's: ``value`` is NVML's return code, the text its name."""

    def __init__(self, value: int, text: str) -> None:
        super().__init__(text)
        self.value = value


class Replay:
    """Answers each call with what was recorded for it, in order; the last answer stays. Handles are strings.

    A function that was never called while recording is missing, as from an older pynvml; other arguments than those
    recorded are an error of the test.
    """

    NVMLError = NVMLError

    def __init__(self, session: Path | dict = SESSION) -> None:
        record = session if isinstance(session, dict) else json.loads(session.read_text())
        self.__dict__.update(record['constants'])
        self.answers = {(one['call'], *one['args']): one['answers'] for one in record['calls']}
        self.asked: Counter = Counter()
        self.sessions = 0

    def nvmlInit(self) -> None:
        self.sessions += 1

    def nvmlShutdown(self) -> None:
        self.sessions -= 1

    def __getattr__(self, name: str) -> Any:
        if not any(call == name for call, *_ in self.answers):
            raise AttributeError(name)
        return partial(self._answer, name)

    def _answer(self, *call: Any) -> Any:
        if call not in self.answers:
            raise LookupError(f'{call} is not in the record')
        answers = self.answers[call]
        answer = answers[min(self.asked[call], len(answers) - 1)]
        self.asked[call] += 1
        if isinstance(answer, dict) and 'error' in answer:
            raise NVMLError(answer['error'], answer['text'])
        return _replayed(answer)


def _replayed(answer: Any) -> Any:
    if isinstance(answer, list):
        return [_replayed(one) for one in answer]
    return SimpleNamespace(**answer) if isinstance(answer, dict) else answer


class Recorder:
    """A module like pynvml that passes every call on to `nvml` and remembers it."""

    def __init__(self, nvml: Any) -> None:
        self.nvml, self.NVMLError = nvml, nvml.NVMLError
        self.constants: dict[str, int] = {}
        self.calls: dict[tuple, list] = {}
        self._handles: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.nvml, name)
        if name in ('nvmlInit', 'nvmlShutdown'):
            return found
        if not callable(found):
            self.constants[name] = found
            return found
        return partial(self._call, name, found)

    def _call(self, name: str, function: Any, *args: Any) -> Any:
        answers = self.calls.setdefault((name, *map(self._recorded, args)), [])
        try:
            answer = function(*args)
        except self.NVMLError as error:
            answers.append(dict(error=error.value, text=str(error)))
            raise
        answers.append(self._recorded(answer))
        return answer

    def _recorded(self, value: Any) -> Any:
        if value is None or isinstance(value, int | float | str):
            return value
        if isinstance(value, list):
            return [self._recorded(one) for one in value]
        if hasattr(value, 'contents'):  # a pointer: a handle, which means nothing in another process
            known = [index for index, handle in enumerate(self._handles) if handle is value]
            if not known:
                self._handles.append(value)
            return f'gpu{known[0] if known else len(self._handles) - 1}'
        fields = [field[0] for field in value._fields_] if hasattr(value, '_fields_') else vars(value)
        return {field: self._recorded(getattr(value, field)) for field in fields}

    def session(self, made: str) -> dict:
        """What was recorded, as `Replay` takes it; `made` says where."""
        return dict(made=made, constants=self.constants,
                    calls=[dict(call=name, args=list(args), answers=answers)
                           for (name, *args), answers in self.calls.items()])


def text(session: dict) -> str:
    """JSON with a call on each line."""
    calls = ',\n'.join(f'    {json.dumps(one)}' for one in session['calls'])
    return (f'{{\n  "made": {json.dumps(session["made"])},\n  "constants": {json.dumps(session["constants"])},\n'
            f'  "calls": [\n{calls}\n  ]\n}}\n')


def main(out: str, seconds: str = '30') -> None:
    import pynvml

    from workspace_lib.tools.gpu import look
    from workspace_lib.tools.nvml import open_nvml
    recorder = Recorder(pynvml)
    nvml = open_nvml(recorder)
    for _ in range(int(seconds)):
        look(nvml)
        time.sleep(1)
    driver = nvml.nvmlSystemGetDriverVersion()
    Path(out).write_text(text(recorder.session(f'recorded with driver {driver}, nvidia-ml-py, a look a second')))


if __name__ == '__main__':
    main(*sys.argv[1:])
