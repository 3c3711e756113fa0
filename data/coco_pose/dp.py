"""The data provider: what the network is trained to answer, and the loaders of both splits."""

import itertools

import numpy as np
import torch

from data.coco_pose import ref, splits
from data.coco_pose.annotations import read_file
from data.coco_pose.augment import centred, colour, jittered, mirror, warp_sample
from utils.affine import warp
from utils.errors import UserError
from utils.loading import Passes, RankBatches, make_loader, worker_count
from utils.multiscale import input_frames
from utils.regions import draw_mask


class GenerateHeatmap:
    """Draws joints as Gaussians: keypoints (P, K, 3) in the output frame -> (K, R, R) float32.

    sigma is in output pixels, R / 64 by default. Each Gaussian is centred on its joint's pixel, or
    with subpixel on the joint, cut to a window, and joined with those of other people by the
    maximum.
    """

    def __init__(self, output_res, num_parts, sigma=None, subpixel=False):
        self.output_res, self.num_parts, self.subpixel = output_res, num_parts, subpixel
        self.sigma = sigma = sigma or output_res / 64
        self.reach = int(3 * sigma + 1)  # pixels to either side; beyond, the Gaussian is below 0.01
        self.steps = np.arange(-self.reach, self.reach + 1)
        square = self.steps**2
        self.window = np.exp(-(square[:, None] + square) / (2 * sigma**2)).astype(np.float32)

    def __call__(self, keypoints):
        R, reach = self.output_res, self.reach
        # A margin as wide as the window takes what would stand out over the edges.
        heatmaps = np.zeros((self.num_parts, R + 2 * reach, R + 2 * reach), np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(
            heatmaps, self.window.shape, axis=(1, 2), writeable=True
        )
        for points, person, there in zip(keypoints, *to_pixels(keypoints, R), strict=True):
            k, (x, y), window = there.nonzero()[0], person[there].T, self.window
            if self.subpixel:
                off = points[there, :2] - person[there] - 0.5  # (N, 2), from the pixel's centre
                x_part, y_part = np.exp((self.steps - off.T[..., None]) ** 2 / (-2 * self.sigma**2))
                window = y_part[:, :, None] * x_part[:, None]
            windows[k, y, x] = np.maximum(windows[k, y, x], window)  # never twice the same map
        return np.ascontiguousarray(heatmaps[:, reach:-reach, reach:-reach])


class KeypointsRef:
    """Where each person's joints lie in the flattened maps, which is all that the tag loss needs.

    keypoints (P, K, 3) in the output frame -> (max_num_people, K, 2) int64: per person, packed from
    slot 0, (k * R * R + y * R + x, 1) for every labelled joint inside the frame; unused slots are
    0. People beyond max_num_people are left out.
    """

    def __init__(self, max_num_people, num_parts):
        self.max_num_people, self.num_parts = max_num_people, num_parts

    def __call__(self, keypoints, output_res):
        refs = np.zeros((self.max_num_people, self.num_parts, 2), np.int64)
        pixels, inside = to_pixels(keypoints[: self.max_num_people], output_res)
        P, K = inside.shape
        index = (np.arange(K) * output_res + pixels[..., 1]) * output_res + pixels[..., 0]  # (P, K)
        people, joints = inside.nonzero()
        slots = (inside.cumsum(1) - 1)[people, joints]
        refs[people, slots] = np.stack([index[people, joints], np.ones_like(people)], 1)
        return refs


def to_pixels(keypoints, output_res):
    """Pixels (P, K, 2) int of points (P, K, 3), and which (P, K) are labelled and inside.

    Cut toward zero, as the original does it: a point less than a pixel beyond the left or upper
    edge counts to the edge's pixel.
    """
    pixels = np.trunc(keypoints[..., :2]).astype(np.int64)
    inside = ((pixels >= 0) & (pixels < output_res)).all(-1) & (keypoints[..., 2] > 0)
    return pixels, inside


class Dataset(torch.utils.data.Dataset):
    """Photos with their targets, numbered by (pass over the data, photo number).

    split: an annotations.Split. settings: the config's 'train'. ranges: the config's
    'augmentation', or None for the whole photo as it is. Random choices depend on (seed, pass,
    photo number) alone, so that neither workers nor a resume change them.
    """

    def __init__(self, split, settings, ranges=None):
        self.split, self.seed = split, settings['seed']
        self.input_res, self.output_res = settings['input_res'], settings['output_res']
        self.ranges, self.mask_unlabelled = ranges, settings['mask_unlabelled']
        sigma = settings['sigma'] * self.output_res
        self.flip = list(split.joints.flip)
        subpixel = settings['subpixel']
        self.heatmaps = GenerateHeatmap(self.output_res, len(self.flip), sigma, subpixel)
        self.keypoints = KeypointsRef(settings['max_num_people'], len(self.flip))

    def __len__(self):
        return len(self.split)

    def __getitem__(self, number):
        """One sample as a dict of arrays; `problem` says why another photo stands in for this one.

        imgs (input_res, input_res, 3) float32 RGB in [0, 1], masks (R, R), heatmaps (K, R, R),
        keypoints (max_num_people, K, 2), image_id. Raises UserError if no photo can be read.
        """
        turn, index = number
        problem = ''
        for chosen in itertools.chain(range(index, len(self)), range(index)):
            try:
                photo = self.split.read(chosen)
                return self.sample(photo, chosen, turn) | {'problem': problem}
            except UserError as error:
                problem = problem or str(error)
        raise UserError(f'no photo of this split can be read; the first: {problem}')

    def sample(self, photo, index, turn):
        """The sample of photo number `index` in pass number `turn`."""
        rng = np.random.default_rng((self.seed, turn, index))
        rows = self.split.people(index)
        # The largest people first: those are kept where there are more than max_num_people.
        rows = rows[np.argsort(-self.split.areas[rows], kind='stable')]
        people = self.split.keypoints[rows].astype(np.float32)
        size, ranges, crowds = photo.shape[:2], self.ranges, self.split.crowds(index)
        if self.mask_unlabelled:
            others = np.setdiff1d(self.split.annotations(index), rows)
            crowds += list(self.split.boxes[others[~self.split.is_crowd[others]]])
        crowd = draw_mask(crowds, *size) if crowds else None
        if crowds and self.mask_unlabelled:  # labelled joints are to be learnt, whoever is near
            crowd &= 1 - draw_mask(list(self.split.boxes[rows]), *size)
        geometry = jittered(*size, ranges, rng, people) if ranges else centred(*size)
        photo, mask, people = warp_sample(
            photo, crowd, people, geometry, self.input_res, self.output_res
        )
        if ranges and rng.random() < ranges['mirror']:
            photo, mask, people = mirror(photo, mask, people, self.flip)
        imgs = np.multiply(photo, np.float32(1 / 255), dtype=np.float32, order='C')
        return {
            'imgs': colour(imgs, ranges, rng) if ranges else imgs,
            'masks': np.ascontiguousarray(mask),
            'keypoints': self.keypoints(people, self.output_res),
            'heatmaps': self.heatmaps(people),
            'image_id': int(self.split.ids[index]),
        }


class PhotoInputs(torch.utils.data.Dataset):
    """The photos of a split as the network's inputs at every scale, for workers to prepare."""

    def __init__(self, split, config, scales):
        self.split, self.config, self.scales = split, config, scales

    def __len__(self):
        return len(self.split)

    def read(self, number):
        """A photo of the split and '', or a black one and why it cannot be read."""
        try:
            return self.split.read(number), ''
        except UserError as error:
            return np.zeros((*self.split.sizes[number].clip(1), 3), np.uint8), str(error)

    def batches(self, size):
        """Photo numbers in batches of equal input size."""
        groups = {}
        for i, shape in enumerate(self.split.sizes):
            if self.config['test']['square']:  # which fits photos of any size
                shape = 1, 1
            elif not all(shape):  # the file does not say
                shape = self.read(i)[0].shape[:2]
            frames = input_frames(*shape, self.config, self.scales)
            groups.setdefault(frames[0][0], []).append(i)
        return [same[i : i + size] for same in groups.values() for i in range(0, len(same), size)]

    def __getitem__(self, index):
        photo, problem = self.read(index)
        frames = input_frames(*photo.shape[:2], self.config, self.scales)
        inputs = [torch.from_numpy(warp(photo, matrix, res)) for res, matrix in frames]
        return index, photo.shape[:2], frames, problem, inputs

    @staticmethod
    def collate(samples):
        """Numbers, sizes, frames, problems of photos, and of each scale inputs (B, H, W, 3)."""
        *others, inputs = zip(*samples, strict=True)
        return *others, [torch.stack(same) for same in zip(*inputs, strict=True)]


def prepare(config, made_for=None):
    """The config of a new run with all of its joints, as its annotations name them.

    made_for: how many joints model.oup_dim is for, where that is not the config's own number.
    Raises UserError, and for a missing file or folder does so before it reads any.
    """
    (file, images), valid_source = splits.sources(config['data'])
    splits.find_folder(file, images)
    splits.find_folder(*valid_source)
    return ref.fill_in(config, read_file(file).category, file, made_for)


def init(config, samples_done=0, train=True):
    """The loaders of a config: {'train': endless batches, 'valid': valid_iters batches}.

    Under torchrun each rank's loaders give its own share of every batch. Beside them 'valid_split',
    the annotations.Split that evaluation uses whole; without `train` it comes alone, and only its
    own file is read. samples_done: training samples that earlier batches have used, over all ranks.
    Raises UserError.
    """
    if not train:
        return {'valid_split': splits.open_valid(config['data'])}
    settings, batchsize = config['train'], config['train']['batchsize']
    workers = worker_count(settings['num_workers'])
    ranges = config['augmentation'] if settings['augment'] else None
    train_split, valid_split = splits.open_splits(config['data'])
    train, valid = Dataset(train_split, settings, ranges), Dataset(valid_split, settings)
    # The same images in the same order every time: differences come from the network alone.
    numbers = [(0, i % len(valid)) for i in range(settings['valid_iters'] * batchsize)]
    passes = Passes(len(train), settings['seed'], samples_done)
    return {
        'train': make_loader(train, workers, batch_sampler=RankBatches(passes, batchsize)),
        'valid': make_loader(valid, workers, batch_sampler=RankBatches(numbers, batchsize)),
        'valid_split': valid_split,
    }
