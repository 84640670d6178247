"""Deformable DETR against transformers: names and sizes of every variant, boxes and classes, the loss and its
gradients, what is shown; its checkpoints' names, bad input, and eight drawn images that it learns by heart."""

import copy
import functools
import sys
from types import SimpleNamespace

import pytest
import torch

import vitkern.models as models
from vitkern.models.tokens.boxes import corners, detected, generalized_iou
from vitkern.models.tokens.deformable_detr import DeformableDetr, Detections
from vitkern.models.tokens.detection_loss import DetectionLoss

VARIANTS = {
    "deformable_detr": (dict(), dict()),
    "deformable_detr_single_scale": (dict(levels=1), dict(num_feature_levels=1)),
    "deformable_detr_single_scale_dc5": (dict(levels=1, dilated=True), dict(num_feature_levels=1, dilation=True)),
    "deformable_detr_with_box_refine": (dict(with_box_refine=True), dict(with_box_refine=True)),
    "deformable_detr_with_box_refine_two_stage": (
        dict(with_box_refine=True, two_stage=True),
        dict(with_box_refine=True, two_stage=True, two_stage_num_proposals=10),
    ),
}
# Of two classes, which transformers builds by default. With refinement it has one layer of classes for all layers of
# the decoder until a checkpoint has several, as the authors' code does; here there are several from the start.
COUNTS = [40_046_792, 34_043_720, 34_043_720, 40_709_852 + 5 * 2 * 257, 41_021_418]
SMALL = dict(num_queries=10, embed_dim=64, num_heads=4, hidden_dim=96, depths=(2, 2), backbone_depths=(2, 2, 2, 2))
THEIRS = dict(
    num_queries=10,
    d_model=64,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=96,
    decoder_ffn_dim=96,
    backbone="resnet26",
    num_labels=7,
    dropout=0.0,
    auxiliary_loss=True,
    class_cost=2,
)
TINY = dict(
    num_classes=3,
    num_queries=8,
    embed_dim=32,
    num_heads=4,
    hidden_dim=64,
    depths=(1, 2),
    points=(2, 2),
    levels=3,
    backbone_depths=(1, 1, 1, 1),
    backbone_width=8,
    drop_rate=0.0,
)


def peer(**changes):
    transformers = pytest.importorskip("transformers", reason="it is the reference of this test")
    pytest.importorskip("timm", reason="transformers' detector has its backbone")
    return transformers.DeformableDetrForObjectDetection(transformers.DeformableDetrConfig(**changes))


@functools.cache
def pair(name):
    """(ours, transformers') with the same random weights and statistics."""
    arguments, changes = VARIANTS[name]
    theirs = peer(**THEIRS, **changes).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in [*theirs.named_parameters(), *theirs.named_buffers()]:
            noise = torch.randn(value.shape, generator=generator)
            if key.endswith("running_var"):
                value.copy_(0.5 + noise.abs())
            elif value.dim() > 1:
                value.copy_(noise / value[0].numel() ** 0.5)
            else:
                value.copy_(0.3 * noise + (key.endswith("weight")))
    ours = DeformableDetr(7, drop_rate=0.0, **SMALL, **arguments).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * max(1.0, expected.abs().max().item()))


def masked(batch, height, width):
    mask = torch.ones(batch, height, width, dtype=torch.long)
    mask[0, 2 * height // 3 :], mask[-1, :, width // 2 :] = 0, 0
    return mask


def objects(dtype=torch.float32):
    """Of three images, one of which has none."""
    boxes = torch.tensor([[0.4, 0.5, 0.3, 0.2], [0.6, 0.3, 0.1, 0.4], [0.2, 0.7, 0.2, 0.2], [0.5, 0.5, 0.9, 0.8]])
    labels = torch.tensor([1, 6, 0, 1])
    cuts = [(0, 3), (3, 3), (3, 4)]
    return [dict(class_labels=labels[a:b], boxes=boxes[a:b].to(dtype)) for a, b in cuts]


@pytest.mark.parametrize("name, count", [*zip(VARIANTS, COUNTS, strict=True)])
def test_names_and_sizes_are_those_of_transformers(name, count):
    with torch.device("meta"):
        ours = models.create_model(name, num_classes=2)
        theirs = peer(**VARIANTS[name][1])
    shapes = [{key: tuple(value.shape) for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert sum(p.numel() for p in ours.parameters()) == count
    frozen = {key for key, p in ours.named_parameters() if not p.requires_grad}
    assert {key.split(".")[3] for key in frozen} == {"conv1", "layer1"}
    assert models.describe(name).num_classes == 91


@pytest.mark.parametrize("name", VARIANTS)
def test_boxes_and_classes_are_those_of_transformers(name):
    ours, theirs = pair(name)
    for size, mask in (((64, 96), None), ((75, 53), masked(2, 75, 53))):
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected, found = theirs(image, pixel_mask=mask), ours(image, mask)
        close(found.logits, expected.logits)
        close(found.boxes, expected.pred_boxes)
        assert expected.logits.std() > 0.1 and expected.pred_boxes.std() > 0.03, "the comparison has no signal"
        if found.proposals is not None:
            close(found.proposals[0], expected.enc_outputs_class)
            close(found.proposals[1], expected.enc_outputs_coord_logits.sigmoid())


@pytest.mark.parametrize("name", ["deformable_detr", "deformable_detr_with_box_refine_two_stage"])
def test_the_loss_and_its_gradients_are_those_of_transformers(name):
    """In training, every layer of the decoder: theirs leaves out what pixels propose, so here that is left out too."""
    ours, theirs = (copy.deepcopy(model).double().train() for model in pair(name))
    image, targets, mask = torch.randn(3, 3, 64, 80, dtype=torch.float64), objects(torch.float64), masked(3, 64, 80)
    expected = theirs(image, pixel_mask=mask, labels=targets).loss
    loss = DetectionLoss(class_weight=1.0)(ours(image, mask)._replace(proposals=None), targets)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0.0)
    expected.backward()
    loss.backward()
    peers = dict(theirs.named_parameters(remove_duplicate=False))
    largest = max(p.grad.abs().max().item() for p in peers.values() if p.grad is not None)
    for key, parameter in ours.named_parameters():
        own, grad = parameter.grad, peers[key].grad
        if parameter.requires_grad and grad is not None:
            torch.testing.assert_close(own, grad, rtol=1e-5, atol=1e-6 * largest, msg=lambda m, key=key: f"{key}: {m}")
        else:
            assert own is None, key
    assert sum(p.grad is not None for p in ours.parameters()) > 100


def test_what_is_shown_is_what_transformers_shows():
    processing = pytest.importorskip("transformers.models.deformable_detr.image_processing_pil_deformable_detr")
    out = Detections(torch.randn(2, 9, 4), torch.rand(2, 9, 4), [], None)
    theirs = SimpleNamespace(logits=out.logits, pred_boxes=out.boxes)
    shown = next(value for key, value in vars(processing).items() if hasattr(value, "post_process_object_detection"))
    expected = shown.post_process_object_detection(None, theirs, 0.4, [(30, 50), (20, 10)], 20)
    for own, other in zip(detected(out, [(30, 50), (20, 10)], 0.4, 20), expected, strict=True):
        assert own.keys() == other.keys()
        for key, value in own.items():
            torch.testing.assert_close(value, other[key])


@pytest.mark.parametrize("name", ["deformable_detr", "deformable_detr_with_box_refine"])
def test_a_checkpoint_of_the_hub_is_loaded_under_its_own_names(name, tmp_path):
    """transformers saves its models under the names of the published files, what two names share under one of them; and
    ours go into its models as they are."""
    ours, theirs = pair(name)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = models.read_weights(path)
    assert models.tables.detect_family(state) == "transformers_deformable_detr"
    assert "model.decoder.layers.0.self_attn.out_proj.weight" in state and "class_embed.1.weight" not in state
    fresh = models.create_model(name, weights=path, num_classes=7, **SMALL)
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key]), key
    theirs.load_state_dict(fresh.state_dict(), strict=True)
    del state["model.level_embed"], state["class_embed.0.weight"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"missing \(.*model.level_embed"):
        models.load_weights(fresh, tmp_path / "less.pth")


def drawn(side=48):
    """Eight images of one or two filled rectangles, and what they are: their colour is their class."""
    generator = torch.Generator().manual_seed(3)
    number = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))  # noqa: E731
    images, targets = torch.zeros(8, 3, side, side), []
    for image in images:
        rows = []
        for left in range(0, side, side // 2)[: 1 + len(targets) % 2]:
            w, h, label = number(12, 22), number(12, 22), number(0, 3)
            x, y = left + number(0, side // 2 - w + 1), number(0, side - h + 1)
            image[label, y : y + h, x : x + w] = 1.0
            rows.append((label, x + w / 2, y + h / 2, w, h))
        table = torch.tensor(rows)
        targets.append(dict(class_labels=table[:, 0].long(), boxes=table[:, 1:] / side))
    return images, targets


def test_it_learns_eight_images_by_heart():
    """Every rectangle is found once, in its place and with its class, and nothing else is."""
    (images, targets), steps = drawn(), 200
    model, loss = DeformableDetr(**TINY, with_box_refine=True).train(), DetectionLoss()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(images), targets).backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = detected(model.eval()(images), [(1, 1)] * 8)
    for own, target in zip(found, targets, strict=True):
        overlap = generalized_iou(own["boxes"][:, None], corners(target["boxes"]))  # (K, M)
        assert overlap.shape == 2 * target["class_labels"].shape
        assert overlap.max(0).values.min() > 0.9
        assert torch.equal(own["labels"][overlap.argmax(0)], target["class_labels"])


def test_checkpointed_layers_give_the_same_gradients():
    model, image, grads = DeformableDetr(**TINY, with_box_refine=True).train(), torch.randn(2, 3, 40, 48), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        out = model(image)
        (out.logits.square().sum() + out.boxes.sum()).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) > 50 and all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_boxes():
    whole, half = torch.tensor([0.5, 0.5, 1.0, 1.0]), torch.tensor([0.25, 0.5, 0.5, 1.0])
    assert corners(half).tolist() == [0.0, 0.0, 0.5, 1.0]
    assert generalized_iou(corners(whole), corners(half)).item() == pytest.approx(0.5)
    apart = corners(torch.tensor([2.5, 0.5, 1.0, 1.0]))
    assert generalized_iou(corners(whole), apart).item() == pytest.approx(-1 / 3)  # a third of the hull is between them


def test_each_object_has_one_query():
    logits, boxes = torch.full((1, 4, 2), -4.0), torch.rand(1, 4, 4) * 0.1 + 0.1
    boxes[0, 2], logits[0, 2, 1] = torch.tensor([0.7, 0.7, 0.2, 0.2]), 3.0
    wanted = torch.tensor([[0.7, 0.7, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]])
    ((query, which),) = DetectionLoss().match(logits, boxes, [dict(class_labels=torch.tensor([1, 1]), boxes=wanted)])
    assert query.unique().numel() == 2 and which[query.tolist().index(2)] == 0


def test_an_empty_batch_of_objects_has_a_loss():
    out = Detections(torch.zeros(2, 5, 3, requires_grad=True), torch.rand(2, 5, 4), [], None)
    nothing = dict(class_labels=torch.zeros(0, dtype=torch.long), boxes=torch.zeros(0, 4))
    loss = DetectionLoss()(out, [nothing] * 2)
    loss.backward()
    assert loss > 0 and out.logits.grad.gt(0).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(two_stage=True), "proposals are boxes to be refined: got two_stage=True, with_box_refine=False"),
        (dict(embed_dim=48), "maps do not fit: got embed_dim=48, levels=3; expected a multiple of 32"),
        (dict(levels=2), "maps do not fit: got embed_dim=32, levels=2"),
        (dict(num_heads=5), "do not"),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        DeformableDetr(**TINY | changes)


def test_inputs_that_do_not_fit(monkeypatch):
    model = DeformableDetr(**TINY, with_box_refine=True, two_stage=True).eval()
    with pytest.raises(ValueError, match=r"not a batch of images: got shape \(3, 32, 32\); expected \(B, 3, height"):
        model(torch.zeros(3, 32, 32))
    with pytest.raises(ValueError, match=r"the mask does not belong to the images: got \(1, 32, 31\)"):
        model(torch.zeros(1, 3, 32, 32), torch.ones(1, 32, 31))
    model.model.num_queries = 30
    with pytest.raises(ValueError, match=r"fewer places than queries: got 21 pixels of maps for 30 queries"):
        model(torch.zeros(2, 3, 32, 32))
    out, loss = Detections(torch.zeros(1, 5, 3), torch.rand(1, 5, 4), [], None), DetectionLoss()
    bad = dict(class_labels=torch.tensor([3]), boxes=torch.rand(1, 4))
    with pytest.raises(ValueError, match=r"no such class: got labels \[3\]; expected 0 to 2"):
        loss(out, [bad])
    with pytest.raises(ValueError, match="targets do not belong to the images: got 2 for 1"):
        loss(out, [bad] * 2)
    with pytest.raises(ValueError, match=r"do not belong together: got \(1,\) and \(4,\)"):
        loss(out, [dict(bad, boxes=torch.rand(4))])
    with pytest.raises(ValueError, match="sizes do not belong to the images: got 2 for 1"):
        detected(out, [(3, 3)] * 2)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"matched to objects by scipy.*pip install scipy"):
        DetectionLoss()
