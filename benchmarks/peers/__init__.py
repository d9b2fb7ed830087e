"""memdiff beside TRL 0.23.1 and bare diffusers loops, on one small Stable Diffusion pipeline."""
