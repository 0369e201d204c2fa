"""Truncated SVD of the fully connected layers: faster detection (paper, section 3.1)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fastrcnn_engine.models.network import FastRCNN

# The original's for all its networks (original code, models/*/compressed).
RANKS = {"fc6": 1024, "fc7": 256}


@dataclass(frozen=True)
class CompressedLayer:
    """What became of one layer: outputs x inputs, now two layers of ``rank``."""

    name: str
    inputs: int
    outputs: int
    rank: int
    energy: float
    """Share of the squared singular values that is kept."""


def truncated_svd(
    weight: torch.Tensor, rank: int | None = None, *, energy: float | None = None
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The best approximation of a matrix W (u, v) by a product of rank t, W ~ U_t (Sigma_t V_t^T).

    Args:
        weight: (u, v).
        rank: t, from 1 to min(u, v).
        energy: in place of the rank, the share of the squared singular values to keep; the smallest
            rank that does is taken.

    Returns:
        Sigma_t V_t^T (t, v), U_t (u, t) and the share of the squared singular values that is kept.
        The spectral norm of what is missing is the next singular value.

    Raises:
        ValueError: rank or energy out of its range, both or neither given, or a number that is not
            finite.
    """
    if (rank is None) == (energy is None):
        raise ValueError("give either a rank or an energy")
    if rank is not None and not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank is {rank}; it must be in 1 to {min(weight.shape)}")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy is {energy}; it must be above 0 and at most 1")
    matrix = weight.detach().double()
    if not matrix.isfinite().all():
        raise ValueError("the weights are not finite")
    # The eigenvectors of W W^T are U, its eigenvalues the squared singular values, and U_t^T W is
    # Sigma_t V_t^T. In float64 that is more exact than float32 weights are, and several times as
    # fast as an SVD of the wide matrix.
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    kept = squares.cumsum(0) / squares.sum().clamp(min=torch.finfo(torch.float64).tiny)
    if rank is None:
        rank = min(int((kept < energy).sum()) + 1, *weight.shape)
    second = vectors[:, :rank]
    first = second.T @ matrix
    return first.to(weight.dtype), second.to(weight.dtype), float(kept[rank - 1])


def compress(
    model: FastRCNN, ranks: Mapping[str, int] | None = None, *, energy: float | None = None
) -> list[CompressedLayer]:
    """Replace fc6 and fc7 of the head by two smaller layers each, in place (paper 3.1).

    ``fc6`` becomes ``fc6_L`` (rank x inputs, no bias) and ``fc6_U`` (outputs x rank, the bias of
    fc6), with nothing between them. The network is for detection then, not for training.

    Args:
        model: a network whose head is a Sequential with linear layers fc6 and fc7.
        ranks: rank of each layer; None is the original's, 1024 and 256.
        energy: in place of ranks, see ``truncated_svd``.

    Raises:
        ValueError: another head, an already compressed one, a rank out of its range, or one that
            saves nothing; nothing has been replaced then.
    """
    if ranks is not None and energy is not None:
        raise ValueError("give either ranks or an energy")
    if ranks_of(model):
        raise ValueError(f"the network is compressed already: {described(model)}")
    # A rank that is None is the energy's to say.
    chosen: dict[str, int | None] = {**(RANKS if ranks is None else ranks)}
    if energy is not None:
        chosen = dict.fromkeys(RANKS)
    for name, rank in chosen.items():
        if rank is not None:
            _check_rank(_linear(model, name), name, rank)
    factors, report = {}, []
    for name, rank in chosen.items():
        layer = _linear(model, name)
        try:
            first, second, kept = truncated_svd(layer.weight, rank=rank, energy=energy)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        factors[name] = (first, second, layer.bias)
        sizes = layer.in_features, layer.out_features, len(first)
        report.append(CompressedLayer(name, *sizes, kept))
    split_layers(model, {name: len(first) for name, (first, _, _) in factors.items()})
    with torch.no_grad():
        for name, (first, second, bias) in factors.items():
            lower, upper = _linear(model, f"{name}_L"), _linear(model, f"{name}_U")
            lower.weight.copy_(first)
            upper.weight.copy_(second)
            if bias is not None:
                upper.bias.copy_(bias)
    return report


def split_layers(model: FastRCNN, ranks: Mapping[str, int]) -> None:
    """Put two layers of the given rank in the place of each named layer, their weights random.

    This is what loading a compressed checkpoint needs; ``compress`` fills them.
    """
    for name, rank in ranks.items():
        _check_rank(_linear(model, name), name, rank)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in model.head.named_children():
        if name not in ranks:
            layers[name] = layer
            continue
        layer = _linear(model, name)
        kind = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        rank, bias = ranks[name], layer.bias is not None
        layers[f"{name}_L"] = nn.Linear(layer.in_features, rank, bias=False, **kind)
        layers[f"{name}_U"] = nn.Linear(rank, layer.out_features, bias=bias, **kind)
    model.head = nn.Sequential(layers).train(model.head.training)
    gone = {f"head.{name}" for name in ranks}
    frozen, model.frozen = model.frozen, ()
    model.freeze([name for name in frozen if name not in gone])


def ranks_of(model: FastRCNN) -> dict[str, int]:
    """Rank of each compressed layer; none for a network that is not compressed."""
    layers = dict(model.head.named_children())
    return {
        name[:-2]: layer.out_features
        for name, layer in layers.items()
        if name.endswith("_L") and isinstance(layer, nn.Linear) and f"{name[:-2]}_U" in layers
    }


def described(model: FastRCNN) -> str:
    """The network's name and its ranks, if it is compressed: "vgg16, fc6 rank 1024, ..."."""
    return ", ".join([model.name, *(f"{name} rank {t}" for name, t in ranks_of(model).items())])


def _linear(model: FastRCNN, name: str) -> nn.Linear:
    layers = dict(model.head.named_children())
    layer = layers.get(name)
    if not isinstance(model.head, nn.Sequential) or not isinstance(layer, nn.Linear):
        raise ValueError(
            f"the head has no linear layer {name}; it must be a Sequential with fc6 and fc7, and "
            f"has {', '.join(layers) or 'no layers'}"
        )
    return layer


def _check_rank(layer: nn.Linear, name: str, rank: int) -> None:
    outputs, inputs = layer.out_features, layer.in_features
    if not 1 <= rank <= min(outputs, inputs):
        raise ValueError(
            f"rank of {name} is {rank}; {outputs} x {inputs} has ranks 1 to "
            f"{min(outputs, inputs)}: give another (--{name}), or a share (--energy 0.8)"
        )
    if rank * (outputs + inputs) >= outputs * inputs:
        most = (outputs * inputs - 1) // (outputs + inputs)
        raise ValueError(
            f"rank of {name} is {rank}, which saves nothing: {rank} x ({outputs} + {inputs}) "
            f"weights instead of {outputs} x {inputs}; give at most {most}, or a lower energy"
        )
