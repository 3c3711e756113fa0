"""python -m utils.demo -c NAME: find people in a page of the browser, see demo.py.

The page calls test.py, which utils may not import: so its program lies beside test.py.
"""

import runpy
from pathlib import Path

if __name__ == '__main__':
    runpy.run_path(str(Path(__file__).parent.parent / 'demo.py'), run_name='__main__')
