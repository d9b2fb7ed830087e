"""DeepSpeed: the engine, its configuration, checkpoints. The only room that imports deepspeed.

build_lock     The `lock` file in an operator's build folder: whether anybody holds it
checkpoint     Checkpoints of a run: every rank's shard, the round's state, and a manifest with checksums, written last
config         Recipe section `optimizer`, no deepspeed
divergence     Whether all ranks hold the same weights: one integer a parameter, compared before each update
ds_config      The DeepSpeed JSON: from the file in ds_configs/ that fits the recipe, or from the user's own
ds_keys        What a DeepSpeed file may hold: keys, kinds and bounds, as DeepSpeed 0.19 reads them. No torch
engine         DeepSpeed ZeRO-2 around the list of trainable parameters: one backward, one step, an update
manifest       A checkpoint's manifest: sizes and checksums of its files, written last, and what is wrong
meeting        How the ranks of several hosts find each other: within a time that a person waits, by the right network
moments        The optimizer's first moments that a checkpoint holds, of all ranks as one vector
operators      DeepSpeed's operators: compiled at the first start that needs them, by one process at a time
pickles        What the pickles of a checkpoint may name: a few classes of DeepSpeed, and no code
process_group  torch.distributed through DeepSpeed: NCCL on GPUs, gloo on CPUs, one process or many
update         What an engine is, and what one update did. No deepspeed
"""
