"""Tries what can go wrong in a long run, for real; prints what was tried, how often, what was lost.

python -m tests.faults                     all of it, about 12 minutes on two cores
python -m tests.faults killed_save fuzz    some of it
"""

import argparse
import importlib
import sys
import time
from pathlib import Path

KNOWN = sorted(
    path.stem for path in Path(__file__).parent.glob('[!_]*.py') if path.stem != 'common'
)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('faults', nargs='*', metavar='fault', help=', '.join(KNOWN))
    args = parser.parse_args()
    unknown = [fault for fault in args.faults if fault not in KNOWN]
    if unknown:
        parser.error(f'no fault {unknown[0]!r}: choose from {", ".join(KNOWN)}')
    failed = False
    print(f'{"tried":60} {"times":>6} {"seconds":>8}  lost', flush=True)
    for fault in args.faults or KNOWN:
        start = time.monotonic()
        for what, times, lost in importlib.import_module(f'tests.faults.{fault}').run():
            seconds = time.monotonic() - start
            print(f'{what:60} {times:6,} {seconds:8.0f}  {len(lost) or "nothing"}', flush=True)
            print(*lost, sep='\n', end='\n' * bool(lost), file=sys.stderr, flush=True)
            failed |= bool(lost)
            start = time.monotonic()
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
