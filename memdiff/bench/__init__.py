"""`memdiff bench`: what a card's owner sends: the doctor's findings, plans beside peaks, one rank beside several.

blank_networks  A recipe's networks at random: nothing is initialised on the host, they are filled where they run
block           What was measured, as text to paste into an issue and as JSON
cases           Which recipes are measured on which machine, and what is changed in them so that they take minutes
children        Other programs that this one starts, waits for and ends; what they said where they failed
command         `memdiff bench`: every part in its order, each written down as soon as it is known
one_recipe      One recipe in a process of its own: its plan, then two rounds on this machine's device
parity          One round by the real launcher on one rank and on several: the gradient, and seconds
"""
