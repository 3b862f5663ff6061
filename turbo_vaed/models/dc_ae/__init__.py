"""Video DC-AE, the autoencoder of Open-Sora 2.0 (arXiv 2503.09642), which no library carries."""

from turbo_vaed.models.dc_ae.config import PUBLISHED, DcAeConfig
from turbo_vaed.models.dc_ae.network import DcAe, check_weights

__all__ = ["PUBLISHED", "DcAe", "DcAeConfig", "check_weights"]
