"""Linear regression of log earnings on height and sex, with their interaction."""

import torch
from torch.distributions import Normal

PARAMETERS = {"beta": {"shape": [4]}, "sigma": "positive"}


def log_density(parameters, data):
    earn, height, male = (torch.tensor(data[name]).double() for name in ("earn", "height", "male"))
    design = torch.stack([torch.ones(len(male)), height, male, height * male])
    beta, sigma = parameters["beta"], parameters["sigma"]
    return Normal(beta @ design, sigma[:, None]).log_prob(earn.log()).sum(1)
