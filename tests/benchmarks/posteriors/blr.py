"""Bayesian linear regression."""

import torch
from torch.distributions import HalfNormal, Normal

PARAMETERS = {"beta": {"shape": [5]}, "sigma": "positive"}


def log_density(parameters, data):
    x, y = torch.tensor(data["X"]), torch.tensor(data["y"])
    beta, sigma = parameters["beta"], parameters["sigma"]
    prior = Normal(0, 10).log_prob(beta).sum(1) + HalfNormal(10.0).log_prob(sigma)
    return prior + Normal(beta @ x.T, sigma[:, None]).log_prob(y).sum(1)
