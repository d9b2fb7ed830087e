"""Measurements of whole trainings, each a program that writes results/NAME.json, a table and a picture."""
