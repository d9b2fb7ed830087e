"""What a run will need before it runs: methods run on fake tensors, and a setting is chosen.

advice          What each knob saves and costs, and plain sentences about what is not worth having
blank           A policy and rewards that neither decode nor score, where another round has measured that already
command         `memdiff plan`: a recipe and a card in, a table, JSON or YAML out before both are known to be right
compose         From short measured rounds to the peaks and FLOPs of a whole one, at any setting of the knobs
dry_run         One short round of a recipe's own algorithm on fake tensors: peaks and FLOPs by phase
fake_tensors    A GPU that isn't there: fake tensors on a device of their own
flops           Floating-point operations of one operator, by torch's own formulas (torch.utils.flop_counter
for_run         The plan that a run makes for itself, on the GPUs it finds
ledger          Live bytes of running code, counted storage by storage, on real tensors or fake ones
libraries       The libraries that short rounds take, loaded once for all forks, without those that no plan uses
measured        What a short round on fake tensors came to: bytes, FLOPs and sizes, as they are kept between starts
operator_cache  Operators on fake tensors, answered from memory once one of the same shapes has run
piece_costs     What the pieces of one way of recomputing need, as functions of their rows, from measured short rounds
plan            The plan of a recipe on a card: measured pieces, the fastest setting that fits
processes       Independent calls side by side, in forks of this process: libraries are loaded already
progress        How far planning is, on stderr: a bar on a terminal, two lines elsewhere
rank_round      What a recipe's round comes to on one rank, and at which sizes it is measured
round_cache     Measured rounds that outlast a process, one file each with the user's caches
rounds          The short rounds that a plan is made of: which there are
search          The settings of the knobs, and which of those that fit is the fastest
table           A plan as people read it
warm_up         Fills the round cache before a recipe's ranks start, so that they only choose
"""
