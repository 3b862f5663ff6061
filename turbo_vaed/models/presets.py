"""Decoder configurations by name: the four published students, and one for a laptop."""

from collections.abc import Mapping
from types import MappingProxyType

from turbo_vaed.models.config import DecoderConfig

_HUNYUAN_LAYOUT = DecoderConfig(
    latent_channels=16,
    decoder_block_out_channels=(16, 32, 256, 512),
    decoder_layers_per_block=(5, 4, 4, 4, 5),
    spatio_temporal_scaling=(True, True, True, False),
    decoder_spatio_only=(True, False, False, False),
    decoder_is_dw_conv=(False, False, False, True, True),
    decoder_dw_kernel_size=5,
    patch_size=1,
    aligned_blks_indices=(1,),
    aligned_feature_projection_dim=((512, 2048),),
)

PRESETS: Mapping[str, DecoderConfig] = MappingProxyType(
    {
        # Published students, at their published widths (arXiv 2508.09136).
        "turbo-vaed-ltx": DecoderConfig(
            latent_channels=128,
            decoder_block_out_channels=(64, 128, 256, 512),
            decoder_layers_per_block=(3, 2, 3, 1, 1),
            spatio_temporal_scaling=(True, True, True, False),
            decoder_spatio_only=(False, False, False, False),
            decoder_is_dw_conv=(False, False, False, True, True),
            decoder_dw_kernel_size=5,
            aligned_blks_indices=(2,),
            aligned_feature_projection_dim=((256, 512),),
        ),
        "turbo-vaed-hunyuan": _HUNYUAN_LAYOUT,
        "turbo-vaed-cogvideox": DecoderConfig(
            **{**vars(_HUNYUAN_LAYOUT), "aligned_feature_projection_dim": ((512, 4096),)}
        ),
        "turbo-vaed-dc": DecoderConfig(
            latent_channels=128,
            decoder_block_out_channels=(64, 128, 256, 512),
            decoder_layers_per_block=(4, 3, 3, 3, 4),
            spatio_temporal_scaling=(True, True, True, False),
            decoder_spatio_only=(True, False, False, False),
            decoder_is_dw_conv=(False, False, False, True, True),
            decoder_dw_kernel_size=5,
            is_video_dc_ae=True,
            aligned_blks_indices=(0, 1, 2),
            aligned_feature_projection_dim=((512, 1024), (512, 1024), (256, 1024)),
        ),
        # Ours, for the small teacher: 8x8 in space, 4x in time, trainable on a CPU. An
        # upsampling convolution has 216 c^2 weights, hence the narrow upper levels: a ninth of
        # the weights of the teacher's decoder, and an eighth of its products (LTX's published
        # student: a fifth). Dense blocks there: on a CPU a depthwise one trains slower than it
        # saves.
        "tiny-ltx": DecoderConfig(
            latent_channels=32,
            decoder_block_out_channels=(16, 32, 96),
            decoder_layers_per_block=(1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False),
            decoder_spatio_only=(False, False, False),
            decoder_is_dw_conv=(False, False, True, True),
            decoder_dw_kernel_size=5,
            patch_size=2,
        ),
    }
)
