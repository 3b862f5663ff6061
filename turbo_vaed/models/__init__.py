"""The student decoder: its configuration, its architecture, its files."""

from turbo_vaed.models.alignment import AlignmentHeads, block_name, match_resolution
from turbo_vaed.models.config import DecoderConfig
from turbo_vaed.models.decoder import DecodedWithFeatures, TurboVaedDecoder
from turbo_vaed.models.presets import PRESETS

__all__ = [
    "PRESETS",
    "AlignmentHeads",
    "DecodedWithFeatures",
    "DecoderConfig",
    "TurboVaedDecoder",
    "block_name",
    "match_resolution",
]
