"""Attention between channels of unit length: that of XCiT."""

from vitkern.lab.compiling.layer import compiled
from vitkern.lab.proving.integration import Module
from vitkern.lab.specimen import View
from vitkern.lab.specimens._channel_attention import OF_UNIT_CHANNELS, UnitChannels, problem

LAYERS = (
    UnitChannels("XCiT-N patch 16", 196, 4, 32),
    UnitChannels("XCiT-S patch 16", 196, 8, 48, quick=True, compiled="channel-xcit-s", everywhere=True),
    UnitChannels("XCiT-M patch 16", 196, 8, 64, compiled="channel-xcit-m"),
    UnitChannels("XCiT-S patch 8", 784, 8, 48),
    UnitChannels("XCiT-S patch 8 at 384", 2304, 8, 48, batch=16, compiled="channel-xcit-s8", everywhere=True),
    UnitChannels("XCiT-N patch 8 at 384", 2304, 4, 32, batch=16, compiled="channel-xcit-n8"),
)

SPECIMEN = View(
    name=OF_UNIT_CHANNELS,
    of="channel_attention",
    check=(
        problem("49 tokens, unit", 2, 49, 3, 32, unit=True),
        problem("20 tokens, unit, temperature 8", 2, 20, 2, 24, unit=True, hot=8.0),
        problem("196 tokens of 48 channels, unit", 1, 196, 1, 48, unit=True, hot=3.0),
    ),
    layers=LAYERS,
    launches=compiled(LAYERS),
    modules={"CrossCovarianceAttention": Module((2, 5, 32), dict(dim=32, num_heads=2))},
)
