"""Policies, adapters and their files, against diffusers and peft."""
