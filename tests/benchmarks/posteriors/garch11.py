"""GARCH(1, 1). alpha1 and beta1 are positive and sum to less than 1: the first two numbers of a simplex."""

import torch
from torch.distributions import Normal

PARAMETERS = {"mu": "real", "alpha0": "positive", "shares": {"type": "simplex", "shape": [3]}}


def log_density(parameters, data):
    y, mu, alpha0 = torch.tensor(data["y"]), parameters["mu"], parameters["alpha0"]
    alpha1, beta1, _ = parameters["shares"].unbind(1)
    shocks = alpha0[:, None] + alpha1[:, None] * (y[:-1] - mu[:, None]).square()
    variances = [torch.full_like(mu, data["sigma1"] ** 2)]
    for shock in shocks.unbind(1):
        variances.append(torch.addcmul(shock, beta1, variances[-1]))
    return Normal(mu[:, None], torch.stack(variances, 1).sqrt()).log_prob(y).sum(1)


def reported(parameters):
    """What the reference draws hold."""
    alpha1, beta1, _ = parameters["shares"].unbind(1)
    return {"mu": parameters["mu"], "alpha0": parameters["alpha0"], "alpha1": alpha1, "beta1": beta1}
