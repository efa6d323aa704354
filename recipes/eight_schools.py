"""What coaching did for the scores of eight schools (Rubin 1981), as log p(parameters, data)."""

import torch
from torch.distributions import HalfCauchy, Normal


def log_density(parameters, data):
    """One value for each row of the batch: mu (n,), tau (n,) and theta (n, 8) come as float64 tensors."""
    mu, tau, theta = parameters["mu"], parameters["tau"], parameters["theta"]
    effect, error = torch.tensor(data["y"]), torch.tensor(data["sigma"])
    prior = Normal(0, 5).log_prob(mu) + HalfCauchy(5.0).log_prob(tau)
    schools = Normal(mu[:, None], tau[:, None]).log_prob(theta) + Normal(theta, error).log_prob(effect)
    return prior + schools.sum(1)
