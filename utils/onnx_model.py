"""A network as an ONNX file: written, compared with PyTorch, and run by onnxruntime on a CPU.

python -m utils.convert exp/NAME out.onnx     writes it
python test.py -c out.onnx -m single          runs it; in Python: test.load('out.onnx')

Input `images`: (B, H, W, 3) float32 RGB in [0, 1], H and W multiples of 64. Output `preds`: (B, S,
C, H / 4, W / 4), of which the first K channels are heatmaps and the next K tags; S is 1 with only
the last stack. The file's metadata are JSON: config, joints, scales, figures (AP) and training.
"""

import json
import logging
import warnings
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from utils.checkpoint import write_atomically
from utils.config import complete, load_task
from utils.errors import UserError, import_extra
from utils.weights import load_network

PHOTO = Path(__file__).parent.parent / 'photos.jpg'  # three photos of COCO, side by side
SIZES = ((192, 320), (320, 256))  # pixels, (height, width), at which outputs are compared
TOLERANCE = 1e-4  # of the range of PyTorch's output


def is_onnx(path):
    """Whether a path, or the name of a run, is that of an ONNX file."""
    return Path(path).suffix == '.onnx'


class LastStack(nn.Module):
    """A network whose output has the last stack alone: (B, 1, C, H / 4, W / 4)."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, imgs):
        return self.network(imgs)[:, -1:]


class OnnxNetwork(nn.Module):
    """The network of an ONNX file in the place of PyTorch's, on the CPU.

    Uses as many threads as PyTorch. Raises UserError where the file is none of this program.
    """

    def __init__(self, path):
        super().__init__()
        onnxruntime = import_extra('onnxruntime')
        if not Path(path).is_file():
            raise UserError(f"there is no {path}: write it with 'python -m utils.convert'")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=['CPUExecutionProvider']
            )
        except Exception as error:  # of many classes, which onnxruntime does not export
            reason = str(error).splitlines()[0]
            raise UserError(f'{path} cannot be read as an ONNX file: {reason:.200}') from None
        try:
            config = self.session.get_modelmeta().custom_metadata_map['config']
            self.config = complete(json.loads(config))
            found = self.session.get_inputs()[0].name, self.session.get_outputs()[0].shape[2]
            if found != ('images', self.config['model']['oup_dim']):
                raise ValueError
        except (LookupError, TypeError, ValueError, RecursionError):
            raise UserError(
                f"{path} is an ONNX file of something else: expected what 'python -m "
                "utils.convert' writes, with the run's config in its metadata"
            ) from None
        except UserError as error:
            raise UserError(f'{path} has a config that cannot be used: {error}') from None

    def forward(self, images):
        """images (B, H, W, 3) float32, see the top of the file -> preds."""
        return torch.from_numpy(self.session.run(['preds'], {'images': images.numpy()})[0])


def write_onnx(path, content, last=False):
    """Writes what utils.convert publishes of a run as an ONNX file.

    last: only the last stack's output. The file takes its place once onnxruntime has answered as
    PyTorch does; raises UserError, which tells the difference, where it does not.
    """
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        import_extra(name)
    config = content['config']
    network = load_task(config['run']['task']).make_network(config).network.eval()
    load_network(network, content['state_dict'], path)
    network = LastStack(network).eval() if last else network
    program = export(network)
    metadata = {key: content[key] for key in ('config', 'figures', 'training')}
    metadata['joints'] = config['data']['joints'] or 'those of COCO'
    metadata['scales'] = config['test']['scales']
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    program.model.metadata_props.update(texts)

    def write(stream):
        stream.write(program.model_proto.SerializeToString())
        stream.flush()
        compare(network, OnnxNetwork(stream.name), path)

    write_atomically(path, write)


def export(network):
    """A network as torch.onnx's program, for any batch and any multiples of 64 pixels."""
    rows, cols = torch.export.Dim('rows'), torch.export.Dim('cols')  # of 64 pixels
    shapes = {'imgs': {0: torch.export.Dim('batch'), 1: 64 * rows, 2: 64 * cols}}
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that there is no torchvision
    try:
        with warnings.catch_warnings(action='ignore', category=FutureWarning):  # torch's own
            return torch.onnx.export(
                network, (torch.zeros(2, 128, 192, 3),), input_names=['images'],
                output_names=['preds'], dynamic_shapes=shapes, dynamo=True, verbose=False,
            )  # fmt: skip
    finally:
        logger.setLevel(level)


def compare(network, onnx_network, path):
    """Raises UserError where two networks differ on photos, one or three at a time."""
    picture = cv2.imread(str(PHOTO), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise UserError(f'{PHOTO} cannot be read: outputs are compared on it; get it back')
    for height, width in SIZES:
        photos = [cv2.resize(p, (width, height)) for p in np.array_split(picture, 3, axis=1)]
        photos = torch.from_numpy(np.stack(photos)).float() / 255
        for batch in (photos[:1], photos):
            with torch.inference_mode():
                wanted, found = network(batch), onnx_network(batch)
            most = TOLERANCE * float(wanted.max() - wanted.min())
            difference = float((found - wanted).abs().max())
            if not difference <= most:
                raise UserError(
                    f'{path} is not written: for {len(batch)} photos of {height} x {width} pixels '
                    f"onnxruntime's output differs from PyTorch's by {difference:.3g}, expected at "
                    f'most {most:.3g}; try the versions of requirements-extra.txt'
                )
