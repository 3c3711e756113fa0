"""What a long evaluation tells on the way, and what it keeps so that a killed one goes on."""

import itertools
import json
import time
import zlib

from tqdm import tqdm

from utils import dist

EVERY = 30  # seconds between two lines where there is no terminal for a bar


class Progress(tqdm):
    """A bar on rank 0; where there is no terminal, a line every half a minute."""

    def __init__(self, total, desc, unit):
        disable = None if dist.rank() == 0 else True  # None: where there is no terminal
        super().__init__(total=total, desc=desc, unit=unit, disable=disable)
        self.start = self.last_line = time.monotonic()
        self.done, self.total, self.what = 0, total, (desc, unit)

    def update(self, n=1):
        super().update(n)
        self.done += n
        now = time.monotonic()
        if self.disable and dist.rank() == 0 and now - self.last_line > EVERY:
            self.last_line, (desc, unit) = now, self.what
            left = (self.total - self.done) * (now - self.start) / self.done
            known = f' of {self.total:,} {unit}s, eta {tqdm.format_interval(left)}'
            # A camera's pictures have no end.
            print(f'{desc}: {self.done:,}' + (known if left >= 0 else f' {unit}s'), flush=True)


class Lines:
    """JSON lines in a file, kept from an earlier process if its first line equals `key`.

    Used as a list that only grows. A line that a kill cut off is dropped. Raises OSError.
    """

    def __init__(self, path, key):
        self.path, self.count, self.stream = path, 0, None
        self.first = json.dumps(key).encode() + b'\n'
        self.size = 0  # bytes of the lines that are kept
        if path.exists():
            with open(path, 'rb') as stream:
                if stream.readline() == self.first:
                    self.size = len(self.first)
                    for line in stream:
                        if line.endswith(b'\n'):
                            self.size, self.count = self.size + len(line), self.count + 1

    def __len__(self):
        return self.count

    def append(self, content):
        if self.stream is None:
            self.stream = open(self.path, 'r+b' if self.size else 'wb')
            self.stream.truncate(self.size)
            self.stream.seek(self.size)
            self.stream.write(self.first if self.size == 0 else b'')
        self.stream.write(json.dumps(content).encode() + b'\n')
        self.stream.flush()
        self.count += 1

    def __iter__(self):
        if self.count:
            with open(self.path, 'rb') as stream:
                stream.readline()
                yield from map(json.loads, itertools.islice(stream, self.count))

    def remove(self):
        """Closes and deletes the file, once its content is kept elsewhere."""
        if self.stream is not None:
            self.stream.close()
        self.path.unlink(missing_ok=True)


def open_lines(folder, key):
    """The Lines of what `key` describes, in a file of its own: two evaluations do not meet."""
    name = f'dt.partial-{zlib.crc32(json.dumps(key).encode()):08x}.jsonl'
    lines = Lines(folder / name, key)
    if len(lines) and dist.rank() == 0:
        print(f'{lines.path}: an earlier evaluation goes on behind {len(lines)} batches')
    return lines
