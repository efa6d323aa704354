"""An autoregressive time series of order 5."""

import torch
from torch.distributions import HalfCauchy, Normal

PARAMETERS = {"alpha": "real", "beta": {"shape": [5]}, "sigma": "positive"}


def log_density(parameters, data):
    y, order = torch.tensor(data["y"]), data["K"]
    alpha, beta, sigma = parameters["alpha"], parameters["beta"], parameters["sigma"]
    before = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)])
    prior = Normal(0, 10).log_prob(alpha) + Normal(0, 10).log_prob(beta).sum(1) + HalfCauchy(2.5).log_prob(sigma)
    return prior + Normal(alpha[:, None] + beta @ before, sigma[:, None]).log_prob(y[order:]).sum(1)
