"""A mixture of two Gaussians whose means are in order."""

import torch
from torch.distributions import Beta, HalfNormal, Normal

PARAMETERS = {
    "mu": {"type": "ordered", "shape": [2]},
    "sigma": {"type": "positive", "shape": [2]},
    "theta": "interval(0, 1)",
}


def log_density(parameters, data):
    y, mu, sigma, theta = torch.tensor(data["y"]), parameters["mu"], parameters["sigma"], parameters["theta"]
    prior = HalfNormal(2.0).log_prob(sigma).sum(1) + Normal(0, 2).log_prob(mu).sum(1) + Beta(5.0, 5.0).log_prob(theta)
    first, second = (Normal(mu[:, i, None], sigma[:, i, None]).log_prob(y) for i in range(2))
    return prior + torch.logaddexp(theta.log()[:, None] + first, torch.log1p(-theta)[:, None] + second).sum(1)
