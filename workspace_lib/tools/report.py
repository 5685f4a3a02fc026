"""One self-contained HTML page: pictures inside the file, light and dark, for a screen, a phone and paper.

In: sections of HTML made by the functions here. Out: the page as text; it fetches nothing.
"""
from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .commands import write_whole
from .photos import Photograph
from .plots import BLUE, VERMILLION, Mistake, Plot, label_names
from .table import Table
from .versions import collect_versions

Fact = tuple[str, str]  # label, value
Section = tuple[str, float, str]  # name, seconds it took, HTML

CSS = '''
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #5b636d; --line: #d8dde3; --card: #f6f8fa;
  --blue: #0072b2; --bar: #0072b2; --wrong: #b84f00; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ed; --soft: #a3acb7; --line: #333a43;
  --card: #1d2228; --blue: #56b4e9; --bar: #56b4e9; --wrong: #ff9d5c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 1.5rem 0 .5rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .4rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h2 small { font-weight: normal; color: var(--soft); float: right; font-size: .9rem; padding-top: .3rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .3rem; }
p, li { max-width: 44rem; }
a { color: var(--blue); }
nav { display: flex; flex-wrap: wrap; gap: .4rem .5rem; margin: 1rem 0; }
nav span { color: var(--soft); }
nav a { padding: .1rem .7rem; border: 1px solid var(--line); border-radius: 1rem; text-decoration: none; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.facts div { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; }
.facts dt { color: var(--soft); font-size: .85rem; }
.facts dd { margin: 0; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
pre { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; overflow: auto; max-height: 32rem;
  font-size: .78rem; line-height: 1.45; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .92em; }
pre .from { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
caption { text-align: left; color: var(--soft); }
details { margin: .4rem 0; }
summary { cursor: pointer; }
figure { margin: 1rem 0; overflow-x: auto; }
figure svg { max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 44rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; }
.card { background: var(--card); border-radius: .5rem; overflow: hidden; break-inside: avoid; }
.card img { display: block; width: 100%; height: 11rem; object-fit: contain; background: #000; }
.card div { padding: .6rem .9rem .8rem; }
.card small { color: var(--soft); }
.bars { width: 100%; margin: .4rem 0 0; }
.bars td, .bars th { border: 0; padding: .12rem .5rem .12rem 0; font-weight: normal; }
.bars td:last-child { text-align: right; padding: 0; white-space: nowrap; }
.bars td:nth-child(2) { width: 38%; vertical-align: middle; }
.bars th { white-space: nowrap; }
.bars i { display: block; height: .7rem; min-width: 1px; background: var(--bar); border-radius: .15rem;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.digits { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.6rem, 1fr)); gap: .8rem; }
.digits figure { margin: 0; break-inside: avoid; }
.digits img { width: 100%; image-rendering: pixelated; border-radius: .3rem; display: block; }
.digits figcaption { color: inherit; line-height: 1.35; padding-top: .2rem; }
.photographs { grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); }
.photographs img { image-rendering: auto; height: 10rem; object-fit: contain; background: #000; }
.digits b { color: var(--wrong); }
.tree { overflow-x: auto; font-size: .92rem; }
.tree summary { white-space: nowrap; }
.tree summary b { color: var(--blue); }
footer { margin-top: 3rem; color: var(--soft); font-size: .9rem; }
@media print { :root { --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --card: #f4f4f4; --blue: #0072b2;
  --bar: #0072b2; --wrong: #b84f00; } body { max-width: none; font-size: 10pt; } nav { display: none; }
  pre { font-size: 7.5pt; white-space: pre-wrap; overflow-wrap: anywhere; max-height: none; }
  .tree summary { white-space: normal; }  h2 { break-after: avoid; } figure { break-inside: avoid; } }
'''


def page(title: str, lead: str, facts: Sequence[Fact], sections: Sequence[Section], footer: str) -> str:
    """The whole document.

    Args:
        lead, footer: HTML. facts: shown large. sections: in order; their names make the navigation.
    """
    ids = [name.replace(' ', '-') for name, _, _ in sections]
    links = '<span aria-hidden="true">→</span>'.join(
        f'<a href="#{anchor}">{html.escape(name)}</a>' for anchor, (name, _, _) in zip(ids, sections, strict=True))
    numbers = ''.join(f'<div><dt>{html.escape(label)}</dt><dd>{html.escape(value)}</dd></div>'
                      for label, value in facts)
    body = ''.join(
        f'<section id="{anchor}"><h2>{place}. {html.escape(name[0].upper() + name[1:])}<small>{seconds:.1f} s</small>'
        f'</h2>{content}</section>' for place, (anchor, (name, seconds, content)) in enumerate(
            zip(ids, sections, strict=True), 1))
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{html.escape(title)}</title><style>{CSS}</style></head><body><header><h1>{html.escape(title)}</h1>'
            f'{lead}<nav aria-label="stages">{links}</nav><dl class="facts">{numbers}</dl></header>'
            f'<main>{body}</main><footer>{footer}</footer></body></html>\n')


def write(folder: Path, title: str, lead: str, sections: Sequence[Section], facts: Sequence[Fact],
          commands: str) -> Path:
    """`index.html` of the sections, with their times, the versions, and the `commands` to go on with."""
    seconds = [(name, value) for name, value, _ in sections]
    seconds.append(('everything', sum(value for _, value in seconds)))
    versions = [(name, str(value)) for name, value in collect_versions().items() if value]
    footer = ''.join(['<h2>Go on with</h2>', code(commands.strip()), '<h2>Versions and timings</h2>',
                      table(Table(('what', 'version'), versions)), table(Table(('stage', 'seconds'), seconds))])
    text = page(title, paragraph(lead), [*facts, ('everything', f'{seconds[-1][1]:.0f} s')], sections, footer)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / 'index.html', text)
    return folder / 'index.html'


def paragraph(text: str) -> str:
    """Plain text, with `code` between backquotes."""
    parts = html.escape(text).split('`')
    return '<p>' + ''.join(f'<code>{part}</code>' if i % 2 else part for i, part in enumerate(parts)) + '</p>'


def code(text: str) -> str:
    """Source or terminal text; what stands behind `  # ` steps back."""
    lines = []
    for line in text.rstrip('\n').split('\n'):
        left, mark, right = line.partition('  # ')
        lines.append(html.escape(left) + (f'<span class="from">{html.escape(mark + right)}</span>' if mark else ''))
    return '<pre><code>' + '\n'.join(lines) + '</code></pre>'


def table(content: Table) -> str:
    """A table that scrolls by itself on a narrow screen."""
    return f'<div class="scroll">{content._repr_html_()}</div>'


def folded(summary: str, content: str, is_open: bool = False) -> str:
    return f'<details{" open" * is_open}><summary>{html.escape(summary)}</summary>{content}</details>'


def figure(plot: Plot) -> str:
    """The drawing in the page's own ink, what it says in words, and its numbers."""
    drawing = plot.svg().replace(BLUE.lower(), 'var(--blue)').replace(VERMILLION.lower(), 'var(--wrong)')
    return (f'<figure>{drawing}<figcaption>{html.escape(plot.alt)}</figcaption></figure>'
            + folded('The numbers', table(plot.table)))


def data_uri(image: np.ndarray, longest: int = 480) -> str:
    """uint8 BGR (H, W, 3) or grey (H, W) as a data URI; small ones stay exact (PNG), larger ones become a JPEG."""
    scale = longest / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    kind = 'png' if max(image.shape[:2]) <= 64 else 'jpeg'
    _, data = cv2.imencode(f'.{kind}', image, [cv2.IMWRITE_JPEG_QUALITY, 85] if kind == 'jpeg' else [])
    return f'data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}'


def prediction_card(image: np.ndarray, name: str, photo: Photograph, best: Sequence[tuple[str, float]]) -> str:
    """A photograph, what is on it, and the likeliest classes (name, probability) as bars."""
    bars = ''.join(f'<tr><th scope="row">{html.escape(label)}</th><td><i style="width:{100 * p:.1f}%"></i></td>'
                   f'<td>{100 * p:.1f} %</td></tr>' for label, p in best)
    alt = html.escape(f'Photograph of {photo.content}')
    return (f'<div class="card"><img src="{data_uri(image)}" alt="{alt}"><div><b>{html.escape(name)}</b>: '
            f'{html.escape(photo.content)} <small>({html.escape(photo.credit)})</small>'
            f'<table class="bars"><tbody>{bars}</tbody></table></div></div>')


def mistake_grid(dataset: Any, mistakes: Sequence[Mistake]) -> str:
    """Each wrong answer under its picture, with the confidence in it against that in the right one."""
    names = label_names(dataset.CLASSES)
    cells = ''.join(
        f'<figure><img src="{data_uri(dataset.load_image(m.index))}" alt="image {m.index} of the data set"><figcaption>'
        f'{html.escape(names[m.true])} taken for <b>{html.escape(names[m.predicted])}</b><br>{m.score:.0%} against '
        f'{m.true_score:.0%}'
        '</figcaption></figure>' for m in mistakes)
    small = not mistakes or max(dataset.load_image(mistakes[0].index).shape[:2]) <= 64
    return f'<div class="digits{"" if small else " photographs"}">{cells}</div>'
