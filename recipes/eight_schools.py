"""What coaching did for the scores of eight schools (Rubin 1981), as log p(parameters, data).

School i's effect is theta_i = mu + tau * z_i. With z for a parameter in place of theta, the posterior is no funnel.
"""

import torch
from torch.distributions import HalfCauchy, Normal


def log_density(parameters, data):
    """One value for each row of the batch: mu (n,), tau (n,) and z (n, 8) come as float64 tensors."""
    mu, tau, z = parameters["mu"], parameters["tau"], parameters["z"]
    effect, error = torch.tensor(data["y"]), torch.tensor(data["sigma"])
    theta = mu[:, None] + tau[:, None] * z
    prior = Normal(0, 5).log_prob(mu) + HalfCauchy(5.0).log_prob(tau)
    return prior + (Normal(0, 1).log_prob(z) + Normal(theta, error).log_prob(effect)).sum(1)
