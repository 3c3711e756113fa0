"""Where the network runs, and in which precision."""

import contextlib

import torch
from torch import nn

from utils import dist
from utils.errors import UserError


def choose_device(settings):
    """The device that a config's 'train' or 'test' sets, 'auto' being CUDA where there is any.

    Sets how CUDA computes: in TF32 or not, with convolutions chosen by trial where sizes are fixed.
    Raises UserError where the device is not there.
    """
    setting = settings['device']
    cuda = torch.cuda.is_available()
    there = {'cpu': True, 'cuda': cuda, 'mps': torch.backends.mps.is_available()}
    name = setting if setting != 'auto' else 'cuda' if cuda else 'cpu'
    if not there[name]:
        found = ', '.join(device for device in there if there[device])
        raise UserError(f'device={name}: PyTorch finds no such device here, only: {found}')
    if name != 'cuda':
        return torch.device(name)
    torch.backends.cuda.matmul.allow_tf32 = settings['tf32']
    torch.backends.cudnn.allow_tf32 = settings['tf32']
    torch.backends.cudnn.benchmark = settings.get('square', True)
    # A scheduler may show each rank one GPU alone, or a part of one (MIG): that is number 0.
    device = torch.device('cuda', dist.local_rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def describe_device(device, settings):
    """A phrase: the ranks, and the GPUs or CPU threads, that training uses."""
    ranks = f'{dist.world_size()} rank{"s" * (dist.world_size() > 1)} on ' * dist.active()
    if device.type != 'cuda':
        threads = f', {torch.get_num_threads()} threads' * (device.type == 'cpu')
        return f'{ranks}{device.type.upper()}{"s" * dist.active()}{threads}'
    gpus = 1 if dist.active() else torch.cuda.device_count()
    count = f'{gpus} x ' * (gpus > 1)
    tf32 = '' if settings['tf32'] else 'no '
    return f'{ranks}{count}{torch.cuda.get_device_name(device)}, {tf32}TF32'


def choose_precision(setting, device):
    """The type that the network computes in, and a phrase that says why.

    setting: 'fp32', 'bf16', 'fp16', or 'auto' for what the device is fast at.
    """
    types = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
    if setting in types:
        return types[setting], f'{setting}, as set'
    if device.type == 'cuda':
        recent = torch.cuda.get_device_capability(device) >= (8, 0)
        name, era = ('bf16', 'of') if recent else ('fp16', 'from before')
        reason = f'this GPU is {era} the Ampere generation{" or later" * recent}'
    elif device.type == 'mps':
        name, reason = 'fp32', 'as usual on Apple GPUs'
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = any(capabilities.get(name) for name in ('avx512_bf16', 'amx_bf16'))
        name, reason = ('bf16', 'has') if fast else ('fp32', 'has no')
        reason = f'this CPU {reason} AVX512-BF16 or AMX'
    return types[name], f'{name}: {reason}'


@contextlib.contextmanager
def one_thread():
    """Within it PyTorch computes on one thread of the CPU, for many small operations in a row.

    Two threads would wait for one another at the end of each: beside other busy processes that is
    most of the time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spread(task, device, compiled=False, equal=False):
    """The task on all GPUs: of every rank under torchrun, else of this machine.

    equal: whether all ranks are known to have the same weights. Else those of rank 0 are sent to
    all, which takes as much memory again.
    """
    task.to(device)
    if compiled:
        task.network.compile()  # in place: the weights keep their names
    if dist.active():
        if device.type == 'cuda':  # there is no SyncBatchNorm for CPUs
            nn.SyncBatchNorm.convert_sync_batchnorm(task)
        gpus = [device.index] if device.type == 'cuda' else None
        # Before each pass rank 0's BatchNorm statistics go to all, so only its own count.
        return nn.parallel.DistributedDataParallel(task, device_ids=gpus, init_sync=not equal)
    several = device.type == 'cuda' and torch.cuda.device_count() > 1
    return nn.DataParallel(task) if several else task
