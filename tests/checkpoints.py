"""Whether blocks are computed again in the backward pass."""

from collections import Counter


def assert_blocks_run_again(model, blocks, x):
    """With gradient checkpointing each of ``blocks`` runs twice in a training step, without it once."""
    calls = Counter()
    hooks = [block.register_forward_pre_hook(lambda module, _: calls.update([id(module)])) for block in blocks]
    for enable, times in ((False, 1), (True, 2)):
        calls.clear()
        model.train().set_grad_checkpointing(enable)
        model(x).sum().backward()
        assert [calls[id(block)] for block in blocks] == [times] * len(blocks)
    for hook in hooks:
        hook.remove()
