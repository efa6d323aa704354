"""Eight schools, non-centred: theta = mu + tau * theta_tilde."""

import torch
from torch.distributions import HalfCauchy, Normal

PARAMETERS = {"theta_tilde": {"shape": [8]}, "mu": "real", "tau": "positive"}


def log_density(parameters, data):
    y, sigma = torch.tensor(data["y"]), torch.tensor(data["sigma"])
    tilde, mu, tau = parameters["theta_tilde"], parameters["mu"], parameters["tau"]
    theta = mu[:, None] + tau[:, None] * tilde
    prior = Normal(0, 1).log_prob(tilde).sum(1) + Normal(0, 5).log_prob(mu) + HalfCauchy(5.0).log_prob(tau)
    return prior + Normal(theta, sigma).log_prob(y).sum(1)


def reported(parameters):
    """What the reference draws hold."""
    mu, tau = parameters["mu"], parameters["tau"]
    return {"theta": mu[:, None] + tau[:, None] * parameters["theta_tilde"], "mu": mu, "tau": tau}
