"""What this process had to do in another way than it was planned, counted since its start. No torch."""

from collections import Counter

HALVED = "halved"  # a batch that did not fit into memory, and all later ones of its kind

counts: Counter[str] = Counter()
