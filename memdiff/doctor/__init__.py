"""`memdiff doctor`: what this machine has, what memdiff needs, and what to do about the difference.

compiler  The compiler, and the operators that DeepSpeed builds with it at the first start
devices   GPUs, precisions and links, as torch and DeepSpeed see them
examine   All checks of this machine, and what they found as a table
host      Disk, shared memory, limits, processors and memory of this machine
hub       The hub that models come from, and the room to keep them
packages  Python and the installed packages against the bounds that memdiff declares
table     What a check has to say, and all that they say as a table
"""
