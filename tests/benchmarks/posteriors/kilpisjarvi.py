"""Linear regression of summer temperatures on the year, which is not centred."""

import torch
from torch.distributions import Normal

PARAMETERS = {"alpha": "real", "beta": "real", "sigma": "positive"}


def log_density(parameters, data):
    x, y = torch.tensor(data["x"]).double(), torch.tensor(data["y"])
    alpha, beta, sigma = parameters["alpha"], parameters["beta"], parameters["sigma"]
    prior = Normal(data["pmualpha"], data["psalpha"]).log_prob(alpha)
    prior = prior + Normal(data["pmubeta"], data["psbeta"]).log_prob(beta)
    return prior + Normal(alpha[:, None] + beta[:, None] * x, sigma[:, None]).log_prob(y).sum(1)
