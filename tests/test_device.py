"""What the device is asked to compute in."""

import torch

from utils.device import choose_precision


def test_precision_is_what_was_set_or_what_is_fast(monkeypatch):
    cpu = torch.device('cpu')
    assert choose_precision('fp32', cpu)[0] == torch.float32
    assert choose_precision('bf16', cpu)[0] == torch.bfloat16
    for able, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda able=able: {'avx512_bf16': able})
        chosen, reason = choose_precision('auto', cpu)
        assert chosen == dtype and ('no' in reason.split()) != able
