"""Networks that leave the GPU while others work.

What leaves are frozen weights, which never change: their first leaving copies them to (pinned) host memory, and every
later one only drops the copy on the device. Trained weights stay, since DeepSpeed's buffers are what they lie in.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch

from memdiff.memory.knobs import Knobs
from memdiff.models.policy import Policy
from memdiff.rewards.weighted_sum import WeightedReward
from memdiff.runtime.memory_tags import MemoryTag, memory_tag
from memdiff.runtime.placement import HOST, download, host_buffer, place, put_in_place, settle

# The host's copies of each network's frozen parameters, by name; they go when the network goes.
_on_host: "WeakKeyDictionary[torch.nn.Module, Mapping[str, torch.Tensor]]" = WeakKeyDictionary()


def offload(network: torch.nn.Module, device: torch.device) -> None:
    """Takes the frozen weights from `device` to the host. Nothing where that is the host."""
    if device == HOST:
        return
    if network not in _on_host:
        copies = {}
        for name, parameter in _frozen(network).items():
            copies[name] = host_buffer(tuple(parameter.shape), parameter.dtype, device)
            download(parameter.detach(), copies[name])
        settle(device)
        _on_host[network] = copies
    for name, parameter in _frozen(network).items():
        put_in_place(parameter, _on_host[network][name])
    give_back(device)


def give_back(device: torch.device) -> None:
    """Frees what the allocator keeps for a network that has left: it would serve only what fits."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def onload(network: torch.nn.Module, device: torch.device, category: MemoryTag) -> None:
    """Brings the frozen weights back."""
    if network not in _on_host:
        return
    with memory_tag(category):
        for parameter in _frozen(network).values():
            put_in_place(parameter, place(parameter.detach(), device))


@contextmanager
def decoding(policy: Policy, knobs: Knobs) -> Iterator[None]:
    """While it lasts images are decoded and scored: the decoder is on the device, and the UNet where `knobs` say."""
    unet, decoder = policy.networks["unet"], policy.networks.get("vae")
    if knobs.idle_unet == "host":
        offload(unet, policy.device)
    if decoder is not None and knobs.idle_decoder == "host":
        onload(decoder, policy.device, "decoder")
    try:
        yield
    finally:
        if decoder is not None and knobs.idle_decoder == "host":
            offload(decoder, policy.device)
        if knobs.idle_unet == "host":
            onload(unet, policy.device, "weights")


@contextmanager
def scoring(reward: WeightedReward, knobs: Knobs) -> Iterator[None]:
    """While it lasts the rewards are where they run; afterwards they wait where `knobs` say."""
    reward.move(reward.device)
    try:
        yield
    finally:
        if knobs.rewards == "idle_off":
            reward.move(HOST)
            give_back(reward.device)


def offload_idle(policy: Policy, reward: WeightedReward, knobs: Knobs) -> None:
    """Where things are before anything is looked at."""
    if knobs.rewards == "idle_off":
        reward.move(HOST)
        give_back(reward.device)
    decoder = policy.networks.get("vae")
    if decoder is not None and knobs.idle_decoder == "host":
        offload(decoder, policy.device)


def _frozen(network: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in network.named_parameters() if not parameter.requires_grad}
