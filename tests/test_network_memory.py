"""Activation checkpointing and channels-last order change no number."""

import copy

import pytest
import torch
from test_networks import FAMILIES, inputs, small
from torch import Tensor

from warm_lightning.networks import DDPM, Network


def step(network: Network, given: dict[str, Tensor], seed: int = 3) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss and gradients of a training step, and the bytes that its forward pass keeps for the backward one."""
    network.zero_grad()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(seed)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(**given).square().mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in network.named_parameters()}, sum(kept.values())


def twins(family: type[Network], **changes: object) -> tuple[Network, Network]:
    """A network in training mode, without and with activation checkpointing."""
    plain = small(family, dropout=0.1, **changes).train()
    saving = small(family, dropout=0.1, activation_checkpointing=True, **changes).train()
    saving.load_state_dict(plain.state_dict())
    return plain, saving


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_gives_the_same_bits_for_less_memory(family):
    plain, saving = twins(family, num_blocks=3)
    loss, gradients, kept = step(plain, inputs())
    saved_loss, saved_gradients, saved_kept = step(saving, inputs())
    assert torch.equal(saved_loss, loss)
    for name, gradient in gradients.items():
        assert torch.equal(saved_gradients[name], gradient), name
    other, _, _ = step(plain, inputs(), seed=4)
    assert other != loss  # dropout is at work
    # What lies between two blocks is a fraction of what is inside them; weights are kept either way.
    weights = sum(p.untyped_storage().nbytes() for p in plain.parameters())
    assert saved_kept - weights < 0.4 * (kept - weights)


def test_activation_checkpointing_leaves_the_global_generator_where_it_was():
    """Dropout of the next step does not depend on whether this one drew its own twice."""
    states = []
    for network in twins(FAMILIES[0]):
        step(network, inputs())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_activation_checkpointing_compiles():
    """Without a graph break; without dropout, which compiled code draws from another stream."""
    _, saving = twins(DDPM)
    saving.eval()
    compiled = torch.compile(copy.deepcopy(saving), backend="aot_eager", fullgraph=True)
    loss, gradients, _ = step(saving, inputs())
    compiled_loss, compiled_gradients, _ = step(compiled, inputs())
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-4, atol=0)
    scale = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled_gradients["_orig_mod." + name], gradient, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_channels_last_trains_alike(family, checkpointing):
    """Compared without dropout, whose masks follow the order in memory; with it, one seed is one result."""
    plain = twins(family)[checkpointing].double().eval()
    given = inputs(torch.float64)
    loss, gradients, _ = step(plain, given)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    given["x"] = given["x"].contiguous(memory_format=torch.channels_last)
    other_loss, other_gradients, _ = step(last, given)
    torch.testing.assert_close(other_loss, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-7, atol=1e-9, msg=name)
    last.train()
    first, _, _ = step(last, given)
    again, _, _ = step(last, given)
    assert torch.equal(first, again)
    assert first != loss
