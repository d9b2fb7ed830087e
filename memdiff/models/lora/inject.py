"""LoRA through peft: injected into a network in place, switched, saved, mixed, merged for export.

UNet2DModel has no PEFT mixin, so adapters are injected with `peft.inject_adapter_in_model` (peft 0.21). A network may
hold several: the trained one is `default`, those attached for sampling have names of their own. Each layer adds
scaling B A x of every active one, so that

    W x -> (W + sum_i scale w_i alpha_i / r_i B_i A_i) x

is exact in dW: a scale c multiplies dW by c, where scaling both factors would give c^2, and mixing the factors of two
adapters separately would add the cross terms B_1 A_2.
"""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.utils import set_peft_model_state_dict
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from memdiff.errors import ConfigError
from memdiff.models.config import CONVOLUTION_TARGETS, AdapterConfig
from memdiff.models.lora.files import (
    Factors,
    StepWindow,
    StoredAdapter,
    read_adapter,
    write_diffusers,
    write_peft,
)
from memdiff.runtime.state_dicts import refuse_other_weights

TRAINED = "default"  # peft's own name for the first adapter
START = "start"  # a frozen copy of what the trained one started from

Network = TypeVar("Network", bound=torch.nn.Module)
Steps = tuple[int, int]  # start, end: as a range


def inject(network: torch.nn.Module, adapter: AdapterConfig, *, keep_start: bool = False) -> None:
    """Adds trainable B A to the layers that `adapter` names, or to those of the file that it goes on from.

    A new B starts at zero; the random start of A is a function of the layer's own shape and torch's generator, so
    callers seed it. `keep_start` keeps what a file holds beside it, frozen and off.
    Raises ConfigError where a target names no layer, listing those there are, and where the file does not fit.
    """
    if adapter.path is not None:
        _go_on_from(network, Path(adapter.path), adapter, keep_start=keep_start)
    else:
        _inject_new(network, adapter)
    _freeze_all_but_lora(network)
    set_active(network, [TRAINED])


def _inject_new(network: torch.nn.Module, adapter: AdapterConfig) -> None:
    adaptable = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    for target in _targets(adapter):
        if not any(name == target or name.endswith(f".{target}") for name in adaptable):
            endings = sorted(
                {
                    name.split(".")[-1] if not name[-1].isdigit() else ".".join(name.split(".")[-2:])
                    for name in adaptable
                }
            )
            raise ConfigError(f"adapter.targets: no layer is named {target}; there are {', '.join(endings)}")
    # use_rslora stays off: dW = alpha / rank * B A, as everywhere else.
    config = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha if adapter.alpha is not None else adapter.rank,  # pyright: ignore[reportArgumentType]
        target_modules=_targets(adapter),
        lora_dropout=0.0,
        bias="none",
    )
    peft.inject_adapter_in_model(config, network, adapter_name=TRAINED)


def _go_on_from(network: torch.nn.Module, path: Path, adapter: AdapterConfig, *, keep_start: bool) -> None:
    """The file's layers at its dW, at the scaling that `adapter.alpha` says: None is 1, as for a new adapter."""
    with unset_fake_temporarily():  # a plan needs its layers and ranks
        stored = read_adapter(path, getattr(network, "config", None))
        layers = {}
        for name, factors in stored.layers.items():
            scaling = 1.0 if adapter.alpha is None else adapter.alpha / len(factors.a)
            same = factors.scaling == scaling
            layers[name] = Factors(factors.a, factors.b if same else factors.b * (factors.scaling / scaling), scaling)
    window, planned = stored.window, isinstance(next(network.parameters()), FakeTensor)  # a plan asks for no window
    if window is not None and adapter.steps is None and not planned:
        raise ConfigError(
            f"{stored.file} acts in steps {window.start}:{window.end} of {window.of}; say in which it is to act here: "
            f"adapter.steps, such as [{window.start}, {window.end}]"
        )
    _check_fits(network, stored)
    _add(network, layers, TRAINED, 1.0, alpha=adapter.alpha)
    if keep_start:
        _add(network, layers, START, 1.0)


def set_active(network: torch.nn.Module, names: Sequence[str]) -> None:
    """Which adapters take part from now on, added up in this order; none: the base, bit for bit. Host work only.

    Graphs that exist keep the adapters they were made with. peft's own `enable_adapters` also changes requires_grad,
    and would leave a trained adapter without its gradient; so what it sets is set here (peft 0.21).
    """
    for module in network.modules():
        if isinstance(module, LoraLayer):
            module._active_adapter = list(names)
            module._disable_adapters = not names


def save(
    network: torch.nn.Module,
    adapter: AdapterConfig,
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    *,
    chain_steps: int,
) -> None:
    """A PEFT folder of the trained adapter: adapter_config.json (rank, alpha, targets) and safetensors.

    `weights` are named as the network's parameters. `chain_steps`: length of the chain that `adapter.steps` counts in.
    Raises NumericError rather than write weights that are not finite; of an adapter that is zero it says so.
    """
    write_peft(folder, weights, _config(network), _window(adapter, chain_steps))


def save_for_diffusers(
    network: torch.nn.Module,
    adapter: AdapterConfig,
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    *,
    chain_steps: int,
) -> None:
    """pytorch_lora_weights.safetensors, which a pipeline's `load_lora_weights` loads at the same strength.

    Beside it lies the same by kohya's key names, which ComfyUI and A1111 read.

    Everything else as for `save`.
    """
    write_diffusers(folder, weights, _config(network), _window(adapter, chain_steps))


def attach(
    network: torch.nn.Module,
    sources: Sequence[tuple[Path, float]],
    *,
    scale: float = 1.0,
    steps: Steps | None = None,
    chain_steps: int | None = None,
) -> dict[str, Steps | None]:
    """Adds saved adapters, each with a weight, and makes them active: dW = scale sum_i w_i dW_i.

    Returns, for each, its name and the steps of the chain in which it acts (None: all): `steps`, or what it was saved
    with. An adapter of weight 0 is left out, so that the network stays as it was, bit for bit.

    Raises ConfigError where one does not fit the network, or was saved for steps of a chain that is not `chain_steps`
    long.
    """
    attached: dict[str, Steps | None] = {}
    for number, (path, weight) in enumerate(sources):
        stored = read_adapter(path, getattr(network, "config", None))
        _check_fits(network, stored)
        if scale * weight == 0:
            continue
        name = f"attached_{number}"
        _add(network, stored.layers, name, scale * weight)
        attached[name] = steps or _steps_of(stored, chain_steps)
    set_active(network, list(attached))
    # As under training: how a product without a bias rounds depends on requires_grad (ATen's should_fold).
    _freeze_all_but_lora(network)
    return attached


def merged(network: Network) -> Network:
    """The network with W + dW of its active adapters in place of every adapted layer. Changes `network`."""
    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent = network.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    return network


def _freeze_all_but_lora(network: torch.nn.Module) -> None:
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name and f".{START}." not in name)


def _targets(adapter: AdapterConfig) -> list[str]:
    return [*adapter.targets, *(CONVOLUTION_TARGETS if adapter.convolutions else ())]


def _config(network: torch.nn.Module) -> peft.LoraConfig:
    configs: Any = network.peft_config
    return configs[TRAINED]


def _window(adapter: AdapterConfig, chain_steps: int) -> StepWindow | None:
    return None if adapter.steps is None else StepWindow(*adapter.steps, of=chain_steps)


def _steps_of(stored: StoredAdapter, chain_steps: int | None) -> Steps | None:
    window = stored.window
    if window is None:
        return None
    if chain_steps is not None and chain_steps != window.of:
        raise ConfigError(
            f"{stored.file} acts in steps {window.start}:{window.end} of {window.of}, and this chain has "
            f"{chain_steps}; say in which of those with --adapter-steps START:END"
        )
    return window.start, window.end


def _check_fits(network: torch.nn.Module, stored: StoredAdapter) -> None:
    modules = dict(network.named_modules())
    for name, factors in stored.layers.items():
        module = modules.get(name)
        layer = module.get_base_layer() if isinstance(module, LoraLayer) else module
        if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            raise ConfigError(f"{stored.file} belongs to another network: this one has no layer {name}")
        here, there = tuple(layer.weight.shape), (factors.b.shape[0], *factors.a.shape[1:])
        if here != there:
            raise ConfigError(f"{stored.file} belongs to another network: {name} is {here} here and {there} there")
    targeted = [
        name
        for name, module in modules.items()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | LoraLayer)
        and any(name == target or name.endswith(f".{target}") for target in stored.targets)
    ]
    missing = [f"{name}.lora_A.weight" for name in targeted if name not in stored.layers]
    refuse_other_weights(str(stored.file), "the adapter that its config describes", missing=missing)


def _add(
    network: torch.nn.Module, layers: Mapping[str, Factors], name: str, weight: float, *, alpha: float | None = None
) -> None:
    """One more adapter, with every layer's own rank and scaling. `alpha` is what its config says, None: its ranks."""
    modules, state = dict(network.named_modules()), {}
    fake = isinstance(next(network.parameters()), FakeTensor)
    for layer, factors in () if fake else layers.items():
        module = modules[layer]
        base: Any = module.get_base_layer() if isinstance(module, LoraLayer) else module
        for side, factor in (("A", factors.a), ("B", factors.b)):
            state[f"{layer}.lora_{side}.weight"] = factor.to(base.weight, copy=True)  # out of the mapped file
    ranks = {layer: factors.a.shape[0] for layer, factors in layers.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {f"^{layer}": rank for layer, rank in ranks.items() if rank != common}
    config = peft.LoraConfig(
        r=common,
        lora_alpha=common if alpha is None else alpha,  # pyright: ignore[reportArgumentType]
        rank_pattern=pattern,
        alpha_pattern=dict(pattern) if alpha is None else {},
        target_modules=list(layers),
        lora_dropout=0.0,
        bias="none",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")  # several adapters are meant
        if fake:
            peft.inject_adapter_in_model(config, network, adapter_name=name)
        else:
            # On the meta device first: no random start, which would advance torch's generator.
            peft.inject_adapter_in_model(config, network, adapter_name=name, low_cpu_mem_usage=True, state_dict=state)
            set_peft_model_state_dict(network, state, adapter_name=name, low_cpu_mem_usage=True)
    for layer, factors in layers.items():
        module = network.get_submodule(layer)
        assert isinstance(module, LoraLayer)
        module.scaling[name] = weight * factors.scaling
