"""All parameters of a module as one vector."""

from __future__ import annotations

import copy

import torch
from torch import nn

from flowcli.training.vector import as_vector, with_gradient


def some() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5, 7))
    net.empty = nn.Parameter(torch.empty(4, 0))
    return net.to(memory_format=torch.channels_last)


def test_parameters_keep_their_values_layout_and_gradients() -> None:
    plain, net, x = some(), some(), torch.randn(2, 3, 3, 3)
    vector = as_vector(net)
    with_gradient(net, vector)
    plain(x).square().sum().backward()
    net(x).square().sum().backward()
    for a, b in zip(plain.parameters(), net.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
        assert torch.equal(torch.zeros_like(a) if a.grad is None else a.grad, b.grad)
    assert vector.grad.norm().isclose(
        torch.nn.utils.get_total_norm([p.grad for p in plain.parameters() if p.grad is not None])
    )


def test_what_is_done_to_the_vector_is_done_to_the_parameters() -> None:
    net = some()
    vector, before = as_vector(net), [p.detach().clone() for p in net.parameters()]
    with_gradient(net, vector)
    with torch.no_grad():
        vector.mul_(2)
        vector.grad.fill_(3)
    assert all(torch.equal(2 * a, b) and (b.grad == 3).all() for a, b in zip(before, net.parameters(), strict=True))
    net.load_state_dict(some().state_dict())
    twin = copy.deepcopy(net)
    with torch.no_grad():
        vector.zero_()
    assert not any(p.any() for p in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, twin.parameters(), strict=True))
