"""The flow that a recipe asks for, for the columns that a codec found."""

from __future__ import annotations

import torch

from flowcli.data.codec import Codec
from flowcli.errors import UsageError
from flowcli.flows.flow import Flow
from flowcli.flows.levels import Cells
from flowcli.flows.nets import ConvNet
from flowcli.flows.registry import IMAGE_FLOWS, build
from flowcli.recipe import Recipe


def new_flow(recipe: Recipe, codec: Codec) -> Flow:
    """The recipe's flow, at its start, for the codec's vectors. Raises UsageError when it cannot take such images."""
    options, cells = recipe.flow.model_dump(), [Cells(*cells) for cells in codec.cells]
    try:
        flow = build(options.pop("type"), codec.features, codec.context, codec.shape, cells, codec.parents, **options)
    except ValueError as error:
        raise UsageError(f"flow: {error}.") from None
    if recipe.train.precision == "mixed":
        if not (codec.shape and recipe.flow.type in IMAGE_FLOWS):
            raise UsageError("train.precision: mixed is for realnvp and glow on images.")
        for net in flow.modules():
            if isinstance(net, ConvNet):
                net.mixed = True
    return flow.to(dtype_of(recipe))


def dtype_of(recipe: Recipe) -> torch.dtype:
    """What the flow's weights and rows are kept in."""
    return torch.float64 if recipe.train.precision == "float64" else torch.float32
