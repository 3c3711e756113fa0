"""The task `pose` at a size that a laptop trains in minutes, on people drawn on first use."""

import copy

from task import pose
from task.pose import make_network  # noqa: F401

__config__ = copy.deepcopy(pose.__config__)
__config__['data_provider'] = 'data.synthetic'
__config__['data']['drawn'] = {
    'pictures': [2000, 200],  # for training and for validation, one in 25 of them without people
    'size': 256,  # pixels, their longer side
    'people': [1, 4],  # per picture
    'seed': 0,
    'joints': 'coco',  # or 'five' or 'crowdpose': what is labelled in the same pictures
}
__config__['model'].update(
    nstack=1,
    inp_dim=32,  # features at the output's size, where nearly all of the time goes
    increase=20,  # 32, 52, 72, 92, 112: wider ones learn no more from an image, and see fewer
    oup_dim=34,  # 17 heatmaps and 17 tags, 2 per joint; no further stack could use other channels
    bn=True,  # learns in minutes what takes hours without
    stem=[8, 16, 24],  # at half the input's size a feature costs four times one in the hourglass
    mean=[0.5, 0.5, 0.5],  # colours around 0: AP 0.188 after 9,600 images, else 0.153
    std=[0.25, 0.25, 0.25],
)
__config__['train'].update(
    batchsize=8,  # many small steps get further in a few minutes than fewer large ones
    epochs=8,  # 8 * 4,000 images, 17 passes over the pictures
    train_iters=500,
    valid_iters=25,  # the 200 validation pictures
    eval_epochs=4,
    input_res=192,  # three quarters of the pictures' side
    output_res=48,
    sigma=0.025,  # 1.2 output pixels; at 1/64 a joint would be less than a pixel wide
    subpixel=True,  # AP at one scale was 0.673, else 0.667 (128 pixels, 48,000 images)
    optimizer='muon',  # AP was 0.667, with Adam 0.633 (128 pixels, 48,000 images)
    learning_rate=1.5e-3,  # seven times the full recipe's: with BatchNorm, and little time
    warmup_iters=200,
    decay_iters=[1200, 4000],  # a long way down: the last third is where AP grows fastest
    decay_rate=2e-5,
    # Push parts tags: at 1.5e-3, with pull at 6e-4, so late that AP was 0.635, not 0.671.
    loss_weights={'detection': 1.0, 'push': 2.5e-3, 'pull': 1e-3},
)
# Drawn people vary by themselves; straying further would cost time that there is not.
__config__['augmentation'].update(
    rotation=5.0,
    scale=[0.95, 1.05],
    shift=5.0,
    hue=10.0,
    saturation=[0.9, 1.1],
    brightness=0.05,
    contrast=[0.9, 1.1],
)
__config__['test'].update(
    batchsize=8,
    scales={'single': [1.0], 'multi': [1.33, 1.0]},  # people are of one size
    margins=False,  # there is nobody outside of the pictures
    detection_val=0.2,  # after so little training a weak peak is seldom right
    tag_val=2.0,  # tags of one person are still far apart
    subpixel=True,  # AP was 0.633, else 0.608 (Adam, 128 pixels)
)
