"""Damaged files from elsewhere are refused or read right, and nothing in them is ever executed."""

import ast

import pytest
from faults import fuzz
from test_imports import ROOT, SOURCES

FORBIDDEN = {
    *(
        'eval',
        'exec',
        'compile',
        '__import__',
        'pickle',
        'marshal',
        'shelve',
        'dill',
        'cloudpickle',
    ),
    *('joblib', 'os.system', 'os.popen', 'subprocess.getoutput', 'subprocess.getstatusoutput'),
    *('yaml.load', 'torch.jit.load', 'torch.hub'),
}


def test_damaged_files():
    """A short run of tests/faults/fuzz.py: every kind of file, no finding."""
    rows = fuzz.run(cases=150, seed=5)
    assert sum(row['cases'] for row in rows) == 150
    assert {row['file'] for row in rows} == {
        case.__name__.removesuffix('_case') for case in fuzz.CASES
    }
    assert sum(row['right'] for row in rows) > 20 and sum(row['errors'] for row in rows) > 50
    assert [finding for row in rows for finding in row['findings']] == []


def unsafe(text):
    """What in a source runs code that comes from elsewhere, as 'line 3: eval'."""
    found = []
    for node in ast.walk(ast.parse(text)):
        names = set()
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            names = {name}
            if name == 'torch.load' and options.get('weights_only') != 'True':
                names.add('torch.load without weights_only')
            if (
                name in ('np.load', 'numpy.load')
                and options.get('allow_pickle', 'False') != 'False'
            ):
                names.add('np.load with pickle')
            if options.get('shell', 'False') != 'False':
                names.add('shell')
            names -= {name} - FORBIDDEN
            found += [f'line {node.lineno}: {name}' for name in names]
            continue
        found += [f'line {node.lineno}: {name}' for name in names & FORBIDDEN]
    return found


@pytest.mark.parametrize('source', SOURCES)
def test_nothing_from_elsewhere_is_executed(source):
    assert unsafe((ROOT / source).read_text()) == []


@pytest.mark.parametrize(
    'text',
    ['eval(x)', 'exec(x)', 'import pickle', 'from pickle import loads', 'os.system(x)',
     'subprocess.run(x, shell=True)', 'subprocess.run(x, shell=y)', 'torch.load(x)',
     'torch.load(x, weights_only=False)', 'np.load(x, allow_pickle=True)', 'from os import system'],
)  # fmt: skip
def test_what_would_be_found(text):
    assert unsafe(text)


def test_what_is_allowed():
    text = (
        'network.eval()\nsubprocess.run(["git"])\ntorch.load(x, weights_only=True)\nre.compile(x)'
    )
    assert unsafe(text) == []
