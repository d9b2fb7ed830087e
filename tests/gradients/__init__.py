"""Gradients are plain autograd's, whatever the method, the knobs and the ranks."""
