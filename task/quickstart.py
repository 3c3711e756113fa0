"""The task `pose` at a size that a laptop trains in minutes, on people drawn on first use."""

import copy

from task import pose
from task.pose import make_network

__all__ = ['__config__', 'make_network']

__config__ = copy.deepcopy(pose.__config__)
__config__['data_provider'] = 'data.synthetic'
__config__['data']['drawn'] = {
    'pictures': [2000, 200],  # for training and for validation, one in 25 of them without people
    'size': 256,  # pixels, their longer side
    'people': [1, 4],  # per picture
    'seed': 0,
}
__config__['model'].update(
    nstack=1,
    inp_dim=64,
    increase=32,
    oup_dim=34,  # nothing follows that could use further channels
    bn=True,  # trains several times faster than without
    stem=[16, 32, 64],  # at the largest sizes every feature costs most
)
