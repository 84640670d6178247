"""What `vitkern.accelerate` makes of other libraries' models: a small one of each family, before and after.

``timm``, ``torchvision`` and ``transformers`` hold the families as data; ``examine`` compares one model, ``page`` says
what came of all.
"""
