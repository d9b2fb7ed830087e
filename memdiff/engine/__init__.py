"""The only room that imports deepspeed."""
