"""The Python of README runs as it stands there, on small tensors and with weights that nobody downloads."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
INLINE = re.findall(r"`(vitkern\.(?:create_model|list_models)\([^`]*\))`", README)


def block(word):
    (found,) = (text for text in BLOCKS if word in text)
    return found


def test_every_block_is_run_here():
    assert sorted(BLOCKS) == sorted(map(block, ("accelerate", "window_attention")))


def test_accelerate():
    pytest.importorskip("timm")
    text = block("accelerate")
    assert "pretrained=True" in text
    names = {}
    exec(text.replace("pretrained=True", "pretrained=False"), names)
    assert len(names["report"]) and not names["report"].undo  # swapped, and restored


def test_ops():
    names = {name: torch.randn(2, 3, 5, 4) for name in "qkv"}
    names |= {"bias": torch.randn(5, 5, requires_grad=True), "qkv": torch.randn(1, 14, 14, 36)}
    names |= {"table": torch.randn(13 * 13, 3)}
    lines = block("window_attention").splitlines()
    calls = [i for i, line in enumerate(lines) if line.startswith("out = ")]
    exec("\n".join(lines[: calls[0] + 1]), names)
    assert names["out"].shape == (2, 3, 5, 4)
    names["out"].sum().backward()
    assert names["bias"].grad is not None
    exec("\n".join(lines[calls[0] + 1 :]), names)
    assert names["out"].shape == (1, 14, 14, 12)
    assert callable(names["layernorm"]) and callable(names["layernorm_mlp"])


@pytest.mark.parametrize("text", INLINE)
def test_models(text):
    import vitkern

    found = eval(text, {"vitkern": vitkern})
    assert found if "list_models" in text else isinstance(found, torch.nn.Module)


def test_models_are_there():
    assert {text.split("(")[0] for text in INLINE} == {"vitkern.create_model", "vitkern.list_models"}


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert "docs/keeps.md" in links
    assert [link for link in links if not (ROOT / link).exists()] == []
