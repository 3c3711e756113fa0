"""Find people: COCO AP of a run, or the people in your own photos.

python test.py -c run1 -m single              AP of exp/run1 at one scale
python test.py -c run1 -m multi               at three scales
python test.py -c run1 --scales 2,1.5,1,0.5   at any list of scales
python test.py -c run1 --checkpoint best      the best checkpoint instead of the latest
python test.py -c out.onnx -m single          an ONNX file of utils.convert, in onnxruntime
python test.py -c run1 --vis 20               pictures of predictions beside the truth
python test.py -c run1 --images a.jpg folder/ clip.mp4 [--out out/] [--maps]
                                              people in your own photos and clips
python test.py -c run1 --images 0             in a camera's pictures, or those of rtsp://...
python test.py -c run1 -m multi --annotations image_info_test-dev2017.json --images test2017
                                              any COCO file: AP, or without labels a submission
from test import load, multiperson, aggregate the same from Python, see README.md
"""

import importlib
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch

from data.coco_pose import ref
from data.coco_pose.dp import PhotoInputs
from data.coco_pose.results import coco_scores, plain, to_coco, write_pictures, write_submission
from data.coco_pose.splits import describe, open_file
from data.photos import is_stream
from data.predictions import open_window, watch, write_predictions
from task import pose
from utils import dist
from utils.affine import kpt_affine, warp
from utils.checkpoint import read_checkpoint, write_json
from utils.config import apply_settings, check_config, load_task
from utils.device import choose_device, choose_precision, one_thread
from utils.errors import UserError, exit_code, warn_once
from utils.group import HeatmapParser
from utils.loading import make_loader, worker_count
from utils.multiscale import as_rgb, input_frames, merge, photo_maps
from utils.onnx_model import OnnxNetwork, is_onnx
from utils.progress import Progress, open_lines
from utils.refine import refine
from utils.run import Run
from utils.weights import load_network

__all__ = ['aggregate', 'evaluate', 'load', 'merge', 'multiperson', 'refine']


class Predictor:
    """The network as the function that `multiperson` calls, with the config it was trained by."""

    def __init__(self, network, config, device, dtype):
        self.network, self.config, self.device, self.dtype = network, config, device, dtype

    def __call__(self, images):
        """[predictions (B, S, C, H / 4, W / 4) float32] of B images (H, W, 3) of equal size.

        images: a list of arrays, RGB in [0, 1], or a tensor (B, H, W, 3), then also uint8.
        """
        if not isinstance(images, torch.Tensor):
            images = torch.from_numpy(np.stack(images))
        images = images.to(self.device, non_blocking=True)
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        self.network.eval()
        mixed = self.dtype != torch.float32
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=mixed):
            return [self.network(images).float()]


def load(name, which='checkpoint', task='pose', settings=()):
    """The trained network of exp/<name>, ready for `multiperson`: a Predictor.

    exp/ is that of the working folder or, where it has no such run, of the repository. A name that
    ends in .onnx is the path of an ONNX file, which onnxruntime runs on the CPU.
    which: 'checkpoint' (the latest) or 'best'. task: whose config serves weights that come without
    one. settings: changes of the config, as --set takes them. Raises UserError.
    """
    network = is_onnx(name) and OnnxNetwork(name)
    run = Run(Path(name).name if network else name, anywhere=True)
    read_config = lambda: run.require(which) and run.config(task)  # noqa: E731
    config = apply_settings(network.config if network else dist.share(read_config), settings)
    check_config(config, len(ref.get_joints(config['data']).names))
    if network:
        return Predictor(network, config, torch.device('cpu'), torch.float32)
    path = run.checkpoint(which)
    network = load_task(config['run']['task']).make_network(config).network
    load_network(network, read_checkpoint(path)['state_dict'], path)
    device = choose_device(config['test'])
    dtype, _ = choose_precision(config['test']['precision'], device)
    return Predictor(network.to(device).eval(), config, device, dtype)


@one_thread()
def group_seen(det, tag, matrix, settings, joint_order=None):
    """As `group`, with the joints (P, K) that were seen, not filled in by refine, before scores."""
    keys = ('detection_val', 'tag_val', 'max_num_people', 'tie_break', 'subpixel')
    parser = HeatmapParser(**{key: settings[key] for key in keys}, joint_order=joint_order)
    people = parser.parse(det[None], tag[None])[0]
    scores, seen = people[:, :, 2].mean(1), people[:, :, 2] > 0
    if settings['refine'] and len(people) > 0:
        people = refine(det, tag, people, settings['subpixel'])
    found = people[:, :, 2] > 0
    people[found, :2] = kpt_affine(people[found, :2], matrix)
    return people, seen, scores


def group(det, tag, matrix, settings, joint_order=None):
    """People (P, K, 3 + D) in image pixels and scores (P,) from the maps of one photo.

    matrix: (2, 3), output frame to image frame. settings: the config's 'test'. joint_order: as
    HeatmapParser takes it.
    """
    return group_seen(det, tag, matrix, settings, joint_order)[::2]


def find_people(preds, frames, size, scales, config):
    """What `group_seen` returns of one photo, from its network outputs, see `photo_maps`."""
    joints, settings = ref.get_joints(config['data']), config['test']
    maps = photo_maps(preds, frames, size, scales, joints, settings)
    return group_seen(*maps, settings, joints.order)


def aggregate(img, func, scales):
    """The merged maps of a photo: det (K, H, W), tag (K, H, W, D), and a (2, 3) transform.

    img (H, W, 3) uint8 RGB. func: see `multiperson`. scales: a list, as [1.0]. det and tag are
    tensors on the network's device. H and W are those of the first scale's output; D counts its
    passes, the photo and its mirror image. The transform goes from this frame to image pixels, for
    `utils.affine.kpt_affine`. With test.margins off, det is -inf beyond the photo; where every pass
    has diverged, it is 0.
    """
    img = as_rgb(img)
    config = getattr(func, 'config', pose.__config__)
    frames = input_frames(*img.shape[:2], config, scales)
    preds = []
    for res, matrix in frames:
        photo = warp(img, matrix, res).astype(np.float32) / 255
        mirrored = [np.ascontiguousarray(photo[:, ::-1])] * config['test']['mirror']
        output = func([photo, *mirrored])[0]
        preds.append(torch.as_tensor(output)[:, -1])
    joints = ref.get_joints(config['data'])
    return photo_maps(preds, frames, img.shape[:2], scales, joints, config['test'])


def multiperson(img, func, mode='single', scales=None):
    """The people in a photo: (P, K, 3 + D) of x, y in image pixels, value, tags, and scores (P,).

    img (H, W, 3) uint8 RGB. func: what `load` returns, or any function from a list of equal-size
    float images in [0, 1] to a list whose first item is the network's output (B, S, C, h, w).
    mode: 'single' or 'multi', a list of scales in the config; `scales` is one of your own.
    Value 0 marks a joint that was not found.
    """
    config = getattr(func, 'config', pose.__config__)
    maps = aggregate(img, func, scales or config['test']['scales'][mode])
    return group(*maps, config['test'], ref.get_joints(config['data']).order)


def regroup(maps, func, **settings):
    """What `data.predictions.add_picture` takes, from the maps that `aggregate` returned.

    settings: changes of the config's 'test', such as detection_val.
    """
    order, settings = ref.get_joints(func.config['data']).order, func.config['test'] | settings
    return maps, *group_seen(*maps, settings, order)


def find_in_files(func, paths, out, scales, maps=False, show=None):
    """The people in a user's own files, see `data.predictions.write_predictions`.

    Without `out` those in a stream are only shown.
    """
    joints, sure = ref.get_joints(func.config['data']), func.config['test']['detection_val']
    find = lambda img: regroup(aggregate(img, func, scales), func)  # noqa: E731
    if out is None:
        return watch(find, paths[0], joints, sure, show)
    return write_predictions(find, paths, out, joints, sure, maps, show)


def predict(func, split, mode, scales=None, found=None):
    """The detections of photos as `to_coco` makes them: dicts, best first in each photo.

    Returns them and how many photos cannot be read, which have none. Under torchrun each rank looks
    at its share of the photos, and rank 0 returns those of all, just as one rank alone would; the
    others return an empty list. found: what this rank's share has so far, a list or `Lines`, to
    which a list of detections, None for a photo that is unread, is appended for each batch.
    """
    config, found = func.config, [] if found is None else found
    scales = scales or config['test']['scales'][mode]
    photos = PhotoInputs(split, config, scales)
    batches = photos.batches(config['test']['batchsize'])
    own = batches[dist.rank() :: dist.world_size()]
    done, own = own[: len(found)], own[len(found) :]
    workers = worker_count(config['test']['num_workers'])
    loader = make_loader(photos, workers, batch_sampler=own, collate_fn=photos.collate)
    progress = Progress(sum(map(len, done + own)), f'test {mode}', 'photo')
    progress.update(sum(map(len, done)))
    for numbers, sizes, frames, problems, inputs in loader:
        inputs = [x.to(func.device, non_blocking=True) for x in inputs]
        if config['test']['mirror']:
            inputs = [torch.cat([x, x.flip(2)]) for x in inputs]
        preds = [func(x)[0][:, -1] for x in inputs]
        B, batch = len(numbers), []
        for b, number in enumerate(numbers):
            if problems[b]:
                warn_once(f'{problems[b]}; it has no detections')
                batch.append(None)
                continue
            maps = [pred[b::B] for pred in preds]
            people, seen, scores = find_people(maps, frames[b], sizes[b], scales, config)
            batch += to_coco(people, scores, split.ids[number], split.category['id'], seen)
        found.append(batch)
        progress.update(B)
    progress.close()
    if dist.world_size() > 1:
        shares = dist.gather_values(list(found))
        if dist.rank() > 0:
            return [], 0
        # Batches were dealt out like cards.
        dealt = zip_longest(*shares, fillvalue=[])
        found = (batch for batches in dealt for batch in batches)
    entries = [entry for batch in found for entry in batch]
    detections = [entry for entry in entries if entry is not None]
    return detections, len(entries) - len(detections)


def evaluate(func, split, mode='single', scales=None, found=None):
    """COCO AP of a Predictor on a split: figures by name, summary, COCOeval, and the detections.

    figures['unread'] counts the photos, if any, that cannot be read. split: an annotations.Split.
    found: see `predict`. All ranks take part, and all but rank 0 get nothing. Raises UserError.
    """
    detections, unread = predict(func, split, mode, scales, found)
    if dist.rank() > 0:
        return {}, '', None, detections
    return *coco_scores(split, detections, unread), detections


def parse_scales(text):
    """'2,1,0.5' as a list of positive numbers."""
    scales = [float(item) for item in text.split(',')]
    if min(scales) <= 0:
        raise ValueError(text)
    return scales


def parse_args():
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('-c', '--continue_exp', '-e', '--exp', dest='exp', default='pose')
    parser.add_argument('-t', '--task', default='pose', help='config of weights without their own')
    parser.add_argument('-m', '--mode', choices=['single', 'multi'], default='single')
    parser.add_argument('--scales', type=parse_scales, help='in place of the scales of the mode')
    parser.add_argument('--checkpoint', choices=['checkpoint', 'best'], default='checkpoint')
    parser.add_argument('--no-refine', action='store_true', help='only the joints that were seen')
    parser.add_argument('--limit', type=int, default=0, help='only the first photos')
    parser.add_argument('--vis', type=int, metavar='N', help='draw N photos into exp/<name>/vis')
    parser.add_argument('--images', nargs='+', metavar='PATH', help='your own photos and clips')
    parser.add_argument('--out', help='folder of their results; default: exp/<name>/out')
    parser.add_argument('--maps', action='store_true', help='also draw heatmaps and tags of photos')
    parser.add_argument('--annotations', metavar='FILE', help='a COCO file of the photos --images')
    parser.add_argument('--set', nargs='+', default=[], action='extend', metavar='KEY=VALUE')
    args = parser.parse_args()
    args.own = args.images is not None and args.annotations is None
    args.set += ['test.refine=False'] * args.no_refine
    if min(args.limit, args.vis or 0) < 0:
        parser.error('--limit and --vis are numbers of photos: expected none below 0')
    if args.annotations and len(args.images or ()) != 1:
        parser.error('--annotations FILE needs --images and one folder, that of its photos')
    if args.own and len(args.images) > 1 and any(map(is_stream, args.images)):
        parser.error('--images takes a camera or an address alone')
    if not args.own and (args.out or args.maps):
        parser.error('--out and --maps go with --images and your own photos, without --annotations')
    if args.own and (args.limit or args.vis is not None):
        parser.error('--limit and --vis are for photos of a COCO file, which --annotations names')
    return args


def main():
    args = parse_args()
    dist.start()
    if args.own and dist.world_size() > 1:
        raise UserError('own photos are for one process: start test.py without torchrun')
    func = load(args.exp, args.checkpoint, args.task, args.set)
    run = Run(Path(args.exp).name, anywhere=True)  # of an ONNX file the folder of its results
    if args.own:
        show = open_window(f'{args.exp} (q ends)') if is_stream(args.images[0]) else None
        out = None if show and not args.out else Path(args.out or run.folder / 'out')
        scales = args.scales or func.config['test']['scales'][args.mode]
        return 1 if find_in_files(func, args.images, out, scales, args.maps, show) else 0
    if args.annotations:
        split = open_file(args.annotations, args.images[0], ref.get_joints(func.config['data']))
    else:
        provider = importlib.import_module(func.config['data_provider'])
        split = provider.init(func.config, train=False)['valid_split']
    labelled = split.count_people().any()
    if labelled and dist.rank() == 0:
        for note in describe(split):
            print(note)
    split = split.select(slice(args.limit or None))
    run.folder.mkdir(parents=True, exist_ok=True)  # weights in models/ have none
    weights = (Path(args.exp) if is_onnx(args.exp) else run.checkpoint(args.checkpoint)).stat()
    key = {
        'weights': [args.checkpoint, weights.st_size, weights.st_mtime_ns],
        'config': func.config,
        'scales': args.scales or func.config['test']['scales'][args.mode],
        'photos': [split.file, len(split)],
        'rank': [dist.rank(), dist.world_size()],
    }
    found = open_lines(run.folder, key)
    detections, unread = predict(func, split, args.mode, args.scales, found)
    if dist.rank() == 0:
        (measure if labelled else submit)(split, detections, unread, run, func.config, args)
    found.remove()
    if unread:
        print(f'{unread} photos could not be read, see the warnings', file=sys.stderr)
    return 1 if unread else 0


def submit(split, detections, unread, run, config, args):
    """Writes what COCO's server takes of photos without labels, in the folder of the run."""
    path, archive = write_submission(run.folder, run.name, split, detections)
    print(
        f'{split.file} has no labels, so there is no AP: {len(detections)} people in {len(split)} '
        f'photos are in {path} and, to be uploaded, in {archive.name} beside it'
    )


def measure(split, detections, unread, run, config, args):
    """COCO AP of labelled photos: printed, and with detections and pictures kept in the run."""
    figures, text, evaluation = coco_scores(split, detections, unread)
    print(text, end='')
    write_json(run.folder / 'dt.json', plain(detections), indent=None)
    name = 'scales ' + ','.join(f'{s:g}' for s in args.scales) if args.scales else args.mode
    if args.annotations:
        name += f' on {Path(args.annotations).name}'
    counts = {'photos': len(split), 'people': len(detections)}
    run.add_results(name, figures | counts | {'checkpoint': args.checkpoint, 'settings': args.set})
    if count := config['test']['vis'] if args.vis is None else args.vis:
        sure = config['test']['detection_val']
        write_pictures(run.folder / 'vis', split, evaluation, count, sure)
        print(f'{run.folder}/vis: predictions beside the truth, the worst and the best first')


if __name__ == '__main__':
    sys.exit(exit_code(main))
