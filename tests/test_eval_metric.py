"""Result files are read back to the same metrics; a pickle cannot run anything."""
from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import yaml

from workspace_lib.tools.cli import main
from workspace_lib.tools.eval_metric import eval_metric
from workspace_lib.tools.results import UnsafeResultError, read_results

DIGITS = 'lenet/lenet5_mnist5k.py'
METRICS = ['accuracy', 'precision', 'recall', 'f1_score', 'support']


@pytest.fixture(scope='module')
def scores():
    return np.random.default_rng(0).dirichlet(np.ones(10), 1000).astype(np.float32)


@pytest.fixture
def truth(scores):
    from workspace_lib.datasets import build_dataset
    from workspace_lib.recipes import load_config
    return build_dataset(load_config(DIGITS).data.test, dict(test_mode=True)).evaluate(list(scores), METRICS)


@pytest.mark.parametrize('ending, dump', [
    ('json', lambda content: json.dumps({k: v.tolist() for k, v in content.items()}).encode()),
    ('yaml', lambda content: yaml.safe_dump({k: v.tolist() for k, v in content.items()}).encode()),
    *[('pkl', lambda content, protocol=protocol: pickle.dumps(content, protocol)) for protocol in range(2, 6)]])
def test_every_format_gives_the_metrics_of_the_test_itself(tmp_path, scores, truth, ending, dump):
    path = tmp_path / f'result.{ending}'
    path.write_bytes(dump(dict(class_scores=scores)))
    assert np.array_equal(read_results(path)['class_scores'], scores)
    assert eval_metric(DIGITS, path, METRICS) == truth


def test_a_pickle_as_mmclassification_writes_it_is_read(tmp_path, scores):
    content = dict(accuracy=np.float64(12.5), class_scores=list(scores), pred_class=['0 - zero'] * 1000)
    (tmp_path / 'result.pkl').write_bytes(pickle.dumps(content))
    found = read_results(tmp_path / 'result.pkl')
    assert found['accuracy'] == 12.5 and found['pred_class'] == content['pred_class']


def test_a_pickle_from_numpy_1_is_read(tmp_path, scores):
    data = pickle.dumps(dict(class_scores=scores), 2).replace(b'numpy._core.multiarray', b'numpy.core.multiarray')
    assert b'numpy.core.multiarray' in data
    (tmp_path / 'result.pkl').write_bytes(data)
    assert np.array_equal(read_results(tmp_path / 'result.pkl')['class_scores'], scores)


class Payload:
    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return exec, (f'open({self.trace!r}, "w")',)


@pytest.mark.parametrize('hide', [lambda p: dict(class_scores=p), lambda p: dict(class_scores=np.array([p], object)),
                                  lambda p: p])
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, hide):
    (tmp_path / 'evil.pkl').write_bytes(pickle.dumps(hide(Payload(tmp_path / 'trace'))))
    with pytest.raises(UnsafeResultError, match=r'exec.*Nothing of it was run'):
        read_results(tmp_path / 'evil.pkl')
    assert not (tmp_path / 'trace').exists()


def test_numpy_functions_are_refused_too(tmp_path):
    (tmp_path / 'evil.pkl').write_bytes(b'cnumpy\nsave\n.')
    with pytest.raises(UnsafeResultError, match='numpy.save'):
        read_results(tmp_path / 'evil.pkl')


@pytest.mark.parametrize('name, content, said', [
    ('r.json', '{"accuracy": 1.0}', 'no class_scores'), ('r.json', '{"class_sc', 'cannot be read'),
    ('r.pkl', 'torn', 'cannot be read'), ('r.txt', '', 'ends in .json'), ('r.json', '{"class_scores": []}', 'shape'),
    ('r.yaml', '!!python/object/apply:os.getcwd []', 'cannot be read')])
def test_other_files_are_named_with_their_reason(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        read_results(tmp_path / name)


def test_another_number_of_images_is_another_test_set(tmp_path, scores):
    (tmp_path / 'r.json').write_text(json.dumps(dict(class_scores=scores[:7].tolist())))
    with pytest.raises(ValueError, match='7 results, but the test set has 1000 images'):
        eval_metric(DIGITS, tmp_path / 'r.json', ['accuracy'])


def test_the_command_prints_as_a_test_does(tmp_path, scores, truth, capsys):
    (tmp_path / 'r.json').write_text(json.dumps(dict(class_scores=scores.tolist())))
    assert main(['eval_metric', DIGITS, str(tmp_path / 'r.json'), '--metrics', *METRICS]) == 0
    assert f'accuracy_top-1 : {round(truth["accuracy_top-1"], 2)}' in capsys.readouterr().out
    assert main(['eval-metric', DIGITS, str(tmp_path / 'none.json'), '--metrics', 'accuracy']) == 1
    assert 'no result file' in capsys.readouterr().err
    assert main(['eval-metric', DIGITS, str(tmp_path / 'r.json')]) == 1
    assert '--metrics' in capsys.readouterr().err
