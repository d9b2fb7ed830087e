"""Makes the weights that ship in memdiff/digits, and measures them."""
