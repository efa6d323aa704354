"""Linear regression of a child's score on the mother's schooling and IQ, with their interaction."""

import torch
from torch.distributions import HalfCauchy, Normal

PARAMETERS = {"beta": {"shape": [4]}, "sigma": "positive"}


def log_density(parameters, data):
    score, hs, iq = (torch.tensor(data[name]).double() for name in ("kid_score", "mom_hs", "mom_iq"))
    design = torch.stack([torch.ones(len(hs)), hs, iq, hs * iq])
    beta, sigma = parameters["beta"], parameters["sigma"]
    return HalfCauchy(2.5).log_prob(sigma) + Normal(beta @ design, sigma[:, None]).log_prob(score).sum(1)
