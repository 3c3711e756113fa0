"""The task: find people and their joints on COCO. Its config, and the network with its losses."""

import importlib

import torch
from torch import nn

from task.loss import AELoss, HeatmapLoss

__config__ = {
    'data_provider': 'data.coco_pose.dp',
    'network': 'models.posenet.PoseNet',
    'model': {
        'nstack': 4,  # hourglasses, one after another
        'inp_dim': 256,  # features at the output's size
        'oup_dim': 68,  # 17 heatmaps + 17 tags + 34 channels without supervision; 4 per joint
        'bn': False,  # BatchNorm behind the convolutions
        'increase': 128,  # features added at each halving: 256, 384, 512, 640, 768
        'stem': [64, 128, 128],  # features of the stem before it reaches inp_dim
        # The network sees (RGB - mean) / std of RGB in [0, 1]; weights from elsewhere may want it.
        'mean': [0.0, 0.0, 0.0],
        'std': [1.0, 1.0, 1.0],
    },
    'data': {
        # Paths; '' means the constants in data/coco_pose/ref.py.
        'images': '',  # folder of train2014 / train2017, or of the photos themselves
        'annotations': '',  # person_keypoints_*.json
        'valid_images': '',  # only with valid_annotations; '' means where the training photos are
        'valid_annotations': '',  # '' means the 500 ids of data/coco_pose/valid_id
        # A new run fills these in from its annotations, and has model.oup_dim follow the number of
        # joints. A joint is its place in the list of names, from 0.
        'joints': [],  # names; [] means those of the file's categories, COCO's if they have none
        'skeleton': [],  # pairs of joints, to be drawn as limbs; [] means that of the categories
        'flip_pairs': [],  # swapped in a mirrored photo; [] means by left and right in the names
        'sigmas': [],  # of OKS, one per joint; [] means COCO's where COCO has the name, else 0.05
        'joint_order': [],  # of grouping; [] means COCO's for COCO's joints, else as numbered
    },
    'train': {
        'seed': 0,  # of the network's first weights, the order of photos and their augmentation
        'batchsize': 32,  # images per step over all GPUs
        'accumulate': 1,  # backward passes that a step's images are split over, for small GPUs
        'checkpoint_stacks': False,  # computes activations twice instead of keeping them
        'epochs': 362,  # 362 * 32,000 = 11.6 M images, as the published weights saw
        'train_iters': 1000,  # steps per epoch: 32 * 1000 = 32,000 images, half of COCO's 64k
        'valid_iters': 10,  # batches of validation at the end of each epoch
        'eval_epochs': 10,  # epochs between two AP figures on the validation split; 0 means never
        'input_res': 512,  # pixels, the side of the network's square input
        'output_res': 128,  # pixels, the side of its heatmaps: input_res / 4
        'sigma': 0.015625,  # of the heatmaps' Gaussians, times output_res: 128 / 64 = 2 pixels
        'subpixel': False,  # Gaussians lie on the joints, not on their pixels; as test.subpixel
        'mask_unlabelled': False,  # leave out people without any labelled joint, as crowds are
        'max_num_people': 30,  # people per image whose tags are trained, the largest first
        'augment': True,  # random geometry and colour, in the ranges of 'augmentation'
        'optimizer': 'adam',  # or 'muon', which learns more from an image with BatchNorm
        'learning_rate': 2e-4,  # of either optimizer
        'warmup_iters': 0,  # steps over which the rate rises from 0
        'decay_iters': [200000, 200000],  # steps between which it goes straight to decay_rate:
        'decay_rate': 1e-5,  # the same step twice is a drop
        'ema': 0.0,  # decay per step of the moving average of weights that is then tested; 0: none
        'clip_norm': 0.0,  # gradients are scaled down to this norm; 0 means never
        'on_nonfinite': 'stop',  # loss or gradient: 'stop', or 'skip' up to 10 steps in a row
        'loss_weights': {'detection': 1.0, 'push': 1e-3, 'pull': 1e-3},
        'device': 'auto',  # 'cpu', 'cuda', 'mps' (Apple), or 'auto': 'cuda' where there is one
        'precision': 'auto',  # 'fp32', 'bf16', 'fp16', or 'auto': what the device is fast at
        'tf32': True,  # on CUDA float32 is rounded to TF32 in products
        'compile': False,  # torch.compile: some minutes at the start for faster steps
        'num_workers': -1,  # processes that prepare images; -1 means the cores there are, up to 8
        'log_iters': 10,  # steps between two readings of the losses
        'save_minutes': 10.0,  # between checkpoints; one also comes before each AP, and at the end
    },
    # How far a training image strays from the whole photo, centred.
    'augmentation': {
        'rotation': 30.0,  # degrees, either way
        'scale': [0.75, 1.25],  # times the side of the square that is cut out
        'shift': 40.0,  # of its centre, in 1/200 of its side, in x and in y
        'aim': 0.0,  # probability that the square is laid around a person, within the photo
        'mirror': 0.5,  # probability
        'hue': 72.0,  # degrees, either way
        'saturation': [0.5, 1.5],  # factor
        'brightness': 0.3,  # added or taken away, of 1
        'contrast': [0.5, 1.5],  # factor of a pixel's distance from the mean of its channels
    },
    'test': {
        'batchsize': 1,  # photos of equal size at a time
        'scales': {'single': [1.0], 'multi': [2.0, 1.0, 0.5]},  # of input_res, for each mode
        'mirror': True,  # average with the mirror image; False takes half the time
        'square': True,  # False trims the black margins of photos that are not square
        'margins': True,  # also look beyond the photo, as for the published figures; not trained
        'detection_val': 0.1,  # heatmap value that a joint must exceed
        'tag_val': 1.0,  # distance of tags below which a joint joins a person
        'max_num_people': 30,  # joints of a type, and people, per image
        # Who gets a peak where several people's tags are equally far once rounded: 'solver', whom
        # munkres 1.1.4 chooses, as in the published figures, or 'value', whose joints are surest.
        'tie_break': 'solver',
        'subpixel': False,  # place joints by the Gaussian through a peak, not by a quarter pixel
        'refine': True,  # fill in the joints that a person lacks
        'shuffle_tags': False,  # a control: tags in random places, so joints are grouped by chance
        'device': 'auto',  # as in 'train'
        'precision': 'auto',  # as in 'train'
        'tf32': True,  # as in 'train'
        'num_workers': -1,  # as in 'train'
        'vis': 16,  # photos drawn into exp/<name>/vis, the worst and the best; 0 means none
    },
}


class PoseTask(nn.Module):
    """The network and its losses, so that every replica computes its own images' losses."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.heatmap_loss = HeatmapLoss()
        self.ae_loss = AELoss()

    def forward(self, imgs, masks, keypoints, heatmaps, dtype):
        """Losses by name, each (B, S): of every image after every stack (paper, section 3.1).

        imgs (B, H, W, 3), masks (B, R, R), keypoints (B, P, K, 2), heatmaps (B, K, R, R), as
        data.coco_pose.dp makes them. dtype: what the network computes in; losses are in float32.
        """
        K = heatmaps.shape[1]
        with torch.autocast(imgs.device.type, dtype, enabled=dtype != torch.float32):
            preds = self.network(imgs)  # (B, S, C, R, R)
        detection, push, pull = [], [], []
        for stack in preds[:, :, : 2 * K].float().unbind(1):
            det, tag = stack.split(K, dim=1)
            detection.append(self.heatmap_loss(det, heatmaps, masks))
            pushed, pulled = self.ae_loss(tag.flatten(1), keypoints)
            push.append(pushed)
            pull.append(pulled)
        losses = {'detection': detection, 'push': push, 'pull': pull}
        return {name: torch.stack(values, 1) for name, values in losses.items()}


def make_network(config):
    """The network that a config names, with its losses: a PoseTask on the CPU, newly seeded."""
    module, name = config['network'].rsplit('.', 1)
    torch.manual_seed(config['train']['seed'])
    network = getattr(importlib.import_module(module), name)(**config['model'])
    network.checkpoint_stacks = config['train']['checkpoint_stacks']
    # Photos come with their channels last, and convolutions are fastest so.
    network = network.to(memory_format=torch.channels_last)
    return PoseTask(network)
