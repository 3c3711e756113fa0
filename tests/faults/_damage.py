"""Valid files of every kind that comes from elsewhere, and ways to damage them, for fuzz.py.

Nearly all of them take a file's content and a random generator, and return what they did and the
new content.
"""

import contextlib
import copy
import io
import json
import math
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from conftest import TINY, crowd_entry, draw_photo, person_entry, stand

import train
from data.coco_pose import ref
from utils.stop import Stopper

SIZE = 60, 80  # height and width of the photos
OWN_JOINTS = ['head', 'left_hand', 'right_hand', 'left_foot', 'right_foot']
# Photos by name: as what they are drawn, and how they are written.
PHOTOS = {
    'baseline.jpg': ('jpg', []),
    'progressive.jpg': ('jpg', [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
    'restarts.jpg': ('jpg', [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]),
    'colour.png': ('png', []),
    '16bit.png': ('16bit', []),
    'grey.png': ('grey', []),
    'alpha.png': ('alpha', []),
    'lossy.webp': ('png', [cv2.IMWRITE_WEBP_QUALITY, 80]),
    'plain.bmp': ('png', []),
}
UNDAMAGED = 0.05  # the share of cases that must come out right
DEEP = 'a very deep list'  # stands for one in JSON, which json.dumps cannot write
STRANGE = [
    *(None, True, False, 0, 1, -1, 2, 1.5, -0.5, 10**9, -(10**9), 2**31, 2**63, 10**30, 10**400),
    *(1e308, -1e308, 1e-320, math.nan, math.inf, -math.inf, '', 'x', '0', '../../x', '/etc/passwd'),
    *('a\0b', '\ud800', 'a\nb', 'x' * 5000, [], {}, [[]], [None], {'a': 1}, [1, 2, 3], [[1, 2]]),
    *([math.nan] * 4, [-5, -5, -5, -5], ['a'] * 51, [1e9] * 51, [10**400] * 51, [0] * 99999, DEEP),
]


# --- valid files ---


def make_material(folder):
    """Draws a small data set into a folder and trains exp/run1 there, for two epochs."""
    os.chdir(folder)
    rng = np.random.default_rng(0)
    images = Path('images')
    images.mkdir()
    published = [int(line) for line in ref.VALID_IDS.read_text().split()]
    records, entries = [], []
    for number, (name, (kind, options)) in enumerate(PHOTOS.items()):
        joints = [stand(np.array([5 + 30 * p, 4, 24, 50])) for p in range(1 + number % 2)]
        cv2.imwrite(str(images / name), draw_photo(SIZE, joints, rng, kind), options)
        image_id = published[number] if number < 2 else 900000 + number
        if number < 2:  # COCO's names hold their ids
            coco_name = f'{image_id:012d}{Path(name).suffix}'
            name = shutil.copy(images / name, images / coco_name).name
        records.append({'id': image_id, 'file_name': name, 'height': SIZE[0], 'width': SIZE[1]})
        entries += [person_entry(len(entries) + 1 + p, image_id, j) for p, j in enumerate(joints)]
    del records[5]['height'], records[5]['width']
    forms = {3: 'runs', 4: 'compressed', 5: 'runs', 6: 'polygon', 7: 'box', 8: 'compressed'}
    for number, form in forms.items():
        entry = crowd_entry(len(entries) + 1, records[number]['id'], SIZE, (50, 0, 20, 60), form)
        entries.append(entry)
    content = {'images': records, 'annotations': entries, 'categories': [{'id': 1, 'name': 'x'}]}
    Path('coco.json').write_text(json.dumps(content))
    own = copy.deepcopy(content)
    for entry in own['annotations']:
        entry['keypoints'] = entry['keypoints'][:15]
        entry['num_keypoints'] = sum(v > 0 for v in entry['keypoints'][2::3])
    own['categories'][0] |= {'keypoints': OWN_JOINTS, 'skeleton': [[1, 2], [1, 3], [2, 4]]}
    Path('own.json').write_text(json.dumps(own))
    data = [f'data.images={folder}/images', f'data.annotations={folder}/coco.json']
    args = SimpleNamespace(
        exp='run1', continue_exp=None, task='pose', init=None, set=[*TINY, 'train.epochs=2', *data]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        model, loaders, state, report = train.prepare(args)
        train.train(model, loaders, state, report, Stopper())
    train.save(state, report)


class Material:
    """The valid files: their content, by what they are."""

    def __init__(self, folder):
        self.folder = Path(folder)
        run = self.folder / 'exp/run1'
        self.config = (run / 'config.json').read_bytes()
        self.metrics = (run / 'metrics.jsonl').read_bytes()
        self.checkpoint = (run / 'checkpoint.pth.tar').read_bytes()
        self.state = torch.load(io.BytesIO(self.checkpoint), weights_only=True)
        self.old_checkpoint = saved(self.state, old=True)
        self.annotations = {n: (self.folder / n).read_bytes() for n in ('coco.json', 'own.json')}
        folder = self.folder / 'images'
        self.photos = {name: (folder / name).read_bytes() for name in PHOTOS}
        self.settings = json.loads(self.config)['data']


def saved(state, old=False):
    """The bytes of a checkpoint, in the format of today or in that before torch 1.6."""
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


# --- damage ---


def damage_bytes(data, rng):
    """Bytes cut off, flipped, overwritten, zeroed, taken out, doubled or put in."""
    if rng.random() < UNDAMAGED:
        return 'nothing', data
    data, size = bytearray(data), len(data)
    kind = rng.choice(
        ['cut short', 'bits flipped', 'overwritten', 'zeroed', 'taken out', 'doubled', 'put in']
    )
    start = int(rng.integers(size))
    if rng.random() < 0.3:  # headers and directories lie at the ends
        start = int(rng.choice([start % 64, size - 1 - start % 64])) % size
    end = min(size, start + int(2 ** rng.uniform(0, 10)))
    if kind == 'cut short':
        del data[start:]
    elif kind == 'bits flipped':
        for _ in range(int(2 ** rng.uniform(0, 5))):
            place = int(rng.integers(size)) if rng.random() < 0.5 else start
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == 'overwritten':
        data[start:end] = rng.bytes(end - start)
    elif kind == 'zeroed':
        data[start:end] = bytes(end - start)
    elif kind == 'taken out':
        del data[start:end]
    elif kind == 'doubled':
        data[start:start] = data[start:end]
    else:
        data[start:start] = rng.bytes(end - start)
    return str(kind), bytes(data)


def damage_value(content, rng, strange=STRANGE):
    """One place of nested dicts and lists replaced, taken out, doubled or renamed, in place."""
    parent, key, value = None, None, content
    while isinstance(value, (dict, list)) and value and (parent is None or rng.random() < 0.9):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        parent, key = value, keys[int(rng.integers(len(keys)))]
        value = parent[key]
    kind = str(rng.choice(['replaced', 'taken out', 'doubled', 'renamed'], p=[0.7, 0.1, 0.1, 0.1]))
    if kind == 'taken out':
        del parent[key]
    elif kind == 'doubled' and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(value))
    elif kind == 'renamed' and isinstance(parent, dict):
        parent[rng.choice([f'{key}x', str(key)[1:], 'a\nb'])] = parent.pop(key)
    else:
        kind, place = 'replaced', int(rng.integers(len(strange)))
        parent[key] = copy.deepcopy(strange[place])
    return f'value {kind}'


def as_json(content):
    """The bytes of a JSON file, NaN and very deep lists among its values."""
    text = json.dumps(content, indent=2)
    return text.replace(f'"{DEEP}"', '[' * 100_000 + ']' * 100_000).encode()


def damage_json(data, rng):
    """A JSON file of other bytes, or with one to three other values in it."""
    if rng.random() < 0.3:
        return damage_bytes(data, rng)
    content = json.loads(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        what = damage_value(content, rng)
    return what, as_json(content)


def damage_field(data, rng):
    """An annotation file with a strange value in one field of one entry."""
    content = json.loads(data)
    kind = str(rng.choice(['images', 'annotations']))
    entry = content[kind][int(rng.integers(len(content[kind])))]
    key = list(entry)[int(rng.integers(len(entry)))]
    others = [
        *STRANGE,
        *(other.get(key) for other in content[kind]),
        *('../coco.json', '/etc/hosts', 'a/../../coco.json', '.', 'a/' * 200),
    ]
    entry[key] = others[int(rng.integers(len(others)))]
    return f'{key} replaced', as_json(content)


def damage_region(data, rng):
    """An annotation file with one crowd whose region cannot be, or just so."""
    content = json.loads(data)
    crowds = [a for a in content['annotations'] if a['iscrowd'] and 'segmentation' in a]
    crowd = crowds[int(rng.integers(len(crowds)))]
    region = crowd['segmentation']
    number = int(rng.choice([-1, 0, 1, 7, 10**5, 10**9, 2**32, 2**62]))
    if isinstance(region, list):
        odd = float(rng.choice([math.nan, math.inf, 1e30, 1e9, -1e7, 1e5, 3e5, 99.5]))
        place = int(rng.integers(len(region[0])))
        crowd['segmentation'] = [
            lambda: [region[0][:place] + [odd] + region[0][place + 1 :]],
            lambda: [region[0][:place]],
            lambda: region[0],
            lambda: region * 1000,
            lambda: [[0, 0, 9e4, 9e4] * 5000],
            lambda: [[odd, odd + 1] * 3],
        ][int(rng.integers(6))]()
        return 'polygon', as_json(content)
    if rng.random() < 0.4:
        place = int(rng.integers(2))
        region['size'] = [
            lambda: region['size'][::-1],
            lambda: [number, number],
            lambda: region['size'][:place] + [number] + region['size'][place + 1 :],
            lambda: region['size'] + [number],
        ][int(rng.integers(4))]()
        return 'size of a region', as_json(content)
    if isinstance(region['counts'], str):
        damaged = damage_bytes(region['counts'].encode(), rng)[1]
        region['counts'] = [
            lambda: damaged.decode('latin1'),
            lambda: 'o' * 10**5 + region['counts'],
            lambda: ''.join(chr(int(c)) for c in rng.integers(48, 112, 40)),
        ][int(rng.integers(3))]()
        return 'compressed counts', as_json(content)
    counts, place = region['counts'], int(rng.integers(len(region['counts'])))
    region['counts'] = [
        lambda: counts[:place],
        lambda: counts + [number],
        lambda: counts[:place] + [number] + counts[place + 1 :],
        lambda: [-counts[0], *counts[1:], 2 * counts[0]],
        lambda: [2**64 + counts[0], *counts[1:]],
        lambda: [float(c) for c in counts],
        lambda: [1] * (SIZE[0] * SIZE[1]),  # which can be
    ][int(rng.integers(7))]()
    return 'counts', as_json(content)


def strange_tensors(value):
    """Tensors that cannot stand where `value` does, or can though they are unusual."""
    wide = value.float().reshape(-1)
    return [
        *(value.double(), value.half(), value.to(torch.complex64), value.bool(), value.to_sparse()),
        *(value[None], value.t() if value.ndim == 2 else value.mT if value.ndim > 2 else value),
        *(torch.full_like(value.float(), x) for x in (math.nan, math.inf, 3e38, -1e30, 1e-40)),
        torch.zeros(1).expand(10**6, 10**6),
        torch.zeros((), dtype=value.dtype).expand(value.shape),
        torch.empty(value.shape, device='meta'),
        torch.quantize_per_tensor(wide, 0.1, 0, torch.qint8).reshape(value.shape),
        torch.zeros(value.shape).to(torch.float8_e4m3fn),
        torch.zeros(0),
        torch.nn.Parameter(value.float()),
        torch.arange(value.numel() * 2).reshape(*value.shape, 2)[..., 1],
    ]


def damage_state(state, rng):
    """A checkpoint's content with a strange value or tensor somewhere in it."""
    state = copy.deepcopy(state)
    tensors = [(state['state_dict'], name) for name in state['state_dict']]
    tensors += [(moments, name) for moments in state['optimizer']['state'].values()
                for name in moments]  # fmt: skip
    tensors += [(state['sums'], 'losses'), (state['random'], 'cpu')]
    kind = str(rng.choice(['strange tensor', 'NaN in a tensor', 'training state', 'anything']))
    if kind == 'anything':
        return damage_value(state, rng), state
    if kind == 'training state':
        rest = {k: v for k, v in state.items() if k not in ('state_dict', 'config')}
        what = damage_value(rest, rng)
        return f'{what} of {kind}', {k: state[k] for k in ('state_dict', 'config')} | rest
    holder, name = tensors[int(rng.integers(len(tensors)))]
    if kind == 'strange tensor':
        others = strange_tensors(holder[name])
        holder[name] = others[int(rng.integers(len(others)))]
    else:
        holder[name] = holder[name].clone(memory_format=torch.contiguous_format)
        wanted = math.nan if holder[name].is_floating_point() else 255
        holder[name].view(-1)[int(rng.integers(holder[name].numel()))] = wanted
    return kind, state


def damage_archive(data, rng):
    """A checkpoint of today's format whose pickle is damaged, with check sums that fit again."""
    kind = str(rng.choice(['pickle', 'records left out', 'packed', 'sizes in the pickle']))
    stream = io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if kind == 'packed' else zipfile.ZIP_STORED
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(stream, 'w', packing) as target,
    ):
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith('data.pkl') and kind == 'pickle':
                content = damage_bytes(content, rng)[1]
            elif entry.filename.endswith('data.pkl') and kind == 'sizes in the pickle':
                places = [i for i in range(len(content) - 5) if content[i] in b'KMJ']
                place = places[int(rng.integers(len(places)))] + 1
                content = content[:place] + rng.bytes(1) + content[place + 1 :]
            elif kind == 'records left out' and rng.random() < 0.1:
                continue
            target.writestr(entry.filename, content)
    return f'archive: {kind}', stream.getvalue()


def png_chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def lie_of_size(name, data, rng):
    """A photo whose header claims another size, with check sums that fit."""
    sides = [0, 1, 59, 61, 80, 11_000, 30_000, 60_000, 65_500, 2**21, 2**31 - 1]
    height, width = (int(v) for v in rng.choice(sides, 2))
    if name.endswith('.png'):
        header = struct.pack('>II', width, height) + data[24:29]
        return data[:8] + png_chunk(b'IHDR', header) + data[33:]
    if name.endswith('.bmp'):
        return data[:18] + struct.pack('<ii', width, height * int(rng.choice([-1, 1]))) + data[26:]
    if name.endswith('.jpg'):
        frame = data.find(b'\xff\xc2' if 'progressive' in name else b'\xff\xc0') + 5
        size = struct.pack('>HH', height % 2**16, width % 2**16)
        return data[:frame] + size + data[frame + 4 :]
    place = data.find(b'\x9d\x01\x2a') + 3  # of a VP8 frame
    return data[:place] + struct.pack('<HH', width % 2**14, height % 2**14) + data[place + 4 :]
