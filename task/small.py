"""The task `pose` at a size that one GPU, or a CPU, trains on photos in hours.

python train.py -t small -e mine --init small --set data.images=...   from models/small.pth.tar

From scratch take train.optimizer=muon: AP 0.029 after 48,000 images, about as from drawn people's
weights; with Adam heatmaps stay near zero so long, and AP at 0.
"""

import copy

from task import pose, quickstart
from task.pose import make_network  # noqa: F401

__config__ = copy.deepcopy(pose.__config__)
# For first weights on drawn people: --set data_provider=data.synthetic
__config__['data']['drawn'] = copy.deepcopy(quickstart.__config__['data']['drawn'])
__config__['model'].update(
    nstack=1,
    inp_dim=48,  # features at the output's size, where most of the time goes
    increase=48,  # 48, 96, 144, 192, 240: 3.3 times the parameters of 16 in 1.1 of the time
    oup_dim=34,  # 17 heatmaps and 17 tags; no further stack could use other channels
    bn=True,  # learns in hours what takes days without
    stem=[16, 32, 48],  # at half the input's size a feature costs four times one in the hourglass
)
__config__['train'].update(
    batchsize=8,  # many small steps get further in an hour than fewer large ones
    epochs=16,  # 16 * 8,000 images; AP was still rising after seven times as many
    train_iters=1000,
    valid_iters=32,  # 256 photos
    eval_epochs=4,
    # People are small: AP was 0.154 after 400,000 images at 192, 0.185 after 286,000 more at 320.
    input_res=320,
    output_res=80,
    sigma=0.025,  # 2 output pixels; at 1/64 a joint would be one pixel of 6,400
    learning_rate=1.5e-3,  # with BatchNorm, and little time
    warmup_iters=200,
    decay_iters=[5000, 16000],  # a long way down: there AP grows fastest
    ema=0.999,  # after 60,000 images, the rate still high, AP was 0.059, without it 0.049
    # With push at 2e-3 or 6e-3 tags did not part: its loss stayed at 0.18.
    loss_weights={'detection': 1.0, 'push': 1.2e-2, 'pull': 5e-3},
    mask_unlabelled=True,  # 4 of 10 people have no labels; without it AP of large ones fell by 0.02
    save_minutes=3.0,
)
__config__['augmentation'].update(
    rotation=15.0,  # people mostly stand
    scale=[0.4, 1.0],  # zooms in only, as the test's scales of 1 to 2 do
    shift=20.0,
    aim=0.7,  # a zoom into the middle misses most: AP 0.022 after 48,000 images instead of 0.030
    hue=15.0,  # milder colours than the full recipe's: the network is far from learning by heart
    saturation=[0.7, 1.3],
    brightness=0.15,
    contrast=[0.7, 1.3],
)
__config__['test'].update(
    batchsize=4,
    # Of people in photos the median is a quarter of the photo's side, the largest is all of it.
    scales={'single': [1.5], 'multi': [2.0, 1.5, 1.0, 0.6]},
    margins=False,  # the network is not trained on what lies outside of the photo
    detection_val=0.25,  # from 0.15 to 0.3 it changes AP by 0.003
    subpixel=True,  # AP is 0.202, without it 0.197
)
