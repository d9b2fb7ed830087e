"""Layers that keep less for the backward: the same bits from fewer bytes.

channels_last  A UNet whose images lie channels last: half-precision convolutions of NVIDIA's matrix units want them so
feed_forwards  Feed-forward layers of transformer blocks that are run again in the backward
layers         Layers that keep less for the backward than torch's and diffusers' own, for the same bits
"""
