"""Suite `gpu`: everything that matters about a card in a few minutes, most telling first; a dry run on a CPU.

idle            The share of an update in which the device does nothing, from the profiler's intervals
reported        Rows that were measured elsewhere, for the results' table: as reported, not reproduced
rows            The rows as data: what is measured, how long it is expected to take, what it needs of the card
run             The suite within its minutes: which rows fit, the processes that measure them, rows as they come
schedule        Which rows fit into the minutes, and which memory rows fit beside each other on the card
table           The results' tables: update beside floor and peers, plan beside peak
timing          One update's seconds: memdiff, the UNet calls alone, a bare loop
timing_process  All timing rows one after the other in one process, each written as soon as it is known
"""
