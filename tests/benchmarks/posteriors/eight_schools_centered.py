"""Eight schools, centred: a funnel in (theta, log tau)."""

import torch
from torch.distributions import HalfCauchy, Normal

PARAMETERS = {"theta": {"shape": [8]}, "mu": "real", "tau": "positive"}


def log_density(parameters, data):
    y, sigma = torch.tensor(data["y"]), torch.tensor(data["sigma"])
    theta, mu, tau = parameters["theta"], parameters["mu"], parameters["tau"]
    prior = Normal(mu[:, None], tau[:, None]).log_prob(theta).sum(1)
    prior = prior + Normal(0, 5).log_prob(mu) + HalfCauchy(5.0).log_prob(tau)
    return prior + Normal(theta, sigma).log_prob(y).sum(1)
