"""The mathematics of one denoising chain. Tensors in, tensors out."""
