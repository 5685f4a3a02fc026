"""`make demo`: config -> registry -> inference -> test -> train -> checkpoint -> test again, and one HTML report of it.

In: nothing but the installed packages. Out: `demo_report/index.html`; the training itself lives in a temporary folder.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from ..apis import build_loader, inference_model, init_model, load_config, set_random_seed, single_gpu_test
from ..checkpoint import read_checkpoint
from ..datasets import build_dataset
from ..datasets.decode import decode
from ..device import describe_device, select_device
from ..recipes import CONFIGS
from ..registry import MODELS
from ..trace import shown
from . import commands, plots, report
from .annotate import annotate, leaves
from .build_tree import BuildTree, trace_builds
from .photos import PHOTOGRAPHS, photograph
from .table import Table

DIGITS, PHOTOS = 'lenet/lenet5_mnist5k.py', 'efficientnet/efficientnet-lite0_in1k.py'
WEIGHTS = 'packaged://efficientnet-lite0'
TITLE = 'From a config file to a tested classifier'
LEAD = '''One walk through an image classifier: from a config file to a trained, tested, explained model, by the same
functions that `workspace train`, `test` and `infer` call.'''
NEXT = f'''
workspace config {DIGITS} --origin
workspace infer PHOTO.jpg {PHOTOS} {WEIGHTS}
workspace train {DIGITS} --seed 1 --work-dir work_dirs/seed1
workspace train {DIGITS} --cfg-options optimizer.lr=0.01 --work-dir work_dirs/slow
workspace test {DIGITS} work_dirs/seed1/latest.pth --metrics accuracy precision recall
make up            # JupyterLab; begin with notebooks/00_tour.ipynb
'''
Stage = tuple[str, str]  # a line for the terminal, HTML for the report


class Demo:
    """The stages, in order of `STAGES`; each leaves on `self` what the next ones need."""

    STAGES = ('config', 'registry', 'inference', 'test', 'train', 'checkpoint', 'test again')

    def __init__(self, folder: Path, device: str = 'auto') -> None:
        self.folder, self.device = folder / 'run', select_device(device)
        self.facts: list[report.Fact] = []

    def run(self) -> list[report.Section]:
        """(name, seconds, HTML) of each stage, with a line on the terminal as it ends."""
        sections = []
        for place, name in enumerate(self.STAGES, 1):
            print(f'[{place}/{len(self.STAGES)}] {name:<10}', end='', flush=True)
            start = time.perf_counter()
            line, content = getattr(self, name.replace(' ', '_'))()
            sections.append((name, time.perf_counter() - start, content))
            print(f' {line}  ({sections[-1][1]:.1f} s)', flush=True)
        return sections

    def config(self) -> Stage:
        self.cfg = load_config(DIGITS)
        count = sum(1 for _ in leaves(self.cfg.to_dict()))
        resolved = annotate(self.cfg).replace(f'{CONFIGS}/', '').replace('workspace_lib/configs/', '')
        return f'{DIGITS} resolves to {count} values', ''.join([
            report.paragraph(f'`{DIGITS}` names other files:'), report.code(Path(str(self.cfg.filename)).read_text()),
            report.paragraph(f'Merged, they are {count} values, and each knows the file and line that set it (`via`: '
                             'the variable it came through; `over`: what it replaced).'),
            report.folded('The resolved config with origins', report.code(resolved), is_open=True)])

    def registry(self) -> Stage:
        with trace_builds() as trace:
            self.classifier = init_model(PHOTOS, WEIGHTS, self.device)
            set_random_seed(0)
            self.untrained = init_model(self.cfg, None, self.device)
        imports = '\n'.join(map(shown, MODELS.registered_by('LeNet5'))).replace(f'{CONFIGS.parents[1]}/', '')
        return f'{len(trace.records)} builds', ''.join([
            report.paragraph('A config names classes, a registry finds and builds them, from the outside in:'),
            f'<div class="tree">{BuildTree(trace)._repr_html_()}</div>',
            report.paragraph('Why did the registry know `LeNet5`? These imports led to the class, the last line:'),
            report.code(imports)])

    def inference(self) -> Stage:
        cards, names = [], []
        for name, photo in PHOTOGRAPHS.items():
            path = photograph(name)
            best = plots.top_k(inference_model(self.classifier, path)['scores'], self.classifier.CLASSES)
            names.append(f'{Path(name).stem}: {best[0][0]}')
            cards.append(report.prediction_card(decode(path), name, photo, best))
        return ', '.join(names[:2]), ''.join([
            report.paragraph('EfficientNet-Lite0 with its ImageNet weights. Among its 1,000 classes is no dahlia.'),
            f'<div class="cards">{"".join(cards)}</div>'])

    def test(self) -> Stage:
        self.dataset = build_dataset(self.cfg.data.test, dict(test_mode=True))
        before, _ = self.evaluate(self.untrained)
        self.facts.append(('accuracy before training', f'{before:.1f} %'))
        return f'untrained LeNet-5: {before:.1f} %', report.paragraph(
            f'LeNet-5 as initialised: {before:.1f} % of {len(self.dataset):,} held-out digits. Guessing gives 10 %.')

    def evaluate(self, model: torch.nn.Module) -> tuple[float, list]:
        results = single_gpu_test(model, build_loader(self.cfg, 'test', self.dataset, self.device), progress=False)
        return self.dataset.evaluate(results, 'accuracy', dict(topk=1))['accuracy'], results

    def train(self) -> Stage:
        torch.set_num_threads(1)  # the network is so small that a second thread would mostly wait for the first
        commands.train(self.cfg, str(self.folder), seed=0, device=str(self.device), options={'log_level': 'WARNING'})
        curves = plots.learning_curves(plots.read_log(self.folder))
        digits, epochs = len(build_dataset(self.cfg.data.train)), self.cfg.runner.max_epochs
        return f'{epochs} epochs of {digits:,} digits', ''.join([
            report.paragraph(f'{digits:,} digits, {epochs} epochs, seed 0, on {describe_device(self.device)}, '
                             'evaluated after every epoch.'), report.figure(curves)])

    def checkpoint(self) -> Stage:
        saved = read_checkpoint(self.folder / 'latest.pth')
        size = (self.folder / 'latest.pth').stat().st_size / 1e6
        meta = [(key, str(value)) for key, value in saved['meta'].items() if key not in ('config', 'CLASSES')]
        tensors = [(name, 'x'.join(map(str, t.shape)), t.numel()) for name, t in saved['state_dict'].items()]
        return f'{", ".join(saved)}; {size:.1f} MB', ''.join([
            report.paragraph(f'The file ({size:.1f} MB) is a dictionary of `{"`, `".join(saved)}`. `state_dict` has '
                             f'{len(tensors)} tensors, `optimizer` what a resumed run needs, `meta` where it stood.'),
            report.table(Table(('key of meta', 'value'), meta)),
            report.folded('The tensors', report.table(Table(('name', 'shape', 'numbers'), tensors)))])

    def test_again(self) -> Stage:
        accuracy, results = self.evaluate(init_model(self.cfg, str(self.folder / 'latest.pth'), self.device))
        labels = self.dataset.get_gt_labels()
        self.facts.insert(0, ('accuracy on held-out digits', f'{accuracy:.1f} %'))
        return f'trained LeNet-5: {accuracy:.1f} %', ''.join([
            report.paragraph(f'A fresh model, weights from the checkpoint: {accuracy:.1f} % of the digits are right.'),
            '<h3>Which digits are taken for which</h3>',
            report.figure(plots.confusion_matrix(results, labels, self.dataset.CLASSES)),
            '<h3>The worst mistakes</h3>',
            report.paragraph('Wrong, and sure of it: the confidence in the answer against that in the right one.'),
            report.mistake_grid(self.dataset, plots.find_mistakes(results, labels, 16))])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m workspace_lib.tools.demo', description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, default=Path('demo_report'), help='folder of the report (demo_report)')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix='workspace-demo-') as folder:
        demo = Demo(Path(folder), args.device)
        print(f'report: {report.write(args.out, TITLE, LEAD, demo.run(), demo.facts, NEXT)}')
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit('interrupted; nothing was written but temporary files')
