"""Blocks of sequence models: what is dropped in training, hooks, checkpoints, and what a cache keeps."""

import pytest
import torch
from sequences import randomise

from vitkern.models.sequence.attention import CrossAttention, SelfAttention
from vitkern.models.sequence.block import Block, Stack
from vitkern.models.sequence.cache import Cache, KeyValues
from vitkern.nn import RMSNorm


def inputs():
    return torch.randn(2, 5, 16), torch.randn(2, 7, 16)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("act", ["relu", "gelu"])
def test_every_branch_is_dropped_in_training(act, cross):
    (x, memory), memory = inputs(), inputs()[1] if cross else None
    before = randomise(Block(16, 2, 24, pre_norm=True, cross=cross, act=act, drop=1.0)).train()
    assert torch.equal(before(x, memory=memory), x)
    after = randomise(Block(16, 2, 24, cross=cross, act=act, drop=1.0)).train()
    expected = after.norm1(x)
    expected = after.norm2(after.norm_cross(expected) if cross else expected)
    torch.testing.assert_close(after(x, memory=memory), expected)
    for block in (before.eval(), after.eval()):
        assert (block(x, memory=memory) - x).abs().max() > 0.1


def test_attention_weights_are_dropped_in_training():
    x, memory = inputs()
    own, cross = SelfAttention(16, 2, attn_drop=0.5), CrossAttention(16, 2, attn_drop=0.5)
    for attend in (own, lambda x, **cache: cross(x, memory, **cache)):
        for cache in ({}, {"cache": KeyValues()}):
            own.train(), cross.train()
            dropped = attend(x, **cache)
            own.eval(), cross.eval()
            assert (attend(x, **cache) - dropped).abs().max() > 1e-3
            if not cache:
                assert torch.equal(attend(x), attend(x))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_norm_that_somebody_watches_is_called(pre_norm):
    x, _ = inputs()
    block, seen = randomise(Block(16, 2, 24, pre_norm=pre_norm)).eval(), []
    expected = block(x)
    for norm in (block.norm1, block.norm2):
        norm.register_forward_hook(lambda module, given, made: seen.append(module))
    torch.testing.assert_close(block(x), expected)
    assert seen == [block.norm1, block.norm2]


def test_other_norms_stand_behind_the_branches_too():
    x, _ = inputs()
    block = randomise(Block(16, 2, 24, norm=RMSNorm)).eval()
    y = block.norm1(x + block.attn(x))
    torch.testing.assert_close(block(x), block.norm2(y + block.mlp(y)))


@pytest.mark.parametrize("enable", [False, True])
def test_a_checkpoint_computes_blocks_again(enable):
    stack, calls = Stack(3, 16, 2, 24).train(), []
    stack.grad_checkpointing = enable
    for block in stack:
        block.attn.register_forward_hook(lambda module, given, made: calls.append(module))
    stack(inputs()[0].requires_grad_()).sum().backward()
    assert len(calls) == (6 if enable else 3)


def test_a_cache_makes_room_in_few_steps_and_carries_no_gradient():
    cache, rooms, kept = KeyValues(), set(), []
    with pytest.raises(ValueError, match="nothing was kept"):
        _ = cache.rows
    for _ in range(100):
        kept.append(torch.randn(2, 1, 2, 3, 4, requires_grad=True))
        rows = cache.append(kept[-1])
        rooms.add(rows.untyped_storage().nbytes())
    assert torch.equal(rows, torch.cat(kept, 1)) and not rows.requires_grad and cache.length == 100
    assert len(rooms) == 8
    cache.select(torch.tensor([1, 1, 0]))
    assert torch.equal(cache.rows, torch.cat(kept, 1)[[1, 1, 0]])


def test_an_encoder_is_projected_once_for_a_cache():
    x, memory = inputs()
    decoder, cache = randomise(Stack(2, 16, 2, 24, causal=True, cross=True)).eval(), Cache(2)
    expected = decoder(x, memory=memory)
    with torch.no_grad():
        found = [decoder(x[:, :1], memory=memory, cache=cache)]
        found += [decoder(x[:, i : i + 1], memory=torch.full_like(memory, torch.nan), cache=cache) for i in range(1, 5)]
    torch.testing.assert_close(torch.cat(found, 1), expected)
    assert cache.length == 5 and Cache(0).length == 0


def test_a_decoder_without_an_encoder_attends_to_itself_alone():
    x, memory = inputs()
    block = randomise(Block(16, 2, 24, cross=True)).eval()
    y = block.norm1(x + block.attn(x))
    torch.testing.assert_close(block(x), block.norm2(y + block.mlp(y)))
    assert (block(x, memory=memory) - block(x)).abs().max() > 1e-2
