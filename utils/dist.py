"""The processes of one run under torchrun: who is who, and the little that they tell each other.

Without torchrun there is one process, rank 0 of 1, and everything here is free of charge. Messages
are tensors and plain values on the CPU (gloo), so that they never wait for a GPU.
"""

import contextlib
import datetime
import hashlib
import os
import socket
import tempfile
from pathlib import Path

import torch
import torch.distributed as distributed

# One rank may be busy alone for long: reading a checkpoint, computing COCO's figures.
PATIENCE = datetime.timedelta(hours=1)
OWN_STORE = 'TORCH_DISABLE_SHARE_RDZV_TCP_STORE'  # set to 1 in torchrun's environment
PIECE = 2**25  # bytes of a file that are sent at a time
store = None  # where processes meet
reads_alone = False  # whether rank 0 is within `share`, where the others wait for it


class LaunchError(Exception):
    """The way that torchrun was started; the message says how to put it right."""


def start():
    """Joins the other processes if torchrun started this one; called once by an entry script.

    Raises LaunchError where a restart could not recover: the store of an agent (the torchrun of one
    machine) outlives a restart, and with it the addresses of processes that have gone. One agent
    numbers its restarts, but several each count their own, so then rank 0 has to bring a new store.
    """
    global store
    if distributed.is_torchelastic_launched() and not distributed.is_initialized():
        store, number, count = next(distributed.rendezvous('env://', timeout=PATIENCE))
        if os.environ['TORCHELASTIC_USE_AGENT_STORE'] == 'True':
            attempt = f'attempt {os.environ["TORCHELASTIC_RESTART_COUNT"]} of {count}'
            store = distributed.PrefixStore(attempt, store)
        if int(os.environ['GROUP_WORLD_SIZE']) > 1 and os.environ.get(OWN_STORE) != '1':
            # Some builds of PyTorch lack it.
            from torch.distributed.elastic.utils.store import barrier

            # The agent that has the store ends with its rank, and then no later one says this.
            with contextlib.suppress(distributed.DistError):
                barrier(store, count, 'refused', barrier_timeout=60)
            raise LaunchError(
                f'torchrun on several machines cannot restart: start it on each of them with '
                f"'{OWN_STORE}=1 torchrun --nnodes ...'"
            )
        # Names of both backends: tensors on a GPU travel by NCCL, those on the CPU by gloo.
        backends = 'cpu:gloo,cuda:nccl' if torch.cuda.is_available() else 'gloo'
        distributed.init_process_group(
            backends, timeout=PATIENCE, store=store, rank=number, world_size=count
        )


def stop():
    """Leaves the other processes, after work that all of them have ended well."""
    if active():
        distributed.destroy_process_group()


def active():
    """Whether torchrun started this process, be it alone or one of many."""
    return distributed.is_initialized()


def rank():
    """The number of this process among all; 0 is the one that writes."""
    return distributed.get_rank() if active() else 0


def world_size():
    """How many processes there are, on all machines."""
    return distributed.get_world_size() if active() else 1


def local_rank():
    """The number of this process among those on its machine, hence of its GPU."""
    return int(os.environ['LOCAL_RANK']) if active() else 0


def local_world_size():
    """How many processes share this machine."""
    return int(os.environ['LOCAL_WORLD_SIZE']) if active() else 1


def is_loss_of_rank(error):
    """Whether a RuntimeError says that another rank has gone while this one waited for it."""
    return active() and (isinstance(error, distributed.DistBackendError) or 'gloo' in str(error))


def is_first_to_say(text):
    """Whether no other process of this machine has asked this about the same text."""
    try:
        return store is None or store.add(f'{os.environ["GROUP_RANK"]} said {text}', 1) == 1
    except RuntimeError:  # the store has gone: better twice than never
        return True


def any_rank(flag):
    """Whether the flag is true on any rank: a decision that all take alike."""
    return bool(gather(torch.tensor([int(bool(flag))])).any())


def gather(tensor):
    """The tensors (N, ...) of all ranks, on the CPU, one after another: (world_size * N, ...)."""
    tensor = tensor.cpu()
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def mean(tensor):
    """The mean of a CPU tensor over all ranks, which add it up in the same order."""
    return gather(tensor[None]).mean(0)


def gather_values(value):
    """The plain values that ranks under torchrun have, as a list on rank 0; elsewhere []."""
    values = [None] * world_size() if rank() == 0 else None
    distributed.gather_object(value, values)
    return values or []


def share(read):
    """What `read` returns, or raises, on rank 0, on every rank; only rank 0 calls it."""
    if world_size() == 1:
        return read()
    global reads_alone
    result = [None, None]
    if rank() == 0:
        reads_alone = True
        try:
            result[0] = read()
        except Exception as error:
            result[1] = error
        finally:
            reads_alone = False
    distributed.broadcast_object_list(result)
    if result[1]:
        raise result[1]
    return result[0]


@contextlib.contextmanager
def shared_file(path):
    """Gives the path at which this rank reads rank 0's file: the same, or that of a copy.

    A rank that sees another file there, or none, as on another machine, is sent a temporary copy in
    pieces. Raises OSError on every rank where rank 0 cannot read it. Within `share` rank 0 is given
    the path as if it were alone.
    """
    if world_size() == 1 or reads_alone:
        yield path
        return
    wanted, lacks = share(lambda: file_hash(path)), True
    with contextlib.suppress(OSError):
        lacks = file_hash(path) != wanted
    with tempfile.TemporaryDirectory() if lacks else contextlib.nullcontext() as folder:
        found = Path(folder, path.name) if lacks else path
        if any_rank(lacks):
            with open(found, 'wb') if lacks else open(found, 'rb') as stream:
                while piece := share(lambda: stream.read(PIECE)):
                    if lacks:
                        stream.write(piece)
        yield found


def file_hash(path):
    """The SHA-256 of a file."""
    with open(path, 'rb') as stream:
        return hashlib.file_digest(stream, 'sha256').digest()


def launch_marks():
    """What marks this launch of torchrun, the same after a restart: on rank 0 its id and agents.

    An agent is the torchrun process of one machine, which outlives the processes it restarts; one
    of them at least is still there when others, with their machines, have gone. A count of restarts
    is not enough: a launch that was refused is restarted as well.
    """
    if not active():
        return []
    agent = f'{socket.gethostname()} {os.getppid()}'
    with contextlib.suppress(OSError):  # which only Linux has
        stat = Path(f'/proc/{os.getppid()}/stat').read_text('utf-8')
        agent += stat.rpartition(')')[2].split()[19]  # its start, as process numbers come back
    named = os.environ.get('TORCHELASTIC_RUN_ID', 'none')
    return sorted({*gather_values(agent), named} - {'none'})
