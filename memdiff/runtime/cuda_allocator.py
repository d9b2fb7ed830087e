"""How torch's CUDA allocator holds its memory: in segments that grow, unless the user has set it himself. No torch.

A segment of fixed size that a network leaves behind serves only tensors that fit into it, so that what is reserved
grows past what lives wherever networks are offloaded and come back. Segments that expand are one range of addresses,
whose pages are mapped and unmapped; the planner's allowance for fragmentation (memdiff.memory.gpus) assumes them.

torch reads its setting when CUDA starts in a process, from the first of `VARIABLES` that is set, and no other.
"""

import os
from collections.abc import Mapping, MutableMapping

# In torch's order (2.10 to 2.13). The first two are older names, of which torch warns.
VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
EXPANDABLE = "expandable_segments:True"


def use_expandable_segments(environment: MutableMapping[str, str] = os.environ) -> None:
    """For this process, or one started in `environment`, before CUDA starts. A user's own setting stays as it is."""
    if setting_of(environment) is None:
        environment["PYTORCH_ALLOC_CONF"] = EXPANDABLE


def setting_of(environment: Mapping[str, str] = os.environ) -> str | None:
    """What torch goes by, as `VARIABLE=value`; None where nothing is set, and torch's own default holds."""
    name = next((name for name in VARIABLES if name in environment), None)
    return None if name is None else f"{name}={environment[name]}"


def has_expandable_segments(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether segments expand under that setting. They do not by default, nor under `backend:cudaMallocAsync`."""
    _, _, value = (setting_of(environment) or "").partition("=")
    pairs = (option.replace(" ", "").partition(":") for option in value.split(","))
    options = {name: chosen for name, _, chosen in pairs}
    return options.get("expandable_segments") == "True" and options.get("backend", "native") == "native"
