"""Policies: a denoiser, its conditioning and its decoder. The only room that imports diffusers and peft."""
