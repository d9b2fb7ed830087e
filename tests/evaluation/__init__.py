"""Figures that compare models are what a hand computation says."""
