"""Where the network runs, and in which precision."""

import contextlib

import torch
from torch import nn

from utils import dist
from utils.errors import UserError


def choose_device(setting='auto'):
    """The device that is set, or with 'auto' this rank's NVIDIA GPU, else the CPU.

    Matrix products on an NVIDIA GPU may use TF32. Raises UserError where the device is not there.
    """
    cuda = torch.cuda.is_available()
    there = {'cpu': True, 'cuda': cuda, 'mps': torch.backends.mps.is_available()}
    name = setting if setting != 'auto' else 'cuda' if cuda else 'cpu'
    if not there[name]:
        found = ', '.join(device for device in there if there[device])
        raise UserError(f'device={name}: PyTorch finds no such device here, only: {found}')
    if name != 'cuda':
        return torch.device(name)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.cuda.set_device(dist.local_rank())
    return torch.device('cuda', dist.local_rank())


def choose_precision(setting, device):
    """The type that the network computes in, and a phrase that says why.

    setting: 'fp32', 'bf16', or 'auto' for bf16 where the device is fast at it.
    """
    types = {'fp32': torch.float32, 'bf16': torch.bfloat16}
    if setting in types:
        return types[setting], f'{setting}, as set'
    if device.type == 'cuda':
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
        reason = f'this GPU is {"" if fast else "not "}of the Ampere generation or later'
    elif device.type == 'mps':
        fast, reason = False, 'as usual on Apple GPUs'
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = any(capabilities.get(name) for name in ('avx512_bf16', 'amx_bf16'))
        reason = f'this CPU has {"" if fast else "no "}AVX512-BF16 or AMX'
    name = 'bf16' if fast else 'fp32'
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


def spread(task, device):
    """The task on all GPUs: of every rank under torchrun, else of this machine."""
    if dist.active():
        if device.type == 'cuda':  # there is no SyncBatchNorm for CPUs
            nn.SyncBatchNorm.convert_sync_batchnorm(task)
        gpus = [device.index] if device.type == 'cuda' else None
        # Before each pass rank 0's BatchNorm statistics go to all, so only its own count.
        return nn.parallel.DistributedDataParallel(task, device_ids=gpus)
    several = device.type == 'cuda' and torch.cuda.device_count() > 1
    return nn.DataParallel(task) if several else task
