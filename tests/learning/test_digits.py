"""Tests of learning: small models of five families, trained for some seconds each, read digits they have not seen."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import vitkern.models as models
from vitkern.models.tokens.dynamic_vit import Pruned
from vitkern.models.tokens.pruning_loss import PruningLoss

datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn has the digits")

# Of 8 x 8 pixels, 16 patches of 2 x 2.
DIGITS = dict(img_size=8, patch_size=2, in_chans=1, num_classes=10)
PRUNED = dict(pruning_loc=(1,), token_ratio=(0.75,))
MODELS = {
    "vit_tiny_patch16_224": dict(embed_dim=48, depth=2, num_heads=4),
    "swin_tiny_patch4_window7_224": dict(embed_dim=32, depths=(2, 1), num_heads=(2, 4), window_size=2),
    "convit_tiny": dict(embed_dim=8, depth=2, num_heads=9, local_up_to_layer=1),
    "pvt_tiny": dict(
        embed_dims=(48, 64), depths=(1, 1), num_heads=(1, 2), mlp_ratios=(4, 4), sr_ratios=(2, 1), drop_path_rate=0.0
    ),
    "dynamicvit_deit_s": dict(embed_dim=48, depth=2, num_heads=4, **PRUNED),
}
EPOCHS, BATCH, RATE = 10, 24, 4e-3


def digits():
    """(images (N, 1, 8, 8), labels (N,)) to train, and every fifth to test."""
    images, labels = (torch.as_tensor(part) for part in datasets.load_digits(return_X_y=True))
    images = (images.float() / 8.0 - 1.0).view(-1, 1, 8, 8)
    tested = torch.arange(len(labels)) % 5 == 0
    return (images[~tested], labels[~tested]), (images[tested], labels[tested])


def started(model):
    """Its own start is one for hundreds of channels: with some tens nothing but positions would be seen for long."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 4 and "patch_embed" in name:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif parameter.dim() > 1 and name.endswith("weight"):
            nn.init.xavier_uniform_(parameter)
        elif "pos_embed" in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def shifted(images):
    """Each by up to a third of a pixel, either way."""
    for dim in (2, 3):
        by = 0.6 * torch.rand(len(images), 1, 1, 1) - 0.3
        beside = torch.where(by > 0, images.roll(1, dim), images.roll(-1, dim))
        images = torch.lerp(images, beside, by.abs())
    return images


def criterion(logits, labels):
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def loss_of(out, labels):
    if isinstance(out, Pruned):
        return PruningLoss(PRUNED["token_ratio"], criterion=criterion)(out, labels)
    return criterion(out, labels)


@pytest.mark.parametrize("name", MODELS)
def test_digits_are_learnt(name):
    (images, labels), (unseen, wanted) = digits()
    model = started(models.create_model(name, **DIGITS, **MODELS[name])).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0.05)
    steps = EPOCHS * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.15)
    for _ in range(EPOCHS):
        for at in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            loss_of(model(shifted(images[at])), labels[at]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        right = model.eval()(unseen).argmax(1) == wanted
    assert right.float().mean() >= 0.97, f"{right.sum()} of {len(right)}"
