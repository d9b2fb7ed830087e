"""A training run: started, built, looped over rounds, evaluated, written down.

before_launch  What a person has to be told of a run before its ranks start
bookkeeping    What is kept of a run beside its rows: its time, what stands under the tiles of a grid, its loggers
build          From a recipe to the parts of a run. The one place where rooms meet
command        `memdiff train`, where no launcher started it: a recipe in, checks, ranks, an exit code out
copied_run     A run that was begun elsewhere, brought here to go on: from a copied folder, or from the hub
deadline       When a run has to have ended, so that its last checkpoint is whole before the machine is taken away
environment    What a run ran on: versions, devices, commit
evaluate       Images from fixed noise, scored by every part, held-out ones too
hostfile       A hostfile, in the form that DeepSpeed's launcher takes: `NAME slots=N` a line, N ranks on each
hosts          A run over several hosts: `memdiff train --hostfile FILE`
launcher       Starts the DeepSpeed launcher for a run and tells a person how it ended
loop           The training loop: rounds, checkpoints, evaluations, rows, stops
metrics        Rows of metrics.jsonl
one_folder     Whether the ranks of several hosts see one run folder: each writes its part of a checkpoint into it
one_rank       One rank's whole part of a run, from the recipe to the saved model
pace           When a run will end: rounds and evaluations still to come, each at the seconds that it usually takes
preview        `memdiff train --dry-run`: what a run would do
progress       What a person sees while a run goes on: one bar a round on a terminal, one line a round elsewhere
run_folder     The folder of one run: who writes what, and how it survives being cut off
run_state      How far a run has come
saved_model    What a saved model has beside its weights: a card, the base's name, files that others may read
start          Starts a run whose recipe is right: in this process, or as ranks under DeepSpeed's launcher
"""
