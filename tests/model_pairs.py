"""A model and its peer with the same random weights, and what both have to agree in."""

import math

import torch
from uninitialised import uninitialised

import vitkern.models as models


def randomise(model, seed=0):
    """Zero tables, unit norms and one constant temperature would hide bugs: nothing keeps its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("logit_scale"):
                p.copy_(math.log(10.0) + 1.5 * noise)  # some above ln(100), where it is clamped
            elif "norm" in name and name.endswith("weight"):
                p.copy_(1.0 + 0.3 * noise)
            elif p.dim() > 1 and not name.endswith(("table", "token", "pos_embed")):
                p.copy_(noise / p[0].numel() ** 0.5)
            else:
                p.copy_(0.5 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


def same_weights(ours, theirs):
    """Both, in evaluation, with the random weights of ``theirs``; ``ours`` may be on meta."""
    randomise(theirs.eval())
    ours.eval().load_state_dict(theirs.state_dict(), strict=True, assign=True)
    for module in ours.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    return ours, theirs


def pair(name, **overrides):
    """(ours, timm's) with the same random weights, in evaluation."""
    import timm

    with uninitialised():
        theirs = timm.create_model(name, **overrides)
    with uninitialised(), torch.device("meta"):
        ours = models.create_model(name, **overrides)
    return same_weights(ours, theirs)


def images(size, batch=2, channels=3):
    """Random ones; ``size``: pixels, a number or (height, width)."""
    return torch.randn(batch, channels, *((size, size) if isinstance(size, int) else size))


def assert_logits_agree(ours, theirs, size, batch=2, channels=3):
    x = images(size, batch, channels)
    with torch.no_grad():
        expected, actual = theirs(x), ours(x)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * max(1.0, expected.abs().max().item()))
    assert expected.std() > 1e-2, "the comparison has no signal"


def step(model, x):
    """(logits, gradient of the image, those of the parameters by name) of one training step in float64."""
    model.double().train().zero_grad()
    image = x.double().requires_grad_()
    torch.manual_seed(7)  # DropPath
    logits = model(image)
    logits.square().sum().backward()
    return logits.detach(), image.grad, {key: p.grad for key, p in model.named_parameters()}


def assert_gradients_agree(ours, theirs, x, silent=()):
    """One training step of both: every parameter gets its peer's gradient. ``silent``: what has none but rounding."""
    (logits, d_image, gradients), (expected, d_expected, peers) = step(ours, x), step(theirs, x)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())
    largest = d_expected.abs().max().item()
    torch.testing.assert_close(d_image, d_expected, rtol=1e-7, atol=1e-9 * largest)
    assert gradients.keys() == peers.keys()
    largest = max(peer.abs().max().item() for peer in peers.values())
    for key, peer in peers.items():
        if key.endswith(tuple(silent)):
            assert (gradients[key] - peer).abs().max() <= 1e-9 * largest, key
            continue
        assert peer.abs().max() > 0, f"no signal in {key}"
        torch.testing.assert_close(
            gradients[key], peer, rtol=1e-7, atol=1e-9 * peer.abs().max().item(), msg=lambda m, key=key: f"{key}: {m}"
        )


def assert_intermediates_agree(ours, theirs, x):
    """Features and maps, and what ``feature_info`` says of them."""
    for arguments in (dict(), dict(indices=1), dict(indices=[0, -1], norm=True)):
        with torch.no_grad():
            (features, maps), (expected, wanted) = (
                model.forward_intermediates(x, **arguments) for model in (ours, theirs)
            )
        for own, other in zip([features, *maps], [expected, *wanted], strict=True):
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5 * max(1.0, other.abs().max().item()))
    rows = [{key: row[key] for key in ("num_chs", "reduction", "module")} for row in ours.feature_info]
    assert rows == [{key: row[key] for key in rows[0]} for row in theirs.feature_info]


def assert_checkpointing_changes_nothing(model, x):
    """Gradients with blocks computed again are those without."""
    found = []
    for enable in (False, True):
        model.train().set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(3)
        y = model(x)
        sum(one.square().mean() for one in (y if isinstance(y, list) else [y])).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert found[0] and all(torch.equal(plain, again) for plain, again in zip(*found, strict=True))


def assert_another_head(model, x):
    """`reset_classifier` gives another number of logits, and none; the features stay."""
    model.eval()
    with torch.no_grad():
        before = model.forward_features(x)
        model.reset_classifier(4)
        assert model.num_classes == 4 and model(x).shape == (x.shape[0], 4)
        assert list(model.get_classifier().parameters())
        model.reset_classifier(0)
        assert torch.equal(model(x), model.forward_head(before, pre_logits=True))
        assert model(x).shape == (x.shape[0], model.num_features)


def assert_maps(name, size, **overrides):
    """As a backbone: maps of the channels and strides that ``feature_info`` says, without what comes after them."""
    whole = models.create_model(name, **overrides).eval()
    backbone = models.create_model(name, features_only=True, out_indices=[0, 1], **overrides).eval()
    found = backbone.model.load_state_dict(whole.state_dict(), strict=False)
    assert not found.missing_keys and found.unexpected_keys
    x = images(size, 1)
    with torch.no_grad():
        wanted, maps = whole.forward_intermediates(x, intermediates_only=True), backbone(x)
    for one, row, other in zip(maps, whole.feature_info, wanted, strict=False):
        assert one.shape == (1, row["num_chs"], *(-(-side // row["reduction"]) for side in x.shape[2:]))
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
