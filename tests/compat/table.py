"""The table of recipe families in docs/compatibility.md, from the records of a sweep.

In: work_dirs/compat.json (make test-compat). Out: docs/recipes.json, names and status; the table between two marks.
"""
from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECIPES, DOCUMENT = ROOT / 'docs' / 'recipes.json', ROOT / 'docs' / 'compatibility.md'
BEGIN, END = '<!-- recipes: tests/compat/table.py writes this -->', '<!-- /recipes -->'
KINDS = ('native', 'borrowed', 'failed')


def kind(status: str) -> str:
    """`native`, `borrowed` of `borrowed VAN, RandAugment`, `failed` of `FAILED KeyError: ...`."""
    return status.partition(' ')[0].lower()


def by_family(statuses: dict[str, str]) -> str:
    """Markdown: a row for each family, and the sum."""
    families: dict[str, Counter[str]] = {}
    borrowed: dict[str, set[str]] = {}
    for name, status in statuses.items():
        family = name.partition('/')[0]
        families.setdefault(family, Counter())[kind(status)] += 1
        if kind(status) == 'borrowed':
            borrowed.setdefault(family, set()).update(status.removeprefix('borrowed ').split(', '))
    total: Counter[str] = sum(families.values(), Counter())
    rows = [(family, counts, ', '.join(f'`{type}`' for type in sorted(borrowed.get(family, ()))))
            for family, counts in sorted(families.items())]
    lines = ['| family | recipes | native | borrowed | failed | what is borrowed |',
             '| --- | ---: | ---: | ---: | ---: | --- |']
    for family, counts, types in [*rows, ('**all**', total, '')]:
        numbers = ' | '.join(str(counts[one]) for one in KINDS)
        lines.append(f'| {family} | {counts.total()} | {numbers} | {types} |')
    return '\n'.join(lines)


def committed() -> dict[str, Any] | None:
    """The committed records; None before the first sweep."""
    return json.loads(RECIPES.read_text()) if RECIPES.exists() else None


def section(content: dict[str, Any] | None) -> str:
    if content is None:
        return f'{BEGIN}\n{END}'
    versions = content['versions']
    return '\n'.join([
        BEGIN,
        f'Of mmclassification {versions["mmcls"]} (mmcv {versions["mmcv"]}, torch {versions["torch"]}), in our loops.',
        'Each recipe is loaded, built, trained for one step with all its hooks, evaluated, and tested for one',
        'batch. It is unchanged but for small images, batches of two, BN in place of SyncBN, and no pretrained',
        'weights. Two recipes of RepMLP, which set 224 px for a model of 256 and cannot be trained as they are,',
        'get the size of the model. A recipe that is another under an old name shares its run. *Native* means',
        "that nothing in it is borrowed, and that its state dict has mmclassification's names and shapes. A",
        "*borrowed* row proves our loops and our data, not our models: what is named in it is mmclassification's",
        'own code.',
        '', by_family(content['recipes']), END])


def written(document: str, content: dict[str, Any] | None) -> str:
    """The document with the section in the place of the one that is there."""
    before, _, rest = document.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f'docs/compatibility.md has lost the marks {BEGIN} and {END}')
    return before + section(content) + after


def summary(sweep: dict[str, Any]) -> dict[str, Any]:
    """What is kept of the records of a sweep."""
    def status(record: dict[str, Any]) -> str:
        if record['error']:
            return 'failed'
        return f'borrowed {", ".join(record["borrowed"])}' if record['borrowed'] else 'native'

    return dict(versions={name: sweep['versions'][name] for name in ('mmcls', 'mmcv', 'torch')},
                recipes={record['name']: status(record) for record in sweep['recipes']})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('sweep', type=Path, nargs='?', default=Path('work_dirs/compat.json'))
    content = summary(json.loads(parser.parse_args().sweep.read_text()))
    RECIPES.write_text(json.dumps(content, indent=0) + '\n')
    DOCUMENT.write_text(written(DOCUMENT.read_text(), content))
    print(by_family(content['recipes']))


if __name__ == '__main__':
    main()
