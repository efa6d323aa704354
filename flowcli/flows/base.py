"""Base distributions: what the latent follows. ``log_prob`` is ``(n,)`` in nats; ``sample`` draws with a generator."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Base(nn.Module, ABC):
    """A density over ``features`` independent-by-default latent columns."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        # Carries the dtype and the device of a base that has no parameters.
        self.register_buffer("anchor", torch.zeros(()), persistent=False)
        self.anchor: Tensor

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density ``(n,)`` of latent rows ``(n, features)``."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """``n`` latent rows; spread about the centre is multiplied by ``temperature`` (Glow, section 6)."""

    def _uniform(self, n: int, generator: torch.Generator | None) -> Tensor:
        """``(n, features)`` float64 draws from the open interval (0, 1): float32 would draw 0 once in 16 million."""
        u = torch.rand(n, self.features, generator=generator, dtype=torch.float64, device=self.anchor.device)
        return u.clamp(min=2.0**-54)

    def _normal(self, n: int, generator: torch.Generator | None) -> Tensor:
        return torch.randn(n, self.features, generator=generator, dtype=self.anchor.dtype, device=self.anchor.device)


class Gaussian(Base):
    """The standard Gaussian."""

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * z.square().sum(-1) - self.features * HALF_LOG_2PI

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        return temperature * self._normal(n, generator)


class Uniform(Base):
    """The unit cube seen through a logit, because the layers before it map to the whole space.

    The sigmoid that would carry z into the cube stays inside: log σ′(z) = −softplus(z) − softplus(−z) is exact for
    every z, where σ(z) itself rounds to 0 or 1 in the tails and could not be inverted.
    """

    def log_prob(self, z: Tensor) -> Tensor:
        return -(F.softplus(z) + F.softplus(-z)).sum(-1)

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        return temperature * torch.logit(self._uniform(n, generator)).to(self.anchor.dtype)


class StudentT(Base):
    """Independent Student-t columns with learned degrees of freedom ν = 1 + softplus(·), 10 at the start.

    ν > 1 keeps the mean finite. Tails fall as |z|^−(ν+1), so the flow need not stretch them itself.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.raw = nn.Parameter(torch.full((features,), math.log(math.expm1(9.0))))

    def degrees_of_freedom(self) -> Tensor:
        """ν ``(features,)``."""
        return 1 + F.softplus(self.raw)

    def log_prob(self, z: Tensor) -> Tensor:
        nu = self.degrees_of_freedom()
        constant = torch.lgamma((nu + 1) / 2) - torch.lgamma(nu / 2) - 0.5 * torch.log(nu * math.pi)
        # log(1 + z²/ν) as 2·log hypot(1, z/√ν): the square of a large z never overflows.
        log_tail = 2 * torch.hypot(torch.ones_like(z), z / nu.sqrt()).log()
        return (constant - 0.5 * (nu + 1) * log_tail).sum(-1)

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        # Bailey 1994: √(ν (u^(−2/ν) − 1)) · cos 2πv is exactly t with ν degrees of freedom. It needs only uniforms,
        # which a generator can seed; expm1 keeps the radius exact near u = 1.
        nu = self.degrees_of_freedom().double()
        u, v = self._uniform(n, generator), self._uniform(n, generator)
        radius = (nu * torch.expm1(-2 / nu * u.log())).sqrt()
        return temperature * (radius * torch.cos(2 * math.pi * v)).to(self.anchor.dtype)


class Mixture(Base):
    """A learned mixture of ``components`` diagonal Gaussians, started as a cloud about the standard one."""

    def __init__(self, features: int, components: int = 8) -> None:
        super().__init__(features)
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(0.5 * torch.randn(components, features))
        self.raw_scales = nn.Parameter(torch.zeros(components, features))

    def log_scales(self) -> Tensor:
        """log σ ``(components, features)``, bounded to ±5 by a tanh so that no component can collapse on a row."""
        return 5 * torch.tanh(self.raw_scales / 5)

    def log_prob(self, z: Tensor) -> Tensor:
        log_scales = self.log_scales()
        standard = (z[:, None] - self.means) * torch.exp(-log_scales)
        log_component = (-0.5 * standard.square() - log_scales).sum(-1) - self.features * HALF_LOG_2PI
        return torch.logsumexp(F.log_softmax(self.logits, 0) + log_component, -1)

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        picked = torch.multinomial(F.softmax(self.logits, 0), n, replacement=True, generator=generator)
        return self.means[picked] + temperature * self.log_scales()[picked].exp() * self._normal(n, generator)


class Product(Base):
    """The standard Gaussian on the first ``discrete`` columns, the latents of :class:`Levels`; ``rest`` on the others.

    The temperature is the others' alone: a discrete column's latent is Φ⁻¹ of a place among its cells, and drawing it
    nearer to 0 would favour the cells in the middle of an order that may mean nothing.
    """

    def __init__(self, discrete: int, rest: Base) -> None:
        super().__init__(discrete + rest.features)
        self.discrete, self.rest = Gaussian(discrete), rest

    def log_prob(self, z: Tensor) -> Tensor:
        discrete, rest = z.split([self.discrete.features, self.rest.features], 1)
        log_prob: Tensor = self.discrete.log_prob(discrete) + self.rest.log_prob(rest)
        return log_prob

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        return torch.cat([self.discrete.sample(n, generator), self.rest.sample(n, generator, temperature)], 1)


BASES: dict[str, type[Base]] = {"gaussian": Gaussian, "uniform": Uniform, "student_t": StudentT, "mixture": Mixture}
