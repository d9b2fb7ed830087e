"""What every room stands on: devices, ranks, vector-Jacobian products, files. No model, no recipe.

announce         What a person is told while something takes its time: a line once it takes two seconds
cuda_allocator   How torch's CUDA allocator holds its memory: in segments that grow
exit_codes       The outermost frame of every program: errors become one line on stderr and an exit code
file_errors      Whether an OSError is a line about a file that a person named, or a mistake of ours
finite_checks    Whether numbers are finite: asked at once, or noted on the device and asked once for many pieces
fixed_batches    Batches of one shape, whatever the number of items
from_here        Paths as a person sees them who stands in a folder: those below it without its own
gradients        fp32 sums of parameter gradients, which pieces add into and an update takes
half_precision   fp16 networks between fp32 mathematics: gradients enter scaled by a power of two, leave unscaled
host_allocator   What the C library does with freed host memory
hub              Whether the hub can be reached at all: asked once, before its library tries again and again
image_files      Image files in folders: what `memdiff sample` writes, and what is taken from a folder to be scored
incidents        What this process had to do in another way than it was planned, counted since its start
memory_tags      What memory is for: a word that code may put on what it allocates, and that a ledger reads
network_files    Folders of networks, before a library reads them: what it would wait for, or build without end
numbered         Files and folders that memdiff numbers: `round_000003`, `image_000012.png`, and no other name
operator_folder  Where compiled operators lie: in a checkout's own cache, else where torch puts them. No torch
placement        The one function that moves things between a device and the host
quiet_imports    Keeps from a person the advice that libraries give while they are imported. Imports none of them
ranks            The ranks of a run and the few collectives it needs, one process or many
screen           The console that progress is shown on: with bars on a terminal, in lines alone elsewhere
section          The base of every recipe section. Imports pydantic only
shipped_folder   Folders of data that ship with memdiff: beside the package in a checkout, inside it where installed
small_files      Text files, read whole: regular ones of sane size, of a run's own those in it; written through no link
state_dicts      Tensors by name, held to the network that they are for: all of them, in its shapes
units            Units that people read
vjp              Pieces: vector-Jacobian products that keep their graph or make it again
weight_headers   Headers of safetensors files, read without their tensors: what each is called, holds, where it lies
"""
