"""The memory knobs, what they come to on a card, and networks that wait on the host.

allowance   What torch's allocator reserves beyond live bytes, from measured runs
gpus        The cards a plan can be made for, and their overheads: context, NCCL, workspace, fragmentation
host        A rank's host memory: what its process takes, what is there while it loads and while it trains
knobs       The memory knobs: one table for a recipe's section `memory` and for what a run reads
offload     Networks that leave the GPU while others work
peak        The most bytes that lived at once, and what they were
throughput  How much of a card's peak a denoiser reaches, for an estimate of hours
zero2       Bytes of training states on one rank: arithmetic of DeepSpeed's ZeRO-2 (stage_1_and_2.py, 0.19.8)
"""
