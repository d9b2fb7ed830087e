"""The memory knobs, what they come to on a card, and networks that wait on the host.

gpus     The cards a plan can be made for, and their overheads: context, NCCL, workspace, fragmentation
knobs    The memory knobs: one table for a recipe's section `memory` and for what a run reads, every `auto` decided
offload  Networks that leave the GPU while others work
zero2    Bytes of training states on one rank: arithmetic of DeepSpeed's ZeRO-2 (stage_1_and_2.py, 0.19.8)
"""
