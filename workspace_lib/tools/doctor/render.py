"""Findings for a person (text) and for a program (JSON)."""
from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Any

from .base_image import arch_list, choose_base_image
from .facts import Facts
from .findings import Finding, way_on
from .symptoms import Recognised

LANES = {'gpu': 'GPU container', 'cpu': 'CPU container', 'local': 'local environment (.venv)'}
MARKS = {'ok': 'ok  ', 'skip': '-   ', 'warn': 'warn', 'fail': 'FAIL'}
WIDTH = 110


def as_text(lane: str, findings: list[Finding]) -> str:
    lines = [f'Lane: {LANES[lane]}', *(line for finding in findings for line in _finding(finding)), '']
    faults = [finding for finding in findings if finding.level == 'fail']
    if not faults:
        warnings = sum(finding.level == 'warn' for finding in findings)
        lines.append('This lane works.' + (f' {warnings} warning{"s"[:warnings != 1]} above.' if warnings else ''))
        return '\n'.join(lines)
    several = f'{len(faults)} faults; mend the first one first' if len(faults) > 1 else faults[0].said
    lines.append(f'This lane will not work: {several}.')
    if way_on(lane, faults):
        lines.append(f'The way on without it: {way_on(lane, faults)}')
    return '\n'.join(lines)


def _finding(finding: Finding) -> list[str]:
    return [f'  {MARKS[finding.level]}  {finding.said}', *_part('seen', _short(finding.seen)),
            *_part('why', finding.cause), *_way_out(finding.way_out)]


def _part(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f'        {name:<5} ', subsequent_indent=' ' * 14,
                         break_long_words=False, break_on_hyphens=False) if text else []


def _way_out(lines: list[str]) -> list[str]:
    """Never wrapped: they are there to be copied."""
    return [f'        {"mend" if number == 0 else "":<5} {line}' for number, line in enumerate(lines)]


def _short(text: str) -> str:
    """The end of a long text, where errors say what happened."""
    joined = ' '.join(text.split())
    return joined if len(joined) <= 300 else f'... {joined[-300:]}'


def as_dict(facts: Facts, lane: str, findings: list[Finding]) -> dict[str, Any]:
    """``base_image`` is None where there is no driver to choose by."""
    image = None
    if lane == 'gpu' and facts.gpu_on_bus and not facts.driver.error:
        image = {**asdict(choose_base_image(facts.driver)), 'image': choose_base_image(facts.driver).image,
                 'arch_list': arch_list(facts.driver.gpus)}
    status = exit_status(findings)
    return {'lane': lane, 'works': status == 0, 'status': status, 'base_image': image,
            'findings': [{**asdict(finding), 'status': finding.status} for finding in findings]}


def exit_status(findings: list[Finding]) -> int:
    """0, or that of the first fault: checks run from cause to consequence."""
    return next((finding.status for finding in findings if finding.level == 'fail'), 0)


def explained(found: list[Recognised]) -> str:
    lines = []
    for one in found:
        cause, way_out = one.symptom.told(**one.values)
        lines += [f'{one.symptom.title} [{one.symptom.key}]', *_part('seen', _short(one.line)), *_part('why', cause),
                  *_way_out(way_out), '']
    return '\n'.join(lines).rstrip()


def explained_as_dict(found: list[Recognised]) -> dict[str, Any]:
    rows = []
    for one in found:
        cause, way_out = one.symptom.told(**one.values)
        rows.append({'symptom': one.symptom.key, 'status': one.symptom.status, 'said': one.symptom.title,
                     'seen': one.line, 'cause': cause, 'way_out': way_out})
    return {'status': rows[0]['status'] if rows else 1, 'findings': rows}
