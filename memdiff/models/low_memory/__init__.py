"""Layers that keep less for the backward."""
