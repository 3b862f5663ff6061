"""The student decoder: its configuration, its architecture, its files."""

from turbo_vaed.models.alignment import AlignmentHeads, block_name, match_resolution
from turbo_vaed.models.checkpoint import load_decoder, save_decoder
from turbo_vaed.models.config import DecoderConfig
from turbo_vaed.models.decoder import DecodedWithFeatures, TurboVaedDecoder
from turbo_vaed.models.presets import PRESETS
from turbo_vaed.models.streaming import stream

__all__ = [
    "PRESETS",
    "AlignmentHeads",
    "DecodedWithFeatures",
    "DecoderConfig",
    "TurboVaedDecoder",
    "block_name",
    "load_decoder",
    "match_resolution",
    "save_decoder",
    "stream",
]
