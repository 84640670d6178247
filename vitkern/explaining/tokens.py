"""Which of a model's tokens are patches of the image, and how they lie in it."""

from torch import Tensor, nn

_MOST_PREFIX = 32  # class, distillation and register tokens


def grid_of(model: nn.Module, image: Tensor, tokens: int) -> tuple[int, int]:
    """(height, width) of the patches, which are the last of ``tokens``: of the convolution that cuts them out; where
    there is none, of the same proportions as ``image`` (1, C, height, width).

    Raises:
        NotImplementedError: neither leads to a grid.
    """
    height, width = image.shape[2:]
    pads = any(getattr(module, "dynamic_img_pad", False) for module in model.modules())  # timm's, to whole patches
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == module.stride and max(module.stride) > 1:
            rest = [pads * (stride - 1) for stride in module.stride]
            grid = (height + rest[0]) // module.stride[0], (width + rest[1]) // module.stride[1]
            if 0 <= tokens - grid[0] * grid[1] <= _MOST_PREFIX:
                return grid
    for patches in range(tokens, max(0, tokens - _MOST_PREFIX), -1):
        rows = round((patches * height / width) ** 0.5)
        if rows and patches % rows == 0 and rows * width == patches // rows * height:
            return rows, patches // rows
    raise NotImplementedError(
        f"explain: tokens are no grid: got {tokens} tokens of an image of {height} x {width}; expected a grid of "
        f"patches behind {_MOST_PREFIX} other tokens at most."
    )
