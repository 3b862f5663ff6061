"""Videos in, clips and latents out: probing, expectations, splits, Zarr arrays."""
