"""LoRA on a Hugging Face ViT with PEFT and the Trainer: PEFT first, then accelerate.

python examples/lora_vit.py [--tiny]
"""

import argparse
import tempfile

import torch

import vitkern

try:
    import accelerate  # noqa: F401  the Trainer's
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification
except ImportError as missing:
    raise SystemExit(f"{missing}: pip install 'vitkern[examples]'") from None

TINY = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32)


class Noise(torch.utils.data.Dataset):
    """Bright and dark images; your own dataset gives the same two names."""

    def __init__(self, size: int, count: int = 16) -> None:
        self.labels = torch.arange(count) % 2
        self.images = torch.randn(count, 3, size, size) + self.labels.view(-1, 1, 1, 1) - 0.5

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return dict(pixel_values=self.images[index], labels=self.labels[index])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="a small model without pretrained weights")
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()

    if arguments.tiny:
        model = ViTForImageClassification(ViTConfig(**TINY, num_labels=2))
    else:
        model = ViTForImageClassification.from_pretrained("google/vit-base-patch16-224-in21k", num_labels=2)
    size = model.config.image_size
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]))
    print(vitkern.accelerate(model))  # after PEFT: the adapters' linears are called, never read
    model.print_trainable_parameters()

    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder, max_steps=arguments.steps, per_device_train_batch_size=4, logging_steps=1, report_to=[],
            save_strategy="no", learning_rate=1e-3, disable_tqdm=True,
        )  # fmt: skip
        found = Trainer(model, options, train_dataset=Noise(size)).train()
        print(f"loss {found.training_loss:.4f} over {found.global_step} steps")
        model.save_pretrained(folder)  # an adapter as PEFT always writes it
    merged = model.merge_and_unload()
    print(f"merged: {type(merged).__name__} gives {tuple(merged(torch.randn(1, 3, size, size)).logits.shape)}")


if __name__ == "__main__":
    main()
