"""From image to tokens, and from tokens to fewer tokens."""

from operator import index

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.nn.layernorm import LayerNorm


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """``value`` for height and width.

    Raises:
        TypeError: neither an integer nor two of them.
    """
    try:
        height, width = (value, value) if isinstance(value, int) else value
        return index(height), index(width)
    except (TypeError, ValueError):
        raise TypeError(f"pair: no size: got {value!r}; expected an int, or (height, width).") from None


def check_images(module: str, x: Tensor, in_chans: int) -> None:
    """Refuses what is no batch of images (B, in_chans, height, width)."""
    if x.dim() != 4 or x.shape[1] != in_chans:
        raise ValueError(
            f"{module}: not a batch of images: got shape {tuple(x.shape)}; expected (B, {in_chans}, height, width)."
        )


def check_pixels(module: str, x: Tensor) -> None:
    """Refuses images (B, in_chans, height, width) of nothing, where a module takes any size."""
    if 0 in x.shape[2:]:
        raise ValueError(f"{module}: an image has no pixels: got {tuple(x.shape[2:])}; expected 1 or more each way.")


class Stem(nn.Module):
    """What makes tokens of an image: its sizes, and the images that it takes. `PatchEmbed` is the plain one.

    Args:
        img_size: pixels, one number or (height, width).
        patch_size: pixels for a token, one number or (height, width).
        strict_img_size: refuse images of another size than ``img_size``; otherwise any whole number of patches will do.
        reduction: pixels for one of the map that patches are cut from; sizes that it does not divide are rounded up.

    Attributes:
        grid_size: tokens (img_h, img_w) of an image of ``img_size``. num_patches: their number.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        strict_img_size: bool = True,
        reduction: int = 1,
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size, self.reduction = pair(img_size), pair(patch_size), reduction
        self.grid_size = self.grid_of(self.img_size)
        if min(self.grid_size) < 1:
            raise ValueError(
                f"{type(self).__name__}: the image holds no patch: got img_size={self.img_size}, "
                f"patch_size={self.patch_size}; expected at least one patch in each direction."
            )
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.strict_img_size = strict_img_size

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Tokens of an image of ``size`` (height, width) pixels; a remainder that fills no patch is dropped."""
        height, width = (-(-pixels // self.reduction) for pixels in size)
        return height // (self.patch_size[0] // self.reduction), width // (self.patch_size[1] // self.reduction)

    def check(self, x: Tensor, in_chans: int) -> None:
        """Refuses what is no image of ``in_chans`` channels, or of a size that is not taken."""
        name = type(self).__name__
        check_images(name, x, in_chans)
        if self.strict_img_size and tuple(x.shape[2:]) != self.img_size:
            raise ValueError(
                f"{name}: the image size differs from the model's: got {tuple(x.shape[2:])}; "
                f"expected {self.img_size}. Resize the image, or build the model with img_size=."
            )
        if not self.strict_img_size and (x.shape[2] % self.patch_size[0] or x.shape[3] % self.patch_size[1]):
            raise ValueError(
                f"{name}: patches do not divide the image: got {tuple(x.shape[2:])}; "
                f"expected multiples of {self.patch_size}."
            )
        check_pixels(name, x)


class PatchEmbed(Stem):
    """Cuts an image into patches and projects each (arXiv 2010.11929, equation 1); named as in timm.

    Args:
        img_size: pixels, one number or (height, width). A remainder that fills no patch is dropped, as by timm.
        patch_size: pixels, one number or (height, width).
        in_chans: channels of the image.
        embed_dim: channels C of a token.
        norm_eps: a LayerNorm of this eps follows the projection; None: none does.
        bias: the projection has a bias.
        strict_img_size: refuse images of another size than ``img_size``; otherwise any whole number of patches will do.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        *,
        norm_eps: float | None = None,
        bias: bool = True,
        strict_img_size: bool = True,
    ) -> None:
        super().__init__(img_size, patch_size, strict_img_size)
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=self.patch_size, stride=self.patch_size, bias=bias)
        self.norm = LayerNorm(embed_dim, eps=norm_eps) if norm_eps is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, in_chans, pixels_h, pixels_w) -> tokens (B, img_h, img_w, C).

        Raises:
            ValueError: no batch of images, other channels, or another size than the model was built for.
        """
        self.check(x, self.proj.in_channels)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class ConvEmbed(nn.Module):
    """A convolution from an image to tokens, and LayerNorm: patches that overlap where the kernel is larger than its
    stride (PVTv2, arXiv 2106.13797, section 3.2; CvT, arXiv 2103.15808, section 3.1). Named as in timm's PVTv2.

    Args:
        in_chans, dim: channels before and after.
        kernel_size, stride, padding: pixels. A remainder that fills no kernel is dropped.
        eps: of the LayerNorm.
    """

    def __init__(
        self, in_chans: int, dim: int, kernel_size: int, stride: int, padding: int = 0, *, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.window = kernel_size, stride, padding
        self.proj = nn.Conv2d(in_chans, dim, kernel_size, stride=stride, padding=padding)
        self.norm = LayerNorm(dim, eps=eps)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Tokens of an image of ``size`` = (height, width), each way; none or fewer where it is too small."""
        kernel, stride, padding = self.window
        return (size[0] + 2 * padding - kernel) // stride + 1, (size[1] + 2 * padding - kernel) // stride + 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, height, width) -> (B, img_h, img_w, C)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Joins each 2 x 2 tokens into one of ``out_dim`` channels (Swin, arXiv 2103.14030, section 3.1).

    Odd sizes are padded with zeros. Swin normalises the 4 C joined channels, then projects; SwinV2 (``post_norm``)
    projects, then normalises.
    """

    def __init__(self, dim: int, out_dim: int | None = None, *, post_norm: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        out_dim = out_dim or 2 * dim
        self.post_norm = post_norm
        self.norm = LayerNorm(out_dim if post_norm else 4 * dim, eps=eps)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, img_h, img_w, C) -> (B, ceil(img_h / 2), ceil(img_w / 2), out_dim)."""
        batch, img_h, img_w, channels = x.shape
        if img_h % 2 or img_w % 2:
            x = F.pad(x, (0, 0, 0, img_w % 2, 0, img_h % 2))
        x = x.reshape(batch, (img_h + 1) // 2, 2, (img_w + 1) // 2, 2, channels)
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(
            3
        )  # channel blocks in the order (0, 0), (1, 0), (0, 1), (1, 1) of (y, x)
        return self.norm(self.reduction(x)) if self.post_norm else self.reduction(self.norm(x))
