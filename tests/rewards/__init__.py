"""Rewards against independent computations, and what becomes of their scores."""
