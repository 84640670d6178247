"""``import vitkern`` makes ``attn_implementation="vitkern"`` known to transformers, whichever is imported first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from swapping import assert_near, logits, randomise

ROOT = Path(__file__).resolve().parent.parent
MAPPING = """
class Interface:
    def __contains__(self, key): return key in self.known
    @classmethod
    def register(cls, key, value): cls.known[key] = value
"""
ATTENTION = MAPPING + "class AttentionInterface(Interface):\n    known = {}\n"
MASK = MAPPING + "sdpa_mask = object()\nclass AttentionMaskInterface(Interface):\n    known = {}\n"
CHECK = """
import sys
from transformers import masking_utils, modeling_utils
assert modeling_utils.AttentionInterface.known["vitkern"].__module__ == "vitkern.announce"
assert masking_utils.AttentionMaskInterface.known["vitkern"] is masking_utils.sdpa_mask
for module in (masking_utils, modeling_utils):
    assert module.__spec__.loader is module.__loader__ and type(module.__loader__).__name__ == "SourceFileLoader"
    assert "exec_module" not in vars(module.__loader__) and "Interface" in module.__loader__.get_source(module.__name__)
assert not {"torch", "vitkern.interop"} & set(sys.modules), "it costs nothing until it is used"
"""
TOLD = {
    "vitkern first": "import vitkern\n" + CHECK,
    "transformers first": "import transformers.modeling_utils, transformers.masking_utils, vitkern\n" + CHECK,
    "its package first": "import transformers, vitkern\n" + CHECK,
    "one module first": "import transformers.masking_utils, vitkern\n" + CHECK,
    "reloaded": "import vitkern, importlib\nfrom transformers import masking_utils, modeling_utils\n"
    "importlib.reload(modeling_utils), importlib.reload(masking_utils)\n" + CHECK,
    "vitkern reloaded": "import vitkern, importlib, sys\nbefore = list(sys.meta_path)\nimportlib.reload(vitkern)\n"
    "assert sys.meta_path == before\n" + CHECK,
    "a spec that nobody uses": "import vitkern\nfrom importlib.util import find_spec\n"
    "assert find_spec('transformers.modeling_utils').origin and find_spec('transformers.nothing') is None\n" + CHECK,
}
OTHERS = {
    "half imported": (
        {"modeling_utils": "import vitkern\n" + ATTENTION, "other": ""},
        "import transformers.modeling_utils, transformers.other\n" + CHECK,
    ),
    "broken": (
        {"modeling_utils": "raise OSError('broken')"},
        "import vitkern, sys\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        import transformers.modeling_utils\n"
        "    except OSError as error:\n"
        "        assert str(error) == 'broken' and 'transformers.modeling_utils' not in sys.modules\n"
        "    else:\n"
        "        raise AssertionError\n",
    ),
    "a version without": (
        {"modeling_utils": "answer = 42"},
        "import vitkern, transformers.modeling_utils\nassert transformers.modeling_utils.answer == 42\n",
    ),
    "none at all": (
        None,
        "import vitkern\n"
        "try:\n"
        "    import transformers.modeling_utils\n"
        "except ModuleNotFoundError as error:\n"
        "    assert error.name in ('transformers', 'transformers.modeling_utils')\n",
    ),
}


def python(code, *folders):
    """``code`` in a process of its own, with these folders before all others."""
    path = os.pathsep.join(map(str, (*folders, ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", [*TOLD, *OTHERS])
def test_it_is_told_once_it_is_there(case, tmp_path):
    files, code = OTHERS.get(case, ({}, TOLD.get(case)))
    folder = tmp_path / "transformers"
    folder.mkdir()
    written = {"modeling_utils": ATTENTION, "masking_utils": MASK, **(files or {})}
    for name, text in {"__init__": "", **({} if files is None else written)}.items():
        (folder / f"{name}.py").write_text(text)
    python(code, tmp_path)


@pytest.mark.walk(3)
def test_models_are_built_by_name_after_a_bare_import():
    python(
        """
import vitkern, torch
from transformers import AutoModel, ViTConfig
sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
config = ViTConfig(**sizes, image_size=16, patch_size=8)
model = AutoModel.from_config(config, attn_implementation="vitkern").eval()
images = torch.randn(2, 3, 16, 16)
with torch.no_grad():  # recorded before anything of vitkern's operators was imported
    found = torch.compile(model, backend="eager", fullgraph=True)(images).last_hidden_state
    again = model(images).last_hidden_state
    model.set_attn_implementation("eager")
    expected = model(images).last_hidden_state
assert (found - expected).abs().max() < 1e-5 and (again - expected).abs().max() < 1e-5
"""
    )


def image_tower(name):
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    config = hf.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=5)
    return randomise(hf.AutoModelForImageClassification.from_config(config, attn_implementation=name)).eval()


def text_tower(name):
    """Causal, with grouped heads and windows of four tokens."""
    config = hf.MistralConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        vocab_size=96,
        max_position_embeddings=64,
        sliding_window=4,
    )
    torch.manual_seed(0)
    return randomise(hf.AutoModelForCausalLM.from_config(config, attn_implementation=name)).eval()


def both(build):
    ours, theirs = build("vitkern"), build("eager")
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def padded():
    keep = torch.ones(2, 9, dtype=torch.long)
    keep[0, :4] = 0
    return dict(input_ids=torch.randint(3, 90, (2, 9)), attention_mask=keep)


def test_an_image_tower_by_name():
    ours, theirs = both(image_tower)
    images = torch.randn(2, 3, 32, 32)
    assert ours.config._attn_implementation == "vitkern"
    assert_near(logits(ours, images), logits(theirs, images), 1e-5, "logits")


def test_a_causal_text_tower_by_name_with_windows_and_padding():
    ours, theirs = both(text_tower)
    call = padded()
    rows = call["attention_mask"].bool()
    with torch.no_grad():
        assert_near(ours(**call).logits[rows], theirs(**call).logits[rows], 1e-5, "logits")


def test_weights_are_given_on_request():
    ours, theirs = both(text_tower)
    ids = torch.randint(3, 90, (2, 9))
    with torch.no_grad():
        found, expected = (model(ids, output_attentions=True) for model in (ours, theirs))
    assert_near(found.logits, expected.logits, 1e-5, "logits")
    for one, other in zip(found.attentions, expected.attentions, strict=True):
        assert_near(one, other, 1e-5, "attention weights")
    assert expected.attentions[0][:, :, 8, :5].abs().max() == 0, "a window of four tokens"


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_the_tokens_that_are_generated_are_those_of_eager_attention(cache):
    ours, theirs = both(text_tower)
    options = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, cache_implementation=cache)
    call = padded()
    assert torch.equal(ours.generate(**call, **options), theirs.generate(**call, **options))
