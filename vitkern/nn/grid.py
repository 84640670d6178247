"""Tokens as an image, and back, without a copy: (B, N, C), row by row, is (B, C, H, W) in channels-last strides."""

from torch import Tensor


def as_image(module: str, x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, N, C) -> (B, C, H, W), a view where tokens lie side by side.

    Raises:
        ValueError: N is not H * W.
    """
    height, width = size
    if x.dim() != 3 or x.shape[1] != height * width:
        raise ValueError(
            f"{module}: tokens do not fill the image: got x of shape {tuple(x.shape)}, size={(height, width)}; "
            "expected (B, H * W, C). Give the size of the image that the tokens are of, without a class token."
        )
    return x.unflatten(1, (height, width)).permute(0, 3, 1, 2)  # one image, too, keeps the strides of channels last


def as_tokens(image: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return image.flatten(2).transpose(1, 2)
